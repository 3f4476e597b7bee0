package invoke

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/participants/branch/rawgrpc"
)

// grpcServer answers every method with f, or OK; it listens at addr, or anywhere.
func grpcServer(t *testing.T, addr string, f func(md metadata.MD, body []byte) error) string {
	t.Helper()
	return grpcServing(t, addr, []byte("reply"), f)
}

// grpcServerOf answers every method with reply.
func grpcServerOf(t *testing.T, reply []byte) string {
	t.Helper()
	return grpcServing(t, "", reply, nil)
}

func grpcServing(t *testing.T, addr string, reply []byte, f func(md metadata.MD, body []byte) error) string {
	t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.ForceServerCodecV2(rawgrpc.Codec{}), grpc.UnknownServiceHandler(func(_ any, st grpc.ServerStream) error {
		var body []byte
		if err := st.RecvMsg(&body); err != nil {
			return err
		}
		md, _ := metadata.FromIncomingContext(st.Context())
		if f != nil {
			if err := f(md, body); err != nil {
				return err
			}
		}
		return st.SendMsg(&reply)
	}))
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return l.Addr().String()
}

// Section 2.2 of the reference: the status first, the words only in a body that came with 200.
func TestHTTPAnswersAreJudgedByTheirStatusFirst(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		want   txn.Outcome
	}{
		{200, "", txn.Done}, {200, `{"dtm_result":"SUCCESS"}`, txn.Done}, {200, "anything", txn.Done},
		{200, `{"dtm_result":"FAILURE"}`, txn.Refused}, {200, `{"dtm_result":"ONGOING"}`, txn.Ongoing},
		{200, "ONGOING FAILURE", txn.Ongoing}, // ONGOING is checked first
		{409, "", txn.Refused}, {409, "SUCCESS", txn.Refused}, {409, "ONGOING", txn.Refused},
		{425, "", txn.Ongoing}, {425, "FAILURE", txn.Ongoing},
		{412, "FAILURE", txn.Stale}, {412, "", txn.Stale},
		{500, "FAILURE", txn.Unknown}, {500, "ONGOING", txn.Unknown}, {502, "", txn.Unknown}, {503, "", txn.Unknown}, {404, "FAILURE", txn.Unknown},
		{400, "", txn.Unknown}, {401, "", txn.Unknown}, {201, "", txn.Unknown}, {204, "", txn.Unknown}, {302, "", txn.Unknown}, {0, "", txn.Unknown},
	} {
		got, why := judge(c.status, []byte(c.body))
		if got != c.want {
			t.Errorf("%d %q is %v, want %v", c.status, c.body, got, c.want)
		}
		if got == txn.Unknown && why == "" {
			t.Errorf("%d %q says nothing", c.status, c.body)
		}
	}
}

// D7: DTM compares a float with an int and never recognises the codes. 409 and 425 are what PHP's client answers.
func TestJSONRPCAnswersAreJudgedByTheirCode(t *testing.T) {
	for body, want := range map[string]txn.Outcome{
		`{"result":null}`: txn.Done, `{"jsonrpc":"2.0","id":"1","result":{"a":"FAILURE"}}`: txn.Done, `{"result":1,"error":null}`: txn.Done, `{}`: txn.Done,
		`{"error":{"code":-32901}}`: txn.Refused, `{"error":{"code":-32901.0}}`: txn.Refused, `{"error":{"code":409,"message":"ONGOING"}}`: txn.Refused,
		`{"error":{"code":-32902}}`: txn.Ongoing, `{"error":{"code":425,"message":"FAILURE"}}`: txn.Ongoing,
		`{"error":{"code":-32903}}`: txn.Stale, `{"error":{"code":412}}`: txn.Stale,
		`{"error":{"code":-32603,"message":"FAILURE"}}`: txn.Unknown, `{"error":{}}`: txn.Unknown, `{"error":"FAILURE"}`: txn.Unknown, `{"error":{"code":409.7}}`: txn.Unknown,
		`{"error":{"code":1e999}}`: txn.Unknown, `FAILURE`: txn.Unknown, ``: txn.Unknown, `[]`: txn.Unknown, `<html>`: txn.Unknown,
	} {
		if got, _ := judgeRPC(http.StatusOK, []byte(body)); got != want {
			t.Errorf("%s is %v, want %v", body, got, want)
		}
	}
	for code, want := range map[int]txn.Outcome{409: txn.Refused, 425: txn.Ongoing, 500: txn.Unknown, 412: txn.Stale} {
		if got, _ := judgeRPC(code, []byte(`{"result":null}`)); got != want {
			t.Errorf("HTTP %d is %v, want %v", code, got, want)
		}
	}
}

