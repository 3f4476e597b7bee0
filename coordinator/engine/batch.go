package engine

import (
	"fmt"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// Writing is a batch under way and what it carries.
type Writing struct {
	Batch Batch
	items []written
	slots []writtenSlot
}

type written struct {
	e        *entry
	version  int
	decision bool // the decision was numbered in this batch
	finish   bool
	delete   bool
}

type writtenSlot struct {
	hs   *heldSlot
	head record.Head // after the batch
}

// Slots are the slots of the batch.
func (w *Writing) Slots() []int {
	out := make([]int, len(w.slots))
	for i := range w.slots {
		out[i] = w.slots[i].hs.n
	}
	return out
}

// NextBatch takes what waits to be saved, up to the limits, from slots that have no unanswered batch; nil when there
// is nothing. The batch must be answered with Written.
func (c *Core) NextBatch() *Writing {
	w := &Writing{}
	size := 0
	for len(c.dirty) > 0 && len(w.slots) < c.lim.BatchOps {
		hs := c.dirty[0]
		// A slot costs a guard and perhaps a head beside its first write.
		if len(w.items)+len(w.slots)+2 > c.lim.BatchOps {
			break
		}
		c.dirty = c.dirty[1:]
		hs.queued = false
		if hs.busy || !hs.ready || len(hs.unsent) == 0 {
			continue
		}
		before := len(w.items)
		head := hs.head
		size = c.fill(w, hs, &head, size)
		if len(w.items) == before {
			if len(hs.unsent) == 0 {
				continue // all of it waits for the arbiter
			}
			c.queueSlot(hs)
			break
		}
		g := Guard{Slot: hs.n, Term: hs.term}
		if head != hs.head {
			g.Head = &head
		}
		w.Batch.Guards = append(w.Batch.Guards, g)
		w.slots = append(w.slots, writtenSlot{hs: hs, head: head})
		hs.busy = true
	}
	if len(w.items) == 0 {
		return nil
	}
	return w
}

// fill moves a slot's unsaved transactions into the batch, oldest first, and numbers their events.
func (c *Core) fill(w *Writing, hs *heldSlot, head *record.Head, size int) int {
	taken := 0
	for _, e := range hs.unsent {
		if len(w.items)+len(w.slots)+2 > c.lim.BatchOps {
			break
		}
		if e.global() {
			e.queued, e.noted = false, false
			c.unsaved--
			taken++
			c.arbitrate(e)
			continue
		}
		it := written{e: e, version: e.version}
		if e.journal {
			it.delete = true
			w.Batch.Deletes = append(w.Batch.Deletes, Delete{Slot: hs.n, Gid: e.tx.State.Gid})
		} else {
			was := *head
			value, err := c.encode(e, &it, head)
			if err != nil {
				panic(fmt.Sprintf("encode %q: %v", e.tx.State.Gid, err)) // our own state: a bug, not input
			}
			if size > 0 && size+len(value) > c.lim.BatchBytes {
				undo(&it)
				*head = was
				break
			}
			size += len(value) + len(e.tx.State.Gid) + 64
			w.Batch.Puts = append(w.Batch.Puts, Put{Slot: hs.n, Gid: e.tx.State.Gid, Value: value})
			e.stored = true
		}
		e.queued, e.noted = false, false
		c.unsaved--
		w.items = append(w.items, it)
		taken++
	}
	hs.unsent = append(hs.unsent[:0:0], hs.unsent[taken:]...)
	return size
}

// encode numbers the events that are new and gives the record's bytes.
func (c *Core) encode(e *entry, it *written, head *record.Head) ([]byte, error) {
	if err := e.tx.Close(); err != nil {
		return nil, err
	}
	s := &e.tx.State
	if s.Phase.Decided() && e.tx.Decision.Seq == 0 {
		if twice(s.Gid) {
			*head = head.Next(e.slot.n, e.slot.epoch, record.KindDecision, s.Gid, e.tx.Closed)
		}
		*head = head.Next(e.slot.n, e.slot.epoch, record.KindDecision, s.Gid, e.tx.Closed)
		e.tx.Decision, e.tx.DecisionEpoch, it.decision = *head, e.slot.epoch, true
	}
	if s.Phase.Finished() && e.tx.Finish.Seq == 0 {
		*head = head.Next(e.slot.n, e.slot.epoch, record.KindFinish, s.Gid, e.tx.Progress)
		e.tx.Finish, e.tx.FinishEpoch, it.finish = *head, e.slot.epoch, true
	}
	return e.tx.Encode()
}

// undo takes back the numbers of events that were not written.
func undo(it *written) {
	if it.decision {
		it.e.tx.Decision, it.e.tx.DecisionEpoch = record.Head{}, 0
	}
	if it.finish {
		it.e.tx.Finish, it.e.tx.FinishEpoch = record.Head{}, 0
	}
}

// Verdict is what is known of a batch.
type Verdict uint8

const (
	// Durable: it is written.
	Durable Verdict = iota + 1
	// NotWritten: it is certain that nothing was written; the rest is built again from what is current.
	NotWritten
	// Doubtful: nobody knows. The slots need new terms before anything else is written.
	Doubtful
)

// Written takes the verdict on a batch. fenced are slots of it that another holder has taken: they are dropped. For
// Doubtful all its slots must be claimed again: they take no request until Adopt.
func (c *Core) Written(at int64, w *Writing, v Verdict, fenced []int) {
	switch v {
	case Durable:
		for _, ws := range w.slots {
			ws.hs.busy, ws.hs.head = false, ws.head
		}
		for i := range w.items {
			c.durable(at, &w.items[i])
		}
		for _, ws := range w.slots {
			c.queueSlot(ws.hs)
		}
	case NotWritten:
		for i := range w.items {
			undo(&w.items[i])
		}
		for _, ws := range w.slots {
			ws.hs.busy = false
		}
		for _, n := range fenced {
			c.Drop(n)
		}
		for i := range w.items {
			if e := w.items[i].e; c.slots[e.slot.n] == e.slot {
				c.enqueue(e)
			}
		}
		for _, ws := range w.slots {
			if c.slots[ws.hs.n] == ws.hs {
				c.queueSlot(ws.hs) // what came while the batch was under way
			}
		}
	case Doubtful:
		for i := range w.items {
			undo(&w.items[i])
		}
		for _, ws := range w.slots {
			ws.hs.busy = false
			c.Settle(ws.hs.n)
		}
	}
}

// durable books that one transaction's version is saved.
func (c *Core) durable(at int64, it *written) {
	e := it.e
	if c.slots[e.slot.n] != e.slot {
		return
	}
	if it.delete {
		c.timers.set(e, 0)
		delete(e.slot.txs, e.tx.State.Gid)
		c.live--
		return
	}
	e.saved = it.version
	n := 0
	for n < len(e.gates) && e.gates[n].version <= e.saved {
		n++
	}
	open := e.gates[:n]
	e.gates = e.gates[n:]
	if len(e.gates) == 0 {
		e.gates = nil
	}
	if it.decision || it.finish {
		c.out.Rows = append(c.out.Rows, rowOf(e))
		ch := changeOf(e, at)
		ch.Decided = it.decision
		if !it.finish {
			ch.Phase = rowOf(e).Phase
		}
		c.out.Changes = append(c.out.Changes, ch)
	}
	for _, g := range open {
		for _, ge := range g.effects {
			c.release(e, ge)
		}
	}
}

func (c *Core) release(e *entry, g gated) {
	if g.effect == nil {
		g.to.finish(answer{reply: e.reply(), err: g.err})
		return
	}
	c.run(e, g.effect, g.upTo)
}

func changeOf(e *entry, at int64) Change {
	s := &e.tx.State
	return Change{Gid: s.Gid, Slot: e.slot.n, Mode: s.Mode, Phase: s.Phase, Reason: s.Reason, BegunAt: s.BegunAt, At: at}
}

func rowOf(e *entry) Row {
	s := &e.tx.State
	row := Row{
		Gid: s.Gid, Slot: e.slot.n, Mode: s.Mode, Phase: s.Phase, BegunAt: s.BegunAt, DecidedAt: s.DecidedAt,
		Closed: e.tx.Closed, Decision: e.tx.Decision, DecisionEpoch: e.tx.DecisionEpoch,
	}
	if e.tx.Finish.Seq != 0 {
		row.FinishedAt, row.Progress = s.FinishedAt, e.tx.Progress
		row.Finish, row.FinishEpoch = e.tx.Finish, e.tx.FinishEpoch
	} else if row.Phase.Finished() {
		// The finish is known here but not durable: the row must not say more than the store.
		row.Phase = txn.PhaseAborting
		if s.Phase.Commit() {
			row.Phase = txn.PhaseCommitting
		}
	}
	return row
}
