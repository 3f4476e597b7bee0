package conformance

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/dtm-labs/dtm/client/dtmgrpc/dtmgpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	rig "github.com/lockstep-tx/lockstep/coordinator/dtmwire/dtmwiretest"
	"github.com/lockstep-tx/lockstep/coordinator/invoke"
)

// verdict is how a refusal looks in each protocol.
type verdict struct {
	http int
	grpc codes.Code
	rpc  int
}

var (
	invalid   = verdict{400, codes.InvalidArgument, -32602}
	forbidden = verdict{409, codes.Aborted, -32901}
)

// bad is one request that must be refused. g is what its body holds beside gid and trans_type.
type bad struct {
	name  string
	verb  string // prepare, submit, abort or registerBranch
	gid   string // "" means a fresh one
	noGid bool
	mode  string
	g     map[string]any
	want  verdict
	says  string // what the text must name
	// where it can be said: a gRPC request has no field for everything
	noGRPC bool
	// raw puts its second text in the place of its first in the body, as bytes that no JSON encoder writes
	raw [2]string
}

func repeat[T any](n int, v T) []T {
	out := make([]T, n)
	for i := range out {
		out[i] = v
	}
	return out
}

func steps(n int, action string) map[string]any {
	return map[string]any{"steps": repeat(n, map[string]string{"action": action, "compensate": ""}), "payloads": repeat(n, "{}")}
}

// rpcSteps are steps that are called by JSON-RPC.
func rpcSteps(payloads ...string) map[string]any {
	return map[string]any{"protocol": "json-rpc", "payloads": payloads, "steps": repeat(len(payloads), map[string]string{"action": ok + "?method=m", "compensate": ok + "?method=c"})}
}

const ok = "http://127.0.0.1:1/act"

