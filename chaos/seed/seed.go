// Package seed plants drift: it changes participants' databases behind the product's back, as a lost write, an operator's
// hand or a restored backup would.
//
// The law it keeps: each change is one transaction of its own, it says what it found and what it left, and a change that
// found nothing to change is an error; so a drift that counts as planted is there: everything that it may have touched is
// read before and after, over connections of their own. It writes SQL of its own and asks no code of the product for its
// meaning.
//
// It is tested by reading everything again over another connection.
package seed

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// Class is a kind of drift; the numbers are the reconciler's.
type Class string

// The classes that are planted in a participant's database.
const (
	D01 Class = "D01" // a lost confirm: the effect is taken back and its barrier row removed
	D02 Class = "D02" // a lost cancel: the hold is open again, and the barrier row gone
	D03 Class = "D03" // a confirm applied twice: the effect and its rows once more under another id
	D04 Class = "D04" // a cancel applied twice: what was held is let go once more
	D05 Class = "D05" // confirm and cancel both applied
	D06 Class = "D06" // an altered amount: an account's counter is not what its entries say
	D07 Class = "D07" // a transfer's or an entry's amount is altered
	D08 Class = "D08" // the effect is moved to another account
	D09 Class = "D09" // an entry without a transfer and without a gid
	D10 Class = "D10" // a hold of a transaction that nobody knows
	D11 Class = "D11" // the barrier row is gone, the effect is there
	D12 Class = "D12" // the effect is gone, the barrier row is there
	D13 Class = "D13" // nothing of a branch is there, as if it had never been tried
	D23 Class = "D23" // a compensating pair: so much here, so much less there
	D24 Class = "D24" // another unit or currency
)

// Target is where a drift is planted.
type Target struct {
	Gid, Branch string
	Account     string // the customer's, of the branch
	Other       string // another customer's
	Commit      bool   // how the transaction was decided
	Schema      string // of the barrier's table; barrier.DefaultSchema without one
}

// Planted is what was done.
type Planted struct {
	Class   Class  `json:"class"`
	Variant string `json:"variant,omitempty"`
	Gid     string `json:"gid,omitempty"`
	Branch  string `json:"branch,omitempty"`
	Account string `json:"account"`
	// Other is the second account of a pair or a move.
	Other string `json:"other,omitempty"`
	// Before and After are the account's balance, posted, in minor units.
	Before int64 `json:"before"`
	After  int64 `json:"after"`
	// Was and Is are everything that it may have touched, before and after.
	Was string `json:"was,omitempty"`
	Is  string `json:"is,omitempty"`
}

// planter is one change under way.
type planter struct {
	ctx context.Context
	tx  *sql.Tx
	t   tables
	at  Target
	rnd *rand.Rand
	out *Planted
}

var plants = map[Class]func(*planter) error{
	D01: (*planter).lostConfirm, D02: (*planter).lostCancel, D03: (*planter).confirmTwice, D04: (*planter).cancelTwice, D05: (*planter).both,
	D06: (*planter).counter, D07: (*planter).amount, D08: (*planter).moved, D09: (*planter).phantomEntry, D10: (*planter).phantomHold,
	D11: (*planter).rowGone, D12: (*planter).effectGone, D13: (*planter).neverTried, D23: (*planter).pair, D24: (*planter).unit,
}

// Plant plants one drift. What is drawn by chance (amounts, variants) comes from rnd alone.
func Plant(ctx context.Context, db *sql.DB, d sqldb.Dialect, class Class, at Target, rnd *rand.Rand) (Planted, error) {
	p := Planted{Class: class, Gid: at.Gid, Branch: at.Branch, Account: at.Account}
	f := plants[class]
	t, err := tablesOf(d, at.Schema)
	if err == nil && f == nil {
		err = fmt.Errorf("nothing plants %s in a participant's database", class)
	}
	if err != nil {
		return p, err
	}
	if p.Was, err = t.image(ctx, db, at); err != nil {
		return p, err
	}
	err = sqldb.InTx(ctx, db, func(tx *sql.Tx) (err error) {
		if p.Before, err = balance(ctx, tx, d, at.Account); err != nil {
			return err
		}
		if err := f(&planter{ctx, tx, t, at, rnd, &p}); err != nil {
			return fmt.Errorf("%s %s: %w", class, p.Variant, err)
		}
		p.After, err = balance(ctx, tx, d, at.Account)
		return err
	})
	if err != nil {
		return p, err
	}
	if p.Is, err = t.image(ctx, db, Target{Gid: p.Gid, Branch: p.Branch, Account: at.Account, Other: at.Other, Schema: at.Schema}); err == nil && p.Was == p.Is {
		err = fmt.Errorf("%s %s is not there: everything is as it was", class, p.Variant)
	}
	return p, err
}

// Image reads everything that a drift at the target may touch.
func Image(ctx context.Context, db *sql.DB, d sqldb.Dialect, at Target) (string, error) {
	t, err := tablesOf(d, at.Schema)
	if err != nil {
		return "", err
	}
	return t.image(ctx, db, at)
}

// tables are the names of the barrier's table, the ledger's being everywhere the same.
type tables struct {
	d       sqldb.Dialect
	barrier string
}

func tablesOf(d sqldb.Dialect, schema string) (tables, error) {
	schema = cmp.Or(schema, barrier.DefaultSchema)
	switch d.Dialect {
	case barrier.SQLite:
		return tables{d, schema + "_barrier"}, nil
	case barrier.PostgreSQL, barrier.MySQL:
		return tables{d, schema + ".barrier"}, nil
	}
	return tables{}, fmt.Errorf("drift is planted in SQLite, PostgreSQL and MySQL, not in %s", d)
}

// Open opens a participant's database by its address.
func Open(ctx context.Context, address string) (*sql.DB, sqldb.Dialect, error) {
	return sqldb.Open(ctx, address)
}

// Confirm takes back the confirm of a branch (D01): its hold is open again, its entries are gone, and so is the row by
// which the barrier would know of it.
func Confirm(ctx context.Context, db *sql.DB, d sqldb.Dialect, gid, branch string) (Planted, error) {
	var debit, credit, state string
	err := db.QueryRowContext(ctx, d.Q("SELECT debit, credit, state FROM ledger_transfer WHERE id = ? AND leg = 0 AND legs = 1"), gid+":"+branch).Scan(&debit, &credit, &state)
	if errors.Is(err, sql.ErrNoRows) || err == nil && state != "posted" {
		err = fmt.Errorf("transfer %s:%s is not there with one leg and posted (%q): nothing was changed", gid, branch, state)
	}
	if err != nil {
		return Planted{Class: D01, Gid: gid, Branch: branch}, err
	}
	if len(debit) > 6 && debit[:6] == "house:" {
		debit = credit
	}
	return Plant(ctx, db, d, D01, Target{Gid: gid, Branch: branch, Account: debit, Commit: true}, nil)
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
