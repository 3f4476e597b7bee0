package tap

import (
	"context"
	"hash/fnv"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	keptMax = 400
	opTry   = "try"
)

// lot is a number from 0 up to 1 that a name always draws.
func lot(name string) float64 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // it never fails
	return float64(h.Sum32()%10_000) / 10_000
}

// chosen says that a transaction belongs to the share from low to high.
func chosen(gid string, low, high float64) bool {
	x := lot(gid)
	return x >= low && x < high
}

// branch carries one branch call under the rules of now.
func (t *Tap) branch(w http.ResponseWriter, r *http.Request, req *request) {
	c := &req.call
	t.mu.Lock()
	rules := t.rules
	t.mu.Unlock()
	if rules.Deaf != nil && c.Epoch > 0 && c.Slot%2 == *rules.Deaf {
		t.unheard(r, *c)
		drop(w)
		return
	}
	settles := c.Op == "confirm" || c.Op == "cancel"
	if c.Op == opTry && t.keptBack(req, rules) {
		<-r.Context().Done() // the caller finds out by its own deadline
		drop(w)
		return
	}
	if rules.Keep && settles && strings.HasSuffix(strings.SplitN(req.path, "?", 2)[0], "/"+c.Op) {
		t.mu.Lock()
		if len(t.kept) < keptMax {
			t.kept = append(t.kept, req)
		}
		t.mu.Unlock()
	}
	if !t.spring(r.Context(), *c, false) {
		drop(w)
		return
	}
	resp, raw, err := t.copies(req, rules, settles)
	if err != nil {
		drop(w)
		return
	}
	answered := *c
	if answered.Status = resp.StatusCode; !t.spring(r.Context(), answered, true) {
		drop(w)
		return
	}
	if c.Op == "cancel" && resp.StatusCode == http.StatusOK {
		t.tooLate(c.Key())
	}
	if t.loses(c, rules, resp.StatusCode) {
		drop(w)
		return
	}
	t.dawdle(r.Context(), c, rules)
	answer(w, resp, raw)
}

// dawdle keeps an answer back for a while: longer than its caller waits, for some. For how long hangs on the call, and on how often it
// was made: the same seed delays the same calls, and a call that is made again is not late for ever.
func (t *Tap) dawdle(ctx context.Context, c *Call, rules Rules) {
	call := c.Gid + c.Branch + c.Op
	if rules.SlowShare == 0 || !chosen(call, 0, rules.SlowShare) {
		return
	}
	t.mu.Lock()
	t.dawdled[call]++
	again := strconv.Itoa(t.dawdled[call])
	t.mu.Unlock()
	began := time.Now()
	left := false
	select {
	case <-time.After(time.Duration(lot(again+call) * float64(rules.SlowMax))):
	case <-ctx.Done():
		left = true
	}
	t.mu.Lock()
	t.slow = append(t.slow, LateAnswer{time.Since(began), left})
	t.mu.Unlock()
}

// unheard lets a caller wait until its deadline, and writes that down then.
func (t *Tap) unheard(r *http.Request, c Call) {
	c.Kind, c.Start = Unheard, t.now()
	<-r.Context().Done()
	c.End = t.now()
	t.write(c)
}

// keptBack says that a try is not sent, now or ever; repeats of it neither.
func (t *Tap) keptBack(req *request, rules Rules) bool {
	c := &req.call
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, again := t.held[c.Key()]; again {
		return true
	}
	dropped := chosen(c.Gid, 0, rules.DropShare)
	held := chosen(c.Gid, rules.DropShare, rules.DropShare+rules.HoldShare)
	if !dropped && !held {
		return false
	}
	t.held[c.Key()] = nil
	if held {
		t.held[c.Key()] = req
	}
	d := *c
	d.Kind, d.Start = Dropped, t.now()
	d.End = d.Start
	if dropped {
		t.calls = append(t.calls, d)
	}
	return true
}

// tooLate sends the try that was kept back: its cancel has been answered.
func (t *Tap) tooLate(key string) {
	t.mu.Lock()
	req := t.held[key]
	if req != nil {
		t.held[key] = nil
	}
	t.mu.Unlock()
	if req != nil {
		go func() { _, _, _ = t.deliver(req, Late) }() // what came of it is written down
	}
}

// copies sends a call once, or several times at once; the first copy's answer counts.
func (t *Tap) copies(req *request, rules Rules, settles bool) (*http.Response, []byte, error) {
	if rules.Copies < 2 || !settles {
		return t.deliver(req, Plain)
	}
	var wg sync.WaitGroup
	for range rules.Copies - 1 {
		wg.Go(func() { _, _, _ = t.deliver(req, Copy) }) // what came of it is written down
	}
	resp, raw, err := t.deliver(req, Plain)
	wg.Wait()
	return resp, raw, err
}

// loses says that an answer is not passed on; each is lost once, so that a repeat gets through.
func (t *Tap) loses(c *Call, rules Rules, status int) bool {
	if status != http.StatusOK || !chosen(c.Gid+c.Op, 0, rules.LoseShare) {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	key := c.Key() + "/" + c.Op
	if t.lost[key] {
		return false
	}
	t.lost[key] = true
	l := *c
	l.Kind, l.Start, l.Status = Lost, t.now(), status
	l.End = l.Start
	t.calls = append(t.calls, l)
	return true
}
