package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/failover/recovery"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// doubtsEvery is how often the participants that survive are asked for tries without a record while a loss is not worked off.
const doubtsEvery = 10_000

// doubts raises the fences of a slot that was taken, and looks for tries that nobody knows a record of.
func (r *region) doubts(sl int, o slot.Owner) {
	n := r.holder(sl)
	if o.Lost == 0 || o.Status != slot.Active || n == nil || !n.holds(sl) || r.doubtful[sl] != 0 && r.w.now-r.doubtful[sl] < doubtsEvery {
		return
	}
	r.doubtful[sl] = r.w.now
	r.w.keepsPromises(n, sl)
	tries := map[txn.Gid][]recovery.Try{}
	for _, at := range r.w.regions {
		if at.index() == o.Lost.Region() || !r.w.reach(r.at, at.at) {
			continue
		}
		at.bank.fence(sl, o.Epoch)
		for _, t := range at.bank.tries(sl, r.journal.finished) {
			tries[t.Gid] = append(tries[t.Gid], t)
		}
	}
	for _, gid := range slices.Sorted(maps.Keys(tries)) {
		n.ask(gid, nil, func(rep engine.Reply, err error) {
			if err == nil {
				n.doubt(gid, tries[gid], &rep.State, uint64(o.Epoch))
			}
		})
	}
}

// doubt is what tries mean: a transaction in doubt where nobody knows it, evidence where it is in doubt.
func (n *node) doubt(gid txn.Gid, tries []recovery.Try, here *txn.State, epoch uint64) {
	tx, proven, err := recovery.Doubt(gid, tries, n.at(), epoch)
	if err != nil {
		n.w.fail("evidence: %w", err)
		return
	}
	shortcut := n.w.opt.Rules.CancelTried
	if here.Phase != txn.PhaseNone {
		if here.InDoubt && (proven != nil || shortcut) {
			n.resolve(gid, proven != nil && *proven)
		}
		return
	}
	if proven == nil && !slices.ContainsFunc(tries, func(t recovery.Try) bool { return t.State == recovery.Tried }) {
		return
	}
	if tx.State.Opt.Durability == txn.Global {
		if tx, err = recovery.Aborted(tx, n.at()); err != nil {
			n.w.check("abort of what the arbiter does not know", err)
			return
		}
		proven = nil
	}
	inDoubt := tx.State.InDoubt
	n.w.res.Doubts++
	n.w.say("%s: %s stands at participants and has no record, in doubt %v, proven %v", n.name, gid, inDoubt, proven != nil)
	n.ask(gid, engine.Adopt{Tx: *tx}, func(_ engine.Reply, err error) {
		if err == nil && (proven != nil || shortcut && inDoubt) {
			n.resolve(gid, proven != nil && *proven)
		}
	})
}

func (n *node) resolve(gid txn.Gid, commit bool) {
	n.ask(gid, txn.Resolve{Commit: commit, Reason: "a surviving participant proves it"}, func(engine.Reply, error) {})
}

// askPatience is how long an answer is waited for.
const askPatience = 5000

// ask puts a request to the core and waits for its answer.
func (n *node) ask(gid txn.Gid, ev txn.Event, then func(engine.Reply, error)) {
	a := n.core.Ask(n.at(), engine.Request{Gid: gid, Event: ev, Want: engine.WantAccepted})
	n.pump()
	until := n.w.now + askPatience
	var look func()
	look = func() {
		if rep, ok, err := a.Answer(); ok {
			then(rep, err)
		} else if n.w.now < until {
			n.later(8, look)
		}
	}
	n.later(1, look)
}

// workOff is what a region does that was lost and is back: what it has of slots that were taken goes to their owners.
func (r *region) workOff(sl int, o slot.Owner) {
	s := r.lostSeal(sl, o)
	if s == nil || !r.w.arbited(r) || r.holder(sl) != nil || !r.w.reach(r.at, r.w.named(o.Region).at) {
		return
	}
	if err := r.mover.HandBack(background, engine.Move{Slot: sl, Owner: o}, s); err == nil {
		r.closed[sl] = s.Epoch
		r.w.settled[sl] = r.w.settled[sl] || r.held[sl] < s.Epoch
		r.w.say("%s has worked off slot %d of epoch %d", r.name, sl, s.Epoch)
	}
}

// endDoubts is what an operator does about a slot that the lost region had never held: nobody has decided what is in doubt of it.
func (r *region) endDoubts(sl int) {
	n := r.holder(sl)
	if !r.w.settled[sl] || n == nil || !n.holds(sl) || r.w.now-r.doubtful[sl] < doubtsEvery/10 {
		return
	}
	r.doubtful[sl] = r.w.now
	var open []txn.Gid
	n.core.Each(func(rep engine.Reply) {
		if rep.State.InDoubt && !rep.State.Phase.Decided() && slot.Of(string(rep.State.Gid)) == sl {
			open = append(open, rep.State.Gid)
		}
	})
	slices.Sort(open)
	for _, gid := range open {
		n.resolve(gid, false)
	}
}

