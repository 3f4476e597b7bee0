package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// This file is what a region does that was lost and is back (ADR 9): what it has of slots that were taken from it goes to
// their owners, its journal is cut back to the seals, and its store forgets them. Every step can be repeated.

// lostIt gives the seal under which the slot was taken from this region by force while what is here of it is not worked off: it
// is not closed in the store, or the arbiter was not told. It may have gone on to others since, also by force. nil otherwise.
func (r *Runner) lostIt(n int, o slot.Owner, closed uint64) *slot.Seal {
	if s := r.regions.Lost(n); s != nil && o.Status == slot.Active && s.Epoch < o.Epoch && (closed < uint64(s.Epoch) || o.Lost == s.Epoch) {
		return s
	}
	return nil
}

// emptied says, now and then, that slots that were taken from this region have never been in its store.
func (r *Runner) emptied() {
	now := time.Now().Unix()
	if last := r.saidEmpty.Load(); now-last > 60 && r.saidEmpty.CompareAndSwap(last, now) {
		r.cfg.Log.Error("slots were taken from this region, and its store has never had them: was it started with empty disks? Start it with its own, or, if they are gone for good: lockstep region settle")
	}
}

// handBackPause is how long a slot that is not worked off rests until it is looked at again.
const handBackPause = time.Second

// handBack works off what this region has of a slot that was taken from it. What diverges keeps the slot from being closed:
// it is looked at again until an operator has settled it.
func (r *Runner) handBack(ctx context.Context, m Move, seal *slot.Seal) {
	err := r.handBackOnce(ctx, m, seal)
	switch {
	case err == nil:
		r.cfg.Log.Info("what was left of a slot that was taken is worked off", "slot", m.Slot, "epoch", seal.Epoch, "owner", m.Owner.Region)
	case ctx.Err() == nil:
		if !errors.Is(err, ErrDiverged) {
			r.cfg.Log.Warn("what is left of a slot that was taken is not worked off yet; trying again", "slot", m.Slot, "err", err)
		}
		select {
		case <-time.After(handBackPause):
		case <-ctx.Done():
		}
	}
}

func (r *Runner) handBackOnce(ctx context.Context, m Move, seal *slot.Seal) error {
	n, lost := m.Slot, uint64(seal.Epoch)
	claims, err := r.store.Claim(ctx, r.cfg.Self.ID, []int{n}, func(int) uint64 { return lost })
	if err != nil {
		return err
	}
	if len(claims) != 1 {
		return fmt.Errorf("slot %d could not be claimed at epoch %d", n, lost)
	}
	left, rows, events, err := r.leftOf(ctx, n)
	if err != nil {
		return err
	}
	cut, err := r.regions.Cut(ctx, m, seal, rows, events)
	if err != nil {
		return err
	}
	for i := range cut {
		e := &cut[i]
		if e.Kind != record.KindDecision || left[e.Gid] != nil {
			continue
		}
		if left[e.Gid], err = record.FromParts(e.Body, nil, e.Head, record.Head{}, e.Epoch, 0); err != nil {
			return fmt.Errorf("the decision of %q past the seal: %w", string(e.Gid), err)
		}
	}
	var diverged error
	for _, gid := range slices.Sorted(maps.Keys(left)) { // in one order: the same run gives the same
		if err := r.regions.Returned(ctx, m, left[gid]); errors.Is(err, ErrDiverged) {
			diverged = err
		} else if err != nil {
			return err
		}
	}
	if diverged != nil {
		return diverged
	}
	if !claims[0].Closed {
		cctx, cancel := context.WithTimeout(ctx, r.cfg.CommitTimeout)
		defer cancel()
		if err := r.store.Commit(cctx, &Batch{Guards: []Guard{{Slot: n, Term: claims[0].Term, Close: true}}}); err != nil {
			return err
		}
	}
	if m.Owner.Lost != seal.Epoch {
		return nil // it was lost again since, and that is another region's to work off
	}
	return r.regions.Settled(ctx, m)
}

// leftOf reads what the store has of a slot, with the rows and events of it that belong in the journal.
func (r *Runner) leftOf(ctx context.Context, n int) (left map[txn.Gid]*record.Tx, rows []Row, events []record.Event, err error) {
	left = map[txn.Gid]*record.Tx{}
	if err := r.store.Load(ctx, n, func(gid txn.Gid, value []byte) error {
		tx, err := record.Decode(value)
		if err != nil {
			return fmt.Errorf("record of %q: %w", string(gid), err)
		}
		left[gid] = tx
		if tx.Decision.Seq != 0 {
			rows = append(rows, rowOf(&entry{tx: *tx, slot: &heldSlot{n: n}}))
		}
		return nil
	}); err != nil {
		return nil, nil, nil, err
	}
	events, err = r.store.Events(ctx, n)
	return left, rows, events, err
}
