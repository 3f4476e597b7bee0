package dtmwire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/dtm-labs/dtm/client/dtmgrpc/dtmgpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/invoke"
	"github.com/lockstep-tx/lockstep/coordinator/store/memstore"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// strict is an engine that carries every event through txn.Step and judges what it leads to: what the validator lets
// through must never bring a transaction into a state that breaks a rule.
type strict struct {
	t      *testing.T
	events int
}

func (s *strict) Do(_ context.Context, req engine.Request) (engine.Reply, error) {
	s.events++
	if err := checkGid(string(req.Gid)); req.Event != nil && err != nil {
		s.t.Errorf("the gid %q reached the engine: %v", req.Gid, err)
	}
	st := txn.State{Gid: req.Gid}
	if req.Event == nil {
		return engine.Reply{State: st}, nil
	}
	next, _, err := txn.Step(st, stamped(req.Event))
	if err != nil {
		return engine.Reply{}, err
	}
	if err := txn.Check(&next); err != nil {
		s.t.Errorf("%+v leads to a bad state: %v", req.Event, err)
	}
	_ = txn.Owed(next)
	return engine.Reply{State: next}, nil
}

// stamped gives an event the time that the holder would.
func stamped(ev txn.Event) txn.Event {
	switch e := ev.(type) {
	case txn.Prepare:
		e.At = 1
		return e
	case txn.Submit:
		e.At = 1
		return e
	}
	return ev
}

func (*strict) List(context.Context, engine.Filter, string, int) ([]engine.Reply, string, error) {
	return nil, "", nil
}
func (*strict) LocalSlots() func(int) bool { return func(int) bool { return true } }
func (*strict) MakeDue(context.Context, time.Duration, int) (int, bool, error) {
	return 0, false, nil
}

func fuzzServer(t *testing.T) *Server {
	st := memstore.New()
	s := New(&strict{t: t}, st.KV(), invoke.DefaultAllow(), Limits{}, time.Now, slog.New(slog.DiscardHandler))
	_ = s.topics.Subscribe(context.Background(), "t", "http://127.0.0.1:1/a", "")
	_ = s.topics.Subscribe(context.Background(), "t", "http://127.0.0.1:1/b", "")
	return s
}

var globalSeeds = []string{
	``, `null`, `{}`, `[]`, `{"gid":"g","trans_type":"tcc"}`,
	`{"gid":"g","trans_type":"saga","steps":[{"action":"http://a/x","compensate":""}],"payloads":["{}"],"custom_data":"{\"concurrent\":true,\"orders\":{\"0\":[]}}"}`,
	`{"gid":"g","trans_type":"saga","steps":[{"action":"http://a/x"},{"action":"a:1/p.S/M","data":"x"}],"payloads":["",null],"custom_data":"{\"concurrent\":true,\"orders\":{\"1\":[0]}}"}`,
	`{"gid":"g","trans_type":"msg","steps":[{"action":"topic://t"},{"action":"http://a/x"}],"payloads":["1","2"],"query_prepared":"http://a/q","custom_data":"{\"delay\":5}"}`,
	`{"gid":"g","trans_type":"workflow","query_prepared":"http://a/q","custom_data":"{\"name\":\"w\",\"data\":\"eA==\"}"}`,
	`{"gid":"g","trans_type":"xa","timeout_to_fail":-1,"branch_headers":{"a":"b"},"req_extra":null}`,
	`{"Gid":"g","TRANS_TYPE":"tcc","gid":"h","passthrough_headers":[],"orders":null}`,
}

// FuzzDecodeGlobal: a TransGlobal never crashes the decoder, the spec, or the core behind them, and what is refused is an
// *Fault with a text.
func FuzzDecodeGlobal(f *testing.F) {
	for _, s := range globalSeeds {
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, body []byte, submit bool) {
		s := fuzzServer(t)
		g, err := decodeGlobal(body)
		if err == nil {
			if submit {
				err = s.submit(context.Background(), g)
			} else {
				err = s.prepare(context.Background(), g)
			}
		}
		isFault(t, err)
	})
}

func isFault(t *testing.T, err error) {
	t.Helper()
	var fault *Fault
	if err != nil && (!errors.As(err, &fault) || fault.message() == "") {
		t.Errorf("the refusal %v is none of the protocol's", err)
	}
}

