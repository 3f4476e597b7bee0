package sim

import (
	"errors"
	"fmt"
	"slices"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// node is a coordinator: a Core, and what a Runner does around it.
type node struct {
	w     *World
	r     *region
	name  string
	skew  int64 // how wrong its clock is
	up    bool
	dead  bool // it does not start again
	gen   int
	core  *engine.Core
	known *engine.Known

	epochs    [slotsInPlay]uint64 // at which slots are held
	claiming  [slotsInPlay]bool
	leaving   [slotsInPlay]bool
	writing   bool
	journals  bool // rows are on their way to the journal
	rows      []engine.Row
	knowAgain bool
}

// wrongMost is how wrong a coordinator's clock may be, in milliseconds: ten minutes in one seed of eight, else three seconds.
const wrongMost = 10 * 60_000

func (w *World) skewed() bool { return w.seed%8 == 0 }

func newNode(r *region, i int) *node {
	n := &node{w: r.w, r: r, name: fmt.Sprintf("%s%d", r.name, i)}
	most := int64(3000)
	if r.w.skewed() {
		most = wrongMost
	}
	n.skew = r.w.rng.Int64N(2*most+1) - most
	n.boot()
	return n
}

// at is the time that it believes it is.
func (n *node) at() int64 { return n.w.now + n.skew }

// boot starts it with nothing in memory.
func (n *node) boot() {
	n.gen++
	n.up, n.rows, n.writing, n.journals, n.knowAgain = true, nil, false, false, false
	n.claiming, n.leaving, n.epochs = [slotsInPlay]bool{}, [slotsInPlay]bool{}, [slotsInPlay]uint64{}
	n.known = engine.NewKnownOf(1000)
	n.core = engine.NewCore(fmt.Sprintf("%s.%d", n.name, n.gen), engine.Limits{}, n.known)
	n.w.say("%s starts", n.name)
}

// die ends it; calls and writes that are under way go on without it.
func (n *node) die() {
	n.gen++
	n.up = false
	n.w.say("%s dies", n.name)
}

// later has something happen if the process lives then.
func (n *node) later(d int64, run func()) {
	gen := n.gen
	n.w.after(d, func() {
		if n.gen == gen && n.up {
			run()
		}
	})
}

// tick lets timers expire.
func (n *node) tick() {
	if n.up {
		n.core.Expire(n.at())
		n.core.Flush(n.at())
		n.pump()
	}
}

// pump does what the core wants, and takes its next batch to the store.
func (n *node) pump() {
	n.drain()
	for !n.writing {
		wr := n.core.NextBatch()
		n.drain() // decisions that wait for the arbiter first
		if wr == nil {
			return
		}
		n.write(wr)
	}
}

// drain takes what the core wants done.
func (n *node) drain() {
	out := n.core.Drain()
	for _, c := range out.Calls {
		n.call(c)
	}
	for _, ch := range out.Changes {
		n.w.changed(n, ch)
	}
	if len(out.Rows) > 0 {
		n.rows = append(n.rows, out.Rows...)
		n.journal()
	}
	for _, p := range out.Lookups {
		n.later(n.w.lag(), func() {
			n.core.Found(n.at(), p, n.r.journal.get(p.Gid()))
			n.pump()
		})
	}
	for _, d := range out.Decisions {
		n.decide(d)
	}
	for _, sl := range out.StaleSlots {
		n.core.Settle(sl)
		n.claim(sl)
	}
}

// journal takes rows to the region's journal: a record leaves the store only when they are there.
func (n *node) journal() {
	if n.journals {
		return
	}
	n.journals = true
	n.later(10+n.w.lag(), func() {
		rows := n.rows
		n.rows, n.journals = nil, false
		n.r.journal.append(rows)
		var finished []txn.Gid
		for i := range rows {
			if rows[i].Finish.Seq != 0 {
				n.known.Add(rows[i].Gid)
				finished = append(finished, rows[i].Gid)
			}
		}
		n.core.Journaled(n.at(), finished)
		n.pump()
	})
}

// write takes a batch to the store, through the weather: it may land and not be answered, be answered and not have landed, or
// land long after everybody has stopped waiting.
func (n *node) write(wr *engine.Writing) {
	n.writing = true
	w := n.w
	gen, fate := n.gen, 9
	if !w.healed {
		fate = w.rng.IntN(60)
	}
	answer := func(v engine.Verdict, fenced []int) {
		n.writing = false
		for _, sl := range fenced {
			n.epochs[sl] = 0
		}
		n.core.Written(n.at(), wr, v, fenced)
		if v == engine.Doubtful {
			for _, sl := range wr.Slots() {
				n.claim(sl)
			}
		}
		n.pump()
	}
	land := func() (engine.Verdict, []int) {
		if n.r.down {
			return engine.Doubtful, nil
		}
		var fe *engine.FencedError
		switch err := n.r.store.Commit(background, &wr.Batch); {
		case errors.As(err, &fe):
			return engine.NotWritten, fe.Slots
		case err != nil:
			w.check("store", err)
		}
		return engine.Durable, nil
	}
	w.after(w.lag(), func() {
		alive := func() bool { return n.gen == gen && n.up }
		switch fate {
		case 0: // it lands late, or never
			w.after(w.rng.Int64N(5000), func() { land() })
			if alive() {
				answer(engine.Doubtful, nil)
			}
		case 1: // it lands, and nobody hears of it
			land()
			if alive() {
				answer(engine.Doubtful, nil)
			}
		case 2: // the store is busy
			if alive() {
				answer(engine.NotWritten, nil)
			}
		default:
			if v, fenced := land(); alive() {
				answer(v, fenced)
			}
		}
	})
}

// decide settles a global decision in the arbiter, whatever it takes.
func (n *node) decide(d engine.Deciding) {
	w := n.w
	fate := 9
	if !w.healed {
		fate = w.rng.IntN(30)
	}
	d2 := w.far()
	if fate == 0 { // it lands late, and is repeated meanwhile
		w.after(w.rng.Int64N(8000), func() {
			if w.arbited(n.r) {
				_, _ = w.arb.decide(d)
			}
		})
	}
	n.later(d2, func() {
		if t, ok := n.core.Term(d.Slot); !ok || t != d.Term {
			return // the slot is another's, or was taken anew
		}
		if !w.arbited(n.r) || fate == 0 || w.chance(w.drop/2) {
			n.later(100, func() { n.decide(d) })
			return
		}
		stands, err := w.arb.decide(d)
		if fate == 1 { // its answer is lost
			n.later(100, func() { n.decide(d) })
			return
		}
		if err != nil {
			n.core.Settle(d.Slot)
			n.claim(d.Slot)
			return
		}
		n.core.Arbitrated(n.at(), d, stands)
		n.pump()
	})
}

// claim takes a slot as a Runner does: a new term, what came with it, what the store has.
func (n *node) claim(sl int) {
	if n.claiming[sl] {
		return
	}
	n.claiming[sl] = true
	n.core.Expect([]int{sl})
	n.later(n.w.lag(), func() {
		n.claiming[sl] = false
		if !n.take(sl) {
			n.core.Drop(sl)
			n.epochs[sl] = 0
		}
		n.pump()
	})
}

// take carries a claim out; false: the slot is not to be held here now.
func (n *node) take(sl int) bool {
	r, o := n.r, n.r.owners[sl]
	if o.Region != r.name || o.Status == slot.Taken || o.Status == slot.Sealed {
		return false
	}
	claims, err := r.store.Claim(background, n.name, []int{sl}, func(int) uint64 { return uint64(o.Epoch) })
	n.w.check("claim", err)
	if len(claims) != 1 {
		return false
	}
	if claims[0].Closed {
		if o.Status == slot.Draining && claims[0].Epoch == uint64(o.Epoch) && n.w.now <= o.DeadlineMillis {
			r.finishClosed(engine.Move{Slot: sl, Owner: o}) // whoever sealed it died before it told
		}
		return false
	}
	cl := claims[0]
	r.terms[sl] = cl.Term
	var txs []*record.Tx
	if o.Seal != nil && o.Seal.Epoch != o.Epoch && o.Seal.Epoch.Region() != r.index() && cl.Imported < uint64(o.Seal.Epoch) {
		came := r.arrival(sl, o)
		if came.Err != nil {
			return false // it is on its way: the slot is looked at again
		}
		if cl, txs, err = r.mover.Import(background, cl, o, &came); err != nil {
			n.w.check("import", err)
			return false
		}
		n.w.say("%s imports slot %d with %d transactions", n.name, sl, len(txs))
	} else {
		r.journalLeft(sl)
		n.w.check("load", r.store.Load(background, sl, func(_ txn.Gid, v []byte) error {
			tx, err := record.Decode(v)
			txs = append(txs, tx)
			return err
		}))
	}
	if cl.Generation = -1; n.w.arbited(r) {
		cl.Generation = 0
	}
	n.core.Hold(n.at(), cl, txs)
	r.held[sl] = max(r.held[sl], o.Epoch)
	n.epochs[sl] = uint64(o.Epoch)
	n.know()
	n.w.say("%s holds slot %d at epoch %d, %d transactions, head %d", n.name, sl, o.Epoch, len(txs), cl.Head.Seq)
	return true
}

// know reads the journal's gids for the filter, some time after a slot was taken.
func (n *node) know() {
	if n.knowAgain {
		return
	}
	n.knowAgain = true
	n.later(20+n.w.rng.Int64N(60), func() {
		n.knowAgain = false
		n.w.check("known gids", n.known.Build(background, n.r.journal))
	})
}

// giveUp hands a slot to the coordinator that should have it, once nothing of it is under way.
func (n *node) giveUp(sl int) {
	n.core.Keep(sl)
	if t, ok := n.core.Term(sl); ok && n.core.Freeze(sl) {
		n.core.Drop(sl)
		n.epochs[sl] = 0
		var fe *engine.FencedError
		if err := n.r.store.Release(background, sl, t); err != nil && !errors.As(err, &fe) {
			n.w.check("release", err)
		}
	}
	n.pump()
}

// call takes a branch call to the home of its account. The participant may carry it out and nobody hear of it, or late.
func (n *node) call(c *engine.Call) {
	w := n.w
	gen, replied := n.gen, false
	reply := func(res engine.CallResult) {
		if !replied && n.gen == gen && n.up {
			replied = true
			n.core.Replied(n.at(), engine.AfterLoss(res, n.r.owners[res.Call.AccountSlot]))
			n.pump()
		}
	}
	to, epoch, ok := n.r.homeOf(slot.Of(c.Account))
	if !ok {
		w.after(w.lag(), func() { reply(engine.CallResult{Call: c, Outcome: txn.Deferred, RetryAfter: 200 * ms}) })
		return
	}
	there := *c
	if there.AccountSlot = slot.Of(c.Account); there.AccountSlot != c.Slot {
		there.AccountEpoch = epoch
	} // else as the holder was begun with it: the arbiter's word may be newer
	unheard := func() { reply(engine.CallResult{Call: c, Outcome: txn.Unknown, Text: "no answer"}) }
	from := n.r.at
	out := w.between(from, to)
	switch {
	case w.chance(1 + w.drop/2): // lost
		w.after(patience, unheard)
		return
	case w.chance(1 + w.drop/4): // it comes late, long after it was given up
		w.after(patience, unheard)
		out += patience + w.rng.Int64N(6000)
	case w.chance(2): // twice
		w.after(out+w.rng.Int64N(4000), func() {
			if w.reach(from, to) {
				w.regions[to].bank.carry(&there)
			}
		})
	}
	w.after(out, func() {
		if !w.reach(from, to) {
			w.after(patience, unheard)
			return
		}
		outcome := w.regions[to].bank.carry(&there)
		back := w.between(from, to)
		if w.chance(1 + w.drop/4) {
			w.after(patience, unheard)
			return
		}
		w.after(back, func() {
			if w.reach(from, to) {
				res := engine.CallResult{Call: &there, Outcome: outcome, Text: outcome.String()}
				if outcome == txn.Deferred {
					res.RetryAfter = 200 * ms
				}
				reply(res)
				return
			}
			w.after(patience, unheard)
		})
	})
}

// patience is how long a call is waited for.
const patience = 1500

// holds says that the slot is here and ready.
func (n *node) holds(sl int) bool { return n.up && n.core.Holds(sl) }

// holder is the coordinator of a region that holds a slot, or is about to; nil where none is.
func (r *region) holder(sl int) *node {
	for _, n := range r.nodes {
		if n.holds(sl) {
			return n
		}
	}
	for _, n := range r.nodes {
		if n.up && n.claiming[sl] {
			return n
		}
	}
	return nil
}

// live are the names of the coordinators that live.
func (r *region) live() []string {
	var out []string
	for _, n := range r.nodes {
		if n.up {
			out = append(out, n.name)
		}
	}
	slices.Sort(out)
	return out
}
