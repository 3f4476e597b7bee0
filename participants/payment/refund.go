package payment

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/participants/inventory"
	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/participants/money"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// RefundRequest gives money of a payment back. RefundNo is the merchant's, unique per payment.
type RefundRequest struct {
	RefundNo string `json:"refund_no"`
	Amount   int64  `json:"amount"` // minor units
}

// Refund is a refund as it stands.
type Refund struct {
	Payment string `json:"payment"`
	RefundRequest
	State     State  `json:"state"`
	Reason    string `json:"reason,omitempty"`
	Field     string `json:"field,omitempty"`
	Gid       string `json:"gid"`
	CreatedMS int64  `json:"created_ms"`
	DecidedMS int64  `json:"decided_ms,omitempty"`
}

// Refund gives money of a paid payment back, from the merchant to the buyer, and returns when it is decided or ctx ends. A
// repeat gives the same refund. *Problem says what was wrong; nothing moved then.
func (s *Service) Refund(ctx context.Context, payment string, r RefundRequest, idempotencyKey string) (*Refund, error) {
	if err := errors.Join(checkID("refund_no", r.RefundNo, textMax), checkKey(idempotencyKey)); err != nil {
		return nil, err
	}
	if r.Amount <= 0 || r.Amount > money.MinorMax {
		return nil, invalid("amount", fmt.Sprintf("1 to %d minor units are possible", int64(money.MinorMax)))
	}
	wctx := context.WithoutCancel(ctx) // ctx is how long the decision is waited for
	p, err := s.Get(wctx, payment)
	if err != nil {
		return nil, err
	}
	if p.State != Paid {
		return nil, problemOf("not_paid", "", "it is "+string(p.State), p.ID)
	}
	fresh, gid := false, slot.NewGid(s.Now(), nil)
	err = sqldb.InTx(wctx, s.DB, func(tx *sql.Tx) error {
		_, err := s.claimKey(wctx, tx, idempotencyKey, digest([]any{"refund", payment, r}), gid)
		if err == nil {
			fresh, err = s.inserted(wctx, tx, "INTO payment_refund (payment, refund_no, amount, gid, state, created_ms) VALUES (?, ?, ?, ?, 'processing', ?)",
				p.ID, r.RefundNo, r.Amount, gid, s.Now().UnixMilli())
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	all, err := s.refunds(wctx, "payment = ? AND refund_no = ?", p.ID, r.RefundNo)
	if err != nil {
		return nil, err
	}
	if len(all) != 1 {
		return nil, errNoRow
	}
	has := all[0]
	if has.Amount != r.Amount {
		return nil, problemOf("duplicate_refund", "", fmt.Sprintf("it was made with the amount %d", has.Amount), p.ID)
	}
	if has.State != Processing {
		return has, nil
	}
	return has, s.driveRefund(ctx, has, fresh)
}

// errNotSettled says that a payment's money is not where a refund takes it from yet.
var errNotSettled = errors.New("the payment's confirms have not all been answered yet")

// driveRefund is drive for a refund.
func (s *Service) driveRefund(ctx context.Context, r *Refund, fresh bool) error {
	st, reason, err := s.decide(ctx, r.Gid, fresh, func() (client.Tx, error) { return s.refundTransaction(ctx, r) })
	if err != nil && ctx.Err() == nil {
		s.Log.Warn("a refund's outcome is not known; it is asked for again", "payment", r.Payment, "refund", r.RefundNo, "gid", r.Gid, "err", err)
	}
	if err != nil || st == Processing {
		return nil // it goes on
	}
	if r.State = st; st == Refused {
		r.Reason, r.Field = reasonOf(reason)
	}
	r.DecidedMS = s.Now().UnixMilli()
	_, err = s.DB.ExecContext(context.WithoutCancel(ctx), s.Dialect.Q("UPDATE payment_refund SET state = ?, reason = ?, field = ?, decided_ms = ? WHERE payment = ? AND refund_no = ? AND state = 'processing'"),
		string(r.State), cut(r.Reason), r.Field, r.DecidedMS, r.Payment, r.RefundNo)
	return err
}

// refundTransaction is a refund's transaction, once its payment is settled.
func (s *Service) refundTransaction(ctx context.Context, r *Refund) (client.Tx, error) {
	t := client.Tx{Gid: r.Gid}
	p, err := s.Get(context.WithoutCancel(ctx), r.Payment)
	if err != nil {
		return t, err
	}
	if ok, err := s.settled(ctx, p); err != nil || !ok {
		return t, errors.Join(errNotSettled, err)
	}
	buyer, err := s.Buyers.of(buyerBranch, Leg{
		Leg:      ledger.Leg{Debit: ledger.PaidTo(p.Currency), Credit: p.Buyer, Minor: r.Amount, Currency: p.Currency},
		RefundOf: ledger.HoldID(p.Gid, buyerBranch),
	})
	if err != nil {
		return t, err
	}
	merchant, err := s.MerchantRefunds.of("merchant", money.Transfer{Account: p.Merchant, Minor: r.Amount, Currency: p.Currency})
	t.Branches = []client.Branch{buyer, merchant}
	return t, err
}

// OrderRequest reserves stock ahead of a payment.
type OrderRequest struct {
	Merchant string           `json:"merchant"`
	OrderNo  string           `json:"order_no"`
	Items    []inventory.Item `json:"items"`
	// TTLSeconds is how long the reservation stands unpaid; 0 is 15 minutes, at most a day.
	TTLSeconds int64 `json:"ttl_seconds,omitempty"`
}

// Order is an order that has reserved stock. State is reserved, paying, sold or released.
type Order struct {
	ID string `json:"id"`
	OrderRequest
	State     string `json:"state"`
	ExpiresMS int64  `json:"expires_ms"`
}

const (
	ttlDefault = 15 * time.Minute
	ttlMax     = 24 * time.Hour
)

// PreOrder reserves an order's stock; durable on nil. A repeat gives the same order.
func (s *Service) PreOrder(ctx context.Context, r OrderRequest, idempotencyKey string) (*Order, error) {
	for _, f := range []struct{ name, value string }{{"merchant", r.Merchant}, {"order_no", r.OrderNo}} {
		if err := checkID(f.name, f.value, textMax); err != nil {
			return nil, err
		}
	}
	if len(r.Items) == 0 {
		return nil, invalid("items", "at least one article")
	}
	if err := checkItems(r.Items); err != nil {
		return nil, err
	}
	ttl := time.Duration(r.TTLSeconds) * time.Second
	if r.TTLSeconds == 0 {
		ttl = ttlDefault
	}
	if r.TTLSeconds < 0 || r.TTLSeconds > int64(ttlMax/time.Second) {
		return nil, invalid("ttl_seconds", "0 to 86400 are possible")
	}
	if err := checkKey(idempotencyKey); err != nil {
		return nil, err
	}
	switch known, err := s.HasMerchant(ctx, r.Merchant); {
	case err != nil:
		return nil, err
	case !known:
		return nil, problem("no_merchant", "", r.Merchant)
	}
	id := OrderID(r.Merchant, r.OrderNo)
	if err := s.keepOrder(ctx, id, r, idempotencyKey); err != nil {
		return nil, err
	}
	if err := s.Inventory.ReserveOrder(ctx, s.InventoryDB, id, r.Items, s.Now().Add(ttl)); err != nil {
		return nil, stockProblem(err)
	}
	return s.Order(ctx, id)
}

// keepOrder writes the order's request down; a *Problem if it is there with another one.
func (s *Service) keepOrder(ctx context.Context, id string, r OrderRequest, key string) error {
	body := digestible(r)
	return sqldb.InTx(ctx, s.DB, func(tx *sql.Tx) error {
		if _, err := s.claimKey(ctx, tx, key, digest([]any{"order", r}), id); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.Dialect.InsertNew("INTO payment_order (id, merchant, order_no, body, created_ms) VALUES (?, ?, ?, ?, ?)"),
			id, r.Merchant, r.OrderNo, body, s.Now().UnixMilli()); err != nil {
			return err
		}
		var has string
		if err := tx.QueryRowContext(ctx, s.Dialect.Q("SELECT body FROM payment_order WHERE id = ?"), id).Scan(&has); err != nil {
			return err
		}
		if has != body {
			return problemOf("duplicate_order", "", "the order is there with another body", id)
		}
		return nil
	})
}
