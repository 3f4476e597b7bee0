package engine

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Expect parks requests for slots that are being claimed, instead of refusing them.
func (c *Core) Expect(slots []int) {
	for _, n := range slots {
		if c.slots[n] == nil {
			c.slots[n] = &heldSlot{n: n}
		}
	}
}

// Hold takes a slot: claim is what the store gave, loaded what it holds. Transactions that were only in memory here
// stay; requests that waited for an answer of the time before are put again, and get the answer that holds now.
func (c *Core) Hold(at int64, claim Claim, loaded []*record.Tx) {
	if c.known != nil {
		c.known.Forget(claim.Slot)
	}
	c.Settle(claim.Slot) // where it is held under an older term
	old := c.slots[claim.Slot]
	hs := &heldSlot{n: claim.Slot, term: claim.Term, epoch: claim.Epoch, head: claim.Head, generation: claim.Generation, ready: true, txs: make(map[txn.Gid]*entry, len(loaded))}
	c.slots[claim.Slot] = hs
	var again []*pending
	if old != nil {
		for _, p := range old.settling {
			p.req.Resent = true // it may be carried out already
		}
		again = append(old.settling, old.parked...)
	}
	for _, tx := range loaded {
		e := &entry{tx: *tx, slot: hs, stored: true}
		e.tx.State = txn.Reloaded(txn.NotAhead(tx.State, at))
		if !e.tx.State.Phase.Decided() {
			// What is in the store was begun here or came under a seal: this epoch may decide it (G4).
			e.tx.State.Epoch = claim.Epoch
		}
		hs.txs[e.tx.State.Gid] = e
		c.live++
		switch {
		case e.tx.State.Phase.Decided() && e.tx.Decision.Seq == 0:
			// It was decided in the arbiter, and no event of it ever left the region that was lost: it gets its number here.
			c.perform(at, e, []txn.Effect{txn.Save{Decision: true}})
		case e.tx.State.Phase.Decided():
			c.out.Rows = append(c.out.Rows, rowOf(e))
		}
		if !e.tx.State.Phase.Finished() && !forgotten(e.tx.State.Phase) {
			e.tx.Timeline.Takeovers = append(e.tx.Timeline.Takeovers, record.Takeover{At: at, Holder: c.holder})
			c.timers.set(e, txn.NextWake(&e.tx.State))
		}
	}
	if old != nil && old.term == claim.Prev {
		c.carry(old, hs)
	}
	for _, p := range again {
		c.Apply(at, p)
	}
}

// carry moves what never reached the store: prepares without branches, which only this process knows. It is right only
// where nobody held the slot in between: somebody else may have begun and ended the same gid.
func (c *Core) carry(old, hs *heldSlot) {
	for _, gid := range slices.Sorted(maps.Keys(old.txs)) {
		e := old.txs[gid]
		if e.stored || hs.txs[gid] != nil {
			continue
		}
		e.tx.State.Epoch = hs.epoch
		e.slot, e.gates, e.version, e.saved, e.queued, e.noted = hs, nil, 0, 0, false, false
		e.waiting = nil
		hs.txs[gid] = e
		c.live++
		c.timers.set(e, txn.NextWake(&e.tx.State))
	}
	old.txs = nil
}

// Settle makes a slot wait for a new term: its last write is in doubt. Who waited for an answer is asked again after
// Hold.
func (c *Core) Settle(n int) {
	hs := c.slots[n]
	if hs == nil || !hs.ready {
		return
	}
	next := &heldSlot{n: n, term: hs.term, txs: map[txn.Gid]*entry{}, parked: hs.parked}
	hs.parked = nil
	next.settling = c.empty(hs, func(e *entry) bool {
		// A transaction that was begun in memory and not written yet: its state before its first save is not kept, so
		// only a bare prepare (nothing unsaved) can be carried over.
		return !e.stored && e.version == e.saved
	}, next)
	c.slots[n] = next
}

// Drop forgets a slot that another process holds. Who waited is told to ask there.
func (c *Core) Drop(n int) {
	hs := c.slots[n]
	if hs == nil {
		return
	}
	for _, p := range append(c.empty(hs, nil, nil), hs.parked...) {
		p.finish(answer{err: ErrNotHolder})
	}
	for _, p := range hs.settling {
		p.finish(answer{err: ErrNotHolder})
	}
	c.slots[n] = nil
}

// empty takes everything out of hs and gives who waits. Entries that keep accepts go to next.
func (c *Core) empty(hs *heldSlot, keep func(*entry) bool, next *heldSlot) []*pending {
	var waiting []*pending
	for gid, e := range hs.txs {
		c.timers.set(e, 0)
		waiting = append(waiting, e.waiting...)
		for _, g := range e.gates {
			for _, ge := range g.effects {
				if ge.to != nil {
					waiting = append(waiting, ge.to)
				}
			}
		}
		if e.queued {
			c.unsaved--
		}
		c.live--
		if keep != nil && keep(e) {
			next.txs[gid] = e
		}
	}
	hs.ready = false
	hs.unsent, hs.txs = nil, nil // notes and deletes that still name its entries find nothing
	// In the order in which they came: the same seed must give the same run.
	slices.SortFunc(waiting, func(a, b *pending) int { return cmp.Compare(a.id, b.id) })
	return waiting
}

