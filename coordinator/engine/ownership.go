package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// own announces this process and takes the slots that fall to it. ctx ends with the wish to stop, inner with the
// process's work.
func (r *Runner) own(ctx, inner context.Context) error {
	views, err := r.store.Watch(inner)
	if err != nil {
		return fmt.Errorf("watch the region's coordinators: %w", err)
	}
	go r.announce(ctx)
	moved := r.movedChan()
	var tick <-chan time.Time
	if r.regions != nil {
		t := time.NewTicker(moveTick)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case v, ok := <-views:
			if !ok {
				if inner.Err() != nil {
					return nil
				}
				return errors.New("the watch of the region's coordinators ended")
			}
			r.consider(ctx, inner, &v)
		case again := <-r.claims:
			r.claim(inner, gather(again, r.claims))
		case <-moved:
			moved = r.movedChan()
			r.broadcast()
			if v := r.view.Load(); v != nil {
				r.consider(ctx, inner, v)
			}
		case <-tick:
			if v := r.view.Load(); v != nil {
				r.consider(ctx, inner, v)
			}
		case <-inner.Done():
			return nil
		}
	}
}

// gather takes what else waits to be claimed, each slot once: two writes in doubt name it twice, and a store refuses one
// transaction with the same key twice, however often it is tried.
func gather(first []int, more <-chan []int) []int {
	for {
		select {
		case m := <-more:
			first = append(first, m...)
		default:
			first = slices.Clone(first)
			slices.Sort(first)
			return slices.Compact(first)
		}
	}
}

