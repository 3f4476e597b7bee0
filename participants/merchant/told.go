package merchant

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// Told is what a message says of a payment that is committed.
type Told struct {
	Payment  string `json:"payment"`
	Merchant string `json:"merchant"`
	OrderNo  string `json:"order_no"`
	Buyer    string `json:"buyer"`
	Amount   int64  `json:"amount"` // minor units
	Currency string `json:"currency"`
}

func (t Told) check() error {
	if t.Amount <= 0 || len(t.OrderNo) > 64 || len(t.Buyer) > 128 {
		return fmt.Errorf("%w: a message of payment %q to merchant %q over %d", barrier.ErrInvalid, t.Payment, t.Merchant, t.Amount)
	}
	if err := barrier.CheckID("payment", t.Payment, 64); err != nil {
		return err
	}
	return barrier.CheckID("merchant", t.Merchant, 128)
}

// migrateTold makes the inboxes.
func migrateTold(ctx context.Context, db *sql.DB, d sqldb.Dialect) error {
	return d.Migrate(ctx, db, `CREATE TABLE IF NOT EXISTS merchant_notice (
			payment varchar(64) PRIMARY KEY,
			merchant varchar(128) NOT NULL,
			order_no varchar(64) NOT NULL,
			amount bigint NOT NULL)`,
		`CREATE TABLE IF NOT EXISTS merchant_sales (
			merchant varchar(128) PRIMARY KEY,
			sales bigint NOT NULL CHECK (sales >= 0),
			amount bigint NOT NULL CHECK (amount >= 0))`,
		`CREATE TABLE IF NOT EXISTS shipping_insurance (
			payment varchar(64) PRIMARY KEY,
			buyer varchar(128) NOT NULL,
			premium bigint NOT NULL CHECK (premium > 0))`)
}

// Notify puts a notice into the merchant's inbox.
func (m *Merchants) Notify(ctx context.Context, tx *sql.Tx, _ *barrier.Call, t Told) error {
	if err := t.check(); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, m.d.Q("INSERT INTO merchant_notice (payment, merchant, order_no, amount) VALUES (?, ?, ?, ?)"), t.Payment, t.Merchant, t.OrderNo, t.Amount)
	return err
}

// Count counts a sale.
func (m *Merchants) Count(ctx context.Context, tx *sql.Tx, _ *barrier.Call, t Told) error {
	if err := t.check(); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, m.d.InsertNew("INTO merchant_sales (merchant, sales, amount) VALUES (?, 0, 0)"), t.Merchant); err != nil {
		return err
	}
	ok, err := m.d.Change(ctx, tx, "UPDATE merchant_sales SET sales = sales + 1, amount = amount + ? WHERE merchant = ?", t.Amount, t.Merchant)
	if err == nil && !ok {
		err = errors.New("the merchant's sales did not change")
	}
	return err
}

// Insure writes a shipping insurance: half a percent of the amount, at least one minor unit.
func (m *Merchants) Insure(ctx context.Context, tx *sql.Tx, _ *barrier.Call, t Told) error {
	if err := t.check(); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, m.d.Q("INSERT INTO shipping_insurance (payment, buyer, premium) VALUES (?, ?, ?)"), t.Payment, t.Buyer, max(1, t.Amount/200))
	return err
}

// Messages counts what the inboxes hold.
type Messages struct {
	Notices int64 `json:"notices"`
	Sales   int64 `json:"sales"`
	Insured int64 `json:"insured"`
}

// Messages reads the inboxes' counts.
func (m *Merchants) Messages(ctx context.Context, db *sql.DB) (c Messages, err error) {
	err = db.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM merchant_notice), (SELECT coalesce(sum(sales), 0) FROM merchant_sales), (SELECT count(*) FROM shipping_insurance)`).
		Scan(&c.Notices, &c.Sales, &c.Insured)
	return c, err
}