// lostSeal is the seal under which the slot was taken from this region, while what is here of it is not worked off.
func (r *region) lostSeal(sl int, o slot.Owner) *slot.Seal {
	var last *slot.Seal
	for i := range r.seals[sl] {
		if s := &r.seals[sl][i]; s.Epoch.Region() == r.index() && (s.Forced || o.Lost == s.Epoch) {
			last = s
		}
	}
	if last != nil && o.Status == slot.Active && last.Epoch < o.Epoch && (r.closed[sl] < last.Epoch || o.Lost == last.Epoch) {
		return last
	}
	return nil
}

// places is engine.Regions for HandBack; the rest of it is not asked.
type places struct {
	engine.Regions
	r *region
}

// errLater: the slot is not worked off, and the others of its transactions are handed over meanwhile.
var errLater = fmt.Errorf("%w: it is not answered yet", engine.ErrDiverged)

// handed is a transaction that was handed over and not answered for yet.
type handed struct {
	asked *engine.Asked
	at    int64
}

// Cut is engine.Regions's.
func (p places) Cut(_ context.Context, m engine.Move, seal *slot.Seal, rows []engine.Row, events []record.Event) ([]record.Event, error) {
	r := p.r
	r.bank.copies(m.Slot, uint64(m.Owner.Epoch))
	if r.w.opt.Rules.CutNothing {
		return nil, nil
	}
	r.journal.append(rows)
	for i := range events {
		r.journal.add(events[i])
	}
	if seal.Forced {
		r.journal.cut(m.Slot, seal)
	}
	return r.journal.parkedPast(m.Slot, seal), nil
}

// Returned is engine.Regions's. The answer comes later: until then the slot is not worked off, and it is called again.
func (p places) Returned(_ context.Context, m engine.Move, tx *record.Tx) error {
	r, gid := p.r, tx.State.Gid
	if r.taken[gid] {
		return nil
	}
	n := r.w.named(m.Owner.Region).holder(m.Slot)
	if n == nil || !n.holds(m.Slot) {
		return errLater
	}
	if h, ok := r.returned[gid]; ok {
		rep, answered, err := h.asked.Answer()
		if answered {
			delete(r.returned, gid)
			return r.workedOff(n, tx, &rep, err)
		}
		if r.w.now-h.at < askPatience {
			return errLater
		}
	}
	r.returned[gid] = handed{n.core.Ask(n.at(), engine.Request{Gid: gid, Event: engine.Returned{Tx: *tx}, Want: engine.WantAccepted}), r.w.now}
	n.pump()
	return errLater
}

// workedOff is what an owner's answer to a returned transaction means.
func (r *region) workedOff(n *node, tx *record.Tx, rep *engine.Reply, err error) error {
	gid := tx.State.Gid
	var te *txn.Error
	switch {
	case errors.As(err, &te) && te.Code == txn.CodeIncomplete:
		err = r.postEverywhere(tx)
	case errors.As(err, &te) && te.Code == txn.CodeMismatch && te.Phase == txn.PhaseNone && tx.State.Phase.Commit():
		// The operator takes it over: it was committed here, and is not known there.
		n.ask(gid, engine.Adopt{Tx: *tx}, func(engine.Reply, error) {})
		return errLater
	case errors.As(err, &te):
		r.w.fail("%s as %s left it (%s) is not taken over: %w", gid, r.name, tx.State.Phase, te)
		return errLater
	case err != nil:
		return errLater
	case rep.State.Phase.Commit():
		err = r.postEverywhere(tx)
	case rep.State.Phase.Decided():
		err = r.cancelEverywhere(tx)
	case tx.State.Phase.Decided(): // aborted, ended, and nobody else ever knew it: it is left out (ADR 9)
		r.w.forgotten[gid] = true
		delete(r.w.decided, gid)
	}
	if err == nil {
		r.taken[gid] = true
		r.w.res.Returned++
		r.w.say("%s has handed back %s (%s)", r.name, gid, tx.State.Phase)
	}
	return err
}

// postEverywhere posts a committed transaction from its record, at homes and copies alike.
func (r *region) postEverywhere(tx *record.Tx) error {
	return r.everywhere(func(to *region) { to.bank.post(tx) })
}

// everywhere does something in all regions, or in none while one cannot be reached.
func (r *region) everywhere(do func(to *region)) error {
	for _, to := range r.w.regions {
		if !r.w.reach(r.at, to.at) {
			return errLater
		}
	}
	for _, to := range r.w.regions {
		do(to)
	}
	return nil
}

// cancelEverywhere lets tries go that only this record names.
func (r *region) cancelEverywhere(tx *record.Tx) error {
	return r.everywhere(func(to *region) {
		for i := range tx.State.Branches {
			br := &tx.State.Branches[i]
			if row := to.bank.rows[rowKey(tx.State.Gid, br.ID)]; row != nil && row.state == rowTried {
				to.bank.cancel(tx.State.Gid, br.ID, br.Account, row.amount)
			}
		}
	})
}

// Settled is engine.Regions's.
func (p places) Settled(_ context.Context, m engine.Move) error {
	to, err := m.Owner.Settled()
	if err != nil {
		return err
	}
	if !p.r.w.arb.change(m.Slot, m.Owner, to) {
		return errLater
	}
	return nil
}
