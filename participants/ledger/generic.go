package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/mutant"
)

// generic is the way of databases that do it statement by statement: MySQL, MariaDB and SQLite. All that is locked is
// named by its whole primary key, so that InnoDB locks records and no gaps between them, where other ids go.
type generic struct {
	names
	insertLeg, insertHead, insertTail, refund, hold, post, settleMove string
}

func newGeneric(n names) *generic {
	const limits = ` WHERE id = ? AND shard = ? AND mode = ? AND currency = ? AND state = 'open'
		AND (overdraft = 'any' OR debits_pending + debits_posted + ? <= credits_posted + ?)
		AND debits_pending + debits_posted + ? <= coalesce(max_debit, 9000000000000000000)
		AND credits_pending + credits_posted + ? <= coalesce(max_credit, 9000000000000000000)`
	conflict := " ON CONFLICT (id, leg) DO NOTHING"
	if n.dialect == barrier.MySQL {
		conflict = " ON DUPLICATE KEY UPDATE id = id"
	}
	head := "INSERT INTO {p}transfer (id, leg, legs, kind, state, digest, gid, branch, of_id, debit, debit_shard, credit, credit_shard, amount, currency, total, created_us, settled_us) VALUES "
	return &generic{
		names: n, insertHead: n.text(head), insertTail: conflict,
		insertLeg: n.q(head + legValues + conflict),
		refund: n.q(`UPDATE {p}transfer SET refunded = refunded + ? WHERE id = ? AND leg = 0 AND kind IN ('hold', 'transfer') AND of_id = ''
			AND state = 'posted' AND currency = ? AND refunded + ? <= total`),
		hold: n.q(`UPDATE {p}account SET debits_pending = debits_pending + ?, credits_pending = credits_pending + ?` + limits),
		post: n.q(`UPDATE {p}account SET debits_posted = debits_posted + ?, credits_posted = credits_posted + ?` + limits),
		settleMove: n.q(`UPDATE {p}account SET debits_pending = debits_pending - ?, credits_pending = credits_pending - ?,
			debits_posted = debits_posted + ?, credits_posted = credits_posted + ? WHERE id = ? AND shard = ?`),
	}
}

// legValues are the values of one row of transfer.
const legValues = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"

// changed carries out a statement and says whether it changed a row.
func changed(ctx context.Context, tx *sql.Tx, stmt string, args ...any) (bool, error) {
	r, err := tx.ExecContext(ctx, stmt, args...)
	if err != nil {
		return false, err
	}
	n, err := r.RowsAffected()
	return n > 0, err
}

func (w *generic) enter(ctx context.Context, tx *sql.Tx, p *plan) (answer, int, error) {
	state, settled := "pending", sql.NullInt64{}
	if p.post {
		state, settled = "posted", sql.NullInt64{Int64: p.us, Valid: true}
	}
	for i, g := range p.legs {
		ok, err := changed(ctx, tx, w.insertLeg, p.id, p.first+i, len(p.legs), p.kind, state, p.digest, p.gid, p.branch, p.of,
			g.debit, g.debitShard, g.credit, g.creditShard, g.amount, g.currency, p.total, p.us, settled)
		if err != nil || !ok {
			return exists, 0, err
		}
	}
	if p.of != "" && (p.kind == kindHold || p.kind == kindTransfer) {
		ok, err := changed(ctx, tx, w.refund, p.total, p.of, p.legs[0].currency, p.total)
		if err != nil || !ok {
			return refundRefused, 0, err
		}
	}
	for i, g := range p.gates {
		if open, err := w.pass(ctx, tx, g); err != nil || !open {
			return gateRefused, i, err
		}
	}
	stmt := w.hold
	if p.post {
		stmt = w.post
	}
	for i, m := range p.moves {
		ok, err := changed(ctx, tx, stmt, m.debit, m.credit, m.account, m.shard, m.mode, m.currency, m.debit, m.creditNow(p), m.debit, m.credit)
		if err != nil || !ok {
			return moveRefused, i, err
		}
	}
	if p.post {
		return entered, 0, w.book(ctx, tx, p)
	}
	return entered, 0, nil
}

