package barrier

import (
	"context"
	"database/sql"
	"fmt"
)

// This file is what a repair needs of a barrier: to run under the fence rows, and to write a row again that was lost.

// Fenced runs work in a local transaction under the exclusive locks of slots. ErrStale where one has a newer epoch than the
// caller knows: it no longer speaks for the slot, and nothing was done. work may run again, after a deadlock.
func (b *Barrier) Fenced(ctx context.Context, slots []SlotEpoch, work func(tx *sql.Tx) error) error {
	numbers, known := make([]int, 0, len(slots)), map[int]int64{}
	for _, s := range slots {
		if _, twice := known[s.Slot]; !twice {
			numbers = append(numbers, s.Slot)
		}
		known[s.Slot] = max(known[s.Slot], s.Epoch)
	}
	if len(numbers) == 0 {
		return (&cleaning{b: b}).inTx(ctx, work)
	}
	return b.change(ctx, numbers, func(tx *sql.Tx, f *facts) error {
		for n, epoch := range known {
			if has := f.fences[n].epoch; has > epoch {
				return fmt.Errorf("%w: slot %d is at epoch %d, the repair at %d", ErrStale, n, has, epoch)
			}
		}
		return work(tx)
	})
}

// OpsIn gives the rows of a branch as a transaction of Fenced sees them: the op, and the op that wrote it.
func (b *Barrier) OpsIn(ctx context.Context, tx *sql.Tx, k BranchKey) (map[string]string, error) {
	rows, err := tx.QueryContext(ctx, "SELECT op, reason FROM "+b.dialect.table()+" WHERE gid = "+b.dialect.arg(1)+" AND branch_id = "+b.dialect.arg(2)+" AND barrier_id = '01'", k.Gid, k.Branch)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[string]string{}
	for rows.Next() {
		var op, reason string
		if err := rows.Scan(&op, &reason); err != nil {
			return nil, err
		}
		out[op] = reason
	}
	return out, rows.Err()
}

// RestoreRow writes the row of a TCC branch's op that was done and is not known of any more; one that is there stays. false
// if it was there.
func (b *Barrier) RestoreRow(ctx context.Context, tx *sql.Tx, k BranchKey, op string) (bool, error) {
	fresh, err := b.insertRows(ctx, tx, -1, []Row{{TransType: "tcc", Gid: k.Gid, BranchID: k.Branch, Op: op, BarrierID: "01", Reason: op}})
	return len(fresh) > 0, err
}
