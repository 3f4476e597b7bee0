// Package ledger keeps buyers' accounts: what is available, what is frozen by open payments, what is spent.
//
// Its law: for every account and at every commit, deposited = balance + frozen + spent, and none of them is negative.
// The limit is checked at try, so that a confirm cannot fail; a confirm or cancel moves what its own hold holds, never
// what its payload claims. The database enforces both by CHECK constraints, so that a mistake here is an error and not
// a loss.
//
// It is tested operation by operation, with every interleaving of repeats through the barrier, and by random payments
// from many goroutines whose sums are compared.
package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/money"
)

// Account is one buyer's account; amounts in minor units.
type Account struct {
	ID        string `json:"id"`
	Currency  string `json:"currency"`
	Deposited int64  `json:"deposited"`
	Balance   int64  `json:"balance"` // may be spent
	Frozen    int64  `json:"frozen"`  // held by payments that are not decided
	Spent     int64  `json:"spent"`
}

var schema = []string{
	`CREATE TABLE IF NOT EXISTS ledger_account (
		id TEXT PRIMARY KEY,
		currency TEXT NOT NULL,
		deposited INTEGER NOT NULL CHECK (deposited >= 0),
		balance INTEGER NOT NULL CHECK (balance >= 0),
		frozen INTEGER NOT NULL DEFAULT 0 CHECK (frozen >= 0),
		spent INTEGER NOT NULL DEFAULT 0 CHECK (spent >= 0),
		CHECK (deposited = balance + frozen + spent))`,
	`CREATE TABLE IF NOT EXISTS ledger_hold (
		gid TEXT NOT NULL,
		branch_id TEXT NOT NULL,
		account TEXT NOT NULL REFERENCES ledger_account (id),
		amount INTEGER NOT NULL CHECK (amount > 0),
		state TEXT NOT NULL CHECK (state IN ('frozen', 'confirmed', 'cancelled')),
		PRIMARY KEY (gid, branch_id)) WITHOUT ROWID`,
}

// Migrate makes the tables; it may run any number of times.
func Migrate(ctx context.Context, db *sql.DB) error {
	for _, stmt := range schema {
		if _, err := db.ExecContext(ctx, stmt); err != nil {
			return fmt.Errorf("migrate ledger: %w", err)
		}
	}
	return nil
}

// Create opens an account with a first deposit. The same account again, with the same deposit, changes nothing; with
// another one it is refused.
func Create(ctx context.Context, db *sql.DB, id, currency string, deposit int64) error {
	if id == "" || len(id) > 128 || deposit < 0 || deposit > money.MinorMax {
		return fmt.Errorf("%w: account %q with deposit %d", barrier.ErrInvalid, id, deposit)
	}
	if err := money.CheckCurrency(currency); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, `INSERT INTO ledger_account (id, currency, deposited, balance) VALUES (?, ?, ?, ?)
		ON CONFLICT (id) DO NOTHING`, id, currency, deposit, deposit); err != nil {
		return fmt.Errorf("create account %s: %w", id, err)
	}
	var has Account
	if err := db.QueryRowContext(ctx, `SELECT currency, deposited FROM ledger_account WHERE id = ?`, id).
		Scan(&has.Currency, &has.Deposited); err != nil {
		return fmt.Errorf("create account %s: %w", id, err)
	}
	if has.Currency != currency || has.Deposited != deposit {
		return fmt.Errorf("%w: account %s exists with %d %s", barrier.ErrRefused, id, has.Deposited, has.Currency)
	}
	return nil
}

