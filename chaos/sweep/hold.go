package sweep

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/coordinator/api/client"
)

// heldMinor is more than any transaction of the load moves; heldFor is longer than a seed lives.
const (
	heldMinor = 10
	heldFor   = 3 * time.Minute
	endLimit  = 5 * time.Second
)

// hold begins a transaction of the suite's own and makes the try of one of its branches, so that something is held on an account
// while a cancel of it is done once more (D04): what nobody holds cannot be let go. It gives what ends it.
func (w *world) hold(ctx context.Context, region int, account, other, branch string) (end func() error, err error) {
	from, to := account, other
	if branch == "receive" {
		from, to = other, account
	}
	r := w.d.Regions[region]
	w.holds++
	op := history.Op{Client: w.log.Client(), Kind: history.Abandon, Gid: fmt.Sprintf("{%s}held-%d-%d", account, w.o.Seed, w.holds), Region: r.Name, From: from, To: to, Amount: heldMinor}
	c, err := client.Dial(r.GRPC[0])
	if err != nil {
		return nil, err
	}
	tx := client.Tx{Gid: op.Gid, Options: client.Options{Timeout: heldFor, RequestTimeout: time.Second, RetryInterval: 100 * time.Millisecond}}
	for _, b := range []struct{ name, account string }{{"pay", from}, {"receive", to}} {
		base := "lockstep://wallet/wallet/" + b.name
		tx.Branches = append(tx.Branches, client.Branch{ID: b.name, Account: b.account, Confirm: base + "/confirm", Cancel: base + "/cancel", Payload: fmt.Appendf(nil, `{"account":%q,"amount":%d}`, b.account, heldMinor)})
	}
	asked := w.log.Begin(op)
	if _, err := c.Begin(ctx, tx); err != nil {
		w.log.End(asked, history.Unknown, history.None, err)
		return nil, fmt.Errorf("hold on %s: %w", account, err)
	}
	w.log.End(asked, history.OK, history.Open, nil)
	w.remember()
	end = func() error {
		defer c.Close()
		actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
		defer cancel()
		// Not until it has finished: where another seed has let go of too much on the house's account, its cancel is refused
		// until that is repaired, by rounds that would wait here.
		_, err := c.Abort(actx, op.Gid, "the suite needs it no more", client.Decided)
		return err
	}
	q := url.Values{"gid": {op.Gid}, "trans_type": {"tcc"}, "branch_id": {branch}, "op": {"try"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.Tap.URL()+"/wallet/"+branch+"/try?"+q.Encode(), bytes.NewReader(fmt.Appendf(nil, `{"account":%q,"amount":%d}`, account, heldMinor)))
	if err != nil {
		return end, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return end, err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("hold on %s: %s", account, resp.Status)
	}
	return end, err
}
