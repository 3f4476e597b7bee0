package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// This file is the part of a slot's move that its source does: begins wait, accounts are released, live records become
// events, the epoch is closed, the arbiter is told (ADR 8). Every step can be repeated, by this process or another one.

// Quiesce holds back what would begin in the slots: it waits in the slot, and goes with it.
func (c *Core) Quiesce(slots []int) {
	for _, n := range slots {
		if hs := c.slots[n]; hs != nil {
			hs.quiet = true
		}
	}
}

// Still stops a slot: no request, no answer and no timer changes a transaction of it any more. It says whether all of it
// is durable and nothing under way; until then it is to be asked again.
func (c *Core) Still(n int) bool {
	hs := c.slots[n]
	if hs == nil || !hs.ready {
		return false
	}
	if !hs.still {
		hs.quiet, hs.still = true, true
		c.Keep(n)
		for _, e := range hs.txs {
			c.timers.set(e, 0)
		}
	}
	if hs.busy || len(hs.unsent) > 0 {
		return false
	}
	for _, e := range hs.txs {
		if e.saved < e.version {
			return false
		}
	}
	return true
}

// carried is a live record as it leaves with its slot.
type carried struct {
	gid   txn.Gid
	value []byte
}

// Leaving gives the records of a slot that is still and their place in its chain, in the order of their gids.
func (c *Core) Leaving(n int) (cl Claim, live []carried, err error) {
	hs := c.slots[n]
	if hs == nil || !hs.still {
		return cl, nil, ErrNotHolder
	}
	for _, gid := range slices.Sorted(maps.Keys(hs.txs)) {
		e := hs.txs[gid]
		if e.tx.State.Phase.Finished() {
			continue // its finish is in the chain already
		}
		value, err := e.tx.Encode()
		if err != nil {
			return cl, nil, fmt.Errorf("record of %q: %w", string(gid), err)
		}
		live = append(live, carried{gid, value})
	}
	return Claim{Slot: n, Term: hs.term, Epoch: hs.epoch, Head: hs.head}, live, nil
}

// moveAway brings draining slots that this process holds to their seals.
func (r *Runner) moveAway(ctx context.Context, moves []Move) {
	slots := make([]int, len(moves))
	for i, m := range moves {
		slots[i] = m.Slot
	}
	defer r.working.end(slots...)
	start := time.Now()
	if r.Ask(ctx, func(c *Core, _ int64) { c.Quiesce(slots) }) != nil {
		return
	}
	// What holds a begin up is over by the deadline, also where a participant hangs.
	rctx, cancel := context.WithDeadline(ctx, time.UnixMilli(moves[0].Owner.DeadlineMillis))
	defer cancel()
	if !r.retry(rctx, moves, "release accounts", func() error {
		err := r.regions.Release(rctx, moves)
		if err != nil {
			// What the move before brought may not be adopted yet, and cannot be released before.
			err = errors.Join(err, r.regions.Adopt(rctx, moves))
		}
		return err
	}) {
		return
	}
	released := time.Since(start)
	closed := r.sealAll(ctx, moves)
	sealed := time.Since(start)
	r.finishClosed(ctx, closed)
	r.cfg.Log.Info("slots sealed", "slots", len(closed), "of", len(moves), "to", moves[0].Owner.To, "released", released, "closed", sealed, "took", time.Since(start))
}

// sealAll seals slots side by side and gives those that are closed.
func (r *Runner) sealAll(ctx context.Context, moves []Move) []Move {
	ok := make([]bool, len(moves))
	var g errgroup.Group
	for i, m := range moves {
		g.Go(func() error {
			if err := r.seal(ctx, m); err != nil {
				r.cfg.Log.Warn("a slot was not sealed yet", "slot", m.Slot, "err", err)
				return nil
			}
			ok[i] = true
			return nil
		})
	}
	_ = g.Wait() // it has only nil errors
	var closed []Move
	for i, m := range moves {
		if ok[i] {
			closed = append(closed, m)
		}
	}
	return closed
}

// retry repeats work while the slots are still on their way as the moves say.
func (r *Runner) retry(ctx context.Context, moves []Move, what string, work func() error) bool {
	for attempt := 1; ; attempt++ {
		err := work()
		if err == nil {
			return true
		}
		for _, m := range moves {
			if m.Owner.Status != slot.Active && time.Now().UnixMilli() > m.Owner.DeadlineMillis {
				return false // it is undone
			}
			if o, _ := r.owner(m.Slot); !o.Equal(m.Owner) {
				return false
			}
		}
		r.cfg.Log.Warn("a move waits; trying again", "what", what, "slots", len(moves), "first", moves[0].Slot, "attempt", attempt, "err", err)
		select {
		case <-time.After(time.Duration(min(attempt, 10)) * 50 * time.Millisecond):
		case <-ctx.Done():
			return false
		}
	}
}

// stillWait bounds how long a slot may take to come to rest: what is being written is written in that time.
const stillWait = 10 * time.Second

