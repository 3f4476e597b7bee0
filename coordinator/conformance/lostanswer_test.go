package conformance

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/dtmwire/dtmwiretest"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/store/memstore"
)

// forgetful is a store that carries a write out and loses its answer, when told.
type forgetful struct {
	*memstore.Store
	lose atomic.Bool
	lost atomic.Int32
}

func (f *forgetful) Commit(ctx context.Context, b *engine.Batch) error {
	err := f.Store.Commit(ctx, b)
	if err == nil && len(b.Puts) > 0 && f.lose.CompareAndSwap(true, false) {
		f.lost.Add(1)
		return errors.New("the answer is lost")
	}
	return err
}

// The write that decides and ends a transaction lands, and its answer is lost. The engine reads the slot again and puts
// the client's request once more by itself: the client, who asked once, must hear what happened, not that the request
// comes too late (G1). Its own repeat is refused, as in DTM.
func TestALostAnswerOfTheLastWriteIsNoRefusal(t *testing.T) {
	store := &forgetful{Store: memstore.New()}
	r := dtmwiretest.Start(t, dtmwiretest.Options{Store: store})
	p := dtmwiretest.NewParticipant(t)
	prepare := func(body map[string]any) {
		t.Helper()
		if code, text, _ := r.Post("/prepare", body); code != http.StatusOK {
			t.Fatalf("prepare: %d %s", code, text)
		}
	}
	tcc := map[string]any{"gid": "bare", "trans_type": "tcc", "wait_result": true}
	msg := map[string]any{"gid": "msg", "trans_type": "msg", "query_prepared": p.HTTP("query"), "steps": []map[string]string{{"action": p.HTTP("add")}}, "payloads": []string{"{}"}}
	prepare(tcc)
	prepare(msg)
	for i, tc := range []struct {
		path   string
		body   map[string]any
		status string
	}{{"submit", tcc, "succeed"}, {"abort", msg, "failed"}} {
		store.lose.Store(true)
		if code, text, _ := r.Post("/"+tc.path, tc.body); code != http.StatusOK {
			t.Errorf("%s whose answer was lost: %d %s", tc.path, code, text)
		}
		if int(store.lost.Load()) != i+1 {
			t.Fatalf("%s: no answer was lost: nothing was tested", tc.path)
		}
		if got := r.Status(tc.body["gid"].(string)); got != tc.status {
			t.Errorf("%s: it is %s", tc.path, got)
		}
		if code, text, _ := r.Post("/"+tc.path, tc.body); code != http.StatusConflict {
			t.Errorf("the client's own repeat: %d %s", code, text)
		}
	}
}
