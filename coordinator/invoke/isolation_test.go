package invoke

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// hanging is a server that answers nothing until the test ends.
func hanging(t *testing.T) (url string, arrived *atomic.Int32) {
	t.Helper()
	end := make(chan struct{})
	arrived = &atomic.Int32{}
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		arrived.Add(1)
		select {
		case <-end:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(func() { close(end); s.CloseClientConnections(); s.Close() })
	return s.URL, arrived
}

// dead is an address at which nobody listens.
func dead(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func answering(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }))
	t.Cleanup(s.Close)
	return s.URL
}

// Design, section 5: per-participant bulkhead. A destination that hangs takes none of the capacity of the others: all
// calls of a live one are answered while every call to the hanging one is still under way or waits.
func TestHangingParticipantHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	slow, arrived := hanging(t)
	fast := answering(t)
	v := newInvoker(t, Config{InFlightMax: 4})
	stuck, live := newResults(), newResults()
	const n = 200
	for i := range n {
		v.Start(callTo(slow+"/x"), stuck.done)
		v.Start(callTo(fast+fmt.Sprintf("/%d", i)), live.done)
	}
	for range n {
		if res := live.next(t); res.Outcome != txn.Done {
			t.Fatalf("a live participant's call ended %v: %s", res.Outcome, res.Text)
		}
	}
	if got := len(stuck.ch); got != 0 {
		t.Errorf("%d calls of the hanging one were answered before", got)
	}
	if got := arrived.Load(); got > 4 {
		t.Errorf("%d calls reached the hanging participant at once, the bulkhead is 4", got)
	}
}

// One and the same call is never lost: whatever a destination does, each Start is answered exactly once.
func TestEveryCallIsAnsweredExactlyOnce(t *testing.T) {
	t.Parallel()
	slow, _ := hanging(t)
	v := New(Config{InFlightMax: 2, QueueMax: 5, BreakerFails: 3})
	r := newResults()
	urls := []string{slow + "/a", answering(t) + "/b", "http://" + dead(t) + "/c", dead(t) + "/p.S/M", "", "http://169.254.169.254/"}
	const n = 60
	for range n {
		for _, u := range urls {
			v.Start(callTo(u), r.done)
		}
	}
	v.Close() // ends what is under way with Unknown
	for range n * len(urls) {
		r.next(t)
	}
	if extra := len(r.ch); extra != 0 {
		t.Errorf("%d answers too many", extra)
	}
}

// A full queue defers: that is no attempt, and the caller is told when to come again.
func TestFullQueueDefers(t *testing.T) {
	t.Parallel()
	slow, _ := hanging(t)
	v := newInvoker(t, Config{InFlightMax: 1, QueueMax: 1})
	r := newResults()
	for range 3 {
		v.Start(callTo(slow+"/x"), r.done)
	}
	if res := r.next(t); res.Outcome != txn.Deferred || res.RetryAfter <= 0 {
		t.Errorf("the third call ended %v after %v", res.Outcome, res.RetryAfter)
	}
}

// The breaker: after some failures in a row calls are deferred without being made; one probes; when it succeeds, calls
// are made again.
func TestBreakerOpensProbesAndCloses(t *testing.T) {
	t.Parallel()
	var broken atomic.Bool
	var calls atomic.Int32
	broken.Store(true)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		if broken.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	t.Cleanup(s.Close)
	v := newInvoker(t, Config{BreakerFails: 3, BreakerPause: time.Hour})
	for i := range 3 {
		if res := one(t, v, callTo(s.URL)); res.Outcome != txn.Unknown {
			t.Fatalf("call %d ended %v", i, res.Outcome)
		}
	}
	d := v.destination(destinationOf(callTo(s.URL)))
	waitFor(t, d, func() bool { return d.fails == 3 })
	if res := one(t, v, callTo(s.URL)); res.Outcome != txn.Deferred || res.RetryAfter <= 0 {
		t.Errorf("a call to an open breaker ended %v", res.Outcome)
	}
	if calls.Load() != 3 {
		t.Errorf("%d calls were made", calls.Load())
	}
	broken.Store(false)
	d.mu.Lock()
	d.openTill = time.Now() // the pause is over
	d.mu.Unlock()
	if res := one(t, v, callTo(s.URL)); res.Outcome != txn.Done {
		t.Errorf("the probe ended %v", res.Outcome)
	}
	waitFor(t, d, func() bool { return d.fails == 0 })
	for range 5 {
		if res := one(t, v, callTo(s.URL)); res.Outcome != txn.Done {
			t.Errorf("a call after the probe ended %v", res.Outcome)
		}
	}
}