// FuzzDecodeBranch: the same for a registration.
func FuzzDecodeBranch(f *testing.F) {
	for _, s := range []string{
		``, `null`, `{}`, `{"gid":"g","trans_type":"tcc","branch_id":"01","data":"{}","confirm":"http://a/c","cancel":"http://a/x"}`,
		`{"gid":"g","trans_type":"xa","branch_id":"01","url":"a:1/p.S/M"}`, `{"gid":"g","trans_type":"workflow","branch_id":"01","op":"action","status":"failed","data":null}`,
		`{"gid":1}`, `{"gid":"g","data":{}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		s := fuzzServer(t)
		b, err := decodeBranch(body)
		if err == nil {
			err = s.register(context.Background(), b)
		}
		isFault(t, err)
	})
}

// FuzzSpec: what the spec lets through can be called: its ids are unique, its waits are within range and free of circles,
// its addresses pass the checker.
func FuzzSpec(f *testing.F) {
	for _, s := range globalSeeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		g, err := decodeGlobal(body)
		if err != nil {
			return
		}
		s := fuzzServer(t)
		sp, err := s.spec(context.Background(), g, false)
		if err != nil {
			isFault(t, err)
			return
		}
		if len(sp.Branches) > s.lim.Branches || txn.Cycle(sp.Branches) >= 0 || sp.Opt.Timeout < 0 || sp.Opt.RequestTimeout < 0 || sp.Opt.RetryInterval < 0 {
			t.Errorf("the spec is %+v", sp)
		}
		seen := map[txn.BranchID]bool{}
		for _, b := range sp.Branches {
			if seen[b.ID] || b.ID == "" {
				t.Errorf("branch %q stands twice", b.ID)
			}
			seen[b.ID] = true
			for _, u := range []string{b.Try, b.Confirm, b.Cancel} {
				if u != "" && s.checkURL("url", u, g.Gid) != nil {
					t.Errorf("the address %q was let through", u)
				}
			}
		}
		for k, v := range sp.Opt.Headers {
			if _, err := http.NewRequest("GET", "http://a", nil); err != nil || !headerName(k) || !headerValue(v) {
				t.Errorf("the header %q: %q was let through", k, v)
			}
		}
	})
}

// FuzzGRPCRequest: the same requests as protobuf.
func FuzzGRPCRequest(f *testing.F) {
	for _, m := range []*dtmgpb.DtmRequest{
		{}, {Gid: "g", TransType: "tcc"}, {Gid: "g", TransType: "saga", Steps: `[{"action":"a:1/p.S/M"}]`, BinPayloads: [][]byte{nil}}, {Gid: "g", TransType: "msg", Steps: "null"},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var m dtmgpb.DtmRequest
		if proto.Unmarshal(raw, &m) != nil {
			return
		}
		g := grpcServer{s: fuzzServer(t)}
		ctx := context.Background()
		_, _ = g.Prepare(ctx, &m)
		_, _ = g.Submit(ctx, &m)
		_, _ = g.Abort(ctx, &m)
		_, _ = g.PrepareWorkflow(ctx, &m)
	})
}

// FuzzJSONRPC: every body gets an answer of JSON-RPC 2.0 with exactly one of result and error, and echoes the id.
func FuzzJSONRPC(f *testing.F) {
	for _, s := range []string{
		``, `{`, `[]`, `null`, `{"jsonrpc":"2.0","id":"1","method":"newGid"}`, `{"jsonrpc":"2.0","id":1e400,"method":"newGid"}`,
		`{"jsonrpc":"2.0","id":"1","method":"prepare","params":{"gid":"g","trans_type":"tcc"}}`, `{"jsonrpc":"2.0","id":7,"method":"submit","params":null}`,
		`{"jsonrpc":"2.0","id":"\ud800","method":"x"}`, `{"jsonrpc":"2.0","id":null,"method":"registerBranch","params":[1]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		s := fuzzServer(t)
		w := httptest.NewRecorder()
		s.jsonRPC(w, httptest.NewRequest("POST", "/api/json-rpc", bytes.NewReader(body)))
		var out map[string]json.RawMessage
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
			t.Fatalf("the answer is %q", w.Body)
		}
		_, result := out["result"]
		_, fault := out["error"]
		if result == fault || string(out["jsonrpc"]) != `"2.0"` || out["id"] == nil || (w.Code != 200 && w.Code != 400) {
			t.Errorf("%q answered %d %s", body, w.Code, w.Body)
		}
	})
}

// FuzzCheckURL: what is let through has a host, and is no address that is refused by default.
func FuzzCheckURL(f *testing.F) {
	for _, s := range []string{"", "http://a/x", "https://[::1]:1/", "a:1/p.S/M", "grpcs://a:1/p.S/M", "grpcs://grpcs://a:1/p.S/M", "topic://t", "http://169.254.169.254", "[fe80::1%25eth0]:1/p.S/M", "http://a@169.254.169.254/", "http://169.254.169.254:80@a/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		s := fuzzServer(t)
		if err := s.checkURL("url", raw); err != nil {
			isFault(t, err)
			return
		}
		if strings.ContainsAny(raw, " \r\n\t\x00") || !strings.Contains(raw, "/") {
			t.Errorf("%q was let through", raw)
		}
		if strings.HasPrefix(raw, "http") && strings.Contains(raw, "://") {
			if _, err := http.NewRequest("GET", raw, nil); err != nil {
				t.Errorf("%q was let through and can never be called: %v", raw, err)
			}
		}
	})
}