var badInputs = []bad{
	{name: "no gid", verb: "submit", noGid: true, mode: "saga", g: steps(1, ok), want: invalid, says: "gid"},
	{name: "gid of 129 bytes", verb: "prepare", gid: strings.Repeat("g", 129), mode: "tcc", want: invalid, says: "128"},
	{name: "gid with a semicolon", verb: "prepare", gid: "a;b", mode: "tcc", want: invalid, says: "gid"},
	{name: "gid with a line break", verb: "prepare", gid: "a\nb", mode: "tcc", want: invalid, says: "gid"},
	{name: "gid with a carriage return", verb: "prepare", gid: "a\rb", mode: "xa", want: invalid, says: "gid"},
	{name: "gid with a zero byte", verb: "prepare", gid: "a\x00b", mode: "tcc", want: invalid, says: "gid"},
	{name: "gid with a tab", verb: "prepare", gid: "a\tb", mode: "tcc", want: invalid, says: "gid"},
	{name: "gid with an escape", verb: "prepare", gid: "a\x1b[2Jb", mode: "tcc", want: invalid, says: "gid"},
	{name: "gid with a C1 control", verb: "submit", gid: "a\u009bb", mode: "saga", g: steps(1, ok), want: invalid, says: "gid"},
	{name: "gid that turns the text's direction", verb: "prepare", gid: "a\u202eb", mode: "tcc", want: invalid, says: "gid"},
	{name: "gid with a line separator", verb: "abort", gid: "a\u2028b", mode: "tcc", want: invalid, says: "gid"},
	{name: "gid with the replacement character", verb: "prepare", gid: "g\ufffd", mode: "tcc", want: invalid, says: "ufffd"},
	{name: "gid that is no UTF-8", verb: "prepare", gid: "RAW", raw: [2]string{"RAW", "g\xff"}, mode: "tcc", want: invalid, says: "UTF-8", noGRPC: true},
	{name: "gid of half a surrogate pair", verb: "prepare", gid: "RAW", raw: [2]string{"RAW", `g\ud800`}, mode: "tcc", want: invalid, says: "ufffd", noGRPC: true},
	{name: "branch id that is no UTF-8", verb: "registerBranch", mode: "tcc", g: map[string]any{"branch_id": "RAW", "confirm": ok, "cancel": ok}, raw: [2]string{"RAW", "b\xc3"}, want: invalid, says: "UTF-8", noGRPC: true},
	{name: "branch id of half a surrogate pair", verb: "registerBranch", mode: "tcc", g: map[string]any{"branch_id": "RAW", "confirm": ok, "cancel": ok}, raw: [2]string{"RAW", `b\udfff`}, want: invalid, says: "ufffd", noGRPC: true},
	{name: "branch id with the replacement character", verb: "registerBranch", mode: "xa", g: map[string]any{"branch_id": "b\ufffd", "url": ok}, want: invalid, says: "ufffd"},
	{name: "branch id with an escape", verb: "registerBranch", mode: "workflow", g: map[string]any{"branch_id": "b\x1b", "op": "action", "status": "succeed"}, want: invalid, says: "branch_id"},
	{name: "unknown mode", verb: "prepare", mode: "tccc", want: invalid, says: "tccc"},
	{name: "mode in capitals", verb: "submit", mode: "SAGA", g: steps(1, ok), want: invalid, says: "SAGA"},
	{name: "no mode", verb: "submit", mode: "", g: steps(1, ok), want: invalid, says: "trans_type"},
	{name: "abort of an unknown mode", verb: "abort", mode: "tccc", want: invalid, says: "tccc"},
	{name: "unknown protocol", verb: "submit", mode: "saga", g: with(steps(1, ok), "protocol", "smtp"), want: invalid, says: "smtp", noGRPC: true},
	{name: "timeout below zero", verb: "prepare", mode: "tcc", g: map[string]any{"timeout_to_fail": -1}, want: invalid, says: "timeout_to_fail"},
	{name: "timeout of ages", verb: "prepare", mode: "tcc", g: map[string]any{"timeout_to_fail": int64(1) << 60}, want: invalid, says: "timeout_to_fail"},
	{name: "request timeout of ages", verb: "submit", mode: "saga", g: with(steps(1, ok), "request_timeout", int64(1)<<40), want: invalid, says: "request_timeout"},
	{name: "retry interval below zero", verb: "submit", mode: "saga", g: with(steps(1, ok), "retry_interval", -5), want: invalid, says: "retry_interval"},
	{name: "retry limit below zero", verb: "submit", mode: "saga", g: with(steps(1, ok), "retry_limit", -5), want: invalid, says: "retry_limit"},
	{name: "too few payloads", verb: "submit", mode: "saga", g: map[string]any{"steps": repeat(2, map[string]string{"action": ok}), "payloads": []string{"{}"}}, want: invalid, says: "payloads"},
	{name: "too many branches", verb: "submit", mode: "saga", g: steps(501, ok), want: invalid, says: "500"},
	{name: "payloads too large", verb: "submit", mode: "msg", g: map[string]any{"steps": []map[string]string{{"action": ok}}, "payloads": []string{strings.Repeat("p", 600<<10)}}, want: invalid, says: "payloads"},
	{name: "body too large", verb: "submit", mode: "msg", g: map[string]any{"steps": []map[string]string{{"action": ok}}, "payloads": []string{strings.Repeat("p", 2<<20)}}, want: invalid, says: "bytes"},
	{name: "custom data too large", verb: "submit", mode: "saga", g: with(steps(1, ok), "custom_data", strings.Repeat("c", 600<<10)), want: invalid, says: "custom_data"},
	{name: "custom data that is no JSON", verb: "submit", mode: "saga", g: with(steps(1, ok), "custom_data", "{"), want: invalid, says: "custom_data"},
	{name: "order of a step that is not there", verb: "submit", mode: "saga", g: with(steps(2, ok), "custom_data", `{"concurrent":true,"orders":{"1":[7]}}`), want: invalid, says: "orders"},
	{name: "order for a step that is not there", verb: "submit", mode: "saga", g: with(steps(2, ok), "custom_data", `{"concurrent":true,"orders":{"9":[0]}}`), want: invalid, says: "orders"},
	{name: "orders in a circle", verb: "submit", mode: "saga", g: with(steps(2, ok), "custom_data", `{"concurrent":true,"orders":{"0":[1],"1":[0]}}`), want: invalid, says: "circle"},
	{name: "delay of ages", verb: "submit", mode: "msg", g: with(steps(1, ok), "custom_data", `{"delay":99999999999}`), want: invalid, says: "delay"},
	{name: "saga step without an action", verb: "submit", mode: "saga", g: steps(1, ""), want: invalid, says: "action"},
	{name: "message step without an action", verb: "submit", mode: "msg", g: steps(1, ""), want: invalid, says: "action"},
	{name: "message without a check-back", verb: "prepare", mode: "msg", g: steps(1, ok), want: invalid, says: "query_prepared"},
	{name: "workflow without custom data", verb: "prepare", mode: "workflow", g: map[string]any{"query_prepared": ok}, want: invalid, says: "custom_data"},
	{name: "workflow without a callback", verb: "prepare", mode: "workflow", g: map[string]any{"custom_data": `{"name":"w"}`}, want: invalid, says: "query_prepared"},
	{name: "address without a path", verb: "submit", mode: "saga", g: steps(1, "127.0.0.1:80"), want: invalid, says: "no '/' found"},
	{name: "address without a port", verb: "submit", mode: "saga", g: steps(1, "localhost/pkg.Svc/M"), want: invalid, says: "host:port"},
	{name: "address over TLS without a port", verb: "submit", mode: "saga", g: steps(1, "grpcs://localhost/pkg.Svc/M"), want: invalid, says: "host:port"},
	{name: "address over TLS without a method", verb: "submit", mode: "msg", g: steps(1, "grpcs://127.0.0.1:80"), want: invalid, says: "no '/' found"},
	{name: "metadata address over TLS", verb: "submit", mode: "msg", g: steps(1, "grpcs://169.254.169.254:80/p.S/M"), want: invalid, says: "not allowed"},
	{name: "address of a scheme without driver", verb: "submit", mode: "saga", g: steps(1, "etcd://a/b/c"), want: invalid, says: "dtmdriver"},
	{name: "file address", verb: "submit", mode: "saga", g: steps(1, "file:///etc/passwd"), want: invalid, says: "scheme"},
	{name: "http address without host", verb: "submit", mode: "saga", g: steps(1, "http:///x"), want: invalid, says: "http"},
	{name: "address with a space", verb: "submit", mode: "saga", g: steps(1, "http://a b/x"), want: invalid, says: "address"},
	{name: "address with a bad port", verb: "submit", mode: "saga", g: steps(1, "http://a:port/x"), want: invalid, says: "http"},
	{name: "cloud metadata address", verb: "submit", mode: "saga", g: steps(1, "http://169.254.169.254/latest"), want: invalid, says: "not allowed"},
	{name: "link-local gRPC address", verb: "submit", mode: "msg", g: steps(1, "[fe80::1]:80/p.S/M"), want: invalid, says: "not allowed"},
	{name: "mapped metadata address", verb: "submit", mode: "msg", g: steps(1, "http://[::ffff:169.254.169.254]/x"), want: invalid, says: "not allowed"},
	{name: "address outside the allow-list", verb: "submit", mode: "msg", g: steps(1, "http://192.0.2.1/x"), want: invalid, says: "--branch-allow"},
	{name: "name outside the allow-list", verb: "prepare", mode: "msg", g: with(steps(1, ok), "query_prepared", "http://192.0.2.9/q"), want: invalid, says: "--branch-allow"},
	{name: "gid that gRPC metadata cannot carry", verb: "submit", gid: "gid-é", mode: "saga", g: steps(1, "127.0.0.1:1/p.S/M"), want: invalid, says: "gRPC"},
	{name: "header with a line break", verb: "submit", mode: "saga", g: with(steps(1, ok), "branch_headers", map[string]string{"a": "b\r\nc: d"}), want: invalid, says: "branch_headers"},
	{name: "header with an odd name", verb: "submit", mode: "saga", g: with(steps(1, ok), "branch_headers", map[string]string{"a b": "c"}), want: invalid, says: "branch_headers"},
	{name: "headers too large", verb: "submit", mode: "saga", g: with(steps(1, ok), "branch_headers", map[string]string{"a": strings.Repeat("h", 17<<10)}), want: invalid, says: "branch_headers"},
	{name: "saga step by JSON-RPC without an object", verb: "submit", mode: "saga", g: rpcSteps(`{"a":1}`, `[1]`), want: invalid, says: "payloads: branch 02", noGRPC: true},
	{name: "saga step by JSON-RPC with a text", verb: "prepare", mode: "saga", g: rpcSteps(`"{}"`), want: invalid, says: "payloads: branch 01", noGRPC: true},
	{name: "message step by JSON-RPC without an object", verb: "submit", mode: "msg", g: rpcSteps(``, `null`, `7`), want: invalid, says: "payloads: branch 03", noGRPC: true},
	{name: "prepared message by JSON-RPC without JSON", verb: "prepare", mode: "msg", g: with(rpcSteps(`{"a":`), "query_prepared", ok), want: invalid, says: "payloads: branch 01", noGRPC: true},
	{name: "submit of a TCC that was never prepared", verb: "submit", mode: "tcc", want: forbidden, says: "no trans with gid"},
	{name: "submit of an XA that was never prepared", verb: "submit", mode: "xa", want: forbidden, says: "no trans with gid"},
	{name: "branch of a gid that was never prepared", verb: "registerBranch", mode: "tcc", g: map[string]any{"branch_id": "01", "confirm": ok, "cancel": ok, "data": "{}"}, want: forbidden, says: "status: prepared found"},
	{name: "branch without an id", verb: "registerBranch", mode: "tcc", g: map[string]any{"confirm": ok, "cancel": ok}, want: invalid, says: "branch_id"},
	{name: "branch without a confirm", verb: "registerBranch", mode: "tcc", g: map[string]any{"branch_id": "01", "cancel": ok}, want: invalid, says: "confirm"},
	{name: "branch without a cancel", verb: "registerBranch", mode: "tcc", g: map[string]any{"branch_id": "01", "confirm": ok}, want: invalid, says: "cancel"},
	{name: "XA branch without an address", verb: "registerBranch", mode: "xa", g: map[string]any{"branch_id": "01"}, want: invalid, says: "url"},
	{name: "branch of a saga", verb: "registerBranch", mode: "saga", g: map[string]any{"branch_id": "01"}, want: invalid, says: "unknow trans type: saga"},
	{name: "workflow step of an unknown op", verb: "registerBranch", mode: "workflow", g: map[string]any{"branch_id": "01", "op": "try", "status": "succeed"}, want: invalid, says: "op"},
	{name: "workflow step of an unknown status", verb: "registerBranch", mode: "workflow", g: map[string]any{"branch_id": "01", "op": "action", "status": "done"}, want: invalid, says: "status"},
	{name: "branch id that gRPC metadata cannot carry", verb: "registerBranch", mode: "tcc", g: map[string]any{"branch_id": "ü", "confirm": "127.0.0.1:1/p.S/C", "cancel": "127.0.0.1:1/p.S/X"}, want: invalid, says: "gRPC"},
	{name: "branch data too large", verb: "registerBranch", mode: "tcc", g: map[string]any{"branch_id": "01", "confirm": ok, "cancel": ok, "data": strings.Repeat("d", 600<<10)}, want: invalid, says: "data"},
}