// pass locks an account's definition as it is; false if it is not open.
func (w *generic) pass(ctx context.Context, tx *sql.Tx, g gate) (bool, error) {
	var one int
	err := tx.QueryRowContext(ctx, w.q("SELECT 1 FROM {p}account WHERE id = ? AND shard = 0 AND mode = ? AND state = 'open'{share}"), g.account, g.mode).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// book writes the entries of p's legs, and what their insert-only sides owe their counters.
func (w *generic) book(ctx context.Context, tx *sql.Tx, p *plan) error {
	return w.bookAll(ctx, tx, []*plan{p}, nil)
}

// bookAll is book for many. after has the balances that they leave; nil where that is what the counters have now.
func (w *generic) bookAll(ctx context.Context, tx *sql.Tx, plans []*plan, after map[account0]int64) error {
	entries := &valueRows{head: "INSERT INTO {p}entry (transfer_id, leg, direction, account, amount, currency, gid, branch, posted_us, balance_after) VALUES "}
	buffer := &valueRows{head: "INSERT INTO {p}buffer (account, day, debit, credit) VALUES "}
	add := func(p *plan, leg int, direction, account string, shard int, g planLeg) {
		args := []any{p.id, leg, direction, account, g.amount, g.currency, p.gid, p.branch, p.us}
		balance := "NULL"
		if shard == 0 && after != nil {
			balance, args = "?", append(args, after[account0{p.id, account}])
		} else if shard == 0 {
			balance, args = "(SELECT credits_posted - debits_posted FROM {p}account WHERE id = ? AND shard = 0)", append(args, account)
		}
		entries.add("(?, ?, ?, ?, ?, ?, ?, ?, ?, "+balance+")", args...)
		if shard != insertOnly {
			return
		}
		day, debit, credit := 0, g.amount, int64(0)
		if strings.HasSuffix(account, clearingSuffix) {
			day = p.day
		}
		if direction == "credit" {
			debit, credit = 0, g.amount
		}
		buffer.add("(?, ?, ?, ?)", account, day, debit, credit)
	}
	for _, p := range plans {
		for i, g := range p.legs {
			add(p, p.first+i, "debit", g.debit, g.debitShard, g)
			add(p, p.first+i, "credit", g.credit, g.creditShard, g)
		}
	}
	if err := entries.insert(ctx, tx, w.names); err != nil {
		return err
	}
	return buffer.insert(ctx, tx, w.names)
}

func (w *generic) settle(ctx context.Context, tx *sql.Tx, s settlement) (bool, error) {
	p := &plan{id: s.id, us: s.us, day: s.day}
	var legs int
	var kind, state, digest string
	var g planLeg
	err := tx.QueryRowContext(ctx, w.q(`SELECT legs, kind, state, digest, of_id, total, gid, branch, debit, debit_shard, credit, credit_shard, amount, currency
		FROM {p}transfer WHERE id = ? AND leg = 0{exclusive}`), s.id).
		Scan(&legs, &kind, &state, &digest, &p.of, &p.total, &p.gid, &p.branch, &g.debit, &g.debitShard, &g.credit, &g.creditShard, &g.amount, &g.currency)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if kind != kindHold || state != "pending" || (s.digest != "" && s.digest != digest) {
		return false, nil
	}
	if p.first = 1; g.amount > 0 { // else leg 0 moves nothing
		p.legs, p.first = append(p.legs, g), 0
	}
	in := "0"
	for leg := 1; leg < legs; leg++ {
		in += fmt.Sprintf(", %d", leg)
		err := tx.QueryRowContext(ctx, w.q("SELECT debit, debit_shard, credit, credit_shard, amount, currency FROM {p}transfer WHERE id = ? AND leg = ?{exclusive}"), s.id, leg).
			Scan(&g.debit, &g.debitShard, &g.credit, &g.creditShard, &g.amount, &g.currency)
		if err != nil {
			return false, fmt.Errorf("leg %d: %w", leg, err)
		}
		p.legs = append(p.legs, g)
	}
	to := "voided"
	if s.post {
		to = "posted"
	}
	if _, err := tx.ExecContext(ctx, w.q("UPDATE {p}transfer SET state = ?, settled_us = ? WHERE id = ? AND leg IN ("+in+")"), to, s.us, s.id); err != nil {
		return false, err
	}
	if !s.post && p.of != "" {
		if ok, err := changed(ctx, tx, w.q("UPDATE {p}transfer SET refunded = refunded - ? WHERE id = ? AND leg = 0"), p.total, p.of); err != nil || !ok {
			return false, errors.Join(err, fmt.Errorf("no payment %s to give %d back to", p.of, p.total))
		}
	}
	if err := w.settleMoves(ctx, tx, p, s.post); err != nil || !s.post {
		return err == nil, err
	}
	return true, w.book(ctx, tx, p)
}

func (w *generic) settleMoves(ctx context.Context, tx *sql.Tx, p *plan, post bool) error {
	b := &planner{p: p}
	for _, g := range p.legs {
		b.move(g.debit, g.debitShard, "", "", g.amount, 0)
		b.move(g.credit, g.creditShard, "", "", 0, g.amount)
	}
	slices.SortFunc(p.moves, compareMoves)
	for _, m := range p.moves {
		var debit, credit int64
		if post {
			debit, credit = m.debit, m.credit
		}
		if mutant.On(mutant.FloatRounding) {
			debit, credit = debit&^1, credit&^1
		}
		ok, err := changed(ctx, tx, w.settleMove, m.debit, m.credit, debit, credit, m.account, m.shard)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("account %s shard %d is gone", m.account, m.shard)
		}
	}
	return nil
}

