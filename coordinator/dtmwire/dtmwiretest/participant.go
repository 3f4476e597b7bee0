package dtmwiretest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Call is one call that reached the participant.
type Call struct {
	// Name is the last part of the address that was called.
	Name, Gid, Branch, Op, TransType, Phase2URL string
	// Protocol is http, grpc or json-rpc; Method is the HTTP method or the gRPC method's full name.
	Protocol, Method string
	// Body is as it came; for JSON-RPC it is params.
	Body []byte
	// Header of HTTP, or gRPC's metadata under canonical names.
	Header http.Header
	Query  url.Values
	At     time.Time
	// Ctx ends when the caller hangs up.
	Ctx context.Context
}

// Answer is what the participant says. The zero value is success.
type Answer struct {
	// Status and Body over HTTP; 0 is 200.
	Status int
	Body   string
	// Location makes the answer a redirect.
	Location string
	// Code and Message over gRPC.
	Code    codes.Code
	Message string
	// RPC is the error code over JSON-RPC; 0 is a result.
	RPC int
	// Raw is the whole body over JSON-RPC.
	Raw   string
	hang  bool
	reset bool
}

// The answers that DTM's protocol knows, in each of its forms.
var (
	Success    = Answer{Body: `{"dtm_result":"SUCCESS"}`}
	Failure    = Answer{Status: 409, Body: `{"dtm_result":"FAILURE","message":"insufficient funds"}`, Code: codes.Aborted, Message: "insufficient funds", RPC: -32901}
	OldFailure = Answer{Body: `{"dtm_result":"FAILURE"}`, Code: codes.Aborted, Message: "FAILURE", RPC: -32901}
	Ongoing    = Answer{Status: 425, Body: `{"dtm_result":"ONGOING"}`, Code: codes.FailedPrecondition, Message: "not yet", RPC: -32902}
	OldOngoing = Answer{Body: `{"dtm_result":"ONGOING"}`, Code: codes.Aborted, Message: "ONGOING", RPC: -32902}
	Broken     = Answer{Status: 500, Body: "out of order", Code: codes.Internal, Message: "out of order", RPC: -32603}
	StaleEpoch = Answer{Status: 412, Body: "a newer epoch has been here", Code: codes.OutOfRange, Message: "a newer epoch has been here", RPC: -32903}
	// Hang answers nothing until Release, the caller's end, or the test's.
	Hang = Answer{hang: true}
	// Reset breaks the connection.
	Reset = Answer{reset: true}
)

// Participant is a service that records and answers. Safe for concurrent use.
type Participant struct {
	// URL is http://host:port, Addr the gRPC server's host:port.
	URL, Addr string
	t         testing.TB
	mu        sync.Mutex
	calls     []Call
	script    map[string][]func(Call) Answer
	always    map[string]func(Call) Answer
	bell      *bell
	release   chan struct{}
	end       chan struct{}
	conns     map[net.Conn]bool
}

// NewParticipant runs a participant until the test ends. It answers success to everything.
func NewParticipant(t testing.TB) *Participant {
	t.Helper()
	p := &Participant{
		t: t, script: map[string][]func(Call) Answer{}, always: map[string]func(Call) Answer{}, bell: newBell(),
		release: make(chan struct{}), end: make(chan struct{}), conns: map[net.Conn]bool{},
	}
	web := httptest.NewServer(http.HandlerFunc(p.serveHTTP))
	p.URL = web.URL
	l := listen(t)
	p.Addr = l.Addr().String()
	srv := grpc.NewServer(grpc.ForceServerCodecV2(raw{}), grpc.UnknownServiceHandler(p.serveGRPC))
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(tracked{l, p}) }()
	t.Cleanup(func() {
		close(p.end)
		web.CloseClientConnections()
		web.Close()
		srv.Stop()
		<-done
	})
	return p
}

// HTTP is the address of an operation over HTTP, GRPC over gRPC, RPC over JSON-RPC. The name is free.
func (p *Participant) HTTP(name string) string { return p.URL + "/" + name }
func (p *Participant) GRPC(name string) string { return p.Addr + "/test.Busi/" + name }
func (p *Participant) RPC(name string) string  { return p.URL + "/rpc?method=" + name }

func key(branch, op string) string { return branch + "\x00" + op }

// Once answers the next calls of (branch, op) in turn; "*" stands for any branch or op. What is told to answer once
// comes before what is told to answer always.
func (p *Participant) Once(branch, op string, answers ...Answer) {
	for _, a := range answers {
		p.OnceDo(branch, op, func(Call) Answer { return a })
	}
}

// OnceDo lets f answer the next call.
func (p *Participant) OnceDo(branch, op string, f func(Call) Answer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.script[key(branch, op)] = append(p.script[key(branch, op)], f)
}

// Always answers every call of (branch, op) from now on.
func (p *Participant) Always(branch, op string, a Answer) {
	p.AlwaysDo(branch, op, func(Call) Answer { return a })
}

// AlwaysDo lets f answer every call.
func (p *Participant) AlwaysDo(branch, op string, f func(Call) Answer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.always[key(branch, op)] = f
}

// Release lets everything that hangs answer success, now and later.
func (p *Participant) Release() { close(p.release) }

func (p *Participant) answer(c Call) Answer {
	p.mu.Lock()
	c.At = time.Now()
	p.calls = append(p.calls, c)
	keys := []string{key(c.Branch, c.Op), key("*", c.Op), key(c.Branch, "*"), key("*", "*")}
	var f func(Call) Answer
	for _, k := range keys {
		if s := p.script[k]; f == nil && len(s) > 0 {
			f, p.script[k] = s[0], s[1:]
		}
	}
	for _, k := range keys {
		if f == nil {
			f = p.always[k]
		}
	}
	p.mu.Unlock()
	p.bell.ring()
	a := Success
	if f != nil {
		a = f(c)
	}
	if a.hang {
		select {
		case <-p.release:
			return Success
		case <-c.Ctx.Done():
			return Broken
		case <-p.end:
			return Broken
		}
	}
	return a
}