func with(m map[string]any, k string, v any) map[string]any {
	m[k] = v
	return m
}

// text is the request as bytes.
func (b *bad) text(t *testing.T, gid string) string {
	t.Helper()
	raw, err := json.Marshal(b.body(gid))
	noErr(t, err)
	return strings.Replace(string(raw), b.raw[0], b.raw[1], 1)
}

// body is the request as HTTP and JSON-RPC say it.
func (b *bad) body(gid string) map[string]any {
	out := map[string]any{"gid": gid, "trans_type": b.mode}
	for k, v := range b.g {
		out[k] = v
	}
	return out
}

// call sends the request over gRPC.
func (b *bad) call(r *rig.Rig, gid string) error {
	ctx := context.Background()
	text := func(k string) string { s, _ := b.g[k].(string); return s }
	if b.verb == "registerBranch" {
		d := map[string]string{}
		for _, k := range []string{"confirm", "cancel", "url", "op", "status"} {
			if v := text(k); v != "" {
				d[k] = v
			}
		}
		return ignore(r.Client.RegisterBranch(ctx, &dtmgpb.DtmBranchRequest{Gid: gid, TransType: b.mode, BranchID: text("branch_id"), Data: d, BusiPayload: []byte(text("data"))}))
	}
	num := func(k string) int64 { n, _ := json.Number(fmt.Sprint(b.g[k])).Int64(); return n }
	headers, _ := b.g["branch_headers"].(map[string]string)
	req := &dtmgpb.DtmRequest{Gid: gid, TransType: b.mode, CustomedData: text("custom_data"), QueryPrepared: text("query_prepared"), TransOptions: &dtmgpb.DtmTransOptions{
		TimeoutToFail: num("timeout_to_fail"), RetryInterval: num("retry_interval"), RequestTimeout: num("request_timeout"), RetryLimit: num("retry_limit"), BranchHeaders: headers,
	}}
	if st, ok := b.g["steps"]; ok {
		raw, _ := json.Marshal(st)
		req.Steps = string(raw)
	}
	payloads, _ := b.g["payloads"].([]string)
	for _, p := range payloads {
		req.BinPayloads = append(req.BinPayloads, []byte(p))
	}
	switch b.verb {
	case "prepare":
		return ignore(r.Client.Prepare(ctx, req))
	case "submit":
		return ignore(r.Client.Submit(ctx, req))
	}
	return ignore(r.Client.Abort(ctx, req))
}

