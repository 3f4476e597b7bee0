package sim

import (
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/region/slot"
)

func millis(at int64) time.Time { return time.UnixMilli(at) }

// converge compares the ownership with what is held, as a Runner does a few times a second.
func (r *region) converge() {
	if r.down || r.w.err != nil {
		return
	}
	r.learn()
	live := r.live()
	for sl := range slotsInPlay {
		o := r.owners[sl]
		want := ""
		if o.Region == r.name {
			want = slot.Prefer(sl, live)
		}
		for _, n := range r.nodes {
			if n.up && !n.claiming[sl] && !n.leaving[sl] {
				r.consider(n, sl, o, want)
			}
		}
		if want != "" && r.w.arbited(r) {
			r.tend(sl, o)
		}
		if want == "" {
			r.workOff(sl, o)
		}
	}
}

// consider is what one coordinator does about one slot.
func (r *region) consider(n *node, sl int, o slot.Owner, want string) {
	if t, ok := n.core.Term(sl); ok && t < r.terms[sl] {
		n.core.Drop(sl) // a later term has taken it
		n.epochs[sl] = 0
	}
	holds := n.core.Holds(sl)
	other := r.holder(sl)
	switch {
	case holds && n.name != want:
		n.giveUp(sl)
	case n.name != want || o.Status != slot.Active && o.Status != slot.Draining:
	case holds && n.epochs[sl] != uint64(o.Epoch), !holds && (other == nil || other == n):
		n.claim(sl)
	case holds && o.Status == slot.Draining:
		n.leave(engine.Move{Slot: sl, Owner: o})
	}
}

// tend is what an owner does beside holding: accounts are adopted, moves that take too long are undone, doubts are looked for.
func (r *region) tend(sl int, o slot.Owner) {
	moving := o.Status == slot.Draining || o.Status == slot.Sealed
	switch {
	case moving && r.w.now > o.DeadlineMillis:
		back, err := o.Undo()
		r.w.check("undo", err)
		if r.w.arb.change(sl, o, back) {
			r.w.say("%s undoes the move of slot %d", r.name, sl)
		}
	case o.Status == slot.Active || o.Status == slot.Draining:
		r.adopt(sl, o)
		if r.doubts(sl, o); o.Lost == 0 {
			r.endDoubts(sl)
		}
	}
}

// adopt makes homes of a slot's accounts: with what was released, wherever that was, or by force.
func (r *region) adopt(sl int, o slot.Owner) {
	f := &r.bank.fences[sl]
	if r.adopted[sl] == o.Epoch {
		if f.blocked && !r.w.lossOf(o.Seal.Epoch.Region()) {
			f.blocked, r.w.lifted[sl] = false, true
			r.w.say("%s bank: slot %d may spend again", r.name, sl)
		}
		return
	}
	switch {
	case o.Forced():
		early := r.w.opt.Rules.SpendEarly
		if !early && !r.caughtUp(o.Seal.Epoch.Region()) {
			return
		}
		r.bank.adopt(sl, o.Epoch, nil)
		f.blocked = !early
	case f.home:
		f.epoch = max(f.epoch, uint64(o.Epoch))
	default:
		parcel := r.parcel(sl, o)
		if parcel == nil {
			return // who has it does not answer
		}
		r.bank.adopt(sl, o.Epoch, parcel)
	}
	r.adopted[sl] = o.Epoch
}

// caughtUp says that the copies here have everything up to all seals of a region that slots were taken from.
func (r *region) caughtUp(lost int) bool {
	for n := range slotsInPlay {
		o := r.owners[n]
		switch {
		case !(o.Lost != 0 && o.Lost.Region() == lost || o.Forced() && o.Seal != nil && o.Seal.Epoch.Region() == lost):
		case o.Seal == nil || o.Lost != 0 && o.Seal.Epoch != o.Lost, r.journal.chains[lost-1][n].applied < o.Seal.Seq:
			return false
		}
	}
	return true
}

