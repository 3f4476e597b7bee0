package server

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
)

// D24: DTM logs every transaction with its payload at info. Here no payload stands in the log, not even at debug, not of
// what commits, is refused, fails or is malformed, over either API.
func TestNoPayloadIsEverLogged(t *testing.T) {
	p := serve(t)
	called := make(chan string, 1000)
	shop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		called <- r.URL.Path
		switch r.URL.Path {
		case "/refuse":
			w.WriteHeader(http.StatusConflict)
		case "/broken":
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer shop.Close()
	c, err := client.Dial(p.addr.GRPC)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	const secret = "card-4711-0815"
	body := []byte(`{"card":"` + secret + `"}`)
	for gid, try := range map[string]string{"n-commits": "/ok", "n-refused": "/refuse"} {
		tx := client.Tx{Gid: gid, Branches: []client.Branch{{ID: "b", Try: shop.URL + try, Confirm: shop.URL + "/ok", Cancel: shop.URL + "/ok", Payload: body}}}
		if _, err := c.Execute(ctx, tx, client.Finished); err != nil {
			t.Fatal(err)
		}
	}
	stuck := client.Tx{Gid: "n-fails", Branches: []client.Branch{{ID: "b", Try: shop.URL + "/ok", Confirm: shop.URL + "/broken", Cancel: shop.URL + "/ok", Payload: body}}, Options: client.Options{RetryInterval: time.Millisecond}}
	if _, err := c.Execute(ctx, stuck, client.Decided); err != nil {
		t.Fatal(err)
	}
	for broken := 0; broken < 6; {
		select {
		case path := <-called:
			if path == "/broken" {
				broken++
			}
		case <-ctx.Done():
			t.Fatal("the confirm was not repeated")
		}
	}
	saga := func(gid, action string, payloads ...string) string {
		raw, err := json.Marshal(map[string]any{"gid": gid, "trans_type": "saga", "wait_result": true, "custom_data": `{"concurrent":false}`, "steps": []any{map[string]string{"action": action}}, "payloads": payloads})
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	for _, body := range []string{saga("d-commits", shop.URL+"/ok", string(body)), saga("d-refused", shop.URL+"/refuse", string(body)), saga("d-invalid", "nowhere", string(body)), secret, `{"gid":"` + secret} {
		ask(t, http.DefaultClient, http.MethodPost, "http://"+p.addr.HTTP+"/api/dtmsvr/submit", "", body)
		ask(t, http.DefaultClient, http.MethodPost, "http://"+p.addr.HTTP+"/api/json-rpc", "", body)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	log := p.log.String()
	if !strings.Contains(log, "n-commits") || !strings.Contains(log, "level=DEBUG") {
		t.Fatal("the log does not speak of the transactions: nothing was tested")
	}
	for line := range strings.Lines(log) {
		if strings.Contains(line, secret) {
			t.Errorf("a payload stands in the log: %s", line)
		}
	}
}