// Freeze says whether a slot can be given up now: nothing of it is unsaved or under way.
func (c *Core) Freeze(n int) bool {
	hs := c.slots[n]
	return hs != nil && hs.ready && !hs.busy && len(hs.unsent) == 0
}

// Keep makes what only this process knows of a slot work for the next batch: prepares without branches. It comes before a
// slot is given up, so that a client that was told "prepared" need not begin again because of an orderly change.
func (c *Core) Keep(n int) {
	hs := c.slots[n]
	if hs == nil || !hs.ready {
		return
	}
	for _, gid := range slices.Sorted(maps.Keys(hs.txs)) {
		if e := hs.txs[gid]; !e.stored && e.saved == e.version {
			e.version++
			e.gates = append(e.gates, gate{version: e.version})
			c.enqueue(e)
		}
	}
}

// Held lists the slots that are here, ready or not.
func (c *Core) Held() []int {
	var out []int
	for n := range slot.Count {
		if c.slots[n] != nil {
			out = append(out, n)
		}
	}
	return out
}

// Ready lists the slots that are here with all their transactions.
func (c *Core) Ready() []int {
	return slices.DeleteFunc(c.Held(), func(n int) bool { return !c.slots[n].ready })
}

// Each calls f for every transaction in memory that the journal does not have finished, in no order.
func (c *Core) Each(f func(Reply)) {
	for _, hs := range c.slots {
		if hs == nil {
			continue
		}
		for _, e := range hs.txs {
			if !e.journal {
				f(e.reply())
			}
		}
	}
}

// Due lists the transactions whose wake is due at the time given.
func (c *Core) Due(at int64) []txn.Gid {
	var out []txn.Gid
	c.timers.due(at, func(e *entry) { out = append(out, e.tx.State.Gid) })
	return out
}

// Quiet says that no call of the transaction is in flight and nothing of it is unsaved.
func (c *Core) Quiet(gid txn.Gid) bool {
	hs := c.slots[slot.Of(string(gid))]
	if hs == nil || !hs.ready {
		return hs == nil
	}
	e := hs.txs[gid]
	if e == nil {
		return true
	}
	if e.saved < e.version || e.tx.State.Query.InFlight {
		return false
	}
	for i := range e.tx.State.Branches {
		if e.tx.State.Branches[i].One.InFlight || e.tx.State.Branches[i].Two.InFlight {
			return false
		}
	}
	return true
}

// Adopt takes over a transaction that another coordinator (DTM) began: its state becomes ours as it stands. A gid
// that is known already is left as it is.
type Adopt struct {
	txn.Tick // an event that Step ignores for a gid that is absent
	Tx       record.Tx
}

// adopt stores a foreign transaction. Nothing is called before it is durable.
func (c *Core) adopt(at int64, e *entry, p *pending, ad Adopt) {
	if e.tx.State.Phase != txn.PhaseNone {
		p.finish(answer{reply: e.reply(), err: &txn.Error{Code: txn.CodeMismatch, Gid: p.req.Gid, Mode: e.tx.State.Mode,
			Phase: e.tx.State.Phase, Text: "it is known here already and was left as it is"}})
		return
	}
	// The events are numbered here, under this slot's epoch: the bytes that came with it are not those.
	e.tx = record.Tx{State: ad.Tx.State, Timeline: ad.Tx.Timeline}
	e.tx.State.Gid, e.tx.State.Epoch = p.req.Gid, e.slot.epoch
	e.tx.State = txn.Reloaded(e.tx.State)
	if err := txn.Check(&e.tx.State); err != nil {
		p.finish(answer{err: &txn.Error{Code: txn.CodeInvalid, Gid: p.req.Gid, Text: err.Error()}})
		return
	}
	e.slot.txs[p.req.Gid] = e
	c.live++
	e.waiting = append(e.waiting, p)
	effects := []txn.Effect{txn.Save{}, txn.Answer{Milestone: txn.Accepted}}
	if next := txn.NextWake(&e.tx.State); next != 0 {
		effects = append(effects, txn.Wake{At: max(next, at+1000)})
	}
	c.perform(at, e, effects)
}

// WorkflowCallback gives a workflow's name and data from DTM's custom_data: {"name":…,"data":<base64>}.
func WorkflowCallback(custom string) (name string, data []byte) {
	var v struct {
		Name string `json:"name"`
		Data string `json:"data"`
	}
	if json.Unmarshal([]byte(custom), &v) != nil {
		return "", nil
	}
	data, err := base64.StdEncoding.DecodeString(v.Data)
	if err != nil {
		return v.Name, nil
	}
	return v.Name, data
}

// FlushAll makes every note and delete work for the next batch, whatever its age, and all that Keep keeps.
func (c *Core) FlushAll(at int64) {
	for _, n := range c.Held() {
		c.Keep(n)
	}
	c.Flush(at + c.lim.NoteDelayMillis + c.lim.DeleteDelayMillis)
}

// Idle says that no call is in flight.
func (c *Core) Idle() bool {
	for _, hs := range c.slots {
		if hs == nil {
			continue
		}
		for gid := range hs.txs {
			if !c.Quiet(gid) {
				return false
			}
		}
	}
	return true
}

// Stuck counts the transactions one of whose owed calls failed at least so often in a row.
func (c *Core) Stuck(fails int) int {
	n := 0
	for _, hs := range c.slots {
		if hs == nil {
			continue
		}
		for _, e := range hs.txs {
			if e.tx.State.MaxFails() >= fails {
				n++
			}
		}
	}
	return n
}
