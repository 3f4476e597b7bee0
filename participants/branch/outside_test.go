package branch_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
	"github.com/lockstep-tx/lockstep/participants/branch/batchpb"
)

// What is in no SQL database is served alike: members have their own answers, one that hangs is cut off and keeps no other
// from taking effect, and those of one branch come one after another.
func TestABatchOutsideHasAnAnswerPerMember(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	var mu sync.Mutex
	var order []string
	var kept atomic.Bool // the others while one hung
	others := make(chan struct{}, 8)
	o := branch.NewOutside(200*time.Millisecond, nil, slog.New(slog.DiscardHandler))
	act := func(ctx context.Context, call *barrier.Call, raw []byte, overGRPC bool) error {
		p, err := branch.Decode[payload](raw, overGRPC)
		if err != nil {
			return fmt.Errorf("%w: %w", barrier.ErrInvalid, err)
		}
		switch p.Say {
		case "refused":
			return barrier.ErrRefused
		case "panic":
			panic("boom")
		case "hang":
			kept.Store(true)
			for range 3 { // the others are done before it is cut off
				<-others
			}
			kept.Store(ctx.Err() != nil)
			<-hang
		case "slow":
			time.Sleep(20 * time.Millisecond)
		}
		mu.Lock()
		defer mu.Unlock()
		order = append(order, call.Gid+" "+call.Op)
		others <- struct{}{}
		return nil
	}
	for _, op := range []string{"try", "confirm", "cancel"} {
		o.Handle("test/kit", op, act)
	}
	calls := []*batchpb.BranchCall{member("h", "try", "hang"), member("a", "try", "slow"), member("a", "confirm", ""), member("b", "try", "refused"), member("c", "try", "panic"), member("d", "try", "")}
	raw, err := proto.Marshal(&batchpb.BatchRequest{Calls: calls})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	began := time.Now()
	o.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, branch.BatchPath, bytes.NewReader(raw)))
	for i, a := range answersOf(t, w.Code, w.Body.Bytes(), len(calls)) {
		if want := []uint32{500, 200, 200, 409, 500, 200}[i]; a.Status != want {
			t.Errorf("%s %s: %v, want %d", calls[i].Gid, calls[i].Op, a, want)
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("a function that hangs was cut off after %s", took)
	}
	mu.Lock()
	defer mu.Unlock()
	if kept.Load() {
		t.Error("the others waited for the one that hangs")
	}
	at := map[string]int{}
	for i, s := range order {
		at[s] = i
	}
	if len(order) != 3 || at["a try"] > at["a confirm"] {
		t.Errorf("what took effect: %v", order)
	}
}