func (w *generic) fold(ctx context.Context, tx *sql.Tx, account string) (bool, error) {
	var one int
	// The lock comes first: two that fold take turns, and a debit that folds sees all that is committed.
	if err := tx.QueryRowContext(ctx, w.q("SELECT 1 FROM {p}account WHERE id = ? AND shard = 1{exclusive}"), account).Scan(&one); err != nil {
		return false, err
	}
	ids, debit, credit, err := w.waiting(ctx, tx, account, "day = 0")
	if err != nil || len(ids) == 0 {
		return false, err
	}
	if _, err := tx.ExecContext(ctx, w.q("UPDATE {p}account SET debits_posted = debits_posted + ?, credits_posted = credits_posted + ? WHERE id = ? AND shard = 1"),
		debit, credit, account); err != nil {
		return false, err
	}
	return true, w.drop(ctx, tx, account, ids)
}

// waiting locks rows of the buffer, those of transactions under way left out.
func (n names) waiting(ctx context.Context, tx *sql.Tx, account, where string) (ids []any, debit, credit int64, err error) {
	lock := "{exclusive}"
	if n.dialect == barrier.MySQL {
		lock += " SKIP LOCKED"
	}
	rows, err := tx.QueryContext(ctx, n.q(fmt.Sprintf("SELECT id, debit, credit FROM {p}buffer WHERE account = ? AND %s LIMIT %d", where, foldMax)+lock), account)
	if err != nil {
		return nil, 0, 0, err
	}
	defer rows.Close()
	for rows.Next() {
		var id, d, c int64
		if err := rows.Scan(&id, &d, &c); err != nil {
			return nil, 0, 0, err
		}
		ids, debit, credit = append(ids, id), debit+d, credit+c
	}
	return ids, debit, credit, rows.Err()
}

// drop deletes rows of the buffer that waiting has locked.
func (n names) drop(ctx context.Context, tx *sql.Tx, account string, ids []any) error {
	for chunk := range slices.Chunk(ids, 500) {
		r, err := tx.ExecContext(ctx, n.q("DELETE FROM {p}buffer WHERE account = ? AND id IN (?"+strings.Repeat(", ?", len(chunk)-1)+")"), append([]any{account}, chunk...)...)
		if err != nil {
			return err
		}
		if k, err := r.RowsAffected(); err != nil || k != int64(len(chunk)) {
			return errors.Join(err, fmt.Errorf("%d of %d buffered rows were there", k, len(chunk)))
		}
	}
	return nil
}
