// Package dtmwiretest runs a whole coordinator in the test's process, on the memory store, behind real loopback
// listeners, with a clock that the test moves; and a participant that records what it is called with and answers as it
// is told.
//
// The law it keeps: nothing sleeps. A test waits for a call, for a status, or for the end of a pass; what does not come
// fails the test with what is there instead.
package dtmwiretest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/dtm-labs/dtm/client/dtmgrpc/dtmgpb"
	"github.com/dtm-labs/logger"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/lockstep-tx/lockstep/coordinator/clock"
	"github.com/lockstep-tx/lockstep/coordinator/dtmwire"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/invoke"
	"github.com/lockstep-tx/lockstep/coordinator/store/memstore"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// Options of a Rig. The zero value serves most tests.
type Options struct {
	Engine engine.Limits
	Wire   dtmwire.Limits
	Invoke invoke.Config
	// Store takes the place of a fresh memory store.
	Store engine.Store
	// KV takes the place of the store's table.
	KV engine.KV
	// Wrap stands between the engine and the invoker.
	Wrap func(engine.Invoker) engine.Invoker
}

// Rig is a coordinator in the test's process.
type Rig struct {
	// HTTP is http://host:port, DTM the base url that DTM's SDKs take, JSONRPC the JSON-RPC url, GRPC host:port.
	HTTP, DTM, JSONRPC, GRPC string
	Clock                    *clock.Clock
	Runner                   *engine.Runner
	Journal                  *memstore.Journal
	// Client is DTM's generated gRPC client.
	Client dtmgpb.DtmClient
	t      testing.TB
	bell   *bell
}

// patience is how long a test waits for something that must come: long enough for a loaded machine under -race.
const patience = 20 * time.Second

// quiet keeps the SDK from printing a line per call.
var quiet = sync.OnceFunc(func() { logger.InitLog2("error", "/dev/null", 0, "") })

