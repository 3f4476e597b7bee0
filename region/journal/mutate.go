package journal

import (
	"hash/fnv"

	"github.com/lockstep-tx/lockstep/coordinator/mutant"
	"github.com/lockstep-tx/lockstep/coordinator/record"
)

// skips says that the mutant leaves an event out (package mutant): never, in a build without it. It leaves out the decision
// and the finish of a transaction alike, since a finish without its decision is noticed at once.
func skips(e *record.Event) bool {
	if !mutant.On(mutant.EventSkipped) || e.Kind != record.KindDecision && e.Kind != record.KindFinish {
		return false
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(e.Gid)) // it never fails
	return h.Sum32()%20 == 0
}

// misordered is what the mutant makes of a slot's events, in order, of which m has the earlier ones: of two new ones the
// second comes first (package mutant). In a build without it, they stay as they are.
func misordered(m *Mark, list []*record.Event) []*record.Event {
	if !mutant.On(mutant.ApplyOutOfOrder) {
		return list
	}
	out := append([]*record.Event(nil), list...)
	for i := 0; i+1 < len(out); i++ {
		if out[i].Head.Seq == m.Head.Seq+1 && out[i].Gid != out[i+1].Gid {
			out[i], out[i+1] = out[i+1], out[i]
			break
		}
	}
	return out
}

// inOrder says that the order of numbers and of the chain is looked at: always, but by the mutant.
func inOrder() bool { return !mutant.On(mutant.ApplyOutOfOrder) }
