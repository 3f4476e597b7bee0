// Package pay drives payments between the two ledgers of package payees: a buyer's money is held and a merchant's income
// booked, then both are posted.
package pay

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"github.com/dtm-labs/logger"
	"github.com/go-resty/resty/v2"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/coordinator/bench/load"
	"github.com/lockstep-tx/lockstep/coordinator/bench/payees"
)

// payment draws who pays whom.
func payment(c *load.Config) (buyer, merchant payees.Order) {
	b := payees.Account("buyer", rand.IntN(c.BuyerAccounts))
	m := payees.Account("merchant", rand.IntN(c.MerchantsPaid))
	return payees.Order{Debit: b, Credit: payees.Clearing, Minor: payees.PaymentMinor}, payees.Order{Debit: payees.Clearing, Credit: m, Minor: payees.PaymentMinor}
}

type leg struct{ try, confirm, cancel string }

func legAt(addr string) leg {
	base := "http://" + addr + "/leg/"
	return leg{base + "try", base + "confirm", base + "cancel"}
}

type dtmDriver struct {
	c                load.Config
	buyer, merchants leg
}

// NewDTM returns a driver that pays with DTM's Go SDK over HTTP, unchanged.
func NewDTM(c load.Config) (load.Driver, error) {
	logger.InitLog2("error", "stderr", 0, "")
	dtmcli.GetRestyClient().SetTransport(&http.Transport{ // see package dtmsdk
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 2048,
		IdleConnTimeout:     90 * time.Second,
	})
	return &dtmDriver{c: c, buyer: legAt(c.Buyers), merchants: legAt(c.Merchants)}, nil
}

// Run is load.Driver's.
func (d *dtmDriver) Run(context.Context) (err error) {
	defer func() {
		if x := recover(); x != nil { // MustGenGid's way
			err = fmt.Errorf("panic in the SDK: %v", x)
		}
	}()
	from, to := payment(&d.c)
	gid := dtmcli.MustGenGid(d.c.Coordinator)
	return dtmcli.TccGlobalTransaction2(d.c.Coordinator, gid, func(t *dtmcli.Tcc) { t.WaitResult = true },
		func(t *dtmcli.Tcc) (*resty.Response, error) {
			resp, err := t.CallBranch(from, d.buyer.try, d.buyer.confirm, d.buyer.cancel)
			if err != nil {
				return resp, err
			}
			return t.CallBranch(to, d.merchants.try, d.merchants.confirm, d.merchants.cancel)
		})
}

type nativeDriver struct {
	c                load.Config
	client           *client.Client
	buyer, merchants leg
}

// NewNative returns a driver that pays in one call of our own API.
func NewNative(c load.Config) (load.Driver, error) {
	cl, err := client.Dial(c.Coordinator)
	if err != nil {
		return nil, err
	}
	return &nativeDriver{c: c, client: cl, buyer: legAt(c.Buyers), merchants: legAt(c.Merchants)}, nil
}

// Run is load.Driver's.
func (d *nativeDriver) Run(ctx context.Context) error {
	from, to := payment(&d.c)
	st, err := d.client.Execute(ctx, client.Tx{Branches: []client.Branch{branch("01", d.buyer, from), branch("02", d.merchants, to)}}, client.Finished)
	if err == nil && !st.Committed() {
		err = fmt.Errorf("%s: %s", st.GetPhase(), st.GetReason())
	}
	return err
}

func branch(id string, l leg, o payees.Order) client.Branch {
	raw, err := json.Marshal(o)
	if err != nil {
		panic(err) // three plain fields
	}
	return client.Branch{ID: id, Try: l.try, Confirm: l.confirm, Cancel: l.cancel, Payload: raw}
}