// Issue 3, point 13, and D31: each is a precise error in its protocol's own form, nothing is stored, nothing crashes.
// D26 is among them: addresses that must not be called are refused before anything is stored.
func TestBadInputIsRefusedPreciselyAndStoresNothing(t *testing.T) {
	allow, err := invoke.ParseAllow([]string{"127.0.0.0/8"})
	noErr(t, err)
	r, _ := start(t, rig.Options{Invoke: invoke.Config{Allow: allow}})
	for i, b := range badInputs {
		gid := b.gid
		if gid == "" && !b.noGid {
			gid = fmt.Sprintf("bad-%d", i)
		}
		t.Run("http/"+b.name, func(t *testing.T) {
			code, body, h := r.Post("/"+b.verb, b.text(t, gid))
			var out map[string]string
			if err := json.Unmarshal(body, &out); err != nil || h.Get("Content-Type") != "application/json" {
				t.Fatalf("the answer is no JSON: %d %s", code, body)
			}
			if code != b.want.http || !strings.Contains(out["message"], b.says) {
				t.Errorf("answered %d %s, want %d and a text with %q", code, body, b.want.http, b.says)
			}
			if final := out["dtm_result"] == "FAILURE" && strings.HasSuffix(out["message"], "FAILURE"); final != (b.want == forbidden) {
				t.Errorf("the word FAILURE stands where it should not, or does not where it should: %s", body)
			}
		})
		t.Run("json-rpc/"+b.name, func(t *testing.T) {
			a := r.RPCRaw(fmt.Sprintf(`{"jsonrpc":"2.0","id":"no-use","method":%q,"params":%s}`, b.verb, b.text(t, gid)))
			want := b.want.rpc
			if b.name == "body too large" || strings.HasSuffix(b.name, "no UTF-8") {
				want = -32700 // it is not read that far
			}
			if a.Code != want || a.HasResult || !strings.Contains(a.Message, b.says) {
				t.Errorf("answered %+v, want %d and a text with %q", a, want, b.says)
			}
		})
		if !b.noGRPC {
			t.Run("grpc/"+b.name, func(t *testing.T) {
				s := status.Convert(b.call(r, gid))
				if s.Code() != b.want.grpc || !strings.Contains(s.Message(), b.says) {
					t.Errorf("answered %v %q, want %v and a text with %q", s.Code(), s.Message(), b.want.grpc, b.says)
				}
			})
		}
	}
	if n := r.Live(); n != 0 {
		t.Errorf("%d transactions were stored", n)
	}
	if rows := r.Journal.Rows(); len(rows) != 0 {
		t.Errorf("%d transactions reached the journal", len(rows))
	}
	if code, _, _ := r.Get("/newGid"); code != 200 {
		t.Error("the coordinator answers no more")
	}
}

