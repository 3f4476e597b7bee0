// Package books is our side of a day-end reconciliation: the payments, the merchants' sums and the ledger's entries, read by
// SQL from the participants' tables, and acted on through their own interfaces.
//
// The law it keeps: it decides nothing. A payment is asked for, reversed and made through the payments' API, which the
// coordinator decides; an entry is reversed by the ledger's own reversal, and only one that no transaction has made.
//
// It is tested with the real participants' tables and handlers.
package books

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/lockstep-tx/lockstep/participants/inventory"
	"github.com/lockstep-tx/lockstep/participants/payment"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
	"github.com/lockstep-tx/lockstep/region/reconcile/dayend"
)

// Payments is our side of the business kind.
type Payments struct {
	DB      *sql.DB
	Dialect sqldb.Dialect
	// API is the base URL of the payments' API; Client asks it.
	API    string
	Client *http.Client
}

var _ dayend.Ours = (*Payments)(nil)

func keyOf(s payment.Settled) string {
	if s.RefundNo != "" {
		return s.Payment + "/" + s.RefundNo
	}
	return s.Payment
}

// Each is dayend.Ours's.
func (p *Payments) Each(ctx context.Context, from, to int64, each func(*dayend.Row) error) error {
	var row dayend.Row
	return payment.EachSettled(ctx, p.DB, p.Dialect, from, to, func(s payment.Settled) error {
		row = dayend.Row{Key: keyOf(s), Amount: s.Amount, Currency: s.Currency, State: channelfile.Paid, AtMS: s.DecidedMS}
		return each(&row)
	})
}

var states = map[payment.State]channelfile.State{payment.Processing: channelfile.Open, payment.Paid: channelfile.Paid, payment.Refused: channelfile.Failed}

// Look is dayend.Ours's.
func (p *Payments) Look(ctx context.Context, keys []string) (map[string]dayend.Known, error) {
	found, err := payment.Look(ctx, p.DB, p.Dialect, keys)
	if err != nil {
		return nil, err
	}
	out := map[string]dayend.Known{}
	for key, k := range found {
		out[key] = dayend.Known{
			Row:      dayend.Row{Key: key, Amount: k.Amount, Currency: k.Currency, State: states[k.State], AtMS: k.DecidedMS},
			Reversed: k.Reversed != "" && k.RefundNo != k.Reversed,
		}
	}
	return out, nil
}

// Ask is dayend.Ours's. A refund is asked for by the payments themselves, every few seconds: it is read.
func (p *Payments) Ask(ctx context.Context, key string) (dayend.Known, error) {
	if !strings.Contains(key, "/") {
		var got payment.Payment
		if err := p.call(ctx, http.MethodPost, "/v1/payments/"+key+"/ask", "", nil, &got); err != nil {
			return dayend.Known{}, err
		}
	}
	all, err := p.Look(ctx, []string{key})
	if err == nil && all[key].Key == "" {
		err = fmt.Errorf("payment %s is gone", key)
	}
	return all[key], err
}

// Reverse is dayend.Ours's.
func (p *Payments) Reverse(ctx context.Context, id, key string) (string, bool, error) {
	var has payment.Payment
	if err := p.call(ctx, http.MethodGet, "/v1/payments/"+key, "", nil, &has); err != nil {
		return "", false, err
	}
	var r payment.Reversal
	err := p.call(ctx, http.MethodPost, "/v1/reversals", "", payment.ReversalRequest{Merchant: has.Merchant, OrderNo: has.OrderNo, ReversalNo: id}, &r)
	var no *refusal
	if errors.As(err, &no) && no.Type == "/problems/reversed" {
		return "it was reversed before: " + no.Detail, true, nil
	}
	if err != nil || r.State != payment.ReversalDone {
		return "", false, conflict(err)
	}
	return fmt.Sprintf("reversed as %s: %d %s went back", id, r.Amount, has.Currency), true, nil
}

// Book is dayend.Ours's: the missing payment is made as any other, by its order number, or the missing refund.
func (p *Payments) Book(ctx context.Context, f *dayend.Finding, how dayend.Missing) (string, bool, error) {
	key := fmt.Sprintf("recon-%s-%d", f.ID, f.Attempts)
	if of, no, is := strings.Cut(f.Key, "/"); is {
		var r payment.Refund
		err := p.call(ctx, http.MethodPost, "/v1/payments/"+of+"/refunds", key, payment.RefundRequest{RefundNo: no, Amount: f.Theirs.Amount}, &r)
		return "refund " + f.Key + " is " + string(r.State), r.State == payment.Paid, conflict(err)
	}
	if how.Merchant == "" && how.OrderNo == "" {
		how.Merchant, how.OrderNo = f.Merchant, f.OrderNo
	}
	if payment.PaymentID(how.Merchant, how.OrderNo) != f.Key {
		return "", false, &dayend.Conflict{Field: "order-no", Text: fmt.Sprintf("order %q of merchant %q has not the payment %s that the channel names", how.OrderNo, how.Merchant, f.Key)}
	}
	req := payment.Request{Merchant: how.Merchant, OrderNo: how.OrderNo, Buyer: how.Buyer, Amount: f.Theirs.Amount, Currency: f.Theirs.Currency}
	for sku, n := range how.Items {
		req.Items = append(req.Items, inventory.Item{SKU: sku, N: n})
	}
	var got payment.Payment
	err := p.call(ctx, http.MethodPost, "/v1/payments", key, req, &got)
	return "payment " + f.Key + " is " + string(got.State), got.State == payment.Paid, conflict(err)
}

// refusal is a problem that the payments answered: nothing was done.
type refusal struct{ payment.Problem }

// conflict makes a refusal what dayend takes for one.
func conflict(err error) error {
	var no *refusal
	if errors.As(err, &no) {
		return &dayend.Conflict{Field: no.Field, Text: no.Title + ": " + no.Detail}
	}
	return err
}

// ErrNoAPI says that nobody can be asked: where the payments' API is was not given. It is no answer, so what is due stays due.
var ErrNoAPI = errors.New("payments: it is empty: the base URL of the payments' API belongs there")

// call asks the payments' API. A *refusal is an answer; any other error says that nothing is known.
func (p *Payments) call(ctx context.Context, method, path, key string, body, into any) error {
	if p.API == "" {
		return ErrNoAPI
	}
	var raw []byte
	if body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(p.API, "/")+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("Prefer", "wait=10")
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	resp, err := p.Client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode >= 500 || resp.StatusCode < 200 {
		return fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	if resp.StatusCode >= 300 {
		no := &refusal{}
		if err := json.Unmarshal(answer, &no.Problem); err != nil || no.Title == "" {
			return fmt.Errorf("%s %s: %s: %.200s", method, path, resp.Status, answer)
		}
		return no
	}
	return json.Unmarshal(answer, into)
}
