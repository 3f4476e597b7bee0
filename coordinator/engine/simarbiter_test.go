package engine_test

import (
	"slices"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// simArbiter is the arbiter of the simulation: decisions that are written once, writes that are lost, and writes that land
// long after everybody has stopped waiting for them.
type simArbiter struct {
	stands map[txn.Gid][]byte
	asked  []arbAsk
	limbo  []engine.Deciding
}

// arbAsk is a decision that a process wants to have settled.
type arbAsk struct {
	n   *node
	gen int
	d   engine.Deciding
}

// write is first-write-wins.
func (a *simArbiter) write(d engine.Deciding) []byte {
	if a.stands == nil {
		a.stands = map[txn.Gid][]byte{}
	}
	if a.stands[d.Gid] == nil {
		a.stands[d.Gid] = d.Body
	}
	return a.stands[d.Gid]
}

// arbitrate moves one decision: to the arbiter, or its answer back, or loses either.
func (s *sim) arbitrate(weather bool) {
	if weather && len(s.arb.limbo) > 0 && s.rng.IntN(4) == 0 {
		i := s.rng.IntN(len(s.arb.limbo))
		s.arb.write(s.arb.limbo[i])
		s.arb.limbo = slices.Delete(s.arb.limbo, i, i+1)
		return
	}
	if len(s.arb.asked) == 0 {
		return
	}
	i := s.rng.IntN(len(s.arb.asked))
	a := s.arb.asked[i]
	s.arb.asked = slices.Delete(s.arb.asked, i, i+1)
	fate := 9
	if weather {
		fate = s.rng.IntN(10)
	}
	if s.rules.cancelAfterDoubt && !decides(s, a.d).Commit() {
		if a.n.gen == a.gen {
			a.n.core.Arbitrated(s.at(a.n), a.d, a.d.Body)
			s.drain(a.n)
		}
		return
	}
	if fate < 3 {
		if fate == 0 {
			s.arb.limbo = append(s.arb.limbo, a.d) // it lands later, or never
		} else {
			s.arb.write(a.d)
		}
		switch {
		case a.n.gen != a.gen: // its process is dead
		case s.rules.cancelAfterDoubt:
			s.claim(a.n, a.d.Slot) // as if nothing had been decided
		default:
			s.arb.asked = append(s.arb.asked, a) // the same again, until the answer is certain
		}
		return
	}
	stands := s.arb.write(a.d)
	if a.n.gen == a.gen {
		a.n.core.Arbitrated(s.at(a.n), a.d, stands)
		s.drain(a.n)
	}
}

func decides(s *sim, d engine.Deciding) txn.Phase {
	tx, err := record.FromParts(d.Body, nil, record.Head{}, record.Head{}, 0, 0)
	s.check(err)
	if err != nil {
		return txn.PhaseNone
	}
	return tx.State.Phase
}

// auditArbiter compares what stands in the arbiter with how the transactions ended.
func (s *sim) auditArbiter(final map[txn.Gid]txn.Phase) {
	for gid, body := range s.arb.stands {
		p := decides(s, engine.Deciding{GlobalDecision: engine.GlobalDecision{Body: body}})
		if f, ok := final[gid]; ok && f.Commit() != p.Commit() {
			s.fail("%s: the arbiter has %s, and it ended as %s (G1, G2)", gid, p, f)
		}
	}
	for _, c := range s.txs {
		if f, ok := final[c.gid]; ok && c.global && f.Finished() && s.arb.stands[c.gid] == nil {
			s.fail("%s ended as %s and the arbiter has no decision (G2)", c.gid, f)
		}
	}
}
