package tap

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// participant counts what comes to it.
type participant struct {
	mu    sync.Mutex
	calls map[string]int
}

func (p *participant) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.calls[r.URL.Query().Get("gid")+"/"+r.URL.Query().Get("op")]++
	p.mu.Unlock()
	w.Header().Set("Lockstep-Batch", "/batch")
	fmt.Fprint(w, "{}")
}

func (p *participant) count(key string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls[key]
}

func newTap(t *testing.T) (*Tap, *participant) {
	t.Helper()
	p := &participant{calls: map[string]int{}}
	srv := httptest.NewServer(p)
	t.Cleanup(srv.Close)
	began := time.Now()
	k, err := Open("east", "127.0.0.1:0", srv.URL, func() int64 { return time.Since(began).Nanoseconds() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k, p
}

func call(t *testing.T, k *Tap, gid, op string, epoch int) (*http.Response, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, k.URL()+"/wallet/pay/"+op+"?gid="+gid+"&branch_id=pay&op="+op, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Lockstep-Slot", "7")
	req.Header.Set("Lockstep-Epoch", fmt.Sprint(epoch))
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		resp.Body.Close()
	}
	return resp, err
}

func TestItCarriesAndWritesDown(t *testing.T) {
	k, p := newTap(t)
	resp, err := call(t, k, "g", "confirm", 101)
	if err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("Lockstep-Batch") != "" || p.count("g/confirm") != 1 {
		t.Fatalf("%v, %v, %d calls", resp, err, p.count("g/confirm"))
	}
	c := k.Calls()
	if len(c) != 1 || c[0].Slot != 7 || c[0].Epoch != 101 || c[0].Status != 200 || c[0].End < c[0].Start {
		t.Errorf("%+v", c)
	}
}

func TestALostAnswerWasGivenAndIsLostOnce(t *testing.T) {
	k, p := newTap(t)
	k.Set(Rules{LoseShare: 1})
	if _, err := call(t, k, "g", "confirm", 1); err == nil || p.count("g/confirm") != 1 {
		t.Fatalf("%v, %d calls", err, p.count("g/confirm"))
	}
	if _, err := call(t, k, "g", "confirm", 1); err != nil {
		t.Errorf("the repeat: %v", err)
	}
}

func TestCopiesComeToTheParticipant(t *testing.T) {
	k, p := newTap(t)
	k.Set(Rules{Copies: 3})
	if _, err := call(t, k, "g", "cancel", 1); err != nil || p.count("g/cancel") != 3 || k.Count(func(c *Call) bool { return c.Kind == Copy }) != 2 {
		t.Errorf("%v, %d calls", err, p.count("g/cancel"))
	}
}

func TestATryIsKeptBackUntilItsCancelWasAnswered(t *testing.T) {
	k, p := newTap(t)
	k.Set(Rules{HoldShare: 1})
	for range 2 { // a repeat is kept back too
		if _, err := call(t, k, "g", "try", 1); err == nil || p.count("g/try") != 0 {
			t.Fatalf("%v, %d tries came", err, p.count("g/try"))
		}
	}
	if _, err := call(t, k, "g", "cancel", 1); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); p.count("g/try") == 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	if p.count("g/try") != 1 {
		t.Errorf("%d tries came after the cancel", p.count("g/try"))
	}
}

func TestWhatWasKeptIsSentAgain(t *testing.T) {
	k, p := newTap(t)
	k.Set(Rules{Keep: true})
	if _, err := call(t, k, "g", "confirm", 101); err != nil {
		t.Fatal(err)
	}
	n, err := k.Replay(t.Context(), func(c *Call) bool { return c.Epoch == 101 })
	if err != nil || n != 1 || p.count("g/confirm") != 2 || k.Count(func(c *Call) bool { return c.Kind == Stale }) != 1 {
		t.Errorf("%d, %v, %d calls", n, err, p.count("g/confirm"))
	}
}
