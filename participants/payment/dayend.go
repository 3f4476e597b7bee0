package payment

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// This file is what day-end reconciliation reads: what was decided as paid between two instants. It decides nothing.

// Settled is a payment or refund that was paid.
type Settled struct {
	Payment   string
	RefundNo  string // "" of a payment
	Amount    int64  // minor units
	Currency  string
	DecidedMS int64
}

const settledPage = 20_000 // rows that are read at once

// EachSettled gives every payment and refund that was decided as paid in [from, to), in no order that callers may rely on.
// It reads page by page: no transaction is held open, and memory does not grow. Refunds that a reversal made are left out: the
// pair never left the house.
func EachSettled(ctx context.Context, db *sql.DB, d sqldb.Dialect, from, to int64, each func(Settled) error) error {
	pages := []struct{ stmt, more string }{
		{"SELECT id, body, decided_ms FROM payment WHERE state = 'paid' AND decided_ms >= ? AND decided_ms < ? AND (decided_ms > ? OR id > ?) ORDER BY decided_ms, id LIMIT ?", "id"},
		{`SELECT r.payment, p.body, r.decided_ms, r.refund_no, r.amount FROM payment_refund r JOIN payment p ON p.id = r.payment
			WHERE r.state = 'paid' AND r.decided_ms >= ? AND r.decided_ms < ? AND (r.decided_ms > ? OR r.payment > ? OR (r.payment = ? AND r.refund_no > ?))
			AND NOT EXISTS (SELECT 1 FROM payment_reversal v WHERE v.payment = r.payment AND v.reversal_no = r.refund_no)
			ORDER BY r.decided_ms, r.payment, r.refund_no LIMIT ?`, "refund"},
	}
	for _, p := range pages {
		last := Settled{DecidedMS: from - 1}
		for {
			args := []any{max(from, last.DecidedMS), to, last.DecidedMS, last.Payment, settledPage}
			if p.more == "refund" {
				args = []any{max(from, last.DecidedMS), to, last.DecidedMS, last.Payment, last.Payment, last.RefundNo, settledPage}
			}
			n, err := settledPageOf(ctx, db, d.Q(p.stmt), args, p.more == "refund", func(s Settled) error { last = s; return each(s) })
			if err != nil {
				return fmt.Errorf("read what was paid: %w", err)
			}
			if n < settledPage {
				break
			}
		}
	}
	return nil
}

func settledPageOf(ctx context.Context, db *sql.DB, stmt string, args []any, refunds bool, each func(Settled) error) (n int, err error) {
	rows, err := db.QueryContext(ctx, stmt, args...)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var s Settled
	var body sql.RawBytes
	var refund int64
	into := []any{&s.Payment, &body, &s.DecidedMS}
	if refunds { // a column costs about as much as the rest of a row
		into = append(into, &s.RefundNo, &refund)
	}
	for ; rows.Next(); n++ {
		if err := rows.Scan(into...); err != nil {
			return n, err
		}
		if s.Amount, s.Currency, err = moneyOf(body); err != nil {
			return n, fmt.Errorf("payment %s: %w", s.Payment, err)
		}
		if refunds {
			s.Amount = refund
		}
		if err := each(s); err != nil {
			return n, err
		}
	}
	return n, rows.Err()
}

var amountKey, currencyKey = []byte(`,"amount":`), []byte(`,"currency":"`)

// moneyOf finds amount and currency in a payment's body. A day has millions of them, and decoding them whole would take half
// of a reconciliation: so it looks for the two keys as Pay writes them, after a quote that no text can hold, and decodes what
// looks otherwise.
func moneyOf(body []byte) (amount int64, currency string, err error) {
	if _, rest, ok := bytes.Cut(body, amountKey); ok {
		n := 0
		for n < len(rest) && n < 18 && rest[n] >= '0' && rest[n] <= '9' {
			amount = amount*10 + int64(rest[n]-'0')
			n++
		}
		if after, ok := bytes.CutPrefix(rest[n:], currencyKey); ok && n > 0 && len(after) > 3 && capitals(after[:3]) && after[3] == '"' {
			return amount, string(after[:3]), nil
		}
	}
	var r Request
	err = json.Unmarshal(body, &r)
	return r.Amount, r.Currency, err
}

func capitals(b []byte) bool {
	for _, c := range b {
		if c < 'A' || c > 'Z' {
			return false
		}
	}
	return true
}

// Known is what the payments have under an id, for a reconciler that misses it in its period.
type Known struct {
	Settled
	State    State
	Reversed string // the number under which it was reversed
}

// MerchantOf is whose a payment is, or a refund named as PAYMENT/REFUND_NO; "" where there is no such payment.
func MerchantOf(ctx context.Context, db *sql.DB, d sqldb.Dialect, id string) (string, error) {
	payment, _, _ := strings.Cut(id, "/")
	var merchant string
	err := db.QueryRowContext(ctx, d.Q("SELECT merchant FROM payment WHERE id = ?"), payment).Scan(&merchant)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("whose is payment %s: %w", payment, err)
	}
	return merchant, nil
}

// Look reads payments, and refunds named as PAYMENT/REFUND_NO; what is not there is not in the answer.
func Look(ctx context.Context, db *sql.DB, d sqldb.Dialect, ids []string) (map[string]Known, error) {
	out := map[string]Known{}
	for _, id := range ids {
		payment, refund, is := strings.Cut(id, "/")
		stmt, args := "SELECT p.id, '', p.body, 0, p.decided_ms, p.state, coalesce(v.reversal_no, '') FROM payment p LEFT JOIN payment_reversal v ON v.payment = p.id WHERE p.id = ?", []any{payment}
		if is {
			stmt = `SELECT r.payment, r.refund_no, p.body, r.amount, r.decided_ms, r.state, coalesce(v.reversal_no, '') FROM payment_refund r
				JOIN payment p ON p.id = r.payment LEFT JOIN payment_reversal v ON v.payment = p.id WHERE r.payment = ? AND r.refund_no = ?`
			args = append(args, refund)
		}
		var k Known
		var body []byte
		var amount int64
		err := db.QueryRowContext(ctx, d.Q(stmt), args...).Scan(&k.Payment, &k.RefundNo, &body, &amount, &k.DecidedMS, &k.State, &k.Reversed)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			continue
		case err != nil:
			return nil, fmt.Errorf("look for payment %s: %w", id, err)
		}
		if k.Amount, k.Currency, err = moneyOf(body); err != nil {
			return nil, fmt.Errorf("payment %s: %w", id, err)
		}
		if is {
			k.Amount = amount
		}
		out[id] = k
	}
	return out, nil
}
