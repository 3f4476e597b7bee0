package engine

import (
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// enqueue puts e among what is saved next.
func (c *Core) enqueue(e *entry) {
	if e.queued {
		return
	}
	e.queued = true
	c.unsaved++
	e.slot.unsent = append(e.slot.unsent, e)
	c.queueSlot(e.slot)
}

func (c *Core) queueSlot(hs *heldSlot) {
	if !hs.queued && !hs.busy && len(hs.unsent) > 0 {
		hs.queued = true
		c.dirty = append(c.dirty, hs)
	}
}

// note remembers that e has progress worth saving.
func (c *Core) note(at int64, e *entry) {
	if !e.noted && !e.queued {
		e.noted, e.notedAt = true, at
		c.notes = append(c.notes, e)
	}
}

// Flush turns notes and deletes that have waited long enough into work for the next batch.
func (c *Core) Flush(at int64) {
	for len(c.notes) > 0 && at-c.notes[0].notedAt >= c.lim.NoteDelayMillis {
		e := c.notes[0]
		c.notes = c.notes[1:]
		if e.noted && e.slot.still {
			e.noted = false // it leaves as it is in memory
		} else if e.noted && e.slot.txs[e.tx.State.Gid] == e {
			e.noted = false
			e.version++
			e.gates = append(e.gates, gate{version: e.version})
			c.enqueue(e)
		}
	}
	for len(c.deletes) > 0 && (at-c.deletes[0].notedAt >= c.lim.DeleteDelayMillis || len(c.deletes) >= 4*c.lim.BatchOps) {
		e := c.deletes[0]
		c.deletes = c.deletes[1:]
		if e.slot.txs[e.tx.State.Gid] == e {
			c.enqueue(e)
		}
	}
}

// Journaled takes the news that the journal has the finish of the transactions: their records may go.
func (c *Core) Journaled(at int64, gids []txn.Gid) {
	for _, gid := range gids {
		hs := c.slots[slot.Of(string(gid))]
		if hs == nil || !hs.ready {
			continue
		}
		if e := hs.txs[gid]; e != nil && e.tx.State.Phase.Finished() && !e.journal {
			e.journal, e.notedAt = true, at
			c.deletes = append(c.deletes, e)
		}
	}
}
