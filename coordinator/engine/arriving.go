package engine

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// This file is how a coordinator converges on the ownership: what it starts for slots that leave, arrive, or have gone.

// moveTick is how often the ownership is compared with what is held, beside every change.
const moveTick = 250 * time.Millisecond

// movesAtOnce bounds the slots that leave together: their accounts are released in one local transaction.
const movesAtOnce = 32

// works are the slots that something is under way for.
type works struct {
	mu    sync.Mutex
	slots [slot.Count]bool
}

// begin marks a slot; false when something is under way for it.
func (w *works) begin(n int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.slots[n]
	w.slots[n] = true
	return !was
}

func (w *works) end(slots ...int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range slots {
		w.slots[n] = false
	}
}

func (w *works) busy(n int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.slots[n]
}

func (r *Runner) movedChan() <-chan struct{} {
	if r.regions == nil {
		return nil
	}
	return r.regions.Changed()
}

// between starts what the ownership asks for beyond the region: slots that leave are sealed, those that arrive under a seal
// are imported, those that are gone are purged. It gives what is left of take: slots to be claimed as they stand.
func (r *Runner) between(ctx context.Context, v *View, ids []string, take []int) []int {
	now := time.Now().UnixMilli()
	var leave, arrive []Move
	for n := range slot.Count {
		o, known := r.owner(n)
		if !known || slot.Prefer(n, ids) != r.cfg.Self.ID || r.working.busy(n) {
			continue
		}
		m := Move{n, o}
		ours, draining := r.ours(n), o.Status == slot.Draining
		var seal *slot.Seal // read once: it is gone as soon as the loss is worked off
		if !ours && !r.holds(n) {
			seal = r.lostIt(n, o, v.Closed[n])
		}
		switch {
		case ours && (draining || o.Status == slot.Sealed) && now > o.DeadlineMillis:
			r.start(n, func() { r.undo(ctx, m) })
		case ours && draining && r.holds(n) && r.heldEpoch[n].Load() == uint64(o.Epoch):
			if r.working.begin(n) {
				leave = append(leave, m)
			}
		case ours && draining && v.Closed[n] == uint64(o.Epoch):
			r.start(n, func() { r.finishClosed(ctx, []Move{m}) })
		case ours && o.Status != slot.Taken && r.cameFrom(o) && slices.Contains(take, n):
			if r.working.begin(n) {
				arrive = append(arrive, m)
			}
		case seal != nil && v.Terms[n] == 0 && o.Lost != 0:
			r.emptied() // what it had is not here: only an operator can say that it is gone
		case seal != nil:
			r.start(n, func() { r.handBack(ctx, m, seal) })
			// While a loss is not worked off nothing is purged: it may be this region's, whose seal is heard of later than its owner.
		case !ours && o.Status == slot.Active && o.Lost == 0 && v.Closed[n] != 0 && v.Closed[n] < uint64(o.Epoch) && r.purged[n].Load() < v.Closed[n]:
			r.start(n, func() { r.purge(ctx, n, v.Closed[n]) })
		}
	}
	for part := range slices.Chunk(leave, movesAtOnce) {
		go r.moveAway(ctx, part)
	}
	r.arrivals.add(arrive, func(all []Move) { r.arrive(ctx, all) })
	return slices.DeleteFunc(take, func(n int) bool {
		o, _ := r.owner(n)
		return r.cameFrom(o) || o.Status == slot.Sealed || o.Status == slot.Taken || v.Closed[n] >= uint64(o.Epoch) || r.working.busy(n) && !r.holds(n)
	})
}

// queue collects moves while earlier ones are worked at, so that what comes meanwhile is worked at together.
type queue struct {
	mu      sync.Mutex
	waiting []Move
	running bool
}

// add has work called for the moves, and for others that come meanwhile, by one goroutine at a time.
func (q *queue) add(moves []Move, work func([]Move)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, moves...)
	if q.running || len(q.waiting) == 0 {
		return
	}
	q.running = true
	go func() {
		for {
			q.mu.Lock()
			all := q.waiting
			q.waiting, q.running = nil, len(all) > 0
			q.mu.Unlock()
			if len(all) == 0 {
				return
			}
			work(all)
		}
	}()
}

// start runs work for a slot that nothing is under way for.
func (r *Runner) start(n int, work func()) {
	if r.working.begin(n) {
		go func() { defer r.working.end(n); work() }()
	}
}

