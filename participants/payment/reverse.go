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

// ReversalRequest undoes the payment of an order whole (冲正). ReversalNo is the caller's; an order is reversed once.
type ReversalRequest struct {
	Merchant   string `json:"merchant"`
	OrderNo    string `json:"order_no"`
	ReversalNo string `json:"reversal_no"`
}

// Reversal is a reversal as it stands. State is processing until the payment is decided and its money is back, then
// reversed; refused where the money cannot be given back. Amount is what went back: 0 where nothing was paid.
type Reversal struct {
	ReversalRequest
	Payment string `json:"payment"`
	State   string `json:"state"`
	Reason  string `json:"reason,omitempty"`
	Amount  int64  `json:"amount"`
}

// ReversalDone is the state of a reversal after which nothing of the payment stands.
const ReversalDone = "reversed"

// Reverse undoes the payment of an order. The reversal is written down first, and, where the order has no payment, a refused
// one in its place: an original that comes late is refused with the reason reversed, for ever. A payment that is not decided
// is asked for, never decided here. What was paid and not given back goes back as one refund under the reversal's number, so
// that the buyer's and the merchant's books move together. A repeat goes on where the last one stopped.
func (s *Service) Reverse(ctx context.Context, r ReversalRequest) (*Reversal, error) {
	for _, f := range []struct{ name, value string }{{"merchant", r.Merchant}, {"order_no", r.OrderNo}, {"reversal_no", r.ReversalNo}} {
		if err := checkID(f.name, f.value, textMax); err != nil {
			return nil, err
		}
	}
	out := &Reversal{ReversalRequest: r, Payment: PaymentID(r.Merchant, r.OrderNo), State: string(Processing)}
	if err := s.claimReversal(context.WithoutCancel(ctx), out); err != nil {
		return nil, err
	}
	p, err := s.Ask(ctx, out.Payment)
	if err != nil {
		return nil, err
	}
	switch p.State {
	case Processing:
		return out, nil
	case Refused:
		out.State = ReversalDone
		return out, nil
	}
	return out, s.giveBack(ctx, p, out)
}

// claimReversal writes the reversal down, and a refused payment where there is none: both or neither, before anything is undone.
// It takes the payment's row first, as Pay does, so that the two do not wait for each other.
func (s *Service) claimReversal(ctx context.Context, r *Reversal) error {
	body, err := json.Marshal(Request{Merchant: r.Merchant, OrderNo: r.OrderNo})
	if err != nil {
		return err
	}
	return sqldb.InTx(ctx, s.DB, func(tx *sql.Tx) error {
		now := s.Now().UnixMilli()
		if _, err := s.inserted(ctx, tx, "INTO payment (id, merchant, order_no, body, digest, gid, state, reason, created_ms, decided_ms) VALUES (?, ?, ?, ?, '', ?, 'refused', 'reversed', ?, ?)",
			r.Payment, r.Merchant, r.OrderNo, string(body), "reversal:"+r.Payment, now, now); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.Dialect.Q("UPDATE payment SET state = state WHERE id = ?"), r.Payment); err != nil { // its lock
			return err
		}
		fresh, err := s.inserted(ctx, tx, "INTO payment_reversal (payment, reversal_no, created_ms) VALUES (?, ?, ?)", r.Payment, r.ReversalNo, now)
		if err != nil || fresh {
			return err
		}
		has, err := s.reversalOf(ctx, tx, r.Payment)
		if err == nil && has != r.ReversalNo {
			err = problemOf("reversed", "reversal_no", "it was reversed as "+has, r.Payment)
		}
		return err
	})
}

// reversalOf is the number under which a payment was reversed, "" if it was not. It sees what others have committed
// meanwhile: whoever asks has the payment's row locked.
func (s *Service) reversalOf(ctx context.Context, tx *sql.Tx, payment string) (no string, err error) {
	lock := " FOR UPDATE"
	if s.Dialect.Dialect == barrier.SQLite {
		lock = ""
	}
	err = tx.QueryRowContext(ctx, s.Dialect.Q("SELECT reversal_no FROM payment_reversal WHERE payment = ?"+lock), payment).Scan(&no)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return no, err
}

// giveBack refunds what is left of a paid payment under the reversal's number.
func (s *Service) giveBack(ctx context.Context, p *Payment, r *Reversal) error {
	made, err := s.refunds(context.WithoutCancel(ctx), "payment = ? AND refund_no = ?", p.ID, r.ReversalNo)
	if err != nil {
		return err
	}
	left := p.Amount - p.Refunded
	if len(made) > 0 {
		left = made[0].Amount
	}
	if left == 0 {
		r.State = ReversalDone
		return nil
	}
	re, err := s.Refund(ctx, p.ID, RefundRequest{RefundNo: r.ReversalNo, Amount: left}, "")
	if err != nil {
		return err
	}
	switch re.State {
	case Paid:
		r.Amount = re.Amount
		return s.nothingLeft(ctx, p.ID, r)
	case Refused:
		r.State, r.Reason = string(Refused), re.Reason
	}
	return nil
}

// nothingLeft ends a reversal whose refund was made: a refund that had its number before need not have been of all that was left.
func (s *Service) nothingLeft(ctx context.Context, id string, r *Reversal) error {
	p, err := s.Get(context.WithoutCancel(ctx), id)
	if err != nil {
		return err
	}
	if r.State = ReversalDone; p.Refunded < p.Amount {
		r.State, r.Reason = string(Refused), fmt.Sprintf("%d of %d are not given back: refund %s was made before with another amount", p.Amount-p.Refunded, p.Amount, r.ReversalNo)
	}
	return nil
}

// Ask reads a payment, and first asks what became of it if it is not decided (掉单): its outcome is the coordinator's, and is
// booked once. Processing if ctx ends before.
func (s *Service) Ask(ctx context.Context, id string) (*Payment, error) {
	p, err := s.Get(context.WithoutCancel(ctx), id)
	if err != nil || p.State != Processing {
		return p, err
	}
	return p, s.drive(ctx, p, false)
}
