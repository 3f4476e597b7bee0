// Package merchant keeps what merchants are owed: pending while a payment is open, posted when it is confirmed, and what of
// it goes back to buyers.
//
// Its law: no sum is negative, each is the sum of the bookings in that state, a booking leaves pending exactly once, and
// refunds never exceed what was posted. The database enforces the signs by CHECK constraints.
//
// It is tested operation by operation on SQLite, PostgreSQL and MariaDB and, with the ledger, by payments whose sums must
// agree across two databases.
package merchant

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/money"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// Account is one merchant's income; amounts in minor units.
type Account struct {
	ID       string `json:"id"`
	Currency string `json:"currency"`
	Pending  int64  `json:"pending"`  // of payments that are not decided
	Posted   int64  `json:"posted"`   // of payments that were confirmed, refunds included
	Refunded int64  `json:"refunded"` // of Posted: went back
	Returns  int64  `json:"returns"`  // of Posted: held for refunds that are not decided
}

// Payable is what may be paid out.
func (a Account) Payable() int64 { return a.Posted - a.Refunded - a.Returns }

// Refusal is a No for a business reason. It is barrier.ErrRefused.
type Refusal struct {
	Reason string // no_merchant, wrong_currency, merchant_funds, merchant_exists
	Field  string // merchant, currency, amount
	About  string
}

func (r *Refusal) Error() string { return fmt.Sprintf("%s %s (field %s)", r.Reason, r.About, r.Field) }

// Unwrap makes it barrier.ErrRefused.
func (r *Refusal) Unwrap() error { return barrier.ErrRefused }

// Merchants are the accounts in one database. Safe for concurrent use.
type Merchants struct {
	d   sqldb.Dialect
	now func() time.Time
}

// New returns the merchants of a database whose tables Migrate has made. now nil is time.Now; it gives bookings their day.
func New(d sqldb.Dialect, now func() time.Time) *Merchants {
	if now == nil {
		now = time.Now
	}
	return &Merchants{d: d, now: now}
}

// Migrate makes the tables; it may run any number of times.
func Migrate(ctx context.Context, db *sql.DB, d sqldb.Dialect) error {
	err := d.Migrate(ctx, db, `CREATE TABLE IF NOT EXISTS merchant_account (
			id varchar(128) PRIMARY KEY,
			currency varchar(3) NOT NULL,
			pending bigint NOT NULL DEFAULT 0 CHECK (pending >= 0),
			posted bigint NOT NULL DEFAULT 0 CHECK (posted >= 0),
			refunded bigint NOT NULL DEFAULT 0 CHECK (refunded >= 0),
			held_back bigint NOT NULL DEFAULT 0 CHECK (held_back >= 0),
			CHECK (refunded + held_back <= posted))`,
		`CREATE TABLE IF NOT EXISTS merchant_booking (
			gid varchar(128) NOT NULL,
			branch_id varchar(128) NOT NULL,
			kind varchar(10) NOT NULL CHECK (kind IN ('payment', 'refund')),
			merchant varchar(128) NOT NULL,
			amount bigint NOT NULL CHECK (amount > 0),
			state varchar(10) NOT NULL CHECK (state IN ('pending', 'posted', 'cancelled')),
			settled_day int NOT NULL DEFAULT 0,
			PRIMARY KEY (gid, branch_id))`,
		"CREATE INDEX IF NOT EXISTS merchant_booking_by_merchant ON merchant_booking (merchant, state, settled_day)")
	if err == nil {
		err = migrateTold(ctx, db, d)
	}
	if err != nil {
		return fmt.Errorf("migrate merchant: %w", err)
	}
	return nil
}

// Create opens a merchant's account; durable on nil. The same again changes nothing; another currency is a *Refusal.
func (m *Merchants) Create(ctx context.Context, db *sql.DB, id, currency string) error {
	if err := barrier.CheckID("merchant", id, 128); err != nil {
		return err
	}
	if err := money.CheckCurrency(currency); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, m.d.InsertNew("INTO merchant_account (id, currency) VALUES (?, ?)"), id, currency); err != nil {
		return fmt.Errorf("create merchant %s: %w", id, err)
	}
	var has string
	if err := db.QueryRowContext(ctx, m.d.Q(`SELECT currency FROM merchant_account WHERE id = ?`), id).Scan(&has); err != nil {
		return fmt.Errorf("create merchant %s: %w", id, err)
	}
	if has != currency {
		return &Refusal{Reason: "merchant_exists", Field: "currency", About: id + " in " + has}
	}
	return nil
}

// Has says whether there is such a merchant.
func (m *Merchants) Has(ctx context.Context, db *sql.DB, id string) (bool, error) {
	var n int
	err := db.QueryRowContext(ctx, m.d.Q("SELECT count(*) FROM merchant_account WHERE id = ?"), id).Scan(&n)
	return n == 1, err
}