// A branch of a transaction that goes by JSON-RPC is judged when it is registered, over every wire: the transaction's own
// protocol counts, not that of the request. A submit cannot bring the protocol in afterwards.
func TestBranchThatJSONRPCCannotCallIsRefused(t *testing.T) {
	r, _ := start(t)
	for _, mode := range []string{"tcc", "xa"} {
		gid := "rpc-" + mode
		if code, body, _ := r.Post("/prepare", map[string]any{"gid": gid, "trans_type": mode, "protocol": "json-rpc"}); code != 200 {
			t.Fatalf("prepare answered %d %s", code, body)
		}
		b := bad{verb: "registerBranch", mode: mode, g: map[string]any{"branch_id": "01", "data": "[1]", "confirm": ok + "?method=c", "cancel": ok + "?method=x", "url": ok + "?method=u"}}
		const says = `branch "01": data: `
		if code, body, _ := r.Post("/registerBranch", b.body(gid)); code != invalid.http || !strings.Contains(string(body), `branch \"01\": data: `) {
			t.Errorf("%s over HTTP answered %d %s", mode, code, body)
		}
		if a := r.RPC("registerBranch", b.body(gid)); a.Code != invalid.rpc || a.HasResult || !strings.Contains(a.Message, says) {
			t.Errorf("%s over JSON-RPC answered %+v", mode, a)
		}
		if s := status.Convert(b.call(r, gid)); s.Code() != invalid.grpc || !strings.Contains(s.Message(), says) {
			t.Errorf("%s over gRPC answered %v", mode, s)
		}
		if _, body, _ := r.Get("/query?gid=" + gid); !strings.Contains(string(body), `"branches":[]`) {
			t.Errorf("%s: something was stored: %s", mode, body)
		}
		for i, data := range []string{`{"a":1}`, ` {} `, "null", ""} { // what can be called
			if code, body, _ := r.Post("/registerBranch", with(with(b.body(gid), "branch_id", fmt.Sprint("0", i+2)), "data", data)); code != 200 {
				t.Errorf("%s: %q answered %d %s", mode, data, code, body)
			}
		}
	}
	if code, body, _ := r.Post("/prepare", map[string]any{"gid": "late", "trans_type": "tcc"}); code != 200 {
		t.Fatalf("prepare answered %d %s", code, body)
	}
	branch := map[string]any{"gid": "late", "trans_type": "tcc", "branch_id": "01", "data": "text", "confirm": ok + "?method=c", "cancel": ok + "?method=x"}
	if code, body, _ := r.Post("/registerBranch", branch); code != 200 {
		t.Fatalf("an HTTP branch answered %d %s", code, body)
	}
	if code, body, _ := r.Post("/submit", map[string]any{"gid": "late", "trans_type": "tcc", "protocol": "json-rpc"}); code != 400 || !strings.Contains(string(body), "protocol: branch") {
		t.Errorf("a submit by JSON-RPC answered %d %s", code, body)
	}
	if _, body, _ := r.Get("/query?gid=late"); !strings.Contains(string(body), `"status":"prepared"`) {
		t.Errorf("the refused submit was stored: %s", body)
	}
}

