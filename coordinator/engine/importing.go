package engine

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// This file brings what came with a slot into the store, before the slot is held.

// importsAtOnce bounds the slots that are imported side by side.
const importsAtOnce = 16

// importsTogether bounds the slots whose last batches are written as one: each is a comparison and two puts.
const importsTogether = 32

// imported is a slot on its way into the store.
type imported struct {
	cl    Claim
	owner slot.Owner
	came  *Arrival

	txs  []*record.Tx // what the slot has afterwards
	last *Batch       // says that all of it is there
	err  error
}

// importAll imports slots, each with its own error. Of a region that is lost most slots have nothing open: those are written
// many at a time.
func (r *Runner) importAll(ctx context.Context, list []*imported) {
	var g errgroup.Group
	g.SetLimit(importsAtOnce)
	for _, in := range list {
		g.Go(func() error { in.err = r.importSlot(ctx, in); return nil })
	}
	_ = g.Wait() // it has only nil errors
	var empty, full []*imported
	for _, in := range list {
		switch {
		case in.err != nil:
		case len(in.last.Puts)+len(in.last.Deletes) == 0:
			empty = append(empty, in)
		default:
			full = append(full, in)
		}
	}
	for part := range slices.Chunk(empty, importsTogether) {
		g.Go(func() error { r.writeTogether(ctx, part); return nil })
	}
	for _, in := range full {
		g.Go(func() error { in.err = r.commitWithin(ctx, in.last); return nil })
	}
	_ = g.Wait() // it has only nil errors
	for _, in := range list {
		in.cl.Imported = uint64(in.owner.Seal.Epoch)
	}
}

// writeTogether writes the last batches of slots that have nothing else to write. One of them may have moved on: then each is
// written by itself.
func (r *Runner) writeTogether(ctx context.Context, list []*imported) {
	all := &Batch{}
	for _, in := range list {
		all.Guards = append(all.Guards, in.last.Guards...)
	}
	if r.commitWithin(ctx, all) == nil {
		return
	}
	for _, in := range list {
		in.err = r.commitWithin(ctx, in.last)
	}
}

func (r *Runner) commitWithin(ctx context.Context, b *Batch) error {
	wctx, cancel := context.WithTimeout(ctx, r.cfg.CommitTimeout)
	defer cancel()
	return r.store.Commit(wctx, b)
}

// importSlot replaces what the store has of a slot by what came with the seal, but for its last batch, which says that all of
// it is there. It is repeated from the start after a crash.
//
// The slot's own chain goes on where its last own epoch ended: under a forced seal that is before what this region had
// numbered, and in a store that is new it is after what the store knows.
func (r *Runner) importSlot(ctx context.Context, in *imported) error {
	cl := &in.cl
	if in.came.Own.Seq != 0 || in.owner.Forced() {
		cl.Head = in.came.Own
	}
	w := importing{r: r, cl: *cl}
	keep := map[txn.Gid]bool{}
	for _, value := range in.came.Live {
		tx, err := record.Decode(value)
		if err != nil {
			return fmt.Errorf("a record that came with slot %d: %w", cl.Slot, err)
		}
		gid := tx.State.Gid
		if slot.Of(string(gid)) != cl.Slot {
			return fmt.Errorf("%w: %q came with slot %d", record.ErrCorrupt, string(gid), cl.Slot)
		}
		if err := w.room(ctx, len(value)); err != nil {
			return err
		}
		keep[gid] = true
		in.txs = append(in.txs, tx)
		w.b.Puts = append(w.b.Puts, Put{Slot: cl.Slot, Gid: gid, Value: value})
	}
	var gone []txn.Gid
	if err := r.store.Load(ctx, cl.Slot, func(gid txn.Gid, _ []byte) error {
		if !keep[gid] {
			gone = append(gone, gid)
		}
		return nil
	}); err != nil {
		return err
	}
	for _, gid := range gone {
		if err := w.room(ctx, 0); err != nil {
			return err
		}
		w.b.Deletes = append(w.b.Deletes, Delete{Slot: cl.Slot, Gid: gid})
	}
	in.last = w.guarded(uint64(in.owner.Seal.Epoch))
	return nil
}

// importing writes an import in batches that a store takes.
type importing struct {
	r    *Runner
	cl   Claim
	b    Batch
	size int
}

// room makes room for one more write of so many bytes.
func (w *importing) room(ctx context.Context, bytes int) error {
	if len(w.b.Puts)+len(w.b.Deletes) >= sealEvents || (w.size > 0 && w.size+bytes > sealBytes) {
		err := w.r.commitWithin(ctx, w.guarded(0))
		w.b, w.size = Batch{}, 0
		if err != nil {
			return err
		}
	}
	w.size += bytes
	return nil
}

// guarded is the batch so far; with an epoch it says that all that came with its seal is there.
func (w *importing) guarded(epoch uint64) *Batch {
	b := w.b
	b.Guards = []Guard{{Slot: w.cl.Slot, Term: w.cl.Term, Imported: epoch}}
	if epoch != 0 {
		b.Guards[0].Head = &w.cl.Head
	}
	return &b
}
