package sim

import (
	"fmt"
	"slices"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/failover"
	"github.com/lockstep-tx/lockstep/region/failover/conduct"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// arbiter keeps owners, seals and global decisions. It never fails: who does not reach it is cut.
type arbiter struct {
	owners    [slotsInPlay]slot.Owner
	seals     [slotsInPlay][]slot.Seal // oldest first
	decisions map[txn.Gid][]byte
}

// change is compare-and-set of a slot's owner.
func (a *arbiter) change(n int, from, to slot.Owner) bool {
	if !a.owners[n].Equal(from) {
		return false
	}
	a.owners[n] = to
	if s := to.Seal; s != nil && (to.Epoch != from.Epoch && s.Epoch == from.Epoch || to.Status == slot.Taken && (len(a.seals[n]) == 0 || a.seals[n][len(a.seals[n])-1] != *s)) {
		a.seals[n] = append(a.seals[n], *s)
	}
	return true
}

// decide writes a decision if none stands and the slot's epoch still holds, and gives the one that stands.
func (a *arbiter) decide(d engine.Deciding) ([]byte, error) {
	if d.Generation != 0 || uint64(a.owners[d.Slot].Epoch) != d.Epoch {
		return nil, engine.ErrOutdated
	}
	if a.decisions[d.Gid] == nil {
		a.decisions[d.Gid] = d.Body
	}
	return a.decisions[d.Gid], nil
}

// operator works at one operation at a time, as failover.Next says.
type operator struct {
	wanted []Fault
	run    failover.Run
	begun  int
	owners slot.Map
}

// operate takes one step.
func (w *World) operate() {
	op := &w.oper
	if op.begun == 0 || op.run.Status.Ended() {
		w.nextOperation()
		return
	}
	lost := slices.ContainsFunc(op.wanted, func(f Fault) bool { return f.Kind == Lose })
	if lost && op.run.Plan.Kind != failover.Forced && op.run.Status != failover.Aborting {
		op.run.Status, op.run.Failure = failover.Aborting, "a region is lost"
	}
	copy(op.owners[:], w.arb.owners[:])
	_, to := op.run.Direction()
	target := w.named(to)
	s := failover.Next(op.run, failover.Observed{
		AtMillis: w.now, Owners: &op.owners,
		Reached: func(n int) bool {
			if op.run.Plan.Kind == failover.Forced && w.opt.Rules.ServeEarly {
				return true
			}
			return w.arbited(target) && target.journal.reached(n, w.arb.owners[n].Seal)
		},
		Serves: func(n int) bool {
			h := target.holder(n)
			return h != nil && h.holds(n) && h.epochs[n] == uint64(w.arb.owners[n].Epoch)
		},
	})
	op.run = s.Run
	if s.Act != failover.Wait {
		w.say("operator: %s slots %v (%s)", s.Act, s.Slots, s.Why)
		w.perform(s, target)
	}
}

// nextOperation begins what the script asks for next; what makes no sense any more is left out.
func (w *World) nextOperation() {
	op := &w.oper
	if len(op.wanted) == 0 {
		return
	}
	// A loss goes before what was planned.
	i := 0
	for k, f := range op.wanted {
		if f.Kind == Lose {
			i = k
		}
	}
	f := op.wanted[i]
	op.wanted = append(op.wanted[:i:i], op.wanted[i+1:]...)
	p := failover.Plan{To: w.regions[f.To].name, Batch: 2, DeadlineMillis: 4000, Who: "sim"}
	if f.Kind == Lose {
		p.Kind, p.From = failover.Forced, w.regions[f.Region].name
		p.Loss = &failover.Loss{Evidence: failover.MaySpend, Risk: slot.Risk{Policy: slot.Block}}
		for n := range slotsInPlay {
			if o := w.arb.owners[n]; o.Region == p.From {
				p.Slots, p.Loss.Epochs = append(p.Slots, n), append(p.Loss.Epochs, o.Epoch)
			}
		}
	} else {
		o := w.arb.owners[f.Slot]
		if o.Status != slot.Active || o.Lost != 0 || !w.arbited(w.named(o.Region)) || !w.arbited(w.regions[f.To]) {
			return // what the preflight refuses
		}
		p.Kind, p.From, p.Slots = failover.Handover, o.Region, []int{f.Slot}
	}
	op.begun++
	p.ID = fmt.Sprintf("op%d", op.begun)
	if len(p.Slots) == 0 || p.From == p.To {
		op.run.Status = failover.Done
		return
	}
	w.check("plan", p.Check())
	op.run = failover.Run{Plan: p, Status: failover.Running, BegunMillis: w.now}
	w.say("operator: %s of slots %v from %s to %s", p.Kind, p.Slots, p.From, p.To)
}

// perform writes what a step asks for, as the conductor does.
func (w *World) perform(s failover.Step, target *region) {
	var seals map[int]*slot.Seal
	if s.Act == failover.Bind {
		if seals = w.freeze(s.Slots, target); seals == nil {
			return // the target does not answer: again
		}
	}
	for _, n := range s.Slots {
		from := w.arb.owners[n]
		var to slot.Owner
		var err error
		switch s.Act {
		case failover.Drain:
			to, err = from.Drain(target.name, s.Run.Plan.ID, millis(s.DeadlineMillis))
		case failover.Give:
			to, err = from.Give(target.index())
			w.res.Moved++
		case failover.Undo:
			to, err = from.Undo()
		case failover.Take:
			to, err = from.Take(target.name, s.Run.Plan.ID, target.index(), s.Run.Plan.Loss.Risk)
			w.res.Taken++
			w.forced[n] = true
		case failover.Bind:
			to, err = from.Bound(seals[n])
		case failover.Serve:
			to, err = from.Serve()
		case failover.Wait, failover.Save, failover.Finish:
			continue
		}
		if err != nil {
			w.fail("operator: %s slot %d: %w", s.Act, n, err)
			return
		}
		w.arb.change(n, from, to)
	}
}

// freeze stops the lost epoch in every journal that answers, and gives the highest event among them.
func (w *World) freeze(slots []int, target *region) map[int]*slot.Seal {
	if !w.arbited(target) {
		return nil
	}
	epochs := map[int]slot.Epoch{}
	marks := map[string][]conduct.Mark{}
	for _, n := range slots {
		lost := w.arb.owners[n].Lost
		epochs[n] = lost
		for _, r := range w.regions {
			if r.index() == lost.Region() || !w.arbited(r) || w.opt.Rules.SealAtTarget && r != target {
				continue
			}
			marks[r.name] = append(marks[r.name], r.journal.freeze(n, lost))
		}
		w.promise(n, lost)
	}
	seals, err := conduct.Seals(epochs, marks)
	w.check("seals", err)
	for _, n := range slots {
		if seals[n] != nil {
			w.say("slot %d is sealed by force at event %d", n, seals[n].Seq)
		}
	}
	return seals
}