// Bodies that are no JSON, or JSON of another shape, at every path that takes one.
func TestMalformedBodiesAreRefusedAtEveryPath(t *testing.T) {
	r, _ := start(t)
	bodies := []string{``, `{`, `[]`, `"text"`, `12`, `null`, `{"gid":5,"trans_type":"tcc"}`, `{"gid":{"a":1}}`, `{"gid":"x","trans_type":["tcc"]}`, "\xff\xfe", strings.Repeat("[", 100_000)}
	for _, path := range []string{"/prepare", "/submit", "/abort", "/registerBranch", "/registerTccBranch", "/registerXaBranch", "/forceStop", "/resetNextCronTime"} {
		for _, body := range bodies {
			code, out, _ := r.Post(path, body)
			var m map[string]string
			if err := json.Unmarshal(out, &m); code != 400 || err != nil || m["message"] == "" {
				t.Errorf("%s with %.40q answered %d %s", path, body, code, out)
			}
		}
	}
	for _, f := range []string{`"steps":{}`, `"steps":["a"]`, `"payloads":"x"`, `"payloads":[{}]`, `"timeout_to_fail":"35"`, `"timeout_to_fail":1.5`, `"wait_result":"yes"`, `"branch_headers":[]`, `"custom_data":{}`} {
		if code, out, _ := r.Post("/submit", `{"gid":"m","trans_type":"saga",`+f+`}`); code != 400 || !strings.Contains(string(out), strings.Split(f, `"`)[1]) {
			t.Errorf("%s answered %d %s", f, code, out)
		}
	}
	for _, f := range []string{`"branch_id":1`, `"data":{}`, `"confirm":[]`} {
		if code, out, _ := r.Post("/registerBranch", `{"gid":"m","trans_type":"tcc",`+f+`}`); code != 400 {
			t.Errorf("%s answered %d %s", f, code, out)
		}
	}
	_, err := r.Client.Submit(context.Background(), &dtmgpb.DtmRequest{Gid: "m", TransType: "saga", Steps: "{"})
	wantCode(t, err, "InvalidArgument")
	_, err = r.Client.PrepareWorkflow(context.Background(), &dtmgpb.DtmRequest{Gid: "m", TransType: "tcc"})
	wantCode(t, err, "InvalidArgument")
	_, err = r.Client.Submit(context.Background(), &dtmgpb.DtmRequest{})
	wantCode(t, err, "InvalidArgument")
	if n := r.Live(); n != 0 {
		t.Errorf("%d transactions were stored", n)
	}
}

