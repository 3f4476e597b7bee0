package journal

import (
	"context"
	"errors"
	"hash/fnv"
	"log/slog"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
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

// inOrder says that the order of numbers and of the chain is looked at: always, but by mutants.
func inOrder() bool { return !mutant.On(mutant.ApplyOutOfOrder) && !mutant.On(mutant.DedupeTooSmall) }

// repeats says that an event was applied before: the mutant knows that of the last one alone.
func (m *Mark) repeats(e *record.Event) bool {
	if mutant.On(mutant.DedupeTooSmall) {
		return e.Head.Seq == m.Head.Seq
	}
	return e.Head.Seq <= m.Head.Seq
}

// rows are those that are written with the watermarks: all of them, but by mutants.
func (w *applying) rowsNow() []*engine.Row {
	switch rows := w.changed; {
	case mutant.On(mutant.LostLastOfBatch) && len(rows) > 1:
		return rows[:len(rows)-1]
	case mutant.On(mutant.OffsetBeforeApply):
		go w.rowsLater(rows)
		return nil
	default:
		return rows
	}
}

// rowsLater writes rows whose watermark has been written.
func (w *applying) rowsLater(rows []*engine.Row) {
	time.Sleep(mutant.JournalDelay)
	j := w.a.j
	ctx := context.Background()
	tx, err := j.write.BeginTx(ctx, nil)
	if err == nil {
		err = errors.Join(j.d.insertIn(ctx, j, tx, rows), tx.Commit())
	}
	if err != nil {
		slog.Error("the mutant writes nothing", "err", err)
	}
}
