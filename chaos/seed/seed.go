// Package seed plants drift: it changes participants' databases behind the product's back, as a lost write, an operator's
// hand or a restored backup would.
//
// The law it keeps: each change is one transaction of its own, it says what it found and what it left, and a change that
// found nothing to change is an error; so a drift that counts as planted is there. It writes SQL of its own and asks no
// code of the product.
//
// It is tested by reading everything again over another connection.
package seed

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// Class is a kind of drift; the numbers are the reconciler's.
type Class string

const (
	// D01 is a lost confirm: the effect of a confirm is taken back and its barrier row removed.
	D01 Class = "D01"
	// D06 is an altered amount: an account's counter is not what its entries say.
	D06 Class = "D06"
)

// Planted is what was done.
type Planted struct {
	Class   Class  `json:"class"`
	Gid     string `json:"gid,omitempty"`
	Branch  string `json:"branch,omitempty"`
	Account string `json:"account"`
	// Before and After are the account's balance, posted, in minor units.
	Before int64 `json:"before"`
	After  int64 `json:"after"`
}

// table names of the ledger and of the barrier.
type tables struct {
	d                       sqldb.Dialect
	barrier                 string
	dropGuard, restoreGuard []string
}

func tablesOf(d sqldb.Dialect) (tables, error) {
	switch d.Dialect {
	case barrier.SQLite:
		return tables{d, "dtm_barrier_barrier", []string{"DROP TRIGGER ledger_entry_delete"}, []string{
			"CREATE TRIGGER ledger_entry_delete BEFORE DELETE ON ledger_entry BEGIN SELECT RAISE(ABORT, 'entries are immutable: make a reversal instead'); END"}}, nil
	case barrier.PostgreSQL:
		return tables{d, "dtm_barrier.barrier", []string{"ALTER TABLE ledger_entry DISABLE TRIGGER entry_is_immutable"}, []string{"ALTER TABLE ledger_entry ENABLE TRIGGER entry_is_immutable"}}, nil
	case barrier.MySQL:
	}
	return tables{}, fmt.Errorf("drift is planted in SQLite and PostgreSQL, not in %s", d)
}

// Open opens a participant's database by its address.
func Open(ctx context.Context, address string) (*sql.DB, sqldb.Dialect, error) {
	return sqldb.Open(ctx, address)
}

// Confirm takes back the confirm of a branch (D01): its hold is open again, its entries are gone, and so is the row by
// which the barrier would know of it.
func Confirm(ctx context.Context, db *sql.DB, d sqldb.Dialect, gid, branch string) (Planted, error) {
	p := Planted{Class: D01, Gid: gid, Branch: branch}
	t, err := tablesOf(d)
	if err != nil {
		return p, err
	}
	err = sqldb.InTx(ctx, db, func(tx *sql.Tx) error {
		var debit, credit, state string
		var amount int64
		id := gid + ":" + branch
		err := tx.QueryRowContext(ctx, d.Q("SELECT debit, credit, amount, state FROM ledger_transfer WHERE id = ? AND leg = 0 AND legs = 1"), id).Scan(&debit, &credit, &amount, &state)
		if errors.Is(err, sql.ErrNoRows) || err == nil && state != "posted" {
			return fmt.Errorf("transfer %s is not there with one leg and posted (%q): nothing was changed", id, state)
		}
		if err != nil {
			return err
		}
		if p.Account = debit; len(debit) > 6 && debit[:6] == "house:" {
			p.Account = credit
		}
		if p.Before, err = balance(ctx, tx, d, p.Account); err != nil {
			return err
		}
		if err := t.unpost(ctx, tx, id, debit, credit, amount); err != nil {
			return err
		}
		if ok, err := d.Change(ctx, tx, "DELETE FROM "+t.barrier+" WHERE gid = ? AND branch_id = ? AND op = 'confirm'", gid, branch); err != nil || !ok {
			return errors.Join(err, fmt.Errorf("%s of %s has not one barrier row of a confirm", branch, gid))
		}
		p.After, err = balance(ctx, tx, d, p.Account)
		return err
	})
	return p, err
}

// unpost makes a posted transfer a hold again.
func (t tables) unpost(ctx context.Context, tx *sql.Tx, id, debit, credit string, amount int64) error {
	for _, stmt := range t.dropGuard {
		if _, err := tx.ExecContext(ctx, stmt); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, t.d.Q("DELETE FROM ledger_entry WHERE transfer_id = ?"), id); err != nil {
		return err
	}
	for _, stmt := range t.restoreGuard {
		if _, err := tx.ExecContext(ctx, stmt); err != nil {
			return err
		}
	}
	for _, s := range []struct {
		stmt string
		args []any
	}{
		{"UPDATE ledger_transfer SET state = 'pending', settled_us = NULL WHERE id = ? AND leg = 0", []any{id}},
		{"UPDATE ledger_account SET debits_posted = debits_posted - ?, debits_pending = debits_pending + ? WHERE id = ? AND shard = 0", []any{amount, amount, debit}},
		{"UPDATE ledger_account SET credits_posted = credits_posted - ?, credits_pending = credits_pending + ? WHERE id = ? AND shard = 0", []any{amount, amount, credit}},
	} {
		if ok, err := t.d.Change(ctx, tx, s.stmt, s.args...); err != nil || !ok {
			return errors.Join(err, fmt.Errorf("nothing to change: %.60s", s.stmt))
		}
	}
	return nil
}

// Counter adds delta to an account's credits (D06), or takes it from them.
func Counter(ctx context.Context, db *sql.DB, d sqldb.Dialect, account string, delta int64) (Planted, error) {
	p := Planted{Class: D06, Account: account}
	if delta == 0 {
		return p, errors.New("a delta of 0 changes nothing")
	}
	err := sqldb.InTx(ctx, db, func(tx *sql.Tx) error {
		var err error
		if p.Before, err = balance(ctx, tx, d, account); err != nil {
			return err
		}
		if ok, err := d.Change(ctx, tx, "UPDATE ledger_account SET credits_posted = credits_posted + ? WHERE id = ? AND shard = 0", delta, account); err != nil || !ok {
			return errors.Join(err, fmt.Errorf("account %s is not there", account))
		}
		p.After, err = balance(ctx, tx, d, account)
		return err
	})
	return p, err
}

func balance(ctx context.Context, tx *sql.Tx, d sqldb.Dialect, account string) (int64, error) {
	var n int64
	err := tx.QueryRowContext(ctx, d.Q("SELECT credits_posted - debits_posted FROM ledger_account WHERE id = ? AND shard = 0"), account).Scan(&n)
	if errors.Is(err, sql.ErrNoRows) {
		err = fmt.Errorf("account %s is not there", account)
	}
	return n, err
}

// Poke runs one statement of the caller's and says how many rows it changed.
func Poke(ctx context.Context, db *sql.DB, statement string) (int64, error) {
	r, err := db.ExecContext(ctx, statement)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}