// announce keeps this process in the list of members until it is to stop. A lost announcement costs its slots, not
// its safety: it is made again.
func (r *Runner) announce(ctx context.Context) {
	for ctx.Err() == nil {
		err := r.store.Join(ctx, r.cfg.Self, r.cfg.MemberTTL)
		if ctx.Err() != nil {
			return
		}
		r.cfg.Log.Warn("the announcement was lost; announcing again", "err", err)
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// consider compares a view with what is held: it gives up what belongs to others, and takes what nobody live holds.
func (r *Runner) consider(ctx, inner context.Context, v *View) {
	r.view.Store(v)
	r.broadcast()
	live := map[string]bool{}
	var ids []string
	for _, m := range v.Members {
		if !live[m.ID] {
			live[m.ID] = true
			ids = append(ids, m.ID)
		}
	}
	self := r.cfg.Self.ID
	if !live[self] || ctx.Err() != nil {
		return // not announced yet, or on the way out: take nothing
	}
	var take, lost, give []int
	covered := 0
	for n := range slot.Count {
		holder, want := v.Holders[n], slot.Prefer(n, ids)
		ours := r.ours(n)
		switch mine := r.holds(n); {
		case mine && holder != self && int64(v.Terms[n]) > r.held[n].Load():
			lost = append(lost, n)
		case mine && (want != self || !ours):
			give = append(give, n)
		case !ours:
		case mine && r.regions != nil && r.heldEpoch[n].Load() != r.epochOf(n):
			take = append(take, n) // a move was undone: the owner goes on at a higher epoch
		case !mine && want == self && !live[holder]:
			take = append(take, n)
		case !mine && holder == self && want == self:
			take = append(take, n) // an earlier claim of ours was answered late
		}
		if live[holder] || !ours {
			covered++
		}
	}
	if r.regions != nil {
		take = r.between(inner, v, ids, take)
	}
	if len(lost) > 0 {
		r.recheck(inner, lost)
	}
	if len(give) > 0 {
		r.giveUp(inner, give, 1)
	}
	if len(take) > 0 {
		r.claim(inner, take)
	}
	if covered == slot.Count || len(take) > 0 {
		r.checkReady(v)
	}
}

// checkReady: the region is served when every slot is held here or by a live member.
func (r *Runner) checkReady(v *View) {
	live := map[string]bool{}
	for _, m := range v.Members {
		live[m.ID] = true
	}
	for n := range slot.Count {
		o, known := r.owner(n)
		if !known {
			return
		}
		if r.ours(n) && o.Status == slot.Active && !r.holds(n) && (v.Holders[n] == r.cfg.Self.ID || !live[v.Holders[n]]) {
			return
		}
	}
	if !r.ready.Swap(true) {
		r.cfg.Log.Info("ready: every slot has a holder", "member", r.cfg.Self.ID)
	}
}

// recheck drops slots that a later term has taken. The view may be older than our own claim, so the term decides. A
// slot whose term has moved would be dropped by its first write anyway.
func (r *Runner) recheck(ctx context.Context, lost []int) {
	v := r.view.Load()
	err := r.Ask(ctx, func(c *Core, at int64) {
		for _, n := range lost {
			if t, ok := c.Term(n); ok && v.Terms[n] > t {
				c.Drop(n)
				r.setHeld(n, 0)
			}
		}
	})
	if err == nil {
		r.cfg.Log.Warn("slots belong to another holder now", "slots", len(lost))
	}
}

// reclaim asks for new terms; it never blocks the core's goroutine.
func (r *Runner) reclaim(slots []int) {
	select {
	case r.claims <- slots:
	default:
		go func() {
			select {
			case r.claims <- slots:
			case <-r.lifetime.Done():
			}
		}()
	}
}

// claim takes slots: new terms, then what they hold. It goes on until every slot is held or is another's.
func (r *Runner) claim(ctx context.Context, slots []int) {
	slots = gather(slots, nil)
	if err := r.Ask(ctx, func(c *Core, _ int64) { c.Expect(slots) }); err != nil {
		return
	}
	start := time.Now()
	for attempt := 1; len(slots) > 0 && ctx.Err() == nil; attempt++ {
		var epochs map[int]uint64
		if slots, epochs = r.onlyOurs(ctx, slots); len(slots) == 0 {
			return
		}
		cctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		claims, err := r.store.Claim(cctx, r.cfg.Self.ID, slots, func(n int) uint64 { return epochs[n] })
		cancel()
		if err != nil {
			r.cfg.Log.Warn("slots could not be claimed; trying again", "slots", len(slots), "attempt", attempt, "err", err)
		}
		loaded, records := r.loadAll(ctx, claims, r.generations(ctx, len(claims) > 0))
		if len(loaded) > 0 {
			r.buildKnown(ctx)
			r.cfg.Log.Info("slots taken", "slots", len(loaded), "transactions", records, "took", time.Since(start))
		}
		slots = without(slots, loaded)
		if len(slots) == 0 {
			return
		}
		if err == nil && attempt >= 3 {
			// The record of these slots keeps moving: somebody else wants them. The next view says who.
			_ = r.Ask(ctx, func(c *Core, _ int64) {
				for _, n := range slots {
					c.Drop(n)
					r.setHeld(n, 0)
				}
			})
			return
		}
		select {
		case <-time.After(time.Duration(min(attempt, 20)) * 50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// onlyOurs drops slots that another region owns by now, and gives the epochs at which the others are to be taken.
func (r *Runner) onlyOurs(ctx context.Context, slots []int) ([]int, map[int]uint64) {
	epochs := map[int]uint64{}
	var keep, gone []int
	for _, n := range slots {
		if o, known := r.owner(n); known && r.ours(n) {
			keep, epochs[n] = append(keep, n), uint64(o.Epoch)
		} else {
			gone = append(gone, n)
		}
	}
	if len(gone) > 0 {
		_ = r.Ask(ctx, func(c *Core, _ int64) {
			for _, n := range gone {
				c.Drop(n)
				r.setHeld(n, 0)
			}
		})
	}
	return keep, epochs
}

func without(slots []int, gone map[int]bool) []int {
	var out []int
	for _, n := range slots {
		if !gone[n] {
			out = append(out, n)
		}
	}
	return out
}

// loadsAtOnce bounds the slots that are read side by side.
const loadsAtOnce = 8

// loadAll reads claimed slots and hands them to the core. It gives those that are held, or closed, and how many transactions
// they have.
func (r *Runner) loadAll(ctx context.Context, claims []Claim, generation func(n int) int64) (map[int]bool, int) {
	held, records := map[int]bool{}, 0
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(loadsAtOnce)
	for _, cl := range claims {
		cl.Generation = generation(cl.Slot)
		g.Go(func() error {
			if n, ok := r.load(ctx, cl); ok {
				mu.Lock()
				held[cl.Slot] = true
				records += n
				mu.Unlock()
			}
			return nil // the others are read all the same
		})
	}
	_ = g.Wait() // it has only nil errors
	return held, records
}

// load reads one claimed slot and hands it to the core.
func (r *Runner) load(ctx context.Context, cl Claim) (records int, ok bool) {
	if cl.Closed {
		// Its epoch has ended: there is nothing to hold. What is left to do follows from the view.
		_ = r.Ask(ctx, func(c *Core, _ int64) { c.Drop(cl.Slot); r.setHeld(cl.Slot, 0) })
		return 0, true
	}
	if o, _ := r.owner(cl.Slot); o.Status == slot.Taken || r.cameFrom(o) && cl.Imported < uint64(o.Seal.Epoch) {
		return 0, false // to be imported first: held without it, its live transactions would be lost
	}
	if o, _ := r.owner(cl.Slot); r.regions != nil && o.Epoch != slot.Initial(r.regions.Index()) {
		if err := r.journalLeft(ctx, cl.Slot); err != nil {
			r.cfg.Log.Warn("what an undone move has left in a slot is not in the journal yet", "slot", cl.Slot, "err", err)
			return 0, false
		}
	}
	var txs []*record.Tx
	err := r.store.Load(ctx, cl.Slot, func(gid txn.Gid, value []byte) error {
		tx, err := record.Decode(value)
		if err != nil {
			// Never dropped in silence, and never a reason to stop the others.
			r.cfg.Log.Error("a record cannot be read: it stays in the store and is not driven", "gid", gid, "slot", cl.Slot, "err", err)
			return r.Ask(ctx, func(c *Core, _ int64) { c.Poison(gid) })
		}
		txs = append(txs, tx)
		return nil
	})
	if err != nil {
		r.cfg.Log.Warn("a slot could not be read", "slot", cl.Slot, "err", err)
		return 0, false
	}
	return len(txs), r.hold(ctx, cl, txs) == nil
}

// hold hands a claimed slot to the core with all that it has.
func (r *Runner) hold(ctx context.Context, cl Claim, txs []*record.Tx) error {
	return r.Ask(ctx, func(c *Core, at int64) {
		c.Hold(at, cl, txs)
		r.heldEpoch[cl.Slot].Store(cl.Epoch)
		r.setHeld(cl.Slot, cl.Term)
	})
}

// generations gives the slots' generations of global decisions. Without the arbiter's word they are unknown, and a slot is
// taken again before it decides globally.
func (r *Runner) generations(ctx context.Context, any bool) func(n int) int64 {
	if r.regions == nil || !any {
		return func(int) int64 { return 0 }
	}
	gctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	all, err := r.regions.Generations(gctx)
	if err != nil {
		r.cfg.Log.Warn("the arbiter is not heard: global decisions wait for it", "err", err)
		return func(int) int64 { return -1 }
	}
	return func(n int) int64 { return all[n] }
}

// keepTries bounds how often a slot's bare prepares are saved before it is given up: on a slot that is begun on all the
// time there is always one more, and the last ones are lost as in a crash.
const keepTries = 50

// giveUp hands slots to the member that should have them, once nothing of them is under way. try counts from 1.
func (r *Runner) giveUp(ctx context.Context, slots []int, try int) {
	for _, n := range slots {
		var term Term
		free := false
		err := r.Ask(ctx, func(c *Core, _ int64) {
			if try <= keepTries {
				c.Keep(n)
			}
			if t, ok := c.Term(n); ok && c.Freeze(n) {
				term, free = t, true
				c.Drop(n)
				r.setHeld(n, 0)
			}
		})
		if err != nil {
			return
		}
		if !free {
			// Busy just now: the view is considered again soon.
			time.AfterFunc(20*time.Millisecond, func() { r.again(n, try+1) })
			continue
		}
		if err := r.store.Release(ctx, n, term); err != nil && !errors.Is(err, ErrFenced) {
			r.cfg.Log.Warn("a slot's release is in doubt: taking it again", "slot", n, "err", err)
			r.reclaim([]int{n})
		}
	}
}

// again repeats giveUp for one slot if the latest view still says so.
func (r *Runner) again(n, try int) {
	v := r.view.Load()
	if v == nil || r.lifetime.Err() != nil || !r.holds(n) {
		return
	}
	var ids []string
	for _, m := range v.Members {
		ids = append(ids, m.ID)
	}
	if slot.Prefer(n, ids) != r.cfg.Self.ID || !r.ours(n) {
		r.giveUp(r.lifetime, []int{n}, try)
	}
}

// drain gives every slot up in an orderly way: new requests are told to go elsewhere, what is being written is
// written. It is bounded; what is left is settled by the next holder's term.
func (r *Runner) drain() {
	r.stopping.Store(true)
	ctx, cancel := context.WithTimeout(r.lifetime, 5*time.Second)
	defer cancel()
	// Calls in flight get a short while to be answered, so that a restart repeats little.
	until := time.Now().Add(2 * time.Second)
	for time.Now().Before(until) && !r.calm(ctx) {
		time.Sleep(10 * time.Millisecond)
	}
	_ = r.Ask(ctx, func(c *Core, at int64) { c.FlushAll(at) })
	r.rows.flushNow()
	for !r.saved(ctx) && ctx.Err() == nil {
		time.Sleep(5 * time.Millisecond)
	}
	for n := range slot.Count {
		if ctx.Err() != nil {
			return
		}
		if r.holds(n) {
			r.giveUpLast(ctx, n)
		}
	}
}

func (r *Runner) giveUpLast(ctx context.Context, n int) {
	var term Term
	ok := false
	if r.Ask(ctx, func(c *Core, _ int64) {
		if term, ok = c.Term(n); ok {
			c.Drop(n)
			r.setHeld(n, 0)
		}
	}) != nil || !ok {
		return
	}
	if err := r.store.Release(ctx, n, term); err != nil && !errors.Is(err, ErrFenced) {
		r.cfg.Log.Warn("a slot was not released", "slot", n, "err", err)
	}
}

// calm says that no batch is under way, nothing is unsaved, and no call is in flight.
func (r *Runner) calm(ctx context.Context) bool {
	calm := false
	if r.Ask(ctx, func(c *Core, _ int64) { calm = r.writing == 0 && c.Unsaved() == 0 && c.Idle() }) != nil {
		return true
	}
	return calm
}

// saved says that no batch is under way and nothing is unsaved; calls may hang.
func (r *Runner) saved(ctx context.Context) bool {
	saved := false
	if r.Ask(ctx, func(c *Core, _ int64) { saved = r.writing == 0 && c.Unsaved() == 0 }) != nil {
		return true
	}
	return saved
}

// sample reports gauges and sheds load when the store fills up.
func (r *Runner) sample(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		uctx, cancel := context.WithTimeout(ctx, time.Second)
		usage, err := r.store.Usage(uctx)
		cancel()
		var g Gauges
		if r.Ask(ctx, func(c *Core, _ int64) {
			if err == nil {
				c.Shed(shedReason(usage))
				r.shedding.Store(shedReason(usage) != "")
			}
			if r.regions != nil {
				c.NoGlobal(r.regions.Arbiter())
			}
			g = Gauges{Live: c.Live(), Unsaved: c.Unsaved(), Slots: len(c.Held()), Stuck: c.Stuck(StuckFails)}
		}) != nil {
			return
		}
		g.Usage, g.JournalBacklog = usage, r.rows.len()
		r.open.Store(int64(g.Live))
		r.cfg.Observer.Sampled(g)
	}
}

// Counts gives the unfinished transactions in this process, as they were counted within the last second, and the rows on
// their way to the journal.
func (r *Runner) Counts() (open, backlog int) { return int(r.open.Load()), r.rows.len() }

// StuckFails is how many failures in a row make a call stuck.
const StuckFails = 5

// shedReason says why begins are refused: at 60 % of the quota, so that what was begun can be finished.
func shedReason(u Usage) string {
	if u.QuotaBytes > 0 && u.UsedBytes*10 >= u.QuotaBytes*6 {
		return fmt.Sprintf("the store is %d%% full", u.UsedBytes*100/u.QuotaBytes)
	}
	return ""
}
