// Package payment is the flow that uses the other participants: it pays an order. The buyer's money is held, the merchant's
// income booked and the stock reserved, all in one transaction; points, the merchant's notice, the sales count and the
// shipping insurance follow as messages if and only if it commits.
//
// Its law: a payment is written down, with the gid it will have, before anything is held, and ends as the coordinator
// decided, whoever crashes; an order number is paid once; a refund never exceeds its payment. What is answered as paid or
// refused is decided; anything else is answered as processing, with a place to ask.
//
// It is tested over HTTP against a real coordinator and real participants, with every refusal, repeats, and a kill in the
// middle.
package payment

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/inventory"
	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/participants/money"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Coordinator runs transactions; *client.Client is one.
type Coordinator interface {
	Execute(ctx context.Context, t client.Tx, until client.Until) (client.State, error)
	Watch(ctx context.Context, gid string, each func(client.State) error) error
}

// Branch is where a participant's branch is called: Base/try, Base/confirm, Base/cancel.
type Branch struct{ Base string }

func (b Branch) of(id string, payload any) (client.Branch, error) {
	raw, err := json.Marshal(payload)
	return client.Branch{ID: id, Try: b.Base + "/try", Confirm: b.Base + "/confirm", Cancel: b.Base + "/cancel", Payload: raw}, err
}

// Config of a Service. All but Now and Log must be given.
type Config struct {
	DB          *sql.DB
	Dialect     sqldb.Dialect
	Coordinator Coordinator
	// Buyers moves ledger legs, Merchants and MerchantRefunds merchants' income, Stock articles.
	Buyers, Merchants, MerchantRefunds, Stock Branch
	// Messages are where the consumers are: points, notice, sales, insurance. One that is empty is left out.
	Points, Notice, Sales, Insurance string
	// Held says what the buyers' ledger has of a hold: "posted", "voided" or "pending", "" for none. It answers for what the
	// coordinator has forgotten.
	Held func(ctx context.Context, hold string) (state string, err error)
	// HasMerchant says whether there is such a merchant: an order reserves nothing for one that nobody can pay.
	HasMerchant func(ctx context.Context, id string) (bool, error)
	// Inventory reserves stock for orders ahead of their payment; its tables are in InventoryDB.
	Inventory   *inventory.Inventory
	InventoryDB *sql.DB
	Now         func() time.Time
	Log         *slog.Logger
}

// Service pays. Safe for concurrent use.
type Service struct{ Config }

// New returns a service on a database whose tables Migrate has made.
func New(c Config) *Service {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Service{c}
}

// Leg is the payload of the buyers' branch.
type Leg struct {
	ledger.Leg
	RefundOf string `json:"refund_of,omitempty"`
}

// Transfer is the leg of a call as the ledger takes it.
func (l Leg) Transfer(call *barrier.Call) ledger.Transfer {
	t := ledger.Of(call, l.Leg)
	t.RefundOf = l.RefundOf
	return t
}

// Request is a payment to be made.
type Request struct {
	Merchant string `json:"merchant"`
	OrderNo  string `json:"order_no"`
	Buyer    string `json:"buyer"`
	Amount   int64  `json:"amount"` // minor units
	Currency string `json:"currency"`
	// Items are reserved with the payment, unless Order names an order that has reserved them.
	Items []inventory.Item `json:"items,omitempty"`
	Order string           `json:"order,omitempty"`
}

// State of a payment or refund.
type State string

// The states.
const (
	Processing State = "processing"
	Paid       State = "paid"
	Refused    State = "refused"
)

// Payment is a payment as it stands.
type Payment struct {
	ID string `json:"id"`
	Request
	State     State  `json:"state"`
	Reason    string `json:"reason,omitempty"` // of a refusal
	Field     string `json:"field,omitempty"`  // of the request that it is about
	Refunded  int64  `json:"refunded"`         // minor units, of refunds that are decided
	Gid       string `json:"gid"`
	CreatedMS int64  `json:"created_ms"`
	DecidedMS int64  `json:"decided_ms,omitempty"`
	// Refusals are the attempts before this one; given where one payment is asked for.
	Refusals []Refusal `json:"refusals,omitempty"`

	digest string
}

const textMax = 64

// checkID refuses what can be no id, as a *Problem that names the field. Two ids that a database takes for one would be two
// payments or refunds of which one is paid.
func checkID(field, value string, max int) error {
	if err := barrier.CheckID(field, value, max); err != nil {
		return invalid(field, strings.TrimPrefix(err.Error(), barrier.ErrInvalid.Error()+": "))
	}
	return nil
}

// checkKey is checkID for an idempotency key, which may be missing.
func checkKey(key string) error {
	if key == "" {
		return nil
	}
	return checkID("Idempotency-Key", key, 128)
}

