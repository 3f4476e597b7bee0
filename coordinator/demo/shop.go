package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// article is what the story's shop sells.
const (
	article      = "lantern"
	articleStock = 50
)

// shopAnswer is what the payment service answers: a payment, an order, a refund or a problem.
type shopAnswer struct {
	status int
	ID     string `json:"id"`
	State  string `json:"state"`
	Type   string `json:"type"`
	Field  string `json:"field"`
}

func (p *participants) post(ctx context.Context, path string, body any) (a shopAnswer, err error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return a, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.base+path, bytes.NewReader(raw))
	if err != nil {
		return a, err
	}
	req.Header.Set("Prefer", "wait=10")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	a.status = resp.StatusCode
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err == nil {
		err = json.Unmarshal(text, &a)
	}
	return a, err
}

// expect makes a request whose answer the story knows.
func (p *participants) expect(ctx context.Context, path string, body any, status int, typ string) (shopAnswer, error) {
	a, err := p.post(ctx, path, body)
	if err == nil && (a.status != status || (typ != "" && a.Type != "/problems/"+typ)) {
		err = fmt.Errorf("POST %s: answered %d %s, not %d %s", path, a.status, a.Type, status, typ)
	}
	return a, err
}

// payOrders pays orders through the payment service: stock that was reserved ahead, stock that is not there, a refund.
func (d *demo) payOrders(ctx context.Context) error {
	type m = map[string]any
	items := []m{{"sku": article, "n": 2}}
	const price, back, again = 30_000, 12_000, 20_000 // again: the merchant has it, the payment does not
	order, err := d.parts.expect(ctx, "/v1/orders", m{"merchant": merchant(6), "order_no": "A-1", "items": items}, 200, "")
	if err != nil {
		return err
	}
	paid, err := d.parts.expect(ctx, "/v1/payments", m{"merchant": merchant(6), "order_no": "A-1", "buyer": buyer(6), "amount": price, "order": order.ID}, 200, "")
	if err != nil {
		return err
	}
	d.book(6, price)
	if _, err := d.parts.expect(ctx, "/v1/payments", m{"merchant": merchant(6), "order_no": "A-2", "buyer": buyer(6), "amount": price, "items": []m{{"sku": article, "n": articleStock}}}, 422, "stock_gone"); err != nil {
		return err
	}
	d.refused.Add(1)
	if _, err := d.parts.expect(ctx, "/v1/payments/"+paid.ID+"/refunds", m{"refund_no": "R-1", "amount": back}, 200, ""); err != nil {
		return err
	}
	if _, err := d.parts.expect(ctx, "/v1/payments/"+paid.ID+"/refunds", m{"refund_no": "R-2", "amount": again}, 422, "refund_exceeds_payment"); err != nil {
		return err
	}
	d.want.mu.Lock()
	d.want.refunded += back
	d.want.mu.Unlock()
	d.act("an order that reserved its stock is paid through POST /v1/payments (%s): money, income and stock in one transaction; another is refused for want of stock, and %s are refunded, never more than was paid", yuan(price), yuan(back))
	return nil
}