// Section 5: JSON-RPC's own errors, and exactly one of result and error.
func TestJSONRPCRequestsAreJudgedByItsRules(t *testing.T) {
	r, _ := start(t)
	cases := []struct {
		body       string
		httpStatus int
		code       int
		says       string
	}{
		{`{`, 400, -32700, "Parse json error: "},
		{``, 400, -32700, "Parse json error: "},
		{`[{"jsonrpc":"2.0","id":"1","method":"newGid"}]`, 400, -32700, "Parse json error: "},
		{`{"jsonrpc":"2.0","id":{},"method":"newGid"}`, 400, -32700, "Parse json error: "},
		{`{"jsonrpc":"2.0","id":true,"method":"newGid"}`, 400, -32700, "Parse json error: "},
		{`{"jsonrpc":"1.0","id":"1","method":"newGid"}`, 200, -32600, "Bad json request: "},
		{`{"id":"1","method":"newGid"}`, 200, -32600, "Bad json request: "},
		{`{"jsonrpc":"2.0","id":"","method":"newGid"}`, 200, -32600, "Bad json request: "},
		{`{"jsonrpc":"2.0","method":"newGid"}`, 200, -32600, "Bad json request: "},
		{`{"jsonrpc":"2.0","id":"1","method":"delete"}`, 200, -32601, "Method not found: delete"},
		{`{"jsonrpc":"2.0","id":"1","method":"prepare","params":[]}`, 200, -32602, "body"},
		{`{"jsonrpc":"2.0","id":"1","method":"prepare","params":null}`, 200, -32602, "gid"},
		{`{"jsonrpc":"2.0","id":"1","method":"prepare"}`, 200, -32602, "gid"},
		{`{"jsonrpc":"2.0","id":"1","method":"registerBranch","params":{"gid":1}}`, 200, -32602, "gid"},
	}
	for _, c := range cases {
		a := r.RPCRaw(c.body)
		if a.HTTPStatus != c.httpStatus || a.Code != c.code || !a.HasError || a.HasResult || !strings.HasPrefix(a.Message, c.says) {
			t.Errorf("%s answered %+v, want %d %d %q", c.body, a, c.httpStatus, c.code, c.says)
		}
	}
	for _, id := range []string{`"no-use"`, `7`, `1.5`} {
		for _, params := range []string{`""`, `[]`, `{}`} {
			a := r.RPCRaw(`{"jsonrpc":"2.0","id":` + id + `,"method":"newGid","params":` + params + `}`)
			if string(a.ID) != id || a.HasError || !strings.Contains(string(a.Result), `"gid":"`) {
				t.Errorf("newGid with id %s answered %+v", id, a)
			}
		}
	}
	if a := r.RPC("prepare", map[string]string{"gid": "ok-1", "trans_type": "tcc"}); !a.HasResult || string(a.Result) != "null" || a.HasError {
		t.Errorf("success answered %+v, want result null alone", a)
	}
}