func (r *Request) check() error {
	for _, f := range []struct{ name, value string }{{"merchant", r.Merchant}, {"order_no", r.OrderNo}, {"buyer", r.Buyer}} {
		if err := checkID(f.name, f.value, textMax); err != nil {
			return err
		}
	}
	if strings.Contains(r.Buyer, ":") {
		return invalid("buyer", "a buyer's id has no colon")
	}
	if r.Amount <= 0 || r.Amount > money.MinorMax {
		return invalid("amount", fmt.Sprintf("1 to %d minor units are possible", int64(money.MinorMax)))
	}
	if r.Currency == "" {
		r.Currency = money.DefaultCurrency
	}
	if err := money.CheckCurrency(r.Currency); err != nil {
		return invalid("currency", money.CurrencyWanted)
	}
	switch {
	case r.Order != "" && len(r.Items) > 0:
		return invalid("items", "an order has its items already")
	case r.Order != "" && r.Order != OrderID(r.Merchant, r.OrderNo):
		return invalid("order", "it is another order than merchant and order_no name")
	case r.Order == "" && len(r.Items) == 0:
		return invalid("items", "at least one article, or the order that has reserved them")
	}
	return checkItems(r.Items)
}

func checkItems(items []inventory.Item) error {
	seen := map[string]bool{}
	for _, it := range items {
		if err := checkID("items", it.SKU, textMax); err != nil {
			return err
		}
		if it.N <= 0 || it.N > 1_000_000 || seen[it.SKU] {
			return invalid("items", fmt.Sprintf("%d of article %q: an article stands once, with a number from 1 to 1,000,000", it.N, it.SKU))
		}
		seen[it.SKU] = true
	}
	if len(items) > 100 {
		return invalid("items", "at most 100 articles")
	}
	return nil
}

// id names something by what makes it unique.
func id(prefix string, parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return prefix + hex.EncodeToString(h.Sum(nil)[:14])
}

// PaymentID is the id of the payment of a merchant's order.
func PaymentID(merchant, orderNo string) string { return id("pay_", merchant, orderNo) }

// OrderID is the id of a merchant's order.
func OrderID(merchant, orderNo string) string { return id("ord_", merchant, orderNo) }

func digest(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain fields
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// Pay pays an order, and returns when it is decided or ctx ends; then the payment is Processing and goes on. A repeat gives
// the same payment; after a refusal there can be a new attempt (see insert). *Problem says what was wrong with the request; nothing is held then.
func (s *Service) Pay(ctx context.Context, r Request, idempotencyKey string) (*Payment, error) {
	if err := errors.Join(r.check(), checkKey(idempotencyKey)); err != nil {
		return nil, err
	}
	p := &Payment{ID: PaymentID(r.Merchant, r.OrderNo), Request: r, State: Processing, Gid: slot.NewGid(s.Now(), nil), CreatedMS: s.Now().UnixMilli(), digest: digest(r)}
	has, fresh, err := s.insert(context.WithoutCancel(ctx), p, idempotencyKey) // ctx is how long the decision is waited for
	if err != nil {
		return nil, err
	}
	if has.State != Processing {
		return has, nil
	}
	return has, s.drive(ctx, has, fresh)
}

// transaction is a payment's transaction, with the participants' addresses as they are now.
func (s *Service) transaction(p *Payment) (client.Tx, error) {
	t := client.Tx{Gid: p.Gid}
	stock := inventory.Request{Items: p.Items, Order: p.Order}
	for _, b := range []struct {
		id      string
		at      Branch
		payload any
	}{
		{buyerBranch, s.Buyers, Leg{Leg: ledger.Leg{Debit: p.Buyer, Credit: ledger.PaidTo(p.Currency), Minor: p.Amount, Currency: p.Currency}}},
		{"merchant", s.Merchants, money.Transfer{Account: p.Merchant, Minor: p.Amount, Currency: p.Currency}},
		{"stock", s.Stock, stock},
	} {
		br, err := b.at.of(b.id, b.payload)
		if err != nil {
			return t, err
		}
		t.Branches = append(t.Branches, br)
	}
	for _, m := range []struct{ id, url string }{{"points", s.Points}, {"notice", s.Notice}, {"sales", s.Sales}, {"insurance", s.Insurance}} {
		if m.url == "" {
			continue
		}
		var payload any = Paidout{Payment: p.ID, Merchant: p.Merchant, OrderNo: p.OrderNo, Buyer: p.Buyer, Amount: p.Amount, Currency: p.Currency}
		if m.id == "points" {
			if p.Amount < pointsPer {
				continue
			}
			payload = map[string]any{"account": p.Buyer, "amount": p.Amount / pointsPer}
		}
		raw, err := json.Marshal(payload)
		if err != nil {
			return t, err
		}
		t.Messages = append(t.Messages, client.Message{ID: m.id, URL: m.url, Payload: raw})
	}
	return t, nil
}

// pointsPer is how many minor units earn a point.
const pointsPer = 100

// Paidout is the payload of the messages that tell of a payment.
type Paidout struct {
	Payment  string `json:"payment"`
	Merchant string `json:"merchant"`
	OrderNo  string `json:"order_no"`
	Buyer    string `json:"buyer"`
	Amount   int64  `json:"amount"`
	Currency string `json:"currency"`
}
