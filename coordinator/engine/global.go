package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// This file is global durability: the decision of such a transaction is written into the arbiter first, once and for all,
// and only then into the region's store; what follows from it waits for both (G2, G4). What stands in the arbiter is the
// decision, whoever wrote it.

// Deciding is a decision on its way to the arbiter.
type Deciding struct {
	GlobalDecision
	Term Term
}

// global says that e's decision is for the arbiter and not there yet.
func (e *entry) global() bool {
	return e.tx.State.Opt.Durability == txn.Global && e.tx.State.Phase.Decided() && e.tx.Decision.Seq == 0 && !e.arbitrated
}

// arbitrate asks the arbiter for e's decision.
func (c *Core) arbitrate(e *entry) {
	hs := e.slot
	if e.asked {
		return
	}
	if hs.removing {
		hs.held = append(hs.held, e)
		return
	}
	if err := e.tx.Close(); err != nil {
		panic(fmt.Sprintf("encode %q: %v", e.tx.State.Gid, err)) // our own state: a bug, not input
	}
	e.asked = true
	hs.deciding++
	c.out.Decisions = append(c.out.Decisions, Deciding{Term: hs.term, GlobalDecision: GlobalDecision{
		Slot: hs.n, Gid: e.tx.State.Gid, Epoch: hs.epoch, Generation: hs.generation, Body: e.tx.Closed,
	}})
}

// Arbitrated takes the decision that stands in the arbiter.
func (c *Core) Arbitrated(at int64, d Deciding, stands []byte) {
	hs := c.slots[d.Slot]
	if hs == nil || !hs.ready || hs.term != d.Term {
		return
	}
	hs.deciding--
	e := hs.txs[d.Gid]
	if e == nil || !e.asked {
		return
	}
	e.asked = false
	if string(stands) == string(e.tx.Closed) {
		e.arbitrated = true
		c.enqueue(e)
		return
	}
	c.overrule(at, e, stands)
}

// overrule makes another decision than ours the transaction's: it was there first. Nothing of ours has left; who waits is
// answered by what stands.
func (c *Core) overrule(at int64, e *entry, stands []byte) {
	tx, err := record.FromParts(stands, nil, record.Head{}, record.Head{}, 0, 0)
	if err != nil || tx.State.Gid != e.tx.State.Gid {
		c.Poison(e.tx.State.Gid) // it can be neither confirmed nor cancelled: an operator must look
		return
	}
	waiting := e.waiting
	for _, g := range e.gates {
		for _, ge := range g.effects {
			if ge.to != nil {
				waiting = append(waiting, ge.to)
			}
		}
	}
	timeline := e.tx.Timeline
	e.tx = *tx
	e.tx.Timeline, e.tx.Closed = timeline, stands
	e.tx.State = txn.Reloaded(e.tx.State)
	e.gates, e.waiting, e.arbitrated = nil, nil, true
	c.perform(at, e, []txn.Effect{txn.Save{Decision: true}})
	for _, p := range waiting {
		c.Apply(at, p)
	}
}

// decide settles a decision in the arbiter, whatever it takes; it gives up only when the slot is another's.
func (r *Runner) decide(d Deciding) {
	for attempt := 1; ; attempt++ {
		ctx, cancel := context.WithTimeout(r.lifetime, 10*time.Second)
		stands, err := r.regions.Decide(ctx, d.GlobalDecision)
		cancel()
		switch {
		case err == nil:
			r.inbox.put(do(func(c *Core, at int64) { c.Arbitrated(at, d, stands) }))
			return
		case errors.Is(err, ErrOutdated):
			r.cfg.Log.Warn("the arbiter refuses a decision: the slot is taken again", "gid", d.Gid, "slot", d.Slot, "err", err)
			r.inbox.put(do(func(c *Core, _ int64) {
				if t, ok := c.Term(d.Slot); ok && t == d.Term {
					c.Settle(d.Slot)
					r.reclaim([]int{d.Slot})
				}
			}))
			return
		case r.lifetime.Err() != nil:
			return
		}
		r.cfg.Log.Warn("a decision is not settled in the arbiter; trying again", "gid", d.Gid, "slot", d.Slot, "attempt", attempt, "err", err)
		current := false
		if r.Ask(r.lifetime, func(c *Core, _ int64) { t, ok := c.Term(d.Slot); current = ok && t == d.Term }) != nil || !current {
			return
		}
		select {
		case <-time.After(time.Duration(min(attempt, 20)) * 50 * time.Millisecond):
		case <-r.lifetime.Done():
			return
		}
	}
}

// ForgetDecisions removes the global decisions of transactions of a slot that this process holds: the caller has made sure
// that each has ended and is in every region's journal.
func (r *Runner) ForgetDecisions(ctx context.Context, n int, gids []txn.Gid) error {
	var epoch uint64
	var gen int64
	var term Term
	free := false
	if err := r.Ask(ctx, func(c *Core, _ int64) {
		hs := c.slots[n]
		if hs == nil || !hs.ready || hs.deciding > 0 || hs.removing || slices.ContainsFunc(gids, func(g txn.Gid) bool { e := hs.txs[g]; return e != nil && !e.tx.State.Phase.Finished() }) {
			return
		}
		hs.removing, free = true, true
		epoch, gen, term = hs.epoch, hs.generation, hs.term
	}); err != nil || !free {
		return err
	}
	next, err := r.regions.Remove(ctx, n, epoch, gen, gids)
	return errors.Join(err, r.Ask(context.WithoutCancel(ctx), func(c *Core, _ int64) {
		hs := c.slots[n]
		if hs == nil || hs.term != term {
			return
		}
		if err != nil {
			c.Settle(n)
			r.reclaim([]int{n})
			return
		}
		hs.removing, hs.generation = false, next
		held := hs.held
		hs.held = nil
		for _, e := range held {
			c.arbitrate(e)
		}
	}))
}
