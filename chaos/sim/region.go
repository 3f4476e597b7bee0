package sim

import (
	"encoding/hex"
	"slices"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/store/memstore"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/failover/recovery"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// region is one failure domain: a store, a journal, participants and two coordinators.
type region struct {
	w       *World
	at      int // its place in World.regions; its index is one more
	name    string
	store   *memstore.Store
	journal *journal
	bank    *bank
	nodes   []*node
	mover   *engine.Mover
	// What it knows of the arbiter; old while it does not reach it.
	owners [slotsInPlay]slot.Owner
	seals  [slotsInPlay][]slot.Seal
	// cut: it reaches nobody outside, for cuts reasons. down: it is lost, and its disks are what is left.
	cut  bool
	cuts int
	down bool
	// fallen counts the losses: what was under way then is gone.
	fallen int

	terms    [slotsInPlay]engine.Term // of the last claims
	held     [slotsInPlay]slot.Epoch  // the highest at which the store has had the slot
	adopted  [slotsInPlay]slot.Epoch
	closing  [slotsInPlay]bool
	closed   [slotsInPlay]slot.Epoch // for which the slot is worked off after a loss
	doubtful [slotsInPlay]int64      // when doubts were looked for
	returned map[txn.Gid]handed
	taken    map[txn.Gid]bool // handed back and worked off
}

var regionNames = [regionsCount]string{"east", "west", "north"}

func newRegion(w *World, i int) *region {
	r := &region{w: w, at: i, name: regionNames[i], store: memstore.New(), returned: map[txn.Gid]handed{}, taken: map[txn.Gid]bool{}}
	r.journal = newJournal(r)
	r.bank = newBank(r)
	r.mover = engine.NewMover(r.name, r.store, places{r: r})
	for k := range 2 {
		r.nodes = append(r.nodes, newNode(r, k))
	}
	return r
}

func (r *region) index() int { return r.at + 1 }

func (r *region) isolate() { r.cut = r.cuts > 0 }

// fall is the loss of a region: its processes are gone, its disks stay.
func (r *region) fall() {
	r.down = true
	r.fallen++
	for _, n := range r.nodes {
		if n.up {
			n.die()
		}
	}
}

// rise is its return.
func (r *region) rise() {
	r.down = false
	for _, n := range r.nodes {
		if !n.up && !n.dead {
			n.boot()
		}
	}
}

// homeOf says where an account's home is as far as is known here; ok is false while it is on its way.
func (r *region) homeOf(n int) (at int, epoch uint64, ok bool) {
	o := r.owners[n]
	if o.Status != slot.Active && o.Status != slot.Draining || o.Region == "" {
		return 0, 0, false
	}
	return r.w.named(o.Region).at, uint64(o.Epoch), true
}

func (w *World) named(name string) *region {
	for _, r := range w.regions {
		if r.name == name {
			return r
		}
	}
	return nil
}

// learn reads the owners and the seals, and has the journal bound to what is forced.
func (r *region) learn() {
	if !r.w.arbited(r) {
		return
	}
	r.owners = r.w.arb.owners
	for n := range slotsInPlay {
		known := len(r.seals[n])
		r.seals[n] = append(r.seals[n][:0:0], r.w.arb.seals[n]...)
		for i := known; i < len(r.seals[n]); i++ {
			if s := &r.seals[n][i]; s.Forced && !(s.Epoch.Region() == r.index() && r.w.opt.Rules.CutNothing) {
				r.journal.cut(n, s)
			}
		}
		for o := range regionsCount {
			r.journal.advance(o, n)
		}
	}
}

// publish sends a region's own new events to the others, over a pipe that loses, repeats and reorders.
func (r *region) publish(origin, n int, events []record.Event) {
	if origin != r.at {
		return
	}
	w := r.w
	for i := range events {
		e := events[i]
		for _, to := range w.regions {
			if to == r || w.chance(4+w.drop/2) {
				continue // what is lost is filled from the journal
			}
			copies := 1
			if w.chance(5) {
				copies = 2
			}
			for range copies {
				delay := 20 + w.far()
				if w.chance(5 + w.drop) {
					delay += w.rng.Int64N(3000)
				}
				w.after(delay, func() {
					if w.reach(r.at, to.at) {
						to.journal.add(e)
					}
				})
			}
		}
	}
}

// fillAtOnce bounds the events that one filling of a gap brings.
const fillAtOnce = 60

// fill fetches what is missing: from the origin's journal, and where a gap or a seal says that something is, from any other's.
func (r *region) fill() {
	if r.down {
		return
	}
	w := r.w
	for origin := range regionsCount {
		for n := range slotsInPlay {
			for _, from := range w.regions {
				if from == r || from.at != origin && !r.misses(origin, n) || !w.reach(r.at, from.at) {
					continue
				}
				have := r.journal.chains[origin][n].head().Seq
				theirs := from.journal.chains[origin][n].events
				if uint64(len(theirs)) <= have {
					continue
				}
				some := theirs[have:min(len(theirs), int(have)+fillAtOnce)]
				w.after(w.far(), func() {
					for i := range some {
						if w.reach(r.at, from.at) && w.err == nil {
							r.journal.add(some[i])
						}
					}
				})
				break
			}
		}
	}
}

// misses says that it is known here that events of a chain are missing.
func (r *region) misses(origin, n int) bool {
	c := &r.journal.chains[origin][n]
	return len(c.waiting) > 0 || slices.ContainsFunc(r.seals[n], func(s slot.Seal) bool { return s.Epoch.Region() == origin+1 && s.Seq > c.head().Seq })
}

// apply brings a chain's committed effects to the accounts here, one event after the other.
func (r *region) apply(origin, n int) {
	c := &r.journal.chains[origin][n]
	if c.busy || c.applied >= c.head().Seq {
		return
	}
	c.busy = true
	r.w.after(3+r.w.rng.Int64N(60), func() {
		c.busy = false
		if r.down {
			r.w.after(1000, func() { r.apply(origin, n) })
			return
		}
		for some := 0; some < 8 && c.applied < c.head().Seq; some++ {
			if e := &c.events[c.applied]; e.Kind == record.KindFinish {
				if tx := r.journal.get(e.Gid); tx != nil && tx.State.Phase.Commit() {
					r.bank.post(tx)
				}
			}
			c.applied++
		}
		r.apply(origin, n)
	})
}

// post posts a committed transaction's effects from its record.
func (b *bank) post(tx *record.Tx) {
	for i := range tx.State.Branches {
		br := &tx.State.Branches[i]
		if amount, ok := effectOf(br.Payload); ok {
			b.postOne(tx.State.Gid, br.ID, br.Account, amount)
		}
	}
}

// postOne is apply: where the account's home is here, it came in confirm's place.
func (b *bank) postOne(gid txn.Gid, id txn.BranchID, name string, amount int64) {
	if b.rows[rowKey(gid, id)] == nil {
		b.rows[rowKey(gid, id)] = &barrierRow{gid: gid, branch: id, account: name, amount: amount, state: rowConfirmed}
		a := b.accounts[name]
		a.posted += amount
		if at := slot.Of(name); b.fences[at].home && b.w.lifted[at] && amount < 0 {
			a.exposed -= amount
		}
		return
	}
	b.confirm(gid, id, name, amount)
}

// arrived says that the journal has everything up to the owner's seal. Where the slot was taken by force the seals before it count
// too: the lost epoch may have left no event that waited for them.
func (r *region) arrived(n int, o slot.Owner) bool {
	rules := &r.w.opt.Rules
	if o.Forced() && rules.ServeEarly {
		return true
	}
	if o.Forced() && !rules.LastSealAlone {
		for i := range r.seals[n] {
			if s := &r.seals[n][i]; s.Epoch < o.Seal.Epoch && !r.journal.reached(n, s) {
				return false
			}
		}
	}
	return r.journal.reached(n, o.Seal)
}

// arrival is what came with a slot under its owner's seal; ErrNotYet until the journal has everything up to it.
func (r *region) arrival(n int, o slot.Owner) engine.Arrival {
	var a engine.Arrival
	if !r.arrived(n, o) {
		a.Err = engine.ErrNotYet
		return a
	}
	for i := range r.seals[n] { // oldest first
		if s := &r.seals[n][i]; s.Epoch.Region() == r.index() && s.Epoch < o.Epoch {
			chain, err := hex.DecodeString(s.Chain)
			r.w.check("a seal's chain", err)
			a.Own = record.Head{Seq: s.Seq}
			copy(a.Own.Chain[:], chain)
		}
	}
	if !o.Forced() {
		a.Live = r.journal.carriedAt(n, uint64(o.Seal.Epoch))
		return a
	}
	if !r.w.arbited(r) {
		a.Err = engine.ErrNotYet
		return a
	}
	known := recovery.Known{Records: r.journal.unfinished(n), Decisions: map[txn.Gid][]byte{}, AtMillis: r.w.now}
	known.Finished = func(gid txn.Gid) (bool, error) { return r.journal.finished(gid), nil }
	for gid, body := range r.w.arb.decisions {
		if slot.Of(string(gid)) == n {
			known.Decisions[gid] = body
		}
	}
	var err error
	a.Live, err = recovery.Drive(known)
	r.w.check("what is driven after a loss", err)
	return a
}