// Start runs a coordinator until the test ends.
func Start(t testing.TB, o Options) *Rig {
	t.Helper()
	quiet()
	r := &Rig{t: t, Clock: clock.New(), Journal: memstore.NewJournal(), bell: newBell()}
	if o.Store == nil {
		o.Store = memstore.New()
	}
	if o.KV == nil {
		o.KV = o.Store.KV()
	}
	if o.Invoke.Allow == nil {
		o.Invoke.Allow = invoke.DefaultAllow()
	}
	inv := invoke.New(o.Invoke)
	var calls engine.Invoker = ringing{inv, r.bell}
	if o.Wrap != nil {
		calls = o.Wrap(calls)
	}
	r.Runner = engine.NewRunner(engine.Config{Self: engine.Member{ID: "rig"}, Limits: o.Engine, JournalDelay: 5 * time.Millisecond, Observer: observer{bell: r.bell}},
		o.Store, r.Journal, calls, nil, r.Clock)
	wire := dtmwire.New(r.Runner, o.KV, o.Invoke.Allow, o.Wire, r.Clock.Now, nil)

	httpSrv := &http.Server{Handler: wire.Handler()}
	grpcSrv := grpc.NewServer()
	wire.RegisterGRPC(grpcSrv)
	hl, gl := listen(t), listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Runner.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	wg.Go(func() { _ = httpSrv.Serve(hl) })
	wg.Go(func() { _ = grpcSrv.Serve(gl) })
	r.HTTP, r.GRPC = "http://"+hl.Addr().String(), gl.Addr().String()
	r.DTM, r.JSONRPC = r.HTTP+dtmwire.Prefix, r.HTTP+"/api/json-rpc"
	conn, err := grpc.NewClient("passthrough:///"+r.GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	r.Client = dtmgpb.NewDtmClient(conn)
	t.Cleanup(func() {
		conn.Close()
		httpSrv.Close()
		grpcSrv.Stop()
		cancel()
		wg.Wait()
		inv.Close()
	})
	r.until("the coordinator to be ready", func() bool { return r.Runner.Ready() })
	return r
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// bell wakes those who wait for anything to happen.
type bell struct {
	mu sync.Mutex
	ch chan struct{}
}

func newBell() *bell { return &bell{ch: make(chan struct{})} }

func (b *bell) ring() {
	b.mu.Lock()
	close(b.ch)
	b.ch = make(chan struct{})
	b.mu.Unlock()
}

func (b *bell) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ch
}

// ringing rings after each call's answer has reached the engine.
type ringing struct {
	engine.Invoker
	bell *bell
}

// Start is engine.Invoker's.
func (r ringing) Start(c *engine.Call, done func(engine.CallResult)) {
	r.Invoker.Start(c, func(res engine.CallResult) { done(res); r.bell.ring() })
}

// observer rings whenever the engine moves.
type observer struct{ bell *bell }

func (o observer) Changed(engine.Change)                         { o.bell.ring() }
func (o observer) Called(engine.CallResult, int)                 { o.bell.ring() }
func (o observer) Wrote(int, int, time.Duration, engine.Verdict) { o.bell.ring() }
func (o observer) Journaled(int, time.Duration, error)           { o.bell.ring() }
func (o observer) Sampled(engine.Gauges)                         { o.bell.ring() }

// until waits until cond holds; it asks again whenever something happened.
func (r *Rig) until(what string, cond func() bool) {
	r.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		ch := r.bell.next()
		if cond() {
			return
		}
		select {
		case <-ch:
		case <-time.After(20 * time.Millisecond): // a ring may have come between the change and the question
		case <-deadline.C:
			r.t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// State reads a transaction; its Phase is PhaseNone where it is unknown.
func (r *Rig) State(gid string) txn.State {
	r.t.Helper()
	rep, err := r.Runner.Do(context.Background(), engine.Request{Gid: txn.Gid(gid), Want: engine.WantAccepted})
	if err != nil {
		r.t.Fatalf("read %q: %v", gid, err)
	}
	return rep.State
}

// PassOver waits until every call of the transaction that could be made was answered once: what is left waits for its
// time.
func (r *Rig) PassOver(gid string) {
	r.t.Helper()
	r.until("the pass over "+gid+" to end", func() bool {
		s := r.State(gid)
		if s.Query.InFlight {
			return false
		}
		for i := range s.Branches {
			if s.Branches[i].One.InFlight || s.Branches[i].Two.InFlight {
				return false
			}
		}
		next := txn.NextWake(&s)
		return next == 0 || next > r.Clock.NowMillis()
	})
}

// Advance moves the clock and waits until all that became due was attempted once; it gives the gids.
func (r *Rig) Advance(d time.Duration) []txn.Gid {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	gids, err := r.Runner.AdvanceClock(ctx, func() { r.Clock.Advance(d) })
	if err != nil {
		r.t.Fatalf("advance the clock by %v: %v", d, err)
	}
	return gids
}

// Transaction is what /query tells of a transaction.
type Transaction struct {
	Gid, Status, Protocol, Options, Result string
	TransType                              string            `json:"trans_type"`
	RollbackReason                         string            `json:"rollback_reason"`
	CustomData                             string            `json:"custom_data"`
	CreateTime                             string            `json:"create_time"`
	UpdateTime                             string            `json:"update_time"`
	FinishTime                             string            `json:"finish_time"`
	RollbackTime                           string            `json:"rollback_time"`
	RetryInterval                          int64             `json:"retry_interval"`
	TimeoutToFail                          int64             `json:"timeout_to_fail"`
	RequestTimeout                         int64             `json:"request_timeout"`
	BranchHeaders                          map[string]string `json:"branch_headers"`
}

// Branch is a row of /query.
type Branch struct {
	URL, Op, Status string
	BranchID        string `json:"branch_id"`
	BinData         []byte `json:"bin_data"`
}

// Query asks /query; the transaction is nil where it is unknown.
func (r *Rig) Query(gid string) (*Transaction, []Branch) {
	r.t.Helper()
	var out struct {
		Transaction *Transaction
		Branches    []Branch
	}
	status, body, _ := r.Get("/query?gid=" + url.QueryEscape(gid))
	if err := json.Unmarshal(body, &out); status != http.StatusOK || err != nil {
		r.t.Fatalf("query %q: %d %s: %v", gid, status, body, err)
	}
	return out.Transaction, out.Branches
}

// Status is the transaction's status word; "" where it is unknown.
func (r *Rig) Status(gid string) string {
	r.t.Helper()
	tx, _ := r.Query(gid)
	if tx == nil {
		return ""
	}
	return tx.Status
}

// Branches are the statuses of the branch rows, in DTM's order.
func (r *Rig) Branches(gid string) []string {
	r.t.Helper()
	_, rows := r.Query(gid)
	out := []string{}
	for _, b := range rows {
		out = append(out, b.Status)
	}
	return out
}

// Await waits until the transaction has the status.
func (r *Rig) Await(gid, status string) {
	r.t.Helper()
	r.until("status "+status+" of "+gid, func() bool { return r.Status(gid) == status })
}

// Live is how many transactions the coordinator has in memory.
func (r *Rig) Live() (n int) {
	r.t.Helper()
	if err := r.Runner.Ask(context.Background(), func(c *engine.Core, _ int64) { n = c.Live() }); err != nil {
		r.t.Fatal(err)
	}
	return n
}

// Get asks a path below DTM's prefix.
func (r *Rig) Get(path string) (int, []byte, http.Header) {
	r.t.Helper()
	return r.send(http.MethodGet, r.DTM+path, nil)
}

// Post sends a body to a path below DTM's prefix. A string is sent as it is, anything else as JSON.
func (r *Rig) Post(path string, body any) (int, []byte, http.Header) {
	r.t.Helper()
	return r.send(http.MethodPost, r.DTM+path, body)
}

// Do sends any request.
func (r *Rig) Do(method, url string, body any) (int, []byte, http.Header) {
	r.t.Helper()
	return r.send(method, url, body)
}

func (r *Rig) send(method, url string, body any) (int, []byte, http.Header) {
	r.t.Helper()
	var raw []byte
	switch b := body.(type) {
	case nil:
	case string:
		raw = []byte(b)
	case []byte:
		raw = b
	default:
		var err error
		if raw, err = json.Marshal(b); err != nil {
			r.t.Fatal(err)
		}
	}
	req, err := http.NewRequest(method, url, bytes.NewReader(raw))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, url, err)
	}
	return resp.StatusCode, answer, resp.Header
}

// RPCAnswer is an answer of JSON-RPC. Result is nil where the key is absent; ErrorKey says whether error stood there.
type RPCAnswer struct {
	HTTPStatus int
	ID         json.RawMessage
	Result     json.RawMessage
	HasResult  bool
	HasError   bool
	Code       int
	Message    string
}

// RPC makes a JSON-RPC call; params may be raw JSON text.
func (r *Rig) RPC(method string, params any) RPCAnswer {
	r.t.Helper()
	if s, ok := params.(string); ok {
		params = json.RawMessage(s)
	}
	return r.RPCRaw(map[string]any{"jsonrpc": "2.0", "id": "no-use", "method": method, "params": params})
}

// RPCRaw sends any body to the JSON-RPC path.
func (r *Rig) RPCRaw(body any) RPCAnswer {
	r.t.Helper()
	status, raw, _ := r.send(http.MethodPost, r.JSONRPC, body)
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		r.t.Fatalf("the answer is no JSON: %d %s", status, raw)
	}
	out := RPCAnswer{HTTPStatus: status, ID: m["id"], Result: m["result"]}
	_, out.HasResult = m["result"]
	if e, ok := m["error"]; ok {
		out.HasError = true
		var v struct {
			Code    int
			Message string
		}
		if err := json.Unmarshal(e, &v); err != nil {
			r.t.Fatalf("the error is none of JSON-RPC: %s", raw)
		}
		out.Code, out.Message = v.Code, v.Message
	}
	return out
}

// Journaled waits until the journal has the finish of n transactions.
func (r *Rig) Journaled(n int) {
	r.t.Helper()
	r.until("the journal to have them all", func() bool {
		have := 0
		for _, row := range r.Journal.Rows() {
			if row.FinishedAt != 0 {
				have++
			}
		}
		return have >= n
	})
}