// undo gives a slot back to this region: its move took too long. Against the other region's activation one of the two wins.
func (r *Runner) undo(ctx context.Context, m Move) {
	if err := r.regions.Undo(ctx, m); err != nil {
		r.cfg.Log.Warn("a move that took too long was not undone", "slot", m.Slot, "op", m.Owner.Op, "err", err)
		return
	}
	r.cfg.Log.Warn("a move took too long: the slot stays here, at a higher epoch", "slot", m.Slot, "op", m.Owner.Op, "to", m.Owner.To)
}

// purge removes the records of a slot that another region has taken over; they went there under the seal.
func (r *Runner) purge(ctx context.Context, n int, epoch uint64) {
	if err := r.store.Purge(ctx, n, epoch); err != nil && !errors.Is(err, ErrFenced) {
		r.cfg.Log.Warn("the records of a slot that has moved were not removed", "slot", n, "err", err)
		return
	}
	r.purged[n].Store(epoch)
}

// arrivalsTimeout bounds what is asked of the arbiter and the journal about slots that arrive.
const arrivalsTimeout = 10 * time.Second

// arriveAtOnce bounds the slots that are taken together when many arrive: the first are served while the last are read.
const arriveAtOnce = 64

// arrive takes slots that came under a seal: their live records first, then they are held like others.
func (r *Runner) arrive(ctx context.Context, moves []Move) {
	defer r.working.end(slotsOf(moves)...)
	moves = slices.DeleteFunc(moves, func(m Move) bool {
		o, _ := r.owner(m.Slot)
		// They may have waited for others, and have moved on; and one that arrived while it was considered is here already: taken
		// once more it would repeat every call under way.
		return !o.Equal(m.Owner) || r.holds(m.Slot) && r.heldEpoch[m.Slot].Load() == uint64(o.Epoch)
	})
	slots := slotsOf(moves)
	if len(moves) == 0 || r.Ask(ctx, func(c *Core, _ int64) { c.Expect(slots) }) != nil {
		return
	}
	start := time.Now()
	var came []Arrival
	var generation func(n int) int64
	var g errgroup.Group
	actx, cancel := context.WithTimeout(ctx, arrivalsTimeout)
	defer cancel()
	g.Go(func() (err error) { came, err = r.regions.Arrivals(actx, moves); return err })
	g.Go(func() error { generation = r.generations(ctx, true); return nil })
	if err := g.Wait(); err != nil {
		r.cfg.Log.Warn("what came with slots that arrive could not be read; trying again", "slots", len(moves), "err", err)
		came = nil
	}
	read := time.Since(start)
	moves, came = r.wantedFirst(moves, came)
	held, records := map[int]bool{}, 0
	for len(came) > 0 {
		n := min(arriveAtOnce, len(came))
		h, k := r.takeArrived(ctx, moves[:n], came[:n], generation)
		maps.Copy(held, h)
		records, moves, came = records+k, moves[n:], came[n:]
	}
	if len(held) > 0 {
		r.buildKnown(ctx)
		r.cfg.Log.Info("slots arrived", "slots", len(held), "transactions", records, "read", read, "took", time.Since(start))
	}
	_ = r.Ask(ctx, func(c *Core, _ int64) {
		for _, n := range slots {
			if !held[n] && !c.Holds(n) {
				c.Drop(n)
			}
		}
	})
}

func slotsOf(moves []Move) []int {
	out := make([]int, len(moves))
	for i, m := range moves {
		out[i] = m.Slot
	}
	return out
}

// wantedFirst puts the slots first that requests wait for: when hundreds arrive, the others' turn comes later.
func (r *Runner) wantedFirst(moves []Move, came []Arrival) ([]Move, []Arrival) {
	if len(came) <= arriveAtOnce {
		return moves, came
	}
	var m [2][]Move
	var a [2][]Arrival
	for i := range came {
		at := 1
		if r.wanted[moves[i].Slot].Load() > 0 {
			at = 0
		}
		m[at], a[at] = append(m[at], moves[i]), append(a[at], came[i])
	}
	return slices.Concat(m[0], m[1]), slices.Concat(a[0], a[1])
}

