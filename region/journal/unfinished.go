package journal

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// Left is a transaction that is not finished as far as a journal knows. Record is record.Tx.Encode's: what a store keeps.
type Left struct {
	Gid     txn.Gid
	Record  []byte
	Decided bool
}

// Unfinished gives what whoever takes slot n by force has to know (ADR 9), by gid: every transaction of the slot that is
// decided and not finished here, whichever region decided it, and every live record that came with the last move by plan,
// or after it, and that no decision followed. It is the whole only where the journal has reached the slot's seals.
//
// The record of a decided transaction says what its decision says: nothing of the calls made since, unless it was carried
// after its decision.
func (j *Journal) Unfinished(ctx context.Context, n int) ([]Left, error) {
	out, err := j.unfinished(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("read what is unfinished in slot %d in the journal at %s: %w", n, j.where, err)
	}
	return out, nil
}

// slotsAtOnce bounds the slots of one question to the database.
const slotsAtOnce = 256

// AnyUnfinished gives those of the slots in which Unfinished may find something; a region that is lost has nothing open in most.
func (j *Journal) AnyUnfinished(ctx context.Context, slots []int) (map[int]bool, error) {
	out := map[int]bool{}
	for part := range slices.Chunk(slots, slotsAtOnce) {
		args := make([]any, len(part))
		for i, n := range part {
			args[i] = n
		}
		in := "IN (?" + strings.Repeat(", ?", len(part)-1) + ")"
		for _, query := range []string{
			"SELECT DISTINCT slot FROM lockstep_journal WHERE slot " + in + " AND finish_seq IS NULL",
			`SELECT e.slot FROM lockstep_event e WHERE e.slot ` + in + ` AND e.kind = 3
				AND e.epoch >= (SELECT coalesce(max(s.epoch), 0) FROM lockstep_event s WHERE s.slot = e.slot AND s.kind = 4) GROUP BY e.slot`,
		} {
			if err := j.slotsOf(ctx, query, args, out); err != nil {
				return nil, fmt.Errorf("read in which slots something is unfinished in the journal at %s: %w", j.where, err)
			}
		}
	}
	return out, nil
}

func (j *Journal) slotsOf(ctx context.Context, query string, args []any, into map[int]bool) error {
	rows, err := j.read.QueryContext(ctx, j.d.bind(query), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var n int
		if err := rows.Scan(&n); err != nil {
			return err
		}
		into[n] = true
	}
	return rows.Err()
}

func (j *Journal) unfinished(ctx context.Context, n int) ([]Left, error) {
	left := map[txn.Gid]Left{}
	rows, err := j.read.QueryContext(ctx, j.d.bind(selectRow+"WHERE slot = ? AND finish_seq IS NULL"), n)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var s stored
		if err := s.scan(rows.Scan); err != nil {
			return nil, err
		}
		tx, err := s.tx()
		if err != nil {
			return nil, err
		}
		b, err := tx.Encode()
		if err != nil {
			return nil, err
		}
		left[s.row.Gid] = Left{Gid: s.row.Gid, Record: b, Decided: true}
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	if err := j.carriedLive(ctx, n, left); err != nil {
		return nil, err
	}
	out := make([]Left, 0, len(left))
	for _, l := range left {
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b Left) int { return cmp.Compare(a.Gid, b.Gid) })
	return out, nil
}

// carriedLive adds the carried records that are live. What was carried before the last seal was carried again with it, or
// had ended.
func (j *Journal) carriedLive(ctx context.Context, n int, left map[txn.Gid]Left) error {
	rows, err := j.read.QueryContext(ctx, j.d.bind(`SELECT e.gid, e.body FROM lockstep_event e WHERE e.slot = ? AND e.kind = 3
		AND e.epoch >= (SELECT coalesce(max(s.epoch), 0) FROM lockstep_event s WHERE s.slot = ? AND s.kind = 4)
		AND NOT EXISTS (SELECT 1 FROM lockstep_journal t WHERE t.gid = e.gid AND t.finish_seq IS NOT NULL) ORDER BY e.epoch, e.seq`), n, n)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var gid, body []byte
		if err := rows.Scan(&gid, &body); err != nil {
			return err
		}
		tx, err := record.Decode(body)
		if err != nil {
			return fmt.Errorf("the carried record of %q: %w", string(gid), err)
		}
		decided := tx.State.Phase.Decided()
		if have, ok := left[txn.Gid(gid)]; ok && have.Decided && !decided {
			continue // its decision came later
		}
		left[txn.Gid(gid)] = Left{Gid: txn.Gid(gid), Record: body, Decided: decided}
	}
	return rows.Err()
}
