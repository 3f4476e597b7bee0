// Package tap stands between coordinators and a participant. It writes down every branch call with its answer, and can
// lose answers and make them late, send calls several times, keep calls back until it is too late for them, and send old ones again.
//
// Its law: what it writes down as answered was answered by the participant, whatever its caller was told; and its counters
// say what each fault did, not what was asked of it. Calls come one by one: the offer of batches is taken out of answers.
package tap

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Kind says how a call came to the participant.
type Kind string

// The kinds. A dropped call never came there.
const (
	Plain   Kind = "plain"
	Copy    Kind = "copy"    // one of several that were sent at once
	Lost    Kind = "lost"    // it was answered, and the answer was not passed on
	Dropped Kind = "dropped" // not sent
	Late    Kind = "late"    // kept back until the cancel had been answered
	Stale   Kind = "stale"   // sent again after the slot had been at a newer epoch
	Unheard Kind = "unheard" // not sent: its caller is cut off, and has given up
)

// Mend is the operation of a repair, which is written down only where a trap loses its answer.
const Mend = "mend"

// Call is one call of a branch.
type Call struct {
	Region       string `json:"region"`
	Kind         Kind   `json:"kind"`
	Gid          string `json:"gid"`
	Branch       string `json:"branch"`
	Op           string `json:"op"`
	Slot         int    `json:"slot"`
	Epoch        int64  `json:"epoch,omitempty"`
	AccountSlot  int    `json:"account_slot"`
	AccountEpoch int64  `json:"account_epoch,omitempty"`
	Start        int64  `json:"start"`
	End          int64  `json:"end"`
	Status       int    `json:"status"` // 0: nothing was answered
}

// Repair is a repair that a participant was asked for.
type Repair struct {
	Region  string `json:"region"`
	Path    string `json:"path"`
	At      int64  `json:"at"`
	Status  int    `json:"status"`
	Account string `json:"account,omitempty"`
	Gid     string `json:"gid,omitempty"`
	Branch  string `json:"branch,omitempty"`
}

// Key names the branch.
func (c *Call) Key() string { return c.Gid + "/" + c.Branch }

// Rules are what is done to calls; zero does nothing. A share is of transactions, chosen by a hash of their gid.
type Rules struct {
	// Copies of each confirm and cancel are sent at once, where it is above 1.
	Copies int
	// LoseShare of branches lose the first answer of each operation.
	LoseShare float64
	// DropShare of tries of pays never come to the participant. HoldShare of them come after the cancel was answered.
	DropShare, HoldShare float64
	// Deaf has the coordinators' calls for the transactions of a region's slots, those that are this modulo 2, never come to
	// the participant, and their callers wait for their deadline: region 1 is 0, region 2 is 1.
	Deaf *int
	// SlowShare of calls get their answers late, by up to SlowMax: what was asked is done, and who asked may have given up.
	SlowShare float64
	SlowMax   time.Duration
	// Keep keeps confirms and cancels for Replay.
	Keep bool
}

// Tap is one participant's. Safe for concurrent use.
type Tap struct {
	Region string

	to       string
	now      func() int64
	listener net.Listener
	server   *http.Server
	client   *http.Client

	mu    sync.Mutex
	rules Rules
	trap  *Trap
	calls []Call
	lost  map[string]bool     // answers that were lost, by branch and op
	held  map[string]*request // tries that were kept back, by branch; nil once it is too late or they were sent
	kept  []*request
	mends []Repair
	slow  []LateAnswer
	// dawdled counts the answers that were kept back, by branch and op.
	dawdled map[string]int
}

// request is what is needed to send a call.
type request struct {
	call   Call
	method string
	path   string
	header http.Header
	body   []byte
}

// Open listens on address and carries to the participant at to.
func Open(region, address, to string, now func() int64) (*Tap, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	t := &Tap{
		Region: region, to: to, now: now, listener: l, lost: map[string]bool{}, dawdled: map[string]int{}, held: map[string]*request{},
		client: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 256}},
	}
	t.server = &http.Server{Handler: t, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = t.server.Serve(l) }() // ends with Close
	return t, nil
}

// URL is where it is reached.
func (t *Tap) URL() string { return "http://" + t.listener.Addr().String() }

// Close ends it.
func (t *Tap) Close() error { return t.server.Close() }

// Set changes what is done to calls from now on.
func (t *Tap) Set(r Rules) {
	t.mu.Lock()
	t.rules = r
	t.mu.Unlock()
}

// Calls are those that were written down.
func (t *Tap) Calls() []Call {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Call(nil), t.calls...)
}

// LateAnswer is an answer that was kept back for a while. Left: whoever had asked did not wait for it.
type LateAnswer struct {
	By   time.Duration
	Left bool
}

// Slowed are the answers that were late, in no order.
func (t *Tap) Slowed() []LateAnswer {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]LateAnswer(nil), t.slow...)
}

