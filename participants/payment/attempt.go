package payment

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// Refusal is an earlier attempt to pay an order, which was refused.
type Refusal struct {
	Request
	Reason    string `json:"reason"`
	Field     string `json:"field,omitempty"`
	Gid       string `json:"gid"`
	CreatedMS int64  `json:"created_ms"`
	DecidedMS int64  `json:"decided_ms"`

	digest string
}

// insert writes a payment down, fresh, or gives what the request has come to already; a *Problem if the order is another
// request's. An order whose payment was refused is paid by a new attempt, under a new gid, if the request says that it is
// one: by another body, or by an idempotency key of its own. The same body, with the same key or with none, is a repeat.
func (s *Service) insert(ctx context.Context, p *Payment, key string) (has *Payment, fresh bool, err error) {
	body, err := json.Marshal(p.Request)
	if err != nil {
		return nil, false, err
	}
	gid := p.Gid
	err = sqldb.InTx(ctx, s.DB, func(tx *sql.Tx) error {
		began, err := s.claimKey(ctx, tx, key, p.digest, p.Gid)
		if err != nil {
			return err
		}
		fresh, err = s.inserted(ctx, tx, "INTO payment (id, merchant, order_no, body, digest, gid, state, created_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
			p.ID, p.Merchant, p.OrderNo, string(body), p.digest, p.Gid, string(p.State), p.CreatedMS)
		if err == nil && !fresh {
			gid, fresh, err = s.attempt(ctx, tx, p, string(body), key, began)
		}
		return err
	})
	if err != nil {
		return nil, false, err
	}
	has, err = s.attemptOf(ctx, p.ID, gid)
	return has, fresh, err
}

// claimKey binds an idempotency key to a request, and gives the gid of the attempt that it stands for: gid if it is new, ""
// without a key. A *Problem if it belongs to another request.
func (s *Service) claimKey(ctx context.Context, tx *sql.Tx, key, digest, gid string) (string, error) {
	if key == "" {
		return "", nil
	}
	fresh, err := s.inserted(ctx, tx, "INTO payment_key (idempotency_key, digest, created_ms) VALUES (?, ?, ?)", key, digest, s.Now().UnixMilli())
	if err != nil {
		return "", err
	}
	if fresh {
		_, err := tx.ExecContext(ctx, s.Dialect.Q("INSERT INTO payment_key_attempt (idempotency_key, gid) VALUES (?, ?)"), key, gid)
		return gid, err
	}
	var has string
	var began sql.NullString // of a key from before attempts were kept there is none
	if err := tx.QueryRowContext(ctx, s.Dialect.Q(`SELECT k.digest, a.gid FROM payment_key k LEFT JOIN payment_key_attempt a ON a.idempotency_key = k.idempotency_key
		WHERE k.idempotency_key = ?`), key).Scan(&has, &began); err != nil {
		return "", err
	}
	if has != digest {
		return "", problem("key_reused", "", "it came with another body before")
	}
	return began.String, nil
}

// attempt gives the attempt that a request is about, of an order that has one already, or makes the next, fresh.
func (s *Service) attempt(ctx context.Context, tx *sql.Tx, p *Payment, body, key, began string) (gid string, fresh bool, err error) {
	lock := " FOR UPDATE"
	if s.Dialect.Dialect == barrier.SQLite { // whose transactions take turns
		lock = ""
	}
	var digest, now string
	var state State
	if err := tx.QueryRowContext(ctx, s.Dialect.Q("SELECT digest, gid, state FROM payment WHERE id = ?"+lock), p.ID).Scan(&digest, &now, &state); err != nil {
		return "", false, err
	}
	newKey := key != "" && began == p.Gid
	switch {
	case began != "" && !newKey:
		return began, false, nil
	case state == Refused && newKey:
		return p.Gid, true, s.next(ctx, tx, p, body, now)
	case digest == p.digest:
		if newKey {
			_, err = tx.ExecContext(ctx, s.Dialect.Q("UPDATE payment_key_attempt SET gid = ? WHERE idempotency_key = ?"), now, key)
		}
		return now, false, err
	}
	err = tx.QueryRowContext(ctx, s.Dialect.Q("SELECT gid FROM payment_refused WHERE payment = ? AND digest = ? ORDER BY created_ms DESC LIMIT 1"), p.ID, p.digest).Scan(&gid)
	switch {
	case !errors.Is(err, sql.ErrNoRows) && !newKey:
		return gid, false, err
	case state == Refused:
		return p.Gid, true, s.next(ctx, tx, p, body, now)
	}
	return "", false, problemOf("duplicate_order", "", "the order has a payment with another body", p.ID)
}

// next puts an attempt in the place of the one under the gid old, which was refused. An order that was reversed takes none.
func (s *Service) next(ctx context.Context, tx *sql.Tx, p *Payment, body, old string) error {
	if no, err := s.reversalOf(ctx, tx, p.ID); err != nil {
		return err
	} else if no != "" {
		return problemOf("reversed", "order_no", "the order was reversed as "+no+"; a new sale is a new order", p.ID)
	}
	if _, err := tx.ExecContext(ctx, s.Dialect.Q(`INSERT INTO payment_refused (gid, payment, body, digest, reason, field, created_ms, decided_ms)
		SELECT gid, id, body, digest, reason, field, created_ms, decided_ms FROM payment WHERE id = ?`), p.ID); err != nil {
		return err
	}
	ok, err := s.Dialect.Change(ctx, tx, `UPDATE payment SET body = ?, digest = ?, gid = ?, state = 'processing', reason = '', field = '', created_ms = ?, decided_ms = 0
		WHERE id = ? AND gid = ? AND state = 'refused'`, body, p.digest, p.Gid, p.CreatedMS, p.ID, old)
	if err == nil && !ok {
		err = fmt.Errorf("payment %s: another attempt came between", p.ID)
	}
	return err
}

// attemptOf reads a payment as the attempt under gid has it.
func (s *Service) attemptOf(ctx context.Context, id, gid string) (*Payment, error) {
	p, err := s.Get(ctx, id)
	if err != nil || p.Gid == gid {
		return p, err
	}
	old, err := s.Refusals(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, r := range old {
		if r.Gid == gid {
			return &Payment{ID: id, Request: r.Request, State: Refused, Reason: r.Reason, Field: r.Field, Gid: gid, CreatedMS: r.CreatedMS, DecidedMS: r.DecidedMS, digest: r.digest}, nil
		}
	}
	return nil, fmt.Errorf("payment %s has no attempt %s", id, gid)
}

// Refusals are a payment's earlier attempts, oldest first.
func (s *Service) Refusals(ctx context.Context, payment string) ([]Refusal, error) {
	rows, err := s.DB.QueryContext(ctx, s.Dialect.Q("SELECT body, digest, reason, field, gid, created_ms, decided_ms FROM payment_refused WHERE payment = ? ORDER BY created_ms, gid"), payment)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Refusal
	for rows.Next() {
		var r Refusal
		var body string
		if err := rows.Scan(&body, &r.digest, &r.Reason, &r.Field, &r.Gid, &r.CreatedMS, &r.DecidedMS); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(body), &r.Request); err != nil {
			return nil, fmt.Errorf("payment %s: %w", payment, err)
		}
		out = append(out, r)
	}
	return out, rows.Err()
}
