package journal

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
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

// SetApplied notes that the copies have chains up to their seqs, by origin and slot; none goes back, but
// where the chain was cut and is not that far any more. Durable on nil.
func (j *Journal) SetApplied(ctx context.Context, seqs map[[2]int]uint64) error {
	rows := make([][]any, 0, len(seqs))
	for at, seq := range seqs {
		rows = append(rows, []any{at[0], at[1], int64(seq)})
	}
	slices.SortFunc(rows, func(a, b []any) int {
		return cmp.Or(cmp.Compare(a[0].(int), b[0].(int)), cmp.Compare(a[1].(int), b[1].(int))) // two coordinators never wait in a circle
	})
	return j.noteAnd(ctx, "lockstep_applied (origin, slot, seq)", "origin, slot",
		"seq = CASE WHEN lockstep_applied.seq < new(seq) THEN new(seq) ELSE lockstep_applied.seq END", rows,
		func(tx *sql.Tx) error { return j.mendApplied(ctx, tx, seqs) })
}

// mendApplied bounds what a process that did not know of a cut has noted after it: by the last event that the journal has.
func (j *Journal) mendApplied(ctx context.Context, tx *sql.Tx, seqs map[[2]int]uint64) error {
	rows, err := tx.QueryContext(ctx, "SELECT DISTINCT origin, slot FROM lockstep_cut")
	if err != nil {
		return err
	}
	var cut [][2]int
	for rows.Next() {
		var at [2]int
		if err := rows.Scan(&at[0], &at[1]); err != nil {
			return errors.Join(err, rows.Close())
		}
		if _, ok := seqs[at]; ok {
			cut = append(cut, at)
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for _, at := range cut {
		last, err := j.lastOf(ctx, tx, at[0], at[1])
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, j.d.bind("UPDATE lockstep_applied SET seq = ? WHERE origin = ? AND slot = ? AND seq > ?"), int64(last), at[0], at[1], int64(last)); err != nil {
			return err
		}
	}
	return nil
}

// lastOf is the number of the last event of a chain in the journal, or of the cut where that is further.
func (j *Journal) lastOf(ctx context.Context, tx *sql.Tx, origin, n int) (uint64, error) {
	var last int64
	for _, stmt := range []string{
		"SELECT coalesce(max(seq), 0) FROM lockstep_cut WHERE origin = ? AND slot = ?",
		"SELECT coalesce(max(seq), 0) FROM lockstep_watermark WHERE origin = ? AND slot = ?",
		"SELECT coalesce(max(seq), 0) FROM lockstep_event WHERE origin = ? AND slot = ?",
		"SELECT coalesce(max(decision_seq), 0) FROM lockstep_journal WHERE decision_epoch % 100 = ? AND slot = ?",
		"SELECT coalesce(max(finish_seq), 0) FROM lockstep_journal WHERE finish_epoch % 100 = ? AND slot = ?",
	} {
		var seq int64
		if err := tx.QueryRowContext(ctx, j.d.bind(stmt), origin, n).Scan(&seq); err != nil {
			return 0, err
		}
		last = max(last, seq)
	}
	return uint64(last), nil
}
