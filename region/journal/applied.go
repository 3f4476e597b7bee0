package journal

import (
	"cmp"
	"context"
	"fmt"
	"slices"
)

// Applied gives how far the participants' copies have what the chains say, by origin and slot.
func (j *Journal) Applied(ctx context.Context) (map[[2]int]uint64, error) {
	rows, err := j.read.QueryContext(ctx, "SELECT origin, slot, seq FROM lockstep_applied")
	if err != nil {
		return nil, fmt.Errorf("read what is applied in the journal at %s: %w", j.where, err)
	}
	defer rows.Close()
	out := map[[2]int]uint64{}
	for rows.Next() {
		var at [2]int
		var seq int64
		if err := rows.Scan(&at[0], &at[1], &seq); err != nil {
			return nil, err
		}
		out[at] = uint64(seq)
	}
	return out, rows.Err()
}

// SetApplied notes that the copies have chains up to their seqs, by origin and slot; none goes back. Durable on nil.
func (j *Journal) SetApplied(ctx context.Context, seqs map[[2]int]uint64) error {
	rows := make([][]any, 0, len(seqs))
	for at, seq := range seqs {
		rows = append(rows, []any{at[0], at[1], int64(seq)})
	}
	slices.SortFunc(rows, func(a, b []any) int {
		return cmp.Or(cmp.Compare(a[0].(int), b[0].(int)), cmp.Compare(a[1].(int), b[1].(int))) // two coordinators never wait in a circle
	})
	return j.note(ctx, "lockstep_applied (origin, slot, seq)", "origin, slot",
		"seq = CASE WHEN lockstep_applied.seq < new(seq) THEN new(seq) ELSE lockstep_applied.seq END", rows)
}
