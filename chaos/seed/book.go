package seed

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
)

// row is a branch's transfer, as the ledger's table has it.
type row struct {
	id, debit, credit, currency, state string
	amount                             int64
}

// of reads the branch's transfer of one leg, which must be in a state.
func (p *planter) of(state string) (row, error) {
	r := row{id: p.at.Gid + ":" + p.at.Branch}
	err := p.tx.QueryRowContext(p.ctx, p.t.d.Q("SELECT debit, credit, amount, currency, state FROM ledger_transfer WHERE id = ? AND leg = 0 AND legs = 1"), r.id).
		Scan(&r.debit, &r.credit, &r.amount, &r.currency, &r.state)
	if err == nil && r.state != state {
		err = fmt.Errorf("transfer %s is %s, not %s: nothing was changed", r.id, r.state, state)
	}
	return r, err
}

// one runs a statement that must change one row.
func (p *planter) one(stmt string, args ...any) error { return p.change(1, stmt, args...) }

func (p *planter) change(want int64, stmt string, args ...any) error {
	res, err := p.tx.ExecContext(p.ctx, p.t.d.Q(stmt), args...)
	if err != nil {
		return fmt.Errorf("%.80s: %w", stmt, err)
	}
	n, err := res.RowsAffected()
	if err == nil && n != want {
		err = fmt.Errorf("%d rows changed, not %d: %.80s", n, want, stmt)
	}
	return err
}

// all runs steps until one fails.
func all(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// unlocked lets entries be changed meanwhile: the trigger that keeps them looks for a row here.
func (p *planter) unlocked(id string, work func() error) error {
	return all(
		func() error { return p.one("INSERT INTO ledger_mending (id) VALUES (?)", id) },
		work,
		func() error { return p.one("DELETE FROM ledger_mending WHERE id = ?", id) })
}

// count moves an account's counters: debits pending and posted, credits pending and posted.
func (p *planter) count(account string, dp, d, cp, c int64) error {
	return p.one("UPDATE ledger_account SET debits_pending = debits_pending + ?, debits_posted = debits_posted + ?, credits_pending = credits_pending + ?, credits_posted = credits_posted + ? WHERE id = ? AND shard = 0",
		dp, d, cp, c, account)
}

// move moves the counters of both sides by so much pending and posted.
func (p *planter) move(r row, pending, posted int64) error {
	return all(func() error { return p.count(r.debit, pending, posted, 0, 0) }, func() error { return p.count(r.credit, 0, 0, pending, posted) })
}

func (p *planter) state(r row, to string) error {
	settled := "settled_us = created_us + 1"
	if to == "pending" {
		settled = "settled_us = NULL"
	}
	return p.one("UPDATE ledger_transfer SET state = ?, "+settled+" WHERE id = ? AND leg = 0", to, r.id)
}

func (p *planter) dropRow(op string) error {
	return p.one("DELETE FROM "+p.t.barrier+" WHERE gid = ? AND branch_id = ? AND op = ?", p.at.Gid, p.at.Branch, op)
}

func (p *planter) addRow(op string) error {
	return p.one("INSERT INTO "+p.t.barrier+" (trans_type, gid, branch_id, op, barrier_id, reason) VALUES ('tcc', ?, ?, ?, '01', ?)", p.at.Gid, p.at.Branch, op, op)
}

func (p *planter) dropEntries(r row) error {
	return p.unlocked(r.id, func() error { return p.change(2, "DELETE FROM ledger_entry WHERE transfer_id = ?", r.id) })
}

func (p *planter) addEntry(id, direction, account string, amount int64, currency, gid, branch string) error {
	return p.one("INSERT INTO ledger_entry (transfer_id, leg, direction, account, amount, currency, gid, branch, posted_us) VALUES (?, 0, ?, ?, ?, ?, ?, ?, 1790000000000000)",
		id, direction, account, amount, currency, gid, branch)
}

func (p *planter) addEntries(r row) error {
	return all(func() error { return p.addEntry(r.id, "debit", r.debit, r.amount, r.currency, p.at.Gid, p.at.Branch) },
		func() error { return p.addEntry(r.id, "credit", r.credit, r.amount, r.currency, p.at.Gid, p.at.Branch) })
}

// again writes a transfer's row once more under another id.
func (p *planter) again(r row, id string) error {
	return p.one(`INSERT INTO ledger_transfer (id, leg, legs, kind, state, digest, gid, branch, of_id, debit, debit_shard, credit, credit_shard, amount, currency, total, refunded, created_us, settled_us)
		SELECT ?, leg, legs, kind, state, digest, gid, branch, of_id, debit, debit_shard, credit, credit_shard, amount, currency, total, refunded, created_us, settled_us FROM ledger_transfer WHERE id = ? AND leg = 0`, id, r.id)
}

// customer says whether the target's account is debited.
func (p *planter) debited(r row) bool { return r.debit == p.at.Account }

// image reads everything at a target: the branch's rows, and the counters of its accounts.
func (t tables) image(ctx context.Context, db *sql.DB, at Target) (string, error) {
	var b strings.Builder
	for _, q := range []struct {
		query string
		args  []any
	}{
		{"SELECT id, leg, state, debit, credit, amount, currency, total, refunded FROM ledger_transfer WHERE gid = ? ORDER BY id, leg", []any{at.Gid}},
		{"SELECT transfer_id, leg, direction, account, amount, currency FROM ledger_entry WHERE gid = ? OR gid = '' AND (account = ? OR account = ?) ORDER BY transfer_id, leg, direction", []any{at.Gid, at.Account, at.Other}},
		{"SELECT branch_id, op, reason FROM " + t.barrier + " WHERE gid = ? ORDER BY branch_id, op", []any{at.Gid}},
		{"SELECT id, shard, debits_pending, debits_posted, credits_pending, credits_posted FROM ledger_account WHERE id IN (?, ?) ORDER BY id, shard", []any{at.Account, at.Other}},
	} {
		if err := t.dump(ctx, db, &b, q.query, q.args); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}

func (t tables) dump(ctx context.Context, db *sql.DB, b *strings.Builder, query string, args []any) error {
	rows, err := db.QueryContext(ctx, t.d.Q(query), args...)
	if err != nil {
		return fmt.Errorf("%.60s: %w", query, err)
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return err
	}
	for rows.Next() {
		values := make([]sql.NullString, len(names))
		into := make([]any, len(names))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			return err
		}
		for i, v := range values {
			fmt.Fprintf(b, "%s=%s ", names[i], v.String)
		}
		b.WriteString("\n")
	}
	return rows.Err()
}
