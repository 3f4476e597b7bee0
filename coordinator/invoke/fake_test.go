package invoke

import (
	"sync"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// results collects what an invoker answers.
type results struct {
	mu  sync.Mutex
	all []engine.CallResult
	ch  chan engine.CallResult
}

func newResults() *results { return &results{ch: make(chan engine.CallResult, 10_000)} }

func (r *results) done(res engine.CallResult) {
	r.mu.Lock()
	r.all = append(r.all, res)
	r.mu.Unlock()
	r.ch <- res
}

// next waits for the next answer.
func (r *results) next(t *testing.T) engine.CallResult {
	t.Helper()
	select {
	case res := <-r.ch:
		return res
	case <-time.After(20 * time.Second):
		t.Fatal("no answer came")
		return engine.CallResult{}
	}
}

// newInvoker runs an invoker until the test ends.
func newInvoker(t *testing.T, cfg Config) *Invoker {
	t.Helper()
	v := New(cfg)
	t.Cleanup(v.Close)
	return v
}

func callTo(url string) *engine.Call {
	return &engine.Call{Gid: "g", Mode: txn.ModeTCC, Branch: "01", Op: txn.OpConfirm, OpWord: "confirm", Attempt: 1, URL: url, Payload: []byte("{}"), Timeout: 10 * time.Second}
}

// one makes one call and waits for its answer.
func one(t *testing.T, v *Invoker, c *engine.Call) engine.CallResult {
	t.Helper()
	r := newResults()
	v.Start(c, r.done)
	return r.next(t)
}