// parcel finds what was released last: here, where a move was undone, or where the slot came from.
func (r *region) parcel(sl int, o slot.Owner) map[string]barrierRow {
	after := slot.Epoch(0)
	if o.Seal != nil {
		after = o.Seal.Epoch
	}
	own := slot.Epoch(0)
	for key := range r.bank.released {
		if key.slot == sl && key.epoch < o.Epoch && key.epoch >= after && key.epoch.Region() == r.index() {
			own = max(own, key.epoch)
		}
	}
	if own != 0 {
		return r.bank.released[parcelKey{sl, own}]
	}
	if o.Seal == nil {
		return nil
	}
	from := r.w.regions[o.Seal.Epoch.Region()-1]
	if !r.w.reach(r.at, from.at) {
		return nil
	}
	return from.bank.released[parcelKey{sl, o.Seal.Epoch}]
}

// lossOf says that slots taken from a region are not worked off.
func (w *World) lossOf(index int) bool {
	for n := range slotsInPlay {
		if o := w.arb.owners[n]; o.Lost != 0 && o.Lost.Region() == index {
			return true
		}
	}
	return false
}

// restMost is how long a slot may take to come to rest.
const restMost = 3000

// leave brings a draining slot to its seal: begins wait, accounts are released, what is live becomes events, the epoch is closed.
func (n *node) leave(m engine.Move) {
	n.leaving[m.Slot] = true
	n.core.Quiesce([]int{m.Slot})
	until := n.w.now + restMost
	n.later(n.w.lag(), func() {
		if !n.r.bank.release(m.Slot, m.Owner.Epoch) {
			n.leaving[m.Slot] = false // again, when what the move before brought is adopted
			return
		}
		n.rest(m, until)
	})
}

func (n *node) rest(m engine.Move, until int64) {
	switch {
	case !n.core.Holds(m.Slot):
		n.leaving[m.Slot] = false
	case n.core.Still(m.Slot):
		n.sealOff(m)
	case n.w.now > until:
		n.resume(m.Slot)
	default:
		n.pump()
		n.later(5, func() { n.rest(m, until) })
	}
}

// resume lets a slot go on that was brought to rest for nothing: it has forgotten answers, so it takes a new term.
func (n *node) resume(sl int) {
	n.leaving[sl] = false
	n.core.Settle(sl)
	n.claim(sl)
}

// sealOff writes the carries and the seal.
func (n *node) sealOff(m engine.Move) {
	batches, err := n.r.mover.Seal(n.core, m.Slot)
	if err != nil || n.epochs[m.Slot] != uint64(m.Owner.Epoch) {
		n.resume(m.Slot)
		return
	}
	var write func(i int)
	write = func(i int) {
		if i == len(batches) {
			n.leaving[m.Slot] = false
			n.core.Drop(m.Slot)
			n.epochs[m.Slot] = 0
			n.w.say("%s seals slot %d of epoch %d", n.name, m.Slot, m.Owner.Epoch)
			n.r.finishClosed(m)
			return
		}
		n.later(n.w.lag(), func() {
			lost := n.w.chance(3) // the answer
			if err := n.r.store.Commit(background, batches[i]); err != nil || lost {
				n.resume(m.Slot)
				return
			}
			write(i + 1)
		})
	}
	write(0)
}

// journalLeft brings what an undone move has left in a slot into the journal: the chain goes on behind it.
func (r *region) journalLeft(sl int) {
	events, err := r.store.Events(background, sl)
	r.w.check("events", err)
	for i := range events {
		r.journal.add(events[i])
	}
}

// finishClosed brings what a closed slot holds into the journal and tells the arbiter of the seal; it works from the store alone.
func (r *region) finishClosed(m engine.Move) {
	if r.closing[m.Slot] {
		return
	}
	r.closing[m.Slot] = true
	gen := r.fallen
	r.w.after(10+r.w.lag(), func() {
		r.closing[m.Slot] = false
		if r.fallen != gen || len(r.live()) == 0 {
			return // the slot is looked at again
		}
		rows, events, head, err := r.mover.Closed(background, m)
		if err != nil {
			return // it was taken at a later epoch meanwhile
		}
		r.journal.append(rows)
		for i := range events {
			r.journal.add(events[i])
		}
		closed, err := m.Owner.Close(sealOf(m.Owner.Epoch, head))
		if err == nil && r.w.arbited(r) && r.w.arb.change(m.Slot, m.Owner, closed) {
			r.w.say("%s tells the seal of slot %d: event %d", r.name, m.Slot, head.Seq)
			r.w.check("forget events", r.store.ForgetEvents(background, m.Slot, head.Seq))
		}
	})
}