// takeArrived claims slots, imports what came with them and holds them. It gives those that are held.
func (r *Runner) takeArrived(ctx context.Context, moves []Move, came []Arrival, generation func(n int) int64) (map[int]bool, int) {
	var slots []int
	at := map[int]int{}
	for i, m := range moves {
		if came[i].Err != nil {
			if !errors.Is(came[i].Err, ErrNotYet) {
				r.cfg.Log.Warn("what came with a slot cannot be read; trying again", "slot", m.Slot, "err", came[i].Err)
			}
			continue
		}
		slots, at[m.Slot] = append(slots, m.Slot), i
	}
	if len(slots) == 0 {
		return nil, 0
	}
	cctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	claims, err := r.store.Claim(cctx, r.cfg.Self.ID, slots, func(n int) uint64 { return uint64(moves[at[n]].Owner.Epoch) })
	cancel()
	if err != nil {
		r.cfg.Log.Warn("slots that arrive could not be claimed; trying again", "slots", len(slots), "err", err)
	}
	var read []Claim // imported before
	var list []*imported
	for _, cl := range claims {
		m := moves[at[cl.Slot]]
		switch {
		case cl.Closed:
		case cl.Imported >= uint64(m.Owner.Seal.Epoch):
			read = append(read, cl)
		default:
			list = append(list, &imported{cl: cl, owner: m.Owner, came: &came[at[cl.Slot]]})
		}
	}
	held, records := r.loadAll(ctx, read, generation)
	r.importAll(ctx, list)
	for _, in := range list {
		if in.err != nil {
			r.cfg.Log.Warn("a slot that arrives could not be imported; trying again", "slot", in.cl.Slot, "err", in.err)
			continue
		}
		in.cl.Generation = generation(in.cl.Slot)
		if r.hold(ctx, in.cl, in.txs) == nil {
			held[in.cl.Slot] = true
			records += len(in.txs)
		}
	}
	return held, records
}

// adoptions makes the participants take the accounts of the slots that this process holds: after a move, after a move that
// was undone, and once after a start, for whoever held the slot before may have died in between. Branches that go to
// accounts on their way are put off meanwhile.
func (r *Runner) adoptions(ctx context.Context) {
	type at struct {
		epoch slot.Epoch
		lost  bool // a loss of the region it came from by force is not worked off; else its accounts may spend freely
	}
	var done [slot.Count]at
	tick := time.NewTicker(moveTick)
	defer tick.Stop()
	for {
		var moves []Move
		losses := r.losses()
		for n := range slot.Count {
			o, known := r.owner(n)
			if !known || !r.ours(n) || o.Status != slot.Active || !r.holds(n) || done[n] == (at{o.Epoch, atLoss(o, losses)}) {
				continue
			}
			if o.Epoch == slot.Initial(r.regions.Index()) {
				done[n] = at{epoch: o.Epoch} // its first owner: the accounts have been here from the start
				continue
			}
			moves = append(moves, Move{n, o})
		}
		var failed []int
		for _, part := range adoptionParts(moves) {
			if err := r.regions.Adopt(ctx, part); err != nil {
				if ctx.Err() == nil {
					r.cfg.Log.Warn("accounts were not adopted yet; trying again", "slots", len(part), "first", part[0].Slot, "err", err)
				}
				for _, m := range part {
					failed = append(failed, m.Slot)
				}
				continue
			}
			for _, m := range part {
				done[m.Slot] = at{m.Owner.Epoch, atLoss(m.Owner, losses)}
			}
			r.cfg.Log.Info("accounts adopted", "slots", len(part), "first", part[0].Slot)
		}
		r.unadopted.Store(&failed)
		changed := r.changedChan()
		select {
		case <-tick.C:
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// Unadopted gives the slots held here whose accounts could not all be adopted when that was last tried: a participant, or the region
// that released them, does not answer. Payments of these accounts wait.
func (r *Runner) Unadopted() []int {
	if list := r.unadopted.Load(); list != nil {
		return *list
	}
	return nil
}

// forcedAtOnce bounds the slots that are adopted by force together: nothing is brought with them.
const forcedAtOnce = 128

// adoptionParts sorts moves into those that are adopted in one local transaction.
func adoptionParts(moves []Move) [][]Move {
	var forced, planned []Move
	for _, m := range moves {
		if m.Owner.Forced() {
			forced = append(forced, m)
		} else {
			planned = append(planned, m)
		}
	}
	return slices.Concat(slices.Collect(slices.Chunk(forced, forcedAtOnce)), slices.Collect(slices.Chunk(planned, movesAtOnce)))
}

func atLoss(o slot.Owner, losses map[int]bool) bool {
	return o.Forced() && o.Seal != nil && losses[o.Seal.Epoch.Region()]
}

// losses are the regions, by index, that slots were taken from by force and that are not worked off.
func (r *Runner) losses() map[int]bool {
	out := map[int]bool{}
	for n := range slot.Count {
		if o, _ := r.owner(n); o.Lost != 0 {
			out[o.Lost.Region()] = true
		}
	}
	return out
}
