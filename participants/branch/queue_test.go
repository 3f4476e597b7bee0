package branch_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
)

// caller makes calls of a kit in its own process, each in a goroutine, and keeps their errors. It belongs into a bubble:
// when synctest.Wait returns, what was called runs or waits. While a function hangs it has the database's one connection.
type caller struct {
	t *testing.T
	k *kit
}

func inBubble(t *testing.T, o branch.Options, f func(t *testing.T, c *caller)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		k := openKit(t, o)
		defer k.p.Close()
		defer k.release()
		f(t, &caller{t, k})
	})
}

func (c *caller) start(gid, say string) chan error {
	out := make(chan error, 1)
	call := &barrier.Call{TransType: "tcc", Gid: gid, BranchID: "01", Op: "try", Fence: barrier.Fence{Slot: barrier.SlotOf(gid), Epoch: 2}}
	go func() {
		out <- c.k.p.Call(context.Background(), "/test/kit/try", call, fmt.Appendf(nil, `{"say":%q}`, say))
	}()
	synctest.Wait()
	return out
}

// over makes a call over HTTP, without a network.
func (c *caller) over(gid string) (status int, body string) {
	c.t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, "/test/kit/try?trans_type=tcc&branch_id=01&op=try&gid="+gid, strings.NewReader("{}"))
	r.Header.Set("Lockstep-Slot", fmt.Sprint(barrier.SlotOf(gid)))
	r.Header.Set("Lockstep-Epoch", "2")
	c.k.p.Handler().ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// unknown wants an answer that says nothing of the call's outcome: 503, UNAVAILABLE, and neither a yes nor a no.
func (c *caller) unknown(what string, err error, text string) {
	c.t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) || branch.Status(err) != http.StatusServiceUnavailable || branch.Code(err) != codes.Unavailable {
		c.t.Errorf("%s: %v is answered with %d and %v", what, err, branch.Status(err), branch.Code(err))
	}
}

// Calls that come while a transaction is under way share the next one.
func TestSingleCallsShareTransactions(t *testing.T) {
	inBubble(t, branch.Options{}, func(t *testing.T, c *caller) {
		all := []chan error{c.start("first", "hang")}
		for i := range 30 {
			all = append(all, c.start(fmt.Sprintf("g%d", i), ""))
		}
		c.k.release()
		for i, err := range all {
			if err := <-err; err != nil {
				t.Errorf("call %d: %v", i, err)
			}
		}
		if n := c.k.txs.Load(); n != 2 {
			t.Errorf("31 calls took %d transactions", n)
		}
	})
}

// What finds QueueMax calls waiting is told at once that nothing is known, has left nothing, and may come again; those that
// wait are not touched.
func TestAFullQueueAnswersUnknownAtOnce(t *testing.T) {
	inBubble(t, branch.Options{QueueMax: 2}, func(t *testing.T, c *caller) {
		first := c.start("first", "hang") // runs: it does not wait any more
		waits := []chan error{c.start("w1", ""), c.start("w2", "")}
		refused := c.start("late", "")
		select {
		case err := <-refused:
			c.unknown("one too many", err, "too many calls wait")
		default:
			t.Error("one too many waits too")
		}
		if status, body := c.over("late"); status != http.StatusServiceUnavailable || !strings.Contains(body, `"ERROR"`) {
			t.Errorf("one too many over HTTP: %d %s", status, body)
		}
		alone := member("alone", "try", "")
		alone.Target = "/alone/try"
		for _, a := range c.k.direct(t, member("late", "try", ""), alone) {
			if a.Status != http.StatusServiceUnavailable || a.Message == "" {
				t.Errorf("one too many in a batch: %v", a)
			}
		}
		c.k.release()
		for _, err := range append(waits, first) {
			if err := <-err; err != nil {
				t.Errorf("one that ran or waited: %v", err)
			}
		}
		if n := c.k.effects(t, "late") + c.k.effects(t, "alone"); n != 0 {
			t.Errorf("those too many have left %d effects", n)
		}
		if err := <-c.start("late", ""); err != nil || c.k.effects(t, "late") != 1 {
			t.Errorf("the repeat: %v and %d effects", err, c.k.effects(t, "late"))
		}
	})
}

// The members of one batch fill the queue in their order; each that finds it full has its own 503.
func TestABatchLargerThanTheQueue(t *testing.T) {
	inBubble(t, branch.Options{QueueMax: 2}, func(t *testing.T, c *caller) {
		first := c.start("first", "hang")
		answers := make(chan []uint32, 1)
		go func() {
			var got []uint32
			for _, a := range c.k.direct(t, member("a", "try", ""), member("b", "try", ""), member("c", "try", ""), member("d", "try", "")) {
				got = append(got, a.Status)
			}
			answers <- got
		}()
		synctest.Wait()
		c.k.release()
		if got := <-answers; fmt.Sprint(got) != "[200 200 503 503]" {
			t.Errorf("%v", got)
		}
		if err := <-first; err != nil {
			t.Error(err)
		}
	})
}

// Close lets what runs and what waits come to its end, and answers what comes later as unknown, at once.
func TestCloseWaitsForCallsAndTakesNoMore(t *testing.T) {
	inBubble(t, branch.Options{}, func(t *testing.T, c *caller) {
		runs, waits := c.start("runs", "hang"), c.start("waits", "")
		closed := make(chan struct{})
		go func() { c.k.p.Close(); close(closed) }()
		synctest.Wait()
		select {
		case <-closed:
			t.Fatal("Close did not wait for the call under way")
		default:
		}
		c.late(t)
		c.k.release()
		<-closed
		for name, err := range map[string]chan error{"runs": runs, "waits": waits} {
			if err := <-err; err != nil || c.k.effects(t, name) != 1 {
				t.Errorf("the call that %s: %v and %d effects", name, err, c.k.effects(t, name))
			}
		}
		c.late(t)
		if n := c.k.effects(t, "late"); n != 0 {
			t.Errorf("late calls have left %d effects", n)
		}
		c.k.p.Close() // again
	})
}

// late makes calls that come after Close.
func (c *caller) late(t *testing.T) {
	t.Helper()
	select {
	case err := <-c.start("late", ""):
		c.unknown("a late call", err, "is stopping")
	default:
		t.Error("a late call waits")
	}
	if status, body := c.over("late"); status != http.StatusServiceUnavailable || !strings.Contains(body, `"ERROR"`) {
		t.Errorf("a late call over HTTP: %d %s", status, body)
	}
	if a := c.k.direct(t, member("late", "try", "")); a[0].Status != http.StatusServiceUnavailable {
		t.Errorf("a late batch: %v", a)
	}
}