// Count counts the calls that match.
func (t *Tap) Count(match func(*Call) bool) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.calls {
		if match(&t.calls[i]) {
			n++
		}
	}
	return n
}

func (t *Tap) write(c Call) {
	t.mu.Lock()
	t.calls = append(t.calls, c)
	t.mu.Unlock()
}

// ServeHTTP carries one request.
func (t *Tap) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the caller has left
	}
	req := &request{method: r.Method, path: r.URL.RequestURI(), header: r.Header.Clone(), body: body}
	q := r.URL.Query()
	req.call = Call{Region: t.Region, Kind: Plain, Gid: q.Get("gid"), Branch: q.Get("branch_id"), Op: q.Get("op")}
	if req.call.Gid == "" || strings.HasPrefix(r.URL.Path, "/lockstep/") {
		t.relay(w, r, req)
		return
	}
	req.call.Slot, req.call.Epoch = fence(r.Header, "Lockstep-Slot", "Lockstep-Epoch")
	req.call.AccountSlot, req.call.AccountEpoch = fence(r.Header, "Lockstep-Account-Slot", "Lockstep-Account-Epoch")
	t.branch(w, r, req)
}

func fence(h http.Header, slot, epoch string) (int, int64) {
	s, err := strconv.Atoi(h.Get(slot))
	if err != nil {
		return -1, 0
	}
	e, _ := strconv.ParseInt(h.Get(epoch), 10, 64) // 0 is none
	return s, e
}

// relay carries what is no branch call.
func (t *Tap) relay(w http.ResponseWriter, r *http.Request, req *request) {
	resp, raw, err := t.send(r.Context(), req)
	if err != nil {
		drop(w)
		return
	}
	if r.URL.Path == "/lockstep/mend" || r.URL.Path == "/lockstep/restore" {
		t.repaired(r.URL.Path, req.body, resp.StatusCode)
	}
	if r.URL.Path == "/lockstep/mend" && !t.spring(r.Context(), Call{Region: t.Region, Kind: Plain, Op: Mend, Slot: -1, Status: resp.StatusCode}, true) {
		drop(w)
		return
	}
	answer(w, resp, raw)
}

// repaired writes a repair down: whom it was about, as far as its order says so.
func (t *Tap) repaired(path string, order []byte, status int) {
	r := Repair{Region: t.Region, Path: path, At: t.now(), Status: status}
	_ = json.Unmarshal(order, &r) // an order that cannot be read names nobody, which is for the checker
	r.Region, r.Path, r.Status = t.Region, path, status
	t.mu.Lock()
	t.mends = append(t.mends, r)
	t.mu.Unlock()
}

// Repairs are those that the participant was asked for.
func (t *Tap) Repairs() []Repair {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Repair(nil), t.mends...)
}

func answer(w http.ResponseWriter, resp *http.Response, raw []byte) {
	for k, v := range resp.Header {
		if k != http.CanonicalHeaderKey("Lockstep-Batch") && k != "Content-Length" {
			w.Header()[k] = v
		}
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = w.Write(raw) // the caller may have left
}

// drop ends the connection without an answer.
func drop(w http.ResponseWriter) {
	if h, ok := w.(http.Hijacker); ok {
		if c, _, err := h.Hijack(); err == nil {
			c.Close()
			return
		}
	}
	panic(http.ErrAbortHandler)
}

func (t *Tap) send(ctx context.Context, req *request) (*http.Response, []byte, error) {
	out, err := http.NewRequestWithContext(ctx, req.method, t.to+req.path, bytes.NewReader(req.body))
	if err != nil {
		return nil, nil, err
	}
	out.Header = req.header.Clone()
	resp, err := t.client.Do(out)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return resp, raw, err
}

// deliver sends a call and writes down what was answered. It goes on when the caller leaves: the network does so too.
func (t *Tap) deliver(req *request, k Kind) (*http.Response, []byte, error) {
	c := req.call
	c.Kind, c.Start = k, t.now()
	resp, raw, err := t.send(context.Background(), req)
	c.End = t.now()
	if err == nil {
		c.Status = resp.StatusCode
	}
	t.write(c)
	return resp, raw, err
}

// Replay sends what was kept once more and says how many calls that were.
func (t *Tap) Replay(ctx context.Context, match func(*Call) bool) (int, error) {
	t.mu.Lock()
	kept := t.kept
	t.mu.Unlock()
	n := 0
	for _, req := range kept {
		if !match(&req.call) {
			continue
		}
		if ctx.Err() != nil {
			return n, ctx.Err()
		}
		if _, _, err := t.deliver(req, Stale); err != nil {
			return n, fmt.Errorf("replay of %s: %w", req.call.Key(), err)
		}
		n++
	}
	return n, nil
}
