package demo

import (
	"context"
	"encoding/json"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
)

// transfer is the body of every call of a participant.
type transfer struct {
	Account string `json:"account"`
	Amount  int64  `json:"amount"`
}

// pointsFor gives the points that a payment earns: one per yuan.
func pointsFor(fen int64) int64 { return fen / 100 }

// book notes a payment that the coordinator called committed.
func (d *demo) book(i int, amount int64) {
	d.made.Add(1)
	d.want.mu.Lock()
	defer d.want.mu.Unlock()
	d.want.spent += amount
	d.want.points += pointsFor(amount)
}

// dtmPayment pays with DTM's Go SDK, in the payer's process: a TCC for the money, then a message for the points. An
// error means that nothing was paid.
func (d *demo) dtmPayment(ctx context.Context, i int, amount int64) (string, error) {
	gid, err := d.payer.pay(ctx, order{Buyer: buyer(i), Merchant: merchant(i), Amount: amount, Points: pointsFor(amount)})
	if err == nil {
		d.book(i, amount)
	}
	return gid, err
}

// payment is the same as one transaction of the native API; confirms go by way of confirmBase.
func (d *demo) payment(gid string, i int, amount int64, confirmBase string) client.Tx {
	base := d.parts.base
	body := func(account string, n int64) []byte {
		raw, err := json.Marshal(transfer{account, n})
		if err != nil {
			panic(err) // a struct of a string and a number
		}
		return raw
	}
	branch := func(id, kind, account string) client.Branch {
		return client.Branch{
			ID: id, Try: base + "/" + kind + "/try", Confirm: confirmBase + "/" + kind + "/confirm", Cancel: base + "/" + kind + "/cancel", Payload: body(account, amount),
		}
	}
	tx := client.Tx{Gid: gid, Branches: []client.Branch{branch("buyer", "buyer", buyer(i)), branch("merchant", "merchant", merchant(i))}}
	if n := pointsFor(amount); n > 0 {
		tx.Messages = []client.Message{{ID: "points", URL: base + "/points/action", Payload: body(buyer(i), n)}}
	}
	return tx
}

func (d *demo) nativePayment(ctx context.Context, i int, amount int64, confirmBase string, until client.Until) (client.State, error) {
	st, err := d.home().native.Execute(ctx, d.payment("", i, amount, confirmBase), until)
	if err == nil && st.Committed() {
		d.book(i, amount)
	}
	return st, err
}