// Calls are the calls so far that match, in the order of their arrival; "*" or "" matches anything.
func (p *Participant) Calls(gid, branch, op string) []Call {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Call
	match := func(want, got string) bool { return want == "*" || want == "" || want == got }
	for _, c := range p.calls {
		if match(gid, c.Gid) && match(branch, c.Branch) && match(op, c.Op) {
			out = append(out, c)
		}
	}
	return out
}

// Count is how many calls match.
func (p *Participant) Count(gid, branch, op string) int { return len(p.Calls(gid, branch, op)) }

// Ops lists the calls of a transaction as "branch op", in the order of their arrival.
func (p *Participant) Ops(gid string) []string {
	out := []string{}
	for _, c := range p.Calls(gid, "*", "*") {
		out = append(out, c.Branch+" "+c.Op)
	}
	return out
}

// Await waits until n calls match and gives them.
func (p *Participant) Await(gid, branch, op string, n int) []Call {
	p.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		ch := p.bell.next()
		if calls := p.Calls(gid, branch, op); len(calls) >= n {
			return calls
		}
		select {
		case <-ch:
		case <-deadline.C:
			p.t.Fatalf("waited %v for %d calls of %q %s %s; there were %v", patience, n, gid, branch, op, p.Ops(gid))
		}
	}
}

func (p *Participant) serveHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	q := r.URL.Query()
	c := Call{
		Name: strings.TrimPrefix(r.URL.Path, "/"), Gid: q.Get("gid"), Branch: q.Get("branch_id"), Op: q.Get("op"), TransType: q.Get("trans_type"),
		Phase2URL: q.Get("phase2_url"), Protocol: "http", Method: r.Method, Body: body, Header: r.Header, Query: q, Ctx: r.Context(),
	}
	if r.URL.Path == "/rpc" {
		p.serveRPC(w, c, body)
		return
	}
	a := p.answer(c)
	switch {
	case a.reset:
		reset(w)
		return
	case a.Location != "":
		http.Redirect(w, r, a.Location, http.StatusTemporaryRedirect)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if a.Status != 0 {
		w.WriteHeader(a.Status)
	}
	_, _ = io.WriteString(w, a.Body)
}

func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}

// serveRPC answers the coordinator's JSON-RPC calls, and the tries that DTM's client sends to the same address as plain
// HTTP.
func (p *Participant) serveRPC(w http.ResponseWriter, c Call, body []byte) {
	var req struct {
		JSONRPC string `json:"jsonrpc"`
		ID      json.RawMessage
		Method  string
		Params  json.RawMessage
	}
	var id struct {
		Gid, Op   string
		Branch    string `json:"branch_id"`
		TransType string `json:"trans_type"`
	}
	if json.Unmarshal(body, &req) == nil && req.JSONRPC == "2.0" && json.Unmarshal(req.Params, &id) == nil {
		c.Protocol, c.Name, c.Body = "json-rpc", req.Method, req.Params
		c.Gid, c.Branch, c.Op, c.TransType = id.Gid, id.Branch, id.Op, id.TransType
	} else {
		c.Name = c.Query.Get("method")
	}
	a := p.answer(c)
	w.Header().Set("Content-Type", "application/json")
	switch {
	case a.reset:
		reset(w)
	case a.Raw != "":
		_, _ = io.WriteString(w, a.Raw)
	case a.RPC != 0:
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":%d,"message":%q}}`, req.ID, a.RPC, a.Message)
	default:
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":null}`, orNull(req.ID))
	}
}

func orNull(id json.RawMessage) string {
	if id == nil {
		return "null"
	}
	return string(id)
}

func (p *Participant) serveGRPC(_ any, stream grpc.ServerStream) error {
	var body []byte
	if err := stream.RecvMsg(&body); err != nil {
		return err
	}
	method, _ := grpc.MethodFromServerStream(stream)
	md, _ := metadata.FromIncomingContext(stream.Context())
	one := func(k string) string { return strings.Join(md.Get(k), ",") }
	h := http.Header{}
	for k, v := range md {
		for _, x := range v {
			h.Add(k, x)
		}
	}
	a := p.answer(Call{
		Name: method[strings.LastIndexByte(method, '/')+1:], Gid: one("dtm-gid"), Branch: one("dtm-branch_id"), Op: one("dtm-op"),
		TransType: one("dtm-trans_type"), Phase2URL: one("dtm-phase2_url"), Protocol: "grpc", Method: method, Body: body, Header: h, Ctx: stream.Context(),
	})
	if a.reset {
		p.mu.Lock()
		for c := range p.conns {
			c.Close()
		}
		p.mu.Unlock()
		return status.Error(codes.Unavailable, "reset")
	}
	if a.Code != codes.OK {
		return status.Error(a.Code, a.Message)
	}
	out := []byte{}
	return stream.SendMsg(&out)
}

// tracked remembers the connections of a listener, so that they can be broken.
type tracked struct {
	net.Listener
	p *Participant
}

// Accept is net.Listener's.
func (l tracked) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.p.mu.Lock()
		l.p.conns[c] = true
		l.p.mu.Unlock()
	}
	return c, err
}

// raw passes message bytes through.
type raw struct{}

// Name is encoding.CodecV2's.
func (raw) Name() string { return "proto" }

// Marshal is encoding.CodecV2's.
func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

// Unmarshal is encoding.CodecV2's.
func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}