// Freeze is the try: it holds t for the branch. ErrRefused if there is no such account, another currency, or too little.
func Freeze(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer) error {
	t, err := t.Normal()
	if err != nil {
		return err
	}
	var a Account
	err = tx.QueryRowContext(ctx, `SELECT currency, balance FROM ledger_account WHERE id = ?`, t.Account).Scan(&a.Currency, &a.Balance)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("%w: no account %s", barrier.ErrRefused, t.Account)
	case err != nil:
		return fmt.Errorf("freeze %s: %w", t.Account, err)
	case a.Currency != t.Currency:
		return fmt.Errorf("%w: account %s is in %s, not %s", barrier.ErrRefused, t.Account, a.Currency, t.Currency)
	case a.Balance < t.Minor:
		return fmt.Errorf("%w: account %s has %d, %d are asked for", barrier.ErrRefused, t.Account, a.Balance, t.Minor)
	}
	if _, err := tx.ExecContext(ctx, `UPDATE ledger_account SET balance = balance - ?1, frozen = frozen + ?1 WHERE id = ?2`, t.Minor, t.Account); err != nil {
		return fmt.Errorf("freeze %s: %w", t.Account, err)
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO ledger_hold (gid, branch_id, account, amount, state) VALUES (?, ?, ?, ?, 'frozen')`,
		call.Gid, call.BranchID, t.Account, t.Minor); err != nil {
		return fmt.Errorf("freeze %s: hold: %w", t.Account, err)
	}
	return nil
}

// Confirm spends what the branch's try froze. t must be the try's; a difference is an error that somebody must look at.
func Confirm(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer) error {
	return settle(ctx, tx, call, t, "confirmed", `UPDATE ledger_account SET frozen = frozen - ?1, spent = spent + ?1 WHERE id = ?2`)
}

// Cancel gives back what the branch's try froze. Of a try that never ran the barrier keeps it away.
func Cancel(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer) error {
	return settle(ctx, tx, call, t, "cancelled", `UPDATE ledger_account SET frozen = frozen - ?1, balance = balance + ?1 WHERE id = ?2`)
}

func settle(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer, state, move string) error {
	var account string
	var amount int64
	err := tx.QueryRowContext(ctx, `UPDATE ledger_hold SET state = ? WHERE gid = ? AND branch_id = ? AND state = 'frozen'
		RETURNING account, amount`, state, call.Gid, call.BranchID).Scan(&account, &amount)
	if err != nil {
		return fmt.Errorf("%s: open hold: %w", call, err)
	}
	if t.Account != account || t.Minor != amount {
		return fmt.Errorf("%s: the try froze %d of %s, the %s names %d of %s", call, amount, account, call.Op, t.Minor, t.Account)
	}
	if _, err := tx.ExecContext(ctx, move, amount, account); err != nil {
		return fmt.Errorf("%s: %s: %w", call, account, err)
	}
	return nil
}

// State is a consistent look at all accounts.
type State struct {
	Accounts  []Account `json:"accounts"` // by id
	Deposited int64     `json:"deposited"`
	Balance   int64     `json:"balance"`
	Frozen    int64     `json:"frozen"`
	Spent     int64     `json:"spent"`
	// OpenHolds and OpenAmount recount what is frozen from the holds.
	OpenHolds  int64 `json:"open_holds"`
	OpenAmount int64 `json:"open_amount"`
	// ConfirmedAmount recounts what is spent.
	ConfirmedAmount int64 `json:"confirmed_amount"`
}

// Faults returns what is wrong with the sums; nil if nothing is.
func (s State) Faults() []string {
	var faults []string
	if s.Deposited != s.Balance+s.Frozen+s.Spent {
		faults = append(faults, fmt.Sprintf("ledger: deposited %d is not balance %d + frozen %d + spent %d", s.Deposited, s.Balance, s.Frozen, s.Spent))
	}
	if s.Frozen != s.OpenAmount {
		faults = append(faults, fmt.Sprintf("ledger: frozen %d, but the open holds have %d", s.Frozen, s.OpenAmount))
	}
	if s.Spent != s.ConfirmedAmount {
		faults = append(faults, fmt.Sprintf("ledger: spent %d, but the confirmed holds have %d", s.Spent, s.ConfirmedAmount))
	}
	return faults
}

// Read returns the state in one read transaction.
func Read(ctx context.Context, db *sql.DB) (State, error) {
	var s State
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return s, err
	}
	defer func() { _ = tx.Rollback() }()
	rows, err := tx.QueryContext(ctx, `SELECT id, currency, deposited, balance, frozen, spent FROM ledger_account ORDER BY id`)
	if err != nil {
		return s, err
	}
	defer rows.Close()
	for rows.Next() {
		var a Account
		if err := rows.Scan(&a.ID, &a.Currency, &a.Deposited, &a.Balance, &a.Frozen, &a.Spent); err != nil {
			return s, err
		}
		s.Accounts = append(s.Accounts, a)
		s.Deposited += a.Deposited
		s.Balance += a.Balance
		s.Frozen += a.Frozen
		s.Spent += a.Spent
	}
	if err := rows.Err(); err != nil {
		return s, err
	}
	err = tx.QueryRowContext(ctx, `SELECT count(*) FILTER (WHERE state = 'frozen'), coalesce(sum(amount) FILTER (WHERE state = 'frozen'), 0),
		coalesce(sum(amount) FILTER (WHERE state = 'confirmed'), 0) FROM ledger_hold`).Scan(&s.OpenHolds, &s.OpenAmount, &s.ConfirmedAmount)
	return s, err
}