// Book is a payment's try: pending income. *Refusal if there is no such merchant or it takes another currency.
func (m *Merchants) Book(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer) error {
	return m.open(ctx, tx, call, t, "payment", "UPDATE merchant_account SET pending = pending + ? WHERE id = ? AND currency = ?")
}

// Post is its confirm: what the try booked is income. t must be the try's.
func (m *Merchants) Post(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer) error {
	return m.settle(ctx, tx, call, t, "payment", "posted", "UPDATE merchant_account SET pending = pending - ?, posted = posted + ? WHERE id = ?")
}

// Cancel takes the booking back. t must be the try's.
func (m *Merchants) Cancel(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer) error {
	return m.settle(ctx, tx, call, t, "payment", "cancelled", "UPDATE merchant_account SET pending = pending - ? WHERE id = ?")
}

// HoldBack is a refund's try: of the merchant's income so much waits to go back. *Refusal if there is not so much.
func (m *Merchants) HoldBack(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer) error {
	return m.open(ctx, tx, call, t, "refund", "UPDATE merchant_account SET held_back = held_back + ? WHERE id = ? AND currency = ? AND refunded + held_back + ? <= posted")
}

// Return is its confirm: it has gone back.
func (m *Merchants) Return(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer) error {
	return m.settle(ctx, tx, call, t, "refund", "posted", "UPDATE merchant_account SET held_back = held_back - ?, refunded = refunded + ? WHERE id = ?")
}

// Keep is its cancel: it is the merchant's again.
func (m *Merchants) Keep(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer) error {
	return m.settle(ctx, tx, call, t, "refund", "cancelled", "UPDATE merchant_account SET held_back = held_back - ? WHERE id = ?")
}

// open moves the account and writes the booking.
func (m *Merchants) open(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer, kind, move string) error {
	t, err := t.Normal()
	if err != nil {
		return err
	}
	args := []any{t.Minor, t.Account, t.Currency}
	if kind == "refund" {
		args = append(args, t.Minor)
	}
	ok, err := m.d.Change(ctx, tx, move, args...)
	if err != nil {
		return fmt.Errorf("%s: %w", call, err)
	}
	if !ok {
		return m.why(ctx, tx, t)
	}
	if _, err := tx.ExecContext(ctx, m.d.Q(`INSERT INTO merchant_booking (gid, branch_id, kind, merchant, amount, state) VALUES (?, ?, ?, ?, ?, 'pending')`),
		call.Gid, call.BranchID, kind, t.Account, t.Minor); err != nil {
		return fmt.Errorf("%s: %w", call, err)
	}
	return nil
}

func (m *Merchants) why(ctx context.Context, tx *sql.Tx, t money.Transfer) error {
	var currency string
	err := tx.QueryRowContext(ctx, m.d.Q(`SELECT currency FROM merchant_account WHERE id = ?`), t.Account).Scan(&currency)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return &Refusal{Reason: "no_merchant", Field: "merchant", About: t.Account}
	case err != nil:
		return err
	case currency != t.Currency:
		return &Refusal{Reason: "wrong_currency", Field: "currency", About: t.Account + " takes " + currency}
	}
	return &Refusal{Reason: "merchant_funds", Field: "amount", About: t.Account}
}

// settle ends the branch's booking; what it says must be what was booked.
func (m *Merchants) settle(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer, kind, state, move string) error {
	var merchant, is, was string
	var amount int64
	err := tx.QueryRowContext(ctx, m.d.Q(`SELECT merchant, amount, kind, state FROM merchant_booking WHERE gid = ? AND branch_id = ?`), call.Gid, call.BranchID).
		Scan(&merchant, &amount, &is, &was)
	if err != nil {
		return fmt.Errorf("%s: open booking: %w", call, err)
	}
	if t.Account != merchant || t.Minor != amount || is != kind {
		return fmt.Errorf("%s: the try booked a %s of %d for %s, the %s names a %s of %d for %s", call, is, amount, merchant, call.Op, kind, t.Minor, t.Account)
	}
	day := m.now().UTC()
	ok, err := m.d.Change(ctx, tx, `UPDATE merchant_booking SET state = ?, settled_day = ? WHERE gid = ? AND branch_id = ? AND state = 'pending'`,
		state, day.Year()*10000+int(day.Month())*100+day.Day(), call.Gid, call.BranchID)
	if err != nil || !ok {
		return errors.Join(err, fmt.Errorf("%s: the booking is %s already", call, was))
	}
	args := []any{amount, amount, merchant}
	if ok, err := m.d.Change(ctx, tx, move, args[3-strings.Count(move, "?"):]...); err != nil || !ok {
		return errors.Join(err, fmt.Errorf("%s: %s: the account did not change", call, merchant))
	}
	return nil
}
