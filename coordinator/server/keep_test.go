package server

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// Finished transactions stay visible for --keep-finished, those without branches too; then lists leave them out, only
// their outcome is kept, and a late repeat still gets its old answer.
func TestFinishedTransactionsStayVisibleForKeepFinished(t *testing.T) {
	p := serveWith(t, func(s *Server) { s.TrimEvery = 10 * time.Millisecond }, "--keep-finished=1h", "--keep-outcomes=100h")
	shop := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer shop.Close()
	c, err := client.Dial(p.addr.GRPC)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	full := client.Tx{Gid: "full", Branches: []client.Branch{{ID: "b", Try: shop.URL, Confirm: shop.URL, Cancel: shop.URL}}}
	if tx, err := c.Execute(ctx, full, client.Finished); err != nil || !tx.Committed() {
		t.Fatal(tx, err)
	}
	if _, err := c.Begin(ctx, client.Tx{Gid: "bare"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Commit(ctx, "bare", client.Finished); err != nil {
		t.Fatal(err)
	}
	get := func(path string) string {
		t.Helper()
		code, _, body := ask(t, http.DefaultClient, http.MethodGet, "http://"+path, "", "")
		if code != http.StatusOK {
			t.Fatalf("%s: %d %s", path, code, body)
		}
		return body
	}
	show := func(gid string) string { return get(p.addr.Admin + "/v1/transaction?gid=" + gid) }
	lists := map[string]func() string{
		"the admin list": func() string { return get(p.addr.Admin + "/v1/transactions") },
		"DTM's list":     func() string { return get(p.addr.HTTP + "/api/dtmsvr/all") },
	}
	eventually(t, "both have left the store", func() bool {
		for _, gid := range []string{"full", "bare"} {
			if v, err := p.store.Get(ctx, txn.Gid(gid)); err != nil || v != nil {
				return false
			}
			if !strings.Contains(show(gid), `"bodies":true`) {
				t.Fatalf("%s has just finished: %s", gid, show(gid))
			}
		}
		return true
	})
	for what, list := range lists {
		if got := list(); !strings.Contains(got, `"full"`) || !strings.Contains(got, `"bare"`) {
			t.Errorf("%s before its time: %s", what, got)
		}
	}
	p.clock.Advance(time.Hour + time.Minute)
	for what, list := range lists {
		if got := list(); strings.Contains(got, `"full"`) || strings.Contains(got, `"bare"`) {
			t.Errorf("%s after its time: %s", what, got)
		}
	}
	eventually(t, "only the outcomes are kept", func() bool {
		return strings.Contains(show("full"), `"bodies":false`) && strings.Contains(show("bare"), `"bodies":false`)
	})
	if got := show("full"); !strings.Contains(got, `"status":"committed"`) || strings.Contains(got, shop.URL) {
		t.Errorf("what is left: %s", got)
	}
	calls := make(chan struct{}, 10)
	shop.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls <- struct{}{} })
	if tx, err := c.Commit(ctx, "full", client.Finished); err != nil || !tx.Committed() || len(calls) > 0 {
		t.Errorf("a late repeat: %v, %v, %d calls", tx, err, len(calls))
	}
	p.clock.Advance(100 * time.Hour)
	eventually(t, "the outcome is forgotten too", func() bool {
		code, _, _ := ask(t, http.DefaultClient, http.MethodGet, "http://"+p.addr.Admin+"/v1/transaction?gid=full", "", "")
		return code == http.StatusNotFound
	})
}
