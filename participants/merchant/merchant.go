// Package merchant keeps what merchants are owed: pending while a payment is open, posted when it is confirmed.
//
// Its law: pending and posted are never negative, and each is the sum of the bookings in that state; a booking leaves
// pending exactly once. The database enforces the signs by CHECK constraints.
//
// It is tested operation by operation and, with the ledger, by payments whose sums must agree across two databases.
package merchant

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/money"
)

// Account is one merchant's income; amounts in minor units.
type Account struct {
	ID       string `json:"id"`
	Currency string `json:"currency"`
	Pending  int64  `json:"pending"`
	Posted   int64  `json:"posted"`
}

var schema = []string{
	`CREATE TABLE IF NOT EXISTS merchant_account (
		id TEXT PRIMARY KEY,
		currency TEXT NOT NULL,
		pending INTEGER NOT NULL DEFAULT 0 CHECK (pending >= 0),
		posted INTEGER NOT NULL DEFAULT 0 CHECK (posted >= 0))`,
	`CREATE TABLE IF NOT EXISTS merchant_booking (
		gid TEXT NOT NULL,
		branch_id TEXT NOT NULL,
		merchant TEXT NOT NULL REFERENCES merchant_account (id),
		amount INTEGER NOT NULL CHECK (amount > 0),
		state TEXT NOT NULL CHECK (state IN ('pending', 'posted', 'cancelled')),
		PRIMARY KEY (gid, branch_id)) WITHOUT ROWID`,
}

// Migrate makes the tables; it may run any number of times.
func Migrate(ctx context.Context, db *sql.DB) error {
	for _, stmt := range schema {
		if _, err := db.ExecContext(ctx, stmt); err != nil {
			return fmt.Errorf("migrate merchant: %w", err)
		}
	}
	return nil
}

// Create opens a merchant's account. The same again changes nothing; another currency is refused.
func Create(ctx context.Context, db *sql.DB, id, currency string) error {
	if id == "" || len(id) > 128 {
		return fmt.Errorf("%w: merchant %q", barrier.ErrInvalid, id)
	}
	if err := money.CheckCurrency(currency); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, `INSERT INTO merchant_account (id, currency) VALUES (?, ?) ON CONFLICT (id) DO NOTHING`, id, currency); err != nil {
		return fmt.Errorf("create merchant %s: %w", id, err)
	}
	var has string
	if err := db.QueryRowContext(ctx, `SELECT currency FROM merchant_account WHERE id = ?`, id).Scan(&has); err != nil {
		return fmt.Errorf("create merchant %s: %w", id, err)
	}
	if has != currency {
		return fmt.Errorf("%w: merchant %s exists in %s", barrier.ErrRefused, id, has)
	}
	return nil
}

// Book is the try: pending income. ErrRefused if there is no such merchant or it takes another currency.
func Book(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer) error {
	t, err := t.Normal()
	if err != nil {
		return err
	}
	var currency string
	err = tx.QueryRowContext(ctx, `SELECT currency FROM merchant_account WHERE id = ?`, t.Account).Scan(&currency)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("%w: no merchant %s", barrier.ErrRefused, t.Account)
	case err != nil:
		return fmt.Errorf("book %s: %w", t.Account, err)
	case currency != t.Currency:
		return fmt.Errorf("%w: merchant %s takes %s, not %s", barrier.ErrRefused, t.Account, currency, t.Currency)
	}
	if _, err := tx.ExecContext(ctx, `UPDATE merchant_account SET pending = pending + ? WHERE id = ?`, t.Minor, t.Account); err != nil {
		return fmt.Errorf("book %s: %w", t.Account, err)
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO merchant_booking (gid, branch_id, merchant, amount, state) VALUES (?, ?, ?, ?, 'pending')`,
		call.Gid, call.BranchID, t.Account, t.Minor); err != nil {
		return fmt.Errorf("book %s: %w", t.Account, err)
	}
	return nil
}

// Post is the confirm: what the try booked is income. t must be the try's.
func Post(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer) error {
	return settle(ctx, tx, call, t, "posted", `UPDATE merchant_account SET pending = pending - ?1, posted = posted + ?1 WHERE id = ?2`)
}

// Cancel takes the booking back. t must be the try's.
func Cancel(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer) error {
	return settle(ctx, tx, call, t, "cancelled", `UPDATE merchant_account SET pending = pending - ?1 WHERE id = ?2`)
}

func settle(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer, state, move string) error {
	var merchant string
	var amount int64
	err := tx.QueryRowContext(ctx, `UPDATE merchant_booking SET state = ? WHERE gid = ? AND branch_id = ? AND state = 'pending'
		RETURNING merchant, amount`, state, call.Gid, call.BranchID).Scan(&merchant, &amount)
	if err != nil {
		return fmt.Errorf("%s: open booking: %w", call, err)
	}
	if t.Account != merchant || t.Minor != amount {
		return fmt.Errorf("%s: the try booked %d for %s, the %s names %d for %s", call, amount, merchant, call.Op, t.Minor, t.Account)
	}
	if _, err := tx.ExecContext(ctx, move, amount, merchant); err != nil {
		return fmt.Errorf("%s: %s: %w", call, merchant, err)
	}
	return nil
}

// State is a consistent look at all merchants.
type State struct {
	Accounts []Account `json:"accounts"` // by id
	Pending  int64     `json:"pending"`
	Posted   int64     `json:"posted"`
	// OpenBookings, OpenAmount and PostedAmount recount from the bookings.
	OpenBookings int64 `json:"open_bookings"`
	OpenAmount   int64 `json:"open_amount"`
	PostedAmount int64 `json:"posted_amount"`
}

// Faults returns what is wrong with the sums; nil if nothing is.
func (s State) Faults() []string {
	var faults []string
	if s.Pending != s.OpenAmount {
		faults = append(faults, fmt.Sprintf("merchant: pending %d, but the open bookings have %d", s.Pending, s.OpenAmount))
	}
	if s.Posted != s.PostedAmount {
		faults = append(faults, fmt.Sprintf("merchant: posted %d, but the posted bookings have %d", s.Posted, s.PostedAmount))
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
	rows, err := tx.QueryContext(ctx, `SELECT id, currency, pending, posted FROM merchant_account ORDER BY id`)
	if err != nil {
		return s, err
	}
	defer rows.Close()
	for rows.Next() {
		var a Account
		if err := rows.Scan(&a.ID, &a.Currency, &a.Pending, &a.Posted); err != nil {
			return s, err
		}
		s.Accounts = append(s.Accounts, a)
		s.Pending += a.Pending
		s.Posted += a.Posted
	}
	if err := rows.Err(); err != nil {
		return s, err
	}
	err = tx.QueryRowContext(ctx, `SELECT count(*) FILTER (WHERE state = 'pending'), coalesce(sum(amount) FILTER (WHERE state = 'pending'), 0),
		coalesce(sum(amount) FILTER (WHERE state = 'posted'), 0) FROM merchant_booking`).Scan(&s.OpenBookings, &s.OpenAmount, &s.PostedAmount)
	return s, err
}