func TestGRPCAnswersAreJudgedByTheirCode(t *testing.T) {
	for _, c := range []struct {
		code codes.Code
		text string
		want txn.Outcome
	}{
		{codes.OK, "", txn.Done}, {codes.Aborted, "", txn.Refused}, {codes.Aborted, "FAILURE", txn.Refused}, {codes.Aborted, "ONGOING", txn.Ongoing},
		{codes.Aborted, "it is ONGOING", txn.Refused}, {codes.FailedPrecondition, "FAILURE", txn.Ongoing}, {codes.OutOfRange, "", txn.Stale},
		{409, "", txn.Refused}, {425, "", txn.Ongoing}, // PHP's raw codes
		{codes.Unknown, "FAILURE", txn.Unknown}, {codes.Internal, "ONGOING", txn.Unknown}, {codes.Unavailable, "", txn.Unknown}, {codes.DeadlineExceeded, "", txn.Unknown},
		{codes.Canceled, "", txn.Unknown}, {codes.PermissionDenied, "", txn.Unknown}, {codes.Unimplemented, "", txn.Unknown}, {codes.InvalidArgument, "", txn.Unknown},
	} {
		if got, _ := judgeGRPC(status.Error(c.code, c.text)); got != c.want {
			t.Errorf("%v %q is %v, want %v", c.code, c.text, got, c.want)
		}
	}
}

// PHP's codes 409 and 425 survive the wire.
func TestGRPCRawStatusNumbersArriveAsTheyWereSent(t *testing.T) {
	t.Parallel()
	v := newInvoker(t, Config{})
	for code, want := range map[codes.Code]txn.Outcome{409: txn.Refused, 425: txn.Ongoing, codes.OutOfRange: txn.Stale} {
		addr := grpcServer(t, "", func(metadata.MD, []byte) error { return status.Error(code, "x") })
		if res := one(t, v, callTo(addr+"/p.S/M")); res.Outcome != want {
			t.Errorf("status %d is %v, want %v", code, res.Outcome, want)
		}
	}
}

// Section 7: which protocol an address is called by.
func TestAddressesChooseTheProtocol(t *testing.T) {
	for _, c := range []struct {
		protocol txn.Protocol
		url      string
		want     kind
	}{
		{txn.ProtocolHTTP, "http://a/x", kindHTTP}, {txn.ProtocolGRPC, "https://a/x", kindHTTP}, {txn.ProtocolGRPC, "a:1/p.S/M", kindGRPC},
		{txn.ProtocolHTTP, "a:1/p.S/M", kindGRPC}, {txn.ProtocolJSONRPC, "http://a/x?method=m", kindJSONRPC}, {txn.ProtocolJSONRPC, "http://a/x", kindHTTP},
		{txn.ProtocolJSONRPC, "a:1/p.S/M", kindGRPC}, {txn.ProtocolHTTP, "http://a/x?method=m", kindHTTP},
	} {
		if got := kindOf(&engine.Call{Protocol: c.protocol, URL: c.url}); got != c.want {
			t.Errorf("%v %s is %d, want %d", c.protocol, c.url, got, c.want)
		}
	}
}

// Section 7: method, query, body and headers over HTTP.
func TestHTTPCallCarriesIdentityAndFence(t *testing.T) {
	t.Parallel()
	var got *http.Request
	var body []byte
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r; body, _ = io.ReadAll(r.Body) }))
	t.Cleanup(s.Close)
	v := newInvoker(t, Config{})
	for _, own := range []string{"", "?", "?own=1", "?own=1&", "?own=1#part"} {
		c := callTo(s.URL + "/p" + own)
		c.Gid, c.Slot, c.Epoch = `g "1"&op=x`, 17, 9
		c.Headers = map[string]string{"Tenant": "7", "Lockstep-Epoch": "1", "lockstep-slot": "2"}
		if res := one(t, v, c); res.Outcome != txn.Done {
			t.Fatal(res.Text)
		}
		q := got.URL.Query()
		if got.Method != "POST" || string(body) != "{}" || q.Get("gid") != string(c.Gid) || q.Get("branch_id") != "01" || q.Get("op") != "confirm" || len(q["op"]) != 1 ||
			q.Get("trans_type") != "tcc" || (strings.Contains(own, "own") && q.Get("own") != "1") || q.Has("dtm") {
			t.Errorf("%s %s", got.Method, got.URL)
		}
		if h := got.Header; h.Get("Tenant") != "7" || h.Get("Content-Type") != "application/json" || strings.Join(h["Lockstep-Epoch"], ",") != "9" || strings.Join(h["Lockstep-Slot"], ",") != "17" {
			t.Errorf("headers are %v", h)
		}
	}
	empty := callTo(s.URL)
	empty.Payload = nil
	one(t, v, empty)
	if got.Method != "GET" {
		t.Errorf("an empty payload is a %s", got.Method)
	}
	empty.Mode = txn.ModeXA
	one(t, v, empty)
	if got.Method != "POST" {
		t.Errorf("an XA call without payload is a %s", got.Method)
	}
}

