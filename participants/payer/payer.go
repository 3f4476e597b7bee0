// Package payer is a customer's program as teams that run DTM have it: it pays with DTM's own Go SDK, unchanged, and
// knows nothing of Lockstep. It takes orders as JSON lines and answers each with a line, so that another process can
// drive it.
//
// Its law: it says "paid" only when the SDK said so; everything else is an error with the SDK's own text. It is tested
// through the demo.
package payer

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"github.com/go-resty/resty/v2"

	_ "github.com/lockstep-tx/lockstep/participants/payer/quiet"
)

// Order is one payment to be made. Amount is in minor units; Points of 0 sends no message.
type Order struct {
	ID       int64  `json:"id"`
	Buyer    string `json:"buyer"`
	Merchant string `json:"merchant"`
	Amount   int64  `json:"amount"`
	Points   int64  `json:"points"`
}

// Answer says what became of an order. Error is empty when it was paid.
type Answer struct {
	ID    int64  `json:"id"`
	Gid   string `json:"gid"`
	Error string `json:"error,omitempty"`
}

type transfer struct {
	Account string `json:"account"`
	Amount  int64  `json:"amount"`
}

// Payer pays at the coordinator and the participants given by their base URLs. Safe for concurrent use.
type Payer struct {
	DTM          string // http://host:port/api/dtmsvr
	Participants string // http://host:port
}

// Pay freezes the buyer's money, books the merchant's, decides, and sends the points as a message.
func (p Payer) Pay(o Order) (gid string, err error) {
	defer func() {
		if r := recover(); r != nil { // the SDK panics where it finds no coordinator
			err = fmt.Errorf("DTM's SDK: %v", r)
		}
	}()
	gid = dtmcli.MustGenGid(p.DTM)
	err = dtmcli.TccGlobalTransaction2(p.DTM, gid, func(t *dtmcli.Tcc) { t.WaitResult = true }, func(tcc *dtmcli.Tcc) (*resty.Response, error) {
		for _, side := range []struct{ path, account string }{{"/buyer", o.Buyer}, {"/merchant", o.Merchant}} {
			url := p.Participants + side.path
			if r, err := tcc.CallBranch(&transfer{side.account, o.Amount}, url+"/try", url+"/confirm", url+"/cancel"); err != nil {
				return r, err
			}
		}
		return nil, nil
	})
	if err != nil {
		return gid, err
	}
	if o.Points > 0 {
		if err := dtmcli.NewMsg(p.DTM, gid+"-points").Add(p.Participants+"/points/action", &transfer{o.Buyer, o.Points}).Submit(); err != nil {
			return gid, fmt.Errorf("paid, but the message for the points was not taken: %w", err)
		}
	}
	return gid, nil
}

// Serve pays every order that comes in, many at a time, and writes an answer for each, until in ends.
func (p Payer) Serve(in io.Reader, out io.Writer) error {
	var mu sync.Mutex
	var wg sync.WaitGroup
	enc := json.NewEncoder(out)
	lines := bufio.NewScanner(in)
	var failed error
	for lines.Scan() {
		var o Order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			failed = fmt.Errorf("order %q: %w", lines.Text(), err)
			break
		}
		wg.Go(func() {
			gid, err := p.Pay(o)
			a := Answer{ID: o.ID, Gid: gid}
			if err != nil {
				a.Error = err.Error()
			}
			mu.Lock()
			defer mu.Unlock()
			if err := enc.Encode(a); err != nil && failed == nil {
				failed = err
			}
		})
	}
	wg.Wait()
	if failed == nil {
		failed = lines.Err()
	}
	return failed
}