// seal writes the slot's live records and the seal into its chain and closes its epoch.
func (r *Runner) seal(ctx context.Context, m Move) error {
	n := m.Slot
	until := time.Now().Add(stillWait)
	for still := false; !still; {
		held := false
		if err := r.Ask(ctx, func(c *Core, at int64) { held, still = c.Holds(n), c.Still(n) }); err != nil {
			return err
		}
		switch {
		case !held:
			return ErrNotHolder
		case time.Now().After(until):
			r.resume(ctx, n)
			return errors.New("it did not come to rest")
		case !still:
			time.Sleep(2 * time.Millisecond)
		}
	}
	var cl Claim
	var live []carried
	var err error
	if aerr := r.Ask(ctx, func(c *Core, _ int64) { cl, live, err = c.Leaving(n) }); aerr != nil || err != nil {
		return errors.Join(aerr, err)
	}
	if cl.Epoch != uint64(m.Owner.Epoch) {
		r.resume(ctx, n)
		return fmt.Errorf("it is held at epoch %d, the move is of epoch %d", cl.Epoch, m.Owner.Epoch)
	}
	for _, b := range sealBatches(cl, live) {
		wctx, cancel := context.WithTimeoutCause(ctx, r.cfg.CommitTimeout, errors.New("commit timeout"))
		err := r.store.Commit(wctx, b)
		cancel()
		if err != nil {
			// Fenced: another holder goes on. Anything else is settled by a new term, or by a slot that is closed.
			_ = r.Ask(ctx, func(c *Core, _ int64) { c.Settle(n) })
			r.reclaim([]int{n})
			return err
		}
	}
	return r.Ask(ctx, func(c *Core, _ int64) { c.Drop(n); r.setHeld(n, 0) })
}

// resume lets a slot go on that was brought to rest for nothing: it has forgotten answers, so it takes a new term.
func (r *Runner) resume(ctx context.Context, n int) {
	_ = r.Ask(ctx, func(c *Core, _ int64) { c.Settle(n) })
	r.reclaim([]int{n})
}

// Bounds of one batch of events.
const (
	sealEvents = 90
	sealBytes  = 900 << 10
)

// sealBatches makes the batches that carry live records and close the slot, in their order.
func sealBatches(cl Claim, live []carried) []*Batch {
	head := cl.Head
	event := func(kind record.Kind, gid txn.Gid, body []byte) record.Event {
		head = head.Next(cl.Slot, cl.Epoch, kind, gid, body)
		return record.Event{Slot: cl.Slot, Kind: kind, Gid: gid, Epoch: cl.Epoch, Head: head, Body: body}
	}
	var out []*Batch
	b, size := &Batch{}, 0
	flush := func(last bool) {
		h := head
		b.Guards = []Guard{{Slot: cl.Slot, Term: cl.Term, Head: &h, Close: last}}
		out = append(out, b)
		b, size = &Batch{}, 0
	}
	for _, l := range live {
		if len(b.Events) >= sealEvents || (size > 0 && size+len(l.value) > sealBytes) {
			flush(false)
		}
		b.Events = append(b.Events, event(record.KindCarry, l.gid, l.value))
		size += len(l.value)
	}
	b.Events = append(b.Events, event(record.KindSeal, "", nil))
	flush(true)
	return out
}

// finishClosed brings what closed slots hold into the journal and tells the arbiter of the seals. It works from the store
// alone, so that any process can do it after any crash.
func (r *Runner) finishClosed(ctx context.Context, moves []Move) {
	if len(moves) == 0 {
		return
	}
	r.retry(ctx, moves, "journal sealed slots", func() error {
		var mu sync.Mutex
		var rows []Row
		var events []record.Event
		heads := map[int]record.Head{}
		g, gctx := errgroup.WithContext(ctx)
		for _, m := range moves {
			g.Go(func() error {
				in, err := r.closedSlot(gctx, m)
				mu.Lock()
				defer mu.Unlock()
				rows, events, heads[m.Slot] = append(rows, in.rows...), append(events, in.events...), in.head
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		for part := range slices.Chunk(rows, journalBatchRows) {
			if err := r.journal.Append(ctx, part); err != nil {
				return err
			}
		}
		for part := range slices.Chunk(events, journalBatchRows) {
			if err := r.journal.AppendEvents(ctx, part); err != nil {
				return err
			}
		}
		g, gctx = errgroup.WithContext(ctx)
		for _, m := range moves {
			g.Go(func() error {
				head := heads[m.Slot]
				if err := r.regions.Seal(gctx, m, slot.SealOf(m.Owner.Epoch, head.Seq, head.Chain[:])); err != nil {
					return err
				}
				return r.store.ForgetEvents(gctx, m.Slot, head.Seq)
			})
		}
		return g.Wait()
	})
}

// journalLeft brings the carries and the seal of a move into the journal that was undone before whoever closed the slot could: the
// slot's chain goes on behind them.
func (r *Runner) journalLeft(ctx context.Context, n int) error {
	events, err := r.store.Events(ctx, n)
	if err != nil || len(events) == 0 {
		return err
	}
	for part := range slices.Chunk(events, journalBatchRows) {
		if err := r.journal.AppendEvents(ctx, part); err != nil {
			return err
		}
	}
	return r.store.ForgetEvents(ctx, n, events[len(events)-1].Head.Seq)
}

// closed is what a closed slot holds.
type closed struct {
	rows   []Row
	events []record.Event
	head   record.Head
}

func (r *Runner) closedSlot(ctx context.Context, m Move) (in closed, err error) {
	n := m.Slot
	if err := r.store.Load(ctx, n, func(gid txn.Gid, value []byte) error {
		tx, err := record.Decode(value)
		if err != nil {
			return fmt.Errorf("record of %q: %w", string(gid), err)
		}
		if tx.State.Phase.Decided() {
			in.rows = append(in.rows, rowOf(&entry{tx: *tx, slot: &heldSlot{n: n}}))
		}
		return nil
	}); err != nil {
		return in, err
	}
	if in.events, err = r.store.Events(ctx, n); err != nil {
		return in, err
	}
	claims, err := r.store.Claim(ctx, r.cfg.Self.ID, []int{n}, func(int) uint64 { return uint64(m.Owner.Epoch) })
	if err != nil {
		return in, err
	}
	if len(claims) != 1 || !claims[0].Closed {
		return in, fmt.Errorf("slot %d is not closed for epoch %d", n, m.Owner.Epoch)
	}
	in.head = claims[0].Head
	return in, nil
}