// Section 7: metadata over gRPC. What names the call cannot be replaced by a client's header.
func TestGRPCCallCarriesIdentityAndFence(t *testing.T) {
	t.Parallel()
	var md metadata.MD
	var body []byte
	addr := grpcServer(t, "", func(m metadata.MD, b []byte) error { md, body = m, append([]byte(nil), b...); return nil })
	v := newInvoker(t, Config{})
	c := callTo(addr + "/p.S/M")
	c.Slot, c.Epoch = 17, 9
	c.Headers = map[string]string{"Tenant": "7", "dtm-gid": "another", "Lockstep-Epoch": "1"}
	c.WantResult = true
	res := one(t, v, c)
	if res.Outcome != txn.Done || string(res.Result) != "reply" {
		t.Fatalf("%v %s %q", res.Outcome, res.Text, res.Result)
	}
	for k, want := range map[string]string{"dtm-gid": "g", "dtm-branch_id": "01", "dtm-op": "confirm", "dtm-trans_type": "tcc", "dtm-dtm": "", "tenant": "7", "lockstep-epoch": "9", "lockstep-slot": "17", "content-type": "application/grpc+proto"} {
		if got := strings.Join(md.Get(k), ","); got != want || len(md.Get(k)) != 1 {
			t.Errorf("%s is %q, want %q", k, md.Get(k), want)
		}
	}
	if string(body) != "{}" {
		t.Errorf("the message is %q", body)
	}
	c.Op, c.Payload = txn.OpCallback, []byte("data")
	one(t, v, c)
	if string(body) != "\x0a\x04data" {
		t.Errorf("a callback's message is %q, want WorkflowData", body)
	}
}

// Section 7: JSON-RPC merges the identity into params.
func TestJSONRPCCallMergesIdentityIntoParams(t *testing.T) {
	t.Parallel()
	var got struct {
		JSONRPC, ID, Method string
		Params              map[string]any
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewDecoder(r.Body).Decode(&got)
		_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":"1","result":{"kept":1}}`)
	}))
	t.Cleanup(s.Close)
	v := newInvoker(t, Config{})
	c := callTo(s.URL + "?method=pay.confirm")
	c.Protocol, c.Payload, c.WantResult = txn.ProtocolJSONRPC, []byte(`{"amount":30,"gid":"forged"}`), true
	res := one(t, v, c)
	if res.Outcome != txn.Done || string(res.Result) != `{"kept":1}` {
		t.Errorf("%v %q", res.Outcome, res.Result)
	}
	if p := got.Params; got.JSONRPC != "2.0" || got.ID == "" || got.Method != "pay.confirm" || p["gid"] != "g" || p["amount"] != 30.0 || p["branch_id"] != "01" || p["op"] != "confirm" || p["trans_type"] != "tcc" {
		t.Errorf("the call is %+v", got)
	}
}

// Results of earlier branches go with the call.
func TestResultsOfEarlierBranchesGoWithTheCall(t *testing.T) {
	out, err := withResults([]byte(`{"a":1}`), []engine.BranchResult{{Branch: "x", Body: []byte(`{"n":2}`)}, {Branch: "y", Body: []byte("text")}, {Branch: "z"}})
	if want := `{"a":1,"results":{"x":{"n":2},"y":"text","z":null}}`; err != nil || string(out) != want {
		t.Errorf("%s %v, want %s", out, err, want)
	}
	if _, err := withResults([]byte(`[1]`), nil); err == nil {
		t.Error("a payload that is no object was taken")
	}
}
