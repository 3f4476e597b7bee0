package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// rowsAtOnce bounds the rows of one insert: 18 arguments each, of 32,766 that SQLite takes.
const rowsAtOnce = 500

// valueRows are the rows of an insert.
type valueRows struct {
	head string
	rows []string
	args [][]any
}

func (v *valueRows) add(row string, args ...any) {
	v.rows, v.args = append(v.rows, row), append(v.args, args)
}

// insert writes the rows, if there are any.
func (v *valueRows) insert(ctx context.Context, tx *sql.Tx, n names) error {
	for from := 0; from < len(v.rows); from += rowsAtOnce {
		to := min(from+rowsAtOnce, len(v.rows))
		if _, err := tx.ExecContext(ctx, n.q(v.head+strings.Join(v.rows[from:to], ", ")), slices.Concat(v.args[from:to]...)...); err != nil {
			return err
		}
	}
	return nil
}

// enterAll writes holds, all or ErrNotTogether: their legs in one statement, and of what they move of one counter the sum.
// A limit that the sum keeps each of them would have kept in its turn, since holds only add to what is pending.
func (w *generic) enterAll(ctx context.Context, tx *sql.Tx, plans []*plan) error {
	var rows [][]any
	var moves []move
	var gates []gate
	for _, p := range plans {
		for i, g := range p.legs {
			rows = append(rows, []any{p.id, p.first + i, len(p.legs), p.kind, "pending", p.digest, p.gid, p.branch, p.of,
				g.debit, g.debitShard, g.credit, g.creditShard, g.amount, g.currency, p.total, p.us, nil})
		}
		moves, gates = append(moves, p.moves...), append(gates, p.gates...)
	}
	for some := range slices.Chunk(rows, rowsAtOnce) {
		stmt := w.insertHead + strings.Repeat(legValues+", ", len(some)-1) + legValues + w.insertTail
		r, err := tx.ExecContext(ctx, stmt, slices.Concat(some...)...)
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n != int64(len(some)) {
			return errors.Join(err, fmt.Errorf("%w: %d of %d legs are new", ErrNotTogether, n, len(some)))
		}
	}
	for _, p := range plans {
		if p.of == "" {
			continue
		}
		if ok, err := changed(ctx, tx, w.refund, p.total, p.of, p.legs[0].currency, p.total); err != nil || !ok {
			return errors.Join(err, fmt.Errorf("%w: refund %s", ErrNotTogether, p.id))
		}
	}
	slices.SortFunc(gates, func(a, b gate) int { return strings.Compare(a.account, b.account) })
	for _, g := range slices.CompactFunc(gates, func(a, b gate) bool { return a.account == b.account && a.mode == b.mode }) {
		if open, err := w.pass(ctx, tx, g); err != nil || !open {
			return errors.Join(err, fmt.Errorf("%w: account %s", ErrNotTogether, g.account))
		}
	}
	sums := sumOf(moves)
	if w.dialect == barrier.MySQL && len(sums) > 1 {
		n, err := w.moveTogether(ctx, tx, sums, "a.debits_pending = a.debits_pending + m.debit, a.credits_pending = a.credits_pending + m.credit",
			`a.mode = m.mode COLLATE utf8mb4_bin AND a.currency = m.currency COLLATE utf8mb4_bin AND a.state = 'open'
			AND (a.overdraft = 'any' OR a.debits_pending + a.debits_posted + m.debit <= a.credits_posted)
			AND a.debits_pending + a.debits_posted + m.debit <= coalesce(a.max_debit, 9000000000000000000)
			AND a.credits_pending + a.credits_posted + m.credit <= coalesce(a.max_credit, 9000000000000000000)`)
		if err == nil && n < len(sums) {
			err = fmt.Errorf("%w: %d of %d accounts take it", ErrNotTogether, n, len(sums))
		}
		return err
	}
	for _, m := range sums {
		ok, err := changed(ctx, tx, w.hold, m.debit, m.credit, m.account, m.shard, m.mode, m.currency, m.debit, 0, m.debit, m.credit)
		if err != nil || !ok {
			return errors.Join(err, fmt.Errorf("%w: account %s", ErrNotTogether, m.account))
		}
	}
	return nil
}

// sumMax bounds a sum of moves, of which each is far smaller, so that it cannot overflow; what is more is another sum.
const sumMax = 1 << 61

// sumOf adds up what moves one row of counters; by account and shard.
func sumOf(moves []move) (sums []move) {
	slices.SortFunc(moves, func(a, b move) int {
		return cmp.Or(compareMoves(a, b), cmp.Compare(a.mode, b.mode), strings.Compare(a.currency, b.currency))
	})
	for _, m := range moves {
		if n := len(sums) - 1; n >= 0 && compareMoves(sums[n], m) == 0 && sums[n].mode == m.mode && sums[n].currency == m.currency &&
			sums[n].debit <= sumMax-m.debit && sums[n].credit <= sumMax-m.credit {
			sums[n].debit += m.debit
			sums[n].credit += m.credit
		} else {
			sums = append(sums, m)
		}
	}
	return sums
}
