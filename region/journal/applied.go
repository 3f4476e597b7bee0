package journal

import (
	"context"
	"fmt"
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

// SetApplied notes that the copies have a chain up to seq; it never goes back. Durable on nil.
func (j *Journal) SetApplied(ctx context.Context, origin, slot int, seq uint64) error {
	err := j.retry(ctx, func(int) error {
		res, err := j.write.ExecContext(ctx, j.d.bind("UPDATE lockstep_applied SET seq = ? WHERE origin = ? AND slot = ? AND seq < ?"), int64(seq), origin, slot, int64(seq))
		if n, err := affected(res, err); err != nil || n > 0 {
			return err
		}
		var one int
		if err := j.write.QueryRowContext(ctx, j.d.bind("SELECT count(*) FROM lockstep_applied WHERE origin = ? AND slot = ?"), origin, slot).Scan(&one); err != nil || one > 0 {
			return err
		}
		_, err = j.write.ExecContext(ctx, j.d.bind("INSERT INTO lockstep_applied (origin, slot, seq) VALUES (?, ?, ?)"), origin, slot, int64(seq))
		return err
	})
	if err != nil {
		return fmt.Errorf("note what is applied in the journal at %s: %w", j.where, err)
	}
	return nil
}
