package merchant

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// State is a consistent look at all merchants.
type State struct {
	Accounts []Account `json:"accounts"` // by id
	Pending  int64     `json:"pending"`
	Posted   int64     `json:"posted"`
	Refunded int64     `json:"refunded"`
	Returns  int64     `json:"returns"`
	// What follows recounts from the bookings.
	OpenBookings   int64 `json:"open_bookings"`
	OpenAmount     int64 `json:"open_amount"`
	PostedAmount   int64 `json:"posted_amount"`
	ReturnsAmount  int64 `json:"returns_amount"`
	RefundedAmount int64 `json:"refunded_amount"`
}

// Faults returns what is wrong with the sums; nil if nothing is.
func (s State) Faults() []string {
	var faults []string
	for _, c := range []struct {
		name            string
		account, counts int64
	}{
		{"pending", s.Pending, s.OpenAmount}, {"posted", s.Posted, s.PostedAmount},
		{"held for refunds", s.Returns, s.ReturnsAmount}, {"refunded", s.Refunded, s.RefundedAmount},
	} {
		if c.account != c.counts {
			faults = append(faults, fmt.Sprintf("merchant: %s %d, but the bookings have %d", c.name, c.account, c.counts))
		}
	}
	return faults
}

// Read returns the state in one read transaction.
func (m *Merchants) Read(ctx context.Context, db *sql.DB) (State, error) {
	var s State
	tx, err := m.d.BeginRead(ctx, db)
	if err != nil {
		return s, err
	}
	defer func() { _ = tx.Rollback() }()
	rows, err := tx.QueryContext(ctx, `SELECT id, currency, pending, posted, refunded, held_back FROM merchant_account ORDER BY id`)
	if err != nil {
		return s, err
	}
	defer rows.Close()
	for rows.Next() {
		var a Account
		if err := rows.Scan(&a.ID, &a.Currency, &a.Pending, &a.Posted, &a.Refunded, &a.Returns); err != nil {
			return s, err
		}
		s.Accounts = append(s.Accounts, a)
		s.Pending += a.Pending
		s.Posted += a.Posted
		s.Refunded += a.Refunded
		s.Returns += a.Returns
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return s, err
	}
	sum := func(kind, state string) string {
		return "coalesce(sum(CASE WHEN kind = '" + kind + "' AND state = '" + state + "' THEN amount END), 0)"
	}
	err = tx.QueryRowContext(ctx, "SELECT count(CASE WHEN state = 'pending' THEN 1 END), "+sum("payment", "pending")+", "+sum("payment", "posted")+", "+
		sum("refund", "pending")+", "+sum("refund", "posted")+" FROM merchant_booking").
		Scan(&s.OpenBookings, &s.OpenAmount, &s.PostedAmount, &s.ReturnsAmount, &s.RefundedAmount)
	return s, err
}

// Day is what was settled for a merchant on one day (UTC).
type Day struct {
	Day      int   `json:"day"` // yyyymmdd
	Payments int64 `json:"payments"`
	Amount   int64 `json:"amount"`
	Refunds  int64 `json:"refunds"`
	Refunded int64 `json:"refunded"`
}

// Days is the daily summary of a merchant, newest first, at most limit days.
func (m *Merchants) Days(ctx context.Context, db *sql.DB, merchant string, limit int) ([]Day, error) {
	rows, err := db.QueryContext(ctx, m.d.Q(`SELECT settled_day, count(CASE WHEN kind = 'payment' THEN 1 END), coalesce(sum(CASE WHEN kind = 'payment' THEN amount END), 0),
		count(CASE WHEN kind = 'refund' THEN 1 END), coalesce(sum(CASE WHEN kind = 'refund' THEN amount END), 0)
		FROM merchant_booking WHERE merchant = ? AND state = 'posted' GROUP BY settled_day ORDER BY settled_day DESC LIMIT ?`), merchant, limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Day
	for rows.Next() {
		var d Day
		if err := rows.Scan(&d.Day, &d.Payments, &d.Amount, &d.Refunds, &d.Refunded); err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, rows.Err()
}

// SettledSum is what was settled for a merchant on one day (UTC), refunds taken off.
type SettledSum struct {
	Merchant, Currency string
	Net                int64 // minor units
}

// SettledOn gives the sums of all merchants on one day (yyyymmdd, UTC), one after the other.
func (m *Merchants) SettledOn(ctx context.Context, db *sql.DB, day int, each func(SettledSum) error) error {
	rows, err := db.QueryContext(ctx, m.d.Q(`SELECT b.merchant, a.currency, CAST(sum(CASE WHEN b.kind = 'payment' THEN b.amount ELSE -b.amount END) AS decimal(30))
		FROM merchant_booking b JOIN merchant_account a ON a.id = b.merchant WHERE b.state = 'posted' AND b.settled_day = ? GROUP BY b.merchant, a.currency`), day)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var s SettledSum
		if err := rows.Scan(&s.Merchant, &s.Currency, &s.Net); err != nil {
			return err
		}
		if err := each(s); err != nil {
			return err
		}
	}
	return rows.Err()
}
