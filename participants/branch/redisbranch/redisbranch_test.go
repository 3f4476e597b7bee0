//go:build servers

package redisbranch_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/barrier/redisbarrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
	"github.com/lockstep-tx/lockstep/participants/branch/redisbranch"
	"github.com/lockstep-tx/lockstep/participants/participanttest"
)

type order struct {
	From   string `json:"from"`
	To     string `json:"to"`
	Amount int64  `json:"amount"`
	Say    string `json:"say"`
}

// A participant over Redis passes the conformance suite, its balances and batches included, over HTTP and over gRPC.
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
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := p.GRPCServer()
	go func() { _ = g.Serve(l) }()
	defer g.Stop()
	at := l.Addr().String() + "/pay/"
	for _, target := range []participanttest.Target{
		{Try: s.URL + "/pay/try", Confirm: s.URL + "/pay/confirm", Cancel: s.URL + "/pay/cancel", Seed: name + "http"},
		{Try: at + "Try", Confirm: at + "Confirm", Cancel: at + "Cancel", Seed: name + "grpc"},
	} {
		target.Payload, target.Refused, target.StateURL = payload, tooMuch, s.URL+"/state"
		report, err := participanttest.Check(ctx, target)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range report.Findings {
			if f.Verdict != participanttest.Pass {
				t.Errorf("%s: %s: %s, %s", target.Try, f.Check, f.Verdict, f.Why)
			}
		}
		if n := report.Count(participanttest.Pass); n < 20 {
			t.Errorf("%s: %d checks passed", target.Try, n)
		}
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
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	asked := metadata.AppendToOutgoingContext(ctx, "dtm-gid", name+"m", "dtm-trans_type", "msg", "dtm-branch_id", "00", "dtm-op", "msg")
	if err := conn.Invoke(asked, branch.QueryMethod, &emptypb.Empty{}, &emptypb.Empty{}); status.Code(err) != codes.Aborted {
		t.Errorf("the check-back of a message that has no local part: %v", err)
	}
}