// Bad numbers and words in a query: DTM's text for a number that is none, 400 for what is against a rule.
func TestBadQueriesAreRefused(t *testing.T) {
	r, _ := start(t)
	for path, want := range map[string]string{
		"/query":                         "500 no gid specified",
		"/query?gid=":                    "500 no gid specified",
		"/all?limit=ten":                 "500 convert to int error: ",
		"/all?createTimeStart=yesterday": "500 convert to int error: ",
		"/all?status=done":               "400 status: unknown status",
		"/all?transType=tccc":            "400 transType: unknown trans type",
		"/all?position=elsewhere":        "400 position \"elsewhere\" is none that a listing gave",
		"/resetCronTime?timeout=x":       "500 convert to int error: ",
		"/resetCronTime?timeout=-1":      "400 timeout: ",
		"/scanKV?limit=x":                "500 convert to int error: ",
		"/subscribe?topic=&url=http://a": "500 empty topic",
		"/subscribe?topic=t&url=":        "500 empty url",
		"/subscribe?topic=t&url=ftp://a": "400 url: ",
		"/unsubscribe?topic=t&url=x":     "500 no such a topic",
	} {
		code, body, _ := r.Get(path)
		var m map[string]string
		_ = json.Unmarshal(body, &m)
		if got := fmt.Sprintf("%d %s", code, m["message"]); !strings.HasPrefix(got, want) {
			t.Errorf("%s answered %q, want %q", path, got, want)
		}
	}
	if code, body, _ := r.Get("/query?gid=unknown"); code != 200 || string(body) != `{"branches":[],"transaction":null}` {
		t.Errorf("an unknown gid answered %d %s", code, body)
	}
	if code, body, _ := r.Get("/all?gid=unknown"); code != 200 || !strings.Contains(string(body), `"transactions":null`) {
		t.Errorf("/all of an unknown gid answered %d %s", code, body)
	}
	if code, body, _ := r.Get("/all"); code != 200 || !strings.Contains(string(body), `"transactions":[]`) {
		t.Errorf("/all of nothing answered %d %s", code, body)
	}
}

// What is not of the protocol is answered in the protocol's form all the same: clients parse it.
func TestUnknownPathsAndMethodsAreAnsweredInTheProtocolsForm(t *testing.T) {
	r, _ := start(t)
	for _, c := range []struct {
		method, path string
		want         int
		allow        string
	}{
		{"GET", "/", 404, ""}, {"GET", "/api/dtmsvr/nothing", 404, ""}, {"POST", "/nothing", 404, ""},
		{"GET", "/api/dtmsvr/submit", 405, "POST"}, {"POST", "/api/dtmsvr/query", 405, "GET, HEAD"}, {"DELETE", "/api/dtmsvr/newGid", 405, "GET, HEAD"},
	} {
		code, body, h := r.Do(c.method, r.HTTP+c.path, nil)
		var out map[string]string
		if err := json.Unmarshal(body, &out); err != nil || code != c.want || h.Get("Allow") != c.allow || !strings.Contains(out["message"], "there is no "+c.method) || out["dtm_result"] != "" || h.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: %d %s, %v", c.method, c.path, code, body, h)
		}
	}
	code, body, h := r.Do("GET", r.JSONRPC, nil)
	if code != 405 || h.Get("Allow") != "POST" || !strings.Contains(string(body), `"code":-32600`) {
		t.Errorf("GET json-rpc: %d %s", code, body)
	}
}
