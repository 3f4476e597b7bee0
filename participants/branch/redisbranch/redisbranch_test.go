//go:build servers

package redisbranch_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/barrier/redisbarrier"
	"github.com/lockstep-tx/lockstep/participants/branch/redisbranch"
	"github.com/lockstep-tx/lockstep/participants/participanttest"
)

type order struct {
	From   string `json:"from"`
	To     string `json:"to"`
	Amount int64  `json:"amount"`
	Say    string `json:"say"`
}

// A participant over Redis passes the conformance suite, its balances included.
func TestParticipantConforms(t *testing.T) {
	u := os.Getenv("LOCKSTEP_TEST_REDIS_AOF_URL")
	if u == "" {
		t.Fatal("LOCKSTEP_TEST_REDIS_AOF_URL is not set: run the tests with make test, which starts the servers")
	}
	ctx := t.Context()
	client, err := redisbarrier.Open(ctx, strings.TrimSuffix(u, "/0")+"/10")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	name := fmt.Sprintf("rb%d:", os.Getpid())
	o := redisbarrier.Options{Prefix: name}
	if err := redisbarrier.Migrate(ctx, client, o); err != nil {
		t.Fatal(err)
	}
	b, err := redisbarrier.New(client, o)
	if err != nil {
		t.Fatal(err)
	}
	alice, bob := name+"alice", name+"bob"
	for _, account := range []string{alice, bob} {
		client.HSet(ctx, account, redisbarrier.Available, 100000, redisbarrier.Frozen, 0)
	}
	p := redisbranch.New(b, redisbranch.Options{})
	redisbranch.HandleTCC(p, "pay", redisbranch.TCC[order]{
		Try: func(_ context.Context, _ *barrier.Call, o order) (redisbarrier.Work, error) {
			switch o.Say {
			case "ongoing":
				return redisbarrier.Work{}, barrier.ErrOngoing
			case "panic":
				panic("boom")
			}
			return redisbarrier.Freeze(o.From, o.Amount), nil
		},
		Confirm: func(_ context.Context, _ *barrier.Call, o order) (redisbarrier.Work, error) {
			w := redisbarrier.Spend(o.From, o.Amount)
			w.Changes = append(w.Changes, redisbarrier.Change{Key: o.To, Field: redisbarrier.Available, By: o.Amount})
			return w, nil
		},
		Cancel: func(_ context.Context, _ *barrier.Call, o order) (redisbarrier.Work, error) {
			return redisbarrier.Release(o.From, o.Amount), nil
		},
	})
	mux := http.NewServeMux()
	mux.Handle("/", p.Handler())
	mux.HandleFunc("/state", func(w http.ResponseWriter, r *http.Request) {
		balances := map[string]int64{}
		for _, account := range []string{alice, bob} {
			for _, field := range []string{redisbarrier.Available, redisbarrier.Frozen} {
				balances[account+" "+field], err = client.HGet(r.Context(), account, field).Int64()
				if err != nil {
					http.Error(w, err.Error(), http.StatusInternalServerError)
					return
				}
			}
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"balances": balances})
	})
	s := httptest.NewServer(mux)
	defer s.Close()
	payload, _ := json.Marshal(order{From: alice, To: bob, Amount: 3})
	tooMuch, _ := json.Marshal(order{From: alice, To: bob, Amount: 1_000_000_000})
	report, err := participanttest.Check(ctx, participanttest.Target{Try: s.URL + "/pay/try", Confirm: s.URL + "/pay/confirm", Cancel: s.URL + "/pay/cancel",
		Payload: payload, Refused: tooMuch, StateURL: s.URL + "/state", Seed: name})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Findings {
		if f.Verdict != participanttest.Pass && !strings.Contains(f.Why, "offers no batches") {
			t.Errorf("%s: %s, %s", f.Check, f.Verdict, f.Why)
		}
	}
	if n := report.Count(participanttest.Pass); n < 15 {
		t.Errorf("%d checks passed", n)
	}

	for body, want := range map[string]int{
		`{"from":"` + alice + `","amount":1}`: 200, `{"from":"` + alice + `","amount":1000000}`: 409, `{"from":"nobody","amount":1}`: 409, `{"say":"ongoing"}`: 425,
		`{"say":"panic"}`: 500, `[]`: 400,
	} {
		q := url.Values{"gid": {name + fmt.Sprint(want) + fmt.Sprint(len(body))}, "trans_type": {"tcc"}, "branch_id": {"01"}, "op": {"try"}}
		resp, err := http.Post(s.URL+"/pay/try?"+q.Encode(), "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", body, resp.StatusCode, want)
		}
	}
}