// Only one call probes: the others wait for what it finds.
func TestOnlyOneCallProbesAnOpenBreaker(t *testing.T) {
	t.Parallel()
	slow, arrived := hanging(t)
	v := newInvoker(t, Config{BreakerFails: 1, BreakerPause: time.Hour})
	d := v.destination(destinationOf(callTo(slow)))
	d.mu.Lock()
	d.fails, d.openTill = 1, time.Now()
	d.mu.Unlock()
	r := newResults()
	for range 10 {
		v.Start(callTo(slow), r.done)
	}
	for range 9 {
		if res := r.next(t); res.Outcome != txn.Deferred {
			t.Errorf("a call beside the probe ended %v", res.Outcome)
		}
	}
	if arrived.Load() > 1 {
		t.Errorf("%d calls probed", arrived.Load())
	}
}

// A participant that says no, or not yet, is well: its answers open no breaker.
func TestAnswersThatAreNoFailureOpenNoBreaker(t *testing.T) {
	t.Parallel()
	var i atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader([]int{http.StatusConflict, http.StatusTooEarly, http.StatusPreconditionFailed}[i.Add(1)%3])
	}))
	t.Cleanup(s.Close)
	v := newInvoker(t, Config{BreakerFails: 2})
	for range 12 {
		if res := one(t, v, callTo(s.URL)); res.Outcome == txn.Deferred {
			t.Fatal("the breaker opened")
		}
	}
}

// The breaker of one destination is not another's.
func TestBreakersAreApart(t *testing.T) {
	t.Parallel()
	v := newInvoker(t, Config{BreakerFails: 1, BreakerPause: time.Hour})
	gone := "http://" + dead(t)
	one(t, v, callTo(gone))
	d := v.destination(destinationOf(callTo(gone)))
	waitFor(t, d, func() bool { return d.fails > 0 })
	if res := one(t, v, callTo(gone)); res.Outcome != txn.Deferred {
		t.Errorf("the dead one's call ended %v", res.Outcome)
	}
	if res := one(t, v, callTo(answering(t))); res.Outcome != txn.Done {
		t.Errorf("the live one's call ended %v", res.Outcome)
	}
}

// waitFor waits until cond holds under the destination's lock: an answer is given before the destination books it.
func waitFor(t *testing.T, d *destination, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		d.mu.Lock()
		ok := cond()
		d.mu.Unlock()
		if ok {
			return
		}
	}
	t.Fatal("the destination's state did not come")
}

// G2 and rule 9: what says nothing of the participant's state is Unknown: no answer in time, no connection, a connection
// that breaks in the middle.
func TestWhatSaysNothingIsUnknown(t *testing.T) {
	t.Parallel()
	slow, _ := hanging(t)
	cut := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte("FAILURE"))
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			conn.Close()
		}
	}))
	t.Cleanup(cut.Close)
	v := newInvoker(t, Config{})
	for name, u := range map[string]string{
		"hanging": slow, "dead": "http://" + dead(t), "dead gRPC": dead(t) + "/p.S/M", "cut": cut.URL, "no such name": "http://no-such-host.invalid/", "no address": "://", "bad gRPC": "nothing",
	} {
		c := callTo(u)
		c.Timeout = 300 * time.Millisecond
		res := one(t, v, c)
		if res.Outcome != txn.Unknown || res.Text == "" {
			t.Errorf("%s ended %v %q", name, res.Outcome, res.Text)
		}
		if name == "hanging" && !strings.Contains(res.Text, "did not answer within the request timeout") {
			t.Errorf("the text is %q", res.Text)
		}
	}
}

// D16: one panic kills DTM's server. Here it costs one attempt.
func TestPanicWhileCallingIsUnknown(t *testing.T) {
	t.Parallel()
	v := newInvoker(t, Config{})
	v.http.client.DialTimeout = func(string, time.Duration) (net.Conn, error) { panic("codec") }
	if res := one(t, v, callTo("http://127.0.0.1:1/")); res.Outcome != txn.Unknown || !strings.Contains(res.Text, "panic") {
		t.Errorf("ended %v %q", res.Outcome, res.Text)
	}
}

// A gRPC participant that comes back is called again soon, not after gRPC's own pauses of up to two minutes.
func TestGRPCParticipantThatComesBackIsReachedSoon(t *testing.T) {
	t.Parallel()
	addr := dead(t)
	v := newInvoker(t, Config{BreakerFails: 1 << 30})
	for range 5 {
		if res := one(t, v, callTo(addr+"/p.S/M")); res.Outcome != txn.Unknown {
			t.Fatalf("ended %v", res.Outcome)
		}
	}
	p := grpcServer(t, addr, nil)
	deadline := time.Now().Add(15 * time.Second)
	for one(t, v, callTo(p+"/p.S/M")).Outcome != txn.Done {
		if time.Now().After(deadline) {
			t.Fatal("it was not reached again")
		}
		time.Sleep(20 * time.Millisecond)
	}
}
