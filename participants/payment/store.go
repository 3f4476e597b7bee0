package payment

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// Migrate makes the tables; it may run any number of times.
func Migrate(ctx context.Context, db *sql.DB, d sqldb.Dialect) error {
	err := d.Migrate(ctx, db, `CREATE TABLE IF NOT EXISTS payment (
			id varchar(64) PRIMARY KEY,
			merchant varchar(64) NOT NULL,
			order_no varchar(64) NOT NULL,
			body text NOT NULL,
			digest varchar(64) NOT NULL,
			gid varchar(128) NOT NULL,
			state varchar(10) NOT NULL CHECK (state IN ('processing', 'paid', 'refused')),
			reason varchar(1000) NOT NULL DEFAULT '',
			field varchar(40) NOT NULL DEFAULT '',
			created_ms bigint NOT NULL,
			decided_ms bigint NOT NULL DEFAULT 0,
			UNIQUE (merchant, order_no),
			UNIQUE (gid))`,
		`CREATE TABLE IF NOT EXISTS payment_refund (
			payment varchar(64) NOT NULL,
			refund_no varchar(64) NOT NULL,
			amount bigint NOT NULL CHECK (amount > 0),
			gid varchar(128) NOT NULL,
			state varchar(10) NOT NULL CHECK (state IN ('processing', 'paid', 'refused')),
			reason varchar(1000) NOT NULL DEFAULT '',
			field varchar(40) NOT NULL DEFAULT '',
			created_ms bigint NOT NULL,
			decided_ms bigint NOT NULL DEFAULT 0,
			PRIMARY KEY (payment, refund_no),
			UNIQUE (gid))`,
		`CREATE TABLE IF NOT EXISTS payment_key (
			idempotency_key varchar(128) PRIMARY KEY,
			digest varchar(64) NOT NULL,
			created_ms bigint NOT NULL)`,
		// The attempts that were refused, each of which another one has followed in payment.
		`CREATE TABLE IF NOT EXISTS payment_refused (
			gid varchar(128) PRIMARY KEY,
			payment varchar(64) NOT NULL,
			body text NOT NULL,
			digest varchar(64) NOT NULL,
			reason varchar(1000) NOT NULL,
			field varchar(40) NOT NULL,
			created_ms bigint NOT NULL,
			decided_ms bigint NOT NULL)`,
		// The attempt that an idempotency key stands for.
		`CREATE TABLE IF NOT EXISTS payment_key_attempt (
			idempotency_key varchar(128) PRIMARY KEY,
			gid varchar(128) NOT NULL)`,
		`CREATE TABLE IF NOT EXISTS payment_order (
			id varchar(64) PRIMARY KEY,
			merchant varchar(64) NOT NULL,
			order_no varchar(64) NOT NULL,
			body text NOT NULL,
			created_ms bigint NOT NULL)`,
		// Orders whose payment was reversed, or would have been: none of them is paid any more.
		`CREATE TABLE IF NOT EXISTS payment_reversal (
			payment varchar(64) PRIMARY KEY,
			reversal_no varchar(64) NOT NULL,
			created_ms bigint NOT NULL)`,
		"CREATE INDEX IF NOT EXISTS payment_by_state ON payment (state, id)",
		"CREATE INDEX IF NOT EXISTS payment_by_decision ON payment (state, decided_ms, id)",
		"CREATE INDEX IF NOT EXISTS payment_refund_by_decision ON payment_refund (state, decided_ms, payment, refund_no)",
		"CREATE INDEX IF NOT EXISTS payment_refund_by_state ON payment_refund (state, payment, refund_no)",
		"CREATE INDEX IF NOT EXISTS payment_refused_by_payment ON payment_refused (payment)",
		"CREATE INDEX IF NOT EXISTS payment_key_by_time ON payment_key (created_ms)")
	if err != nil {
		return fmt.Errorf("migrate payment: %w", err)
	}
	return nil
}

// inserted writes a row and says whether it was not there.
func (s *Service) inserted(ctx context.Context, db interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}, into string, args ...any) (bool, error) {
	r, err := db.ExecContext(ctx, s.Dialect.InsertNew(into), args...)
	if err != nil {
		return false, err
	}
	n, err := r.RowsAffected()
	return n == 1, err
}

// decided books an attempt's decision; it stays as it was first booked.
func (s *Service) decided(ctx context.Context, p *Payment) error {
	_, err := s.DB.ExecContext(ctx, s.Dialect.Q("UPDATE payment SET state = ?, reason = ?, field = ?, decided_ms = ? WHERE id = ? AND gid = ? AND state = 'processing'"),
		string(p.State), cut(p.Reason), p.Field, p.DecidedMS, p.ID, p.Gid)
	return err
}

func cut(s string) string {
	if len(s) > 250 {
		return s[:250]
	}
	return s
}

// Get reads a payment; a *Problem with status 404 if there is none.
func (s *Service) Get(ctx context.Context, id string) (*Payment, error) {
	all, err := s.list(ctx, "id = ?", 1, id)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, problem("not_found", "id", "no payment "+id)
	}
	return all[0], nil
}

// Filter of List; empty fields take all.
type Filter struct {
	Merchant string
	State    State
	After    string // the id of the last one before
	Limit    int
}

// List gives payments in the order of their ids.
func (s *Service) List(ctx context.Context, f Filter) ([]*Payment, error) {
	where, args := "id > ?", []any{f.After}
	if f.Merchant != "" {
		where, args = where+" AND merchant = ?", append(args, f.Merchant)
	}
	if f.State != "" {
		where, args = where+" AND state = ?", append(args, string(f.State))
	}
	return s.list(ctx, where, f.Limit, args...)
}

func (s *Service) list(ctx context.Context, where string, limit int, args ...any) ([]*Payment, error) {
	for i, a := range args {
		if st, ok := a.(State); ok {
			args[i] = string(st)
		}
	}
	rows, err := s.DB.QueryContext(ctx, s.Dialect.Q(`SELECT p.id, p.body, p.digest, p.gid, p.state, p.reason, p.field, p.created_ms, p.decided_ms,
		(SELECT coalesce(sum(r.amount), 0) FROM payment_refund r WHERE r.payment = p.id AND r.state = 'paid')
		FROM payment p WHERE `+where+" ORDER BY p.id LIMIT ?"), append(args, limit)...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []*Payment
	for rows.Next() {
		p, body := &Payment{}, ""
		if err := rows.Scan(&p.ID, &body, &p.digest, &p.Gid, &p.State, &p.Reason, &p.Field, &p.CreatedMS, &p.DecidedMS, &p.Refunded); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(body), &p.Request); err != nil {
			return nil, fmt.Errorf("payment %s: %w", p.ID, err)
		}
		out = append(out, p)
	}
	return out, rows.Err()
}

func (s *Service) refunds(ctx context.Context, where string, args ...any) ([]*Refund, error) {
	rows, err := s.DB.QueryContext(ctx, s.Dialect.Q("SELECT payment, refund_no, amount, gid, state, reason, field, created_ms, decided_ms FROM payment_refund WHERE "+where), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []*Refund
	for rows.Next() {
		r := &Refund{}
		if err := rows.Scan(&r.Payment, &r.RefundNo, &r.Amount, &r.Gid, &r.State, &r.Reason, &r.Field, &r.CreatedMS, &r.DecidedMS); err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// Refunds are the refunds of a payment, oldest first.
func (s *Service) Refunds(ctx context.Context, payment string) ([]*Refund, error) {
	return s.refunds(ctx, "payment = ? ORDER BY created_ms, refund_no", payment)
}

var errNoRow = errors.New("the row that was written is not there")
