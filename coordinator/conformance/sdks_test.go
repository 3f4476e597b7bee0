package conformance

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"

	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	rig "github.com/lockstep-tx/lockstep/coordinator/dtmwire/dtmwiretest"
)

// Bodies as the SDKs of section 13 of the reference send them, written by hand, and what those SDKs expect of the answers.

// send posts a text and wants a status; it gives the answer.
func send(t *testing.T, r *rig.Rig, path, body string, want int) string {
	t.Helper()
	code, out, h := r.Post(path, body)
	if code != want || h.Get("Content-Type") != "application/json" {
		t.Fatalf("%s answered %d %s (%s), want %d", path, code, out, h.Get("Content-Type"), want)
	}
	return string(out)
}

// wantSuccess: the older clients look for the word, all of them choke on the other two in a 200 body, and Java's reads no
// other key.
func wantSuccess(t *testing.T, body string) {
	t.Helper()
	if body != `{"dtm_result":"SUCCESS"}` {
		t.Errorf("the success is %s", body)
	}
}

// Java dtmcli 2.1: subType twice in one object, status in registerBranch, nulls, empty arrays; an abort after a submit.
func TestJavaTCC(t *testing.T) {
	r, p := start(t)
	if code, body, _ := r.Get("/newGid"); code != 200 || !strings.Contains(string(body), `"dtm_result":"SUCCESS"`) {
		t.Errorf("newGid: %d %s", code, body)
	}
	tx := `{"gid":"java","trans_type":"tcc","subType":"tcc","subType":"TCC","custom_data":null,"passthrough_headers":[],"branch_headers":null,"wait_result":true,"timeout_to_fail":0,"retry_interval":0,"steps":null,"payloads":null,"query_prepared":null,"protocol":null}`
	wantSuccess(t, send(t, r, "/prepare", tx, 200))
	wantSuccess(t, send(t, r, "/registerBranch", `{"gid":"java","trans_type":"tcc","subType":"tcc","branch_id":"01","status":"prepared","data":"{\"amount\":30}","confirm":"`+p.HTTP("confirm")+`","cancel":"`+p.HTTP("cancel")+`","try":"`+p.HTTP("try")+`"}`, 200))
	wantSuccess(t, send(t, r, "/submit", tx, 200))
	// Its abort after a submit that it took for failed changes nothing.
	send(t, r, "/abort", tx, 409)
	wantEnd(t, r, "java", succeed, prepared, succeed)
	if c := p.Calls("java", "01", "confirm"); len(c) != 1 || string(c[0].Body) != `{"amount":30}` {
		t.Errorf("confirms are %+v", c)
	}
}

func TestJavaSaga(t *testing.T) {
	r, p := start(t)
	body := `{"gid":"java-saga","trans_type":"saga","subType":"saga","steps":[{"action":"%s","compensate":"%s"}],"payloads":["{\"a\":1}"],"custom_data":null,"passthrough_headers":[],"wait_result":true,"concurrent":false,"orders":{}}`
	wantSuccess(t, send(t, r, "/submit", fmt.Sprintf(body, p.HTTP("act"), p.HTTP("undo")), 200))
	wantEnd(t, r, "java-saga", succeed, prepared, succeed)
}

// Python dtmcli 1.7: nulls, request_timeout 8 in every saga and message, an abort after any exception.
func TestPythonSagaMessageAndTCC(t *testing.T) {
	r, p := start(t)
	p.Once("01", "action", rig.Ongoing)
	saga := fmt.Sprintf(`{"gid": "py-saga", "trans_type": "saga", "custom_data": null, "query_prepared": null, "protocol": null, "request_timeout": 8, "wait_result": true, "steps": [{"action": "%s", "compensate": "%s"}], "payloads": ["{\"amount\": 30}"]}`, p.HTTP("act"), p.HTTP("undo"))
	if out := send(t, r, "/submit", saga, 425); strings.Contains(out, "FAILURE") || !strings.Contains(out, "ONGOING") {
		t.Errorf("an ongoing saga answered %s", out)
	}
	send(t, r, "/abort", `{"gid":"py-saga","trans_type":"saga"}`, 409)
	r.Advance(ongoingPause)
	r.Await("py-saga", succeed)
	if tx, _ := r.Query("py-saga"); tx.RequestTimeout != 8 {
		t.Errorf("request_timeout is %d", tx.RequestTimeout)
	}
	msg := fmt.Sprintf(`{"gid": "py-msg", "trans_type": "msg", "custom_data": null, "query_prepared": "%s", "protocol": null, "request_timeout": 8, "steps": [{"action": "%s"}], "payloads": ["{}"]}`, p.HTTP("query"), p.HTTP("act"))
	wantSuccess(t, send(t, r, "/prepare", msg, 200))
	wantSuccess(t, send(t, r, "/submit", msg, 200))
	r.Await("py-msg", succeed)
	tcc := `{"gid": "py-tcc", "trans_type": "tcc"}`
	wantSuccess(t, send(t, r, "/prepare", tcc, 200))
	wantSuccess(t, send(t, r, "/registerBranch", fmt.Sprintf(`{"gid": "py-tcc", "trans_type": "tcc", "branch_id": "01", "status": "prepared", "data": "{\"amount\": 30}", "try": "%s", "confirm": "%s", "cancel": "%s"}`, p.HTTP("t"), p.HTTP("c"), p.HTTP("x")), 200))
	wantSuccess(t, send(t, r, "/abort", tcc, 200))
	r.Await("py-tcc", failed)
	send(t, r, "/submit", tcc, 409)
}

// Node dtmcli 0.0.12: the alias without trans_type, extra try and status; saga concurrency only in custom_data.
func TestNodeTCCAndConcurrentSaga(t *testing.T) {
	r, p := start(t)
	wantSuccess(t, send(t, r, "/prepare", `{"gid":"node","trans_type":"tcc"}`, 200))
	wantSuccess(t, send(t, r, "/registerTccBranch", fmt.Sprintf(`{"gid":"node","branch_id":"01","trans_type":"tcc","status":"prepared","data":"{}","try":"%s","confirm":"%s","cancel":"%s"}`, p.HTTP("t"), p.HTTP("c"), p.HTTP("x")), 200))
	wantSuccess(t, send(t, r, "/registerTccBranch", fmt.Sprintf(`{"gid":"node","branch_id":"02","data":"{}","confirm":"%s","cancel":"%s"}`, p.HTTP("c"), p.HTTP("x")), 200))
	wantSuccess(t, send(t, r, "/submit", `{"gid":"node","trans_type":"tcc"}`, 200))
	r.Await("node", succeed)
	wantOpsUnordered(t, p, "node", "01 confirm", "02 confirm")
	wantSuccess(t, send(t, r, "/prepare", `{"gid":"node-xa","trans_type":"xa"}`, 200))
	wantSuccess(t, send(t, r, "/registerXaBranch", fmt.Sprintf(`{"gid":"node-xa","branch_id":"01","url":"%s"}`, p.HTTP("xa")), 200))
	wantSuccess(t, send(t, r, "/submit", `{"gid":"node-xa","trans_type":"xa"}`, 200))
	r.Await("node-xa", succeed)

	p.Once("01", "action", rig.Hang)
	saga := fmt.Sprintf(`{"gid":"node-saga","trans_type":"saga","request_timeout":20,"custom_data":"{\"orders\":{\"2\":[0,1]},\"concurrent\":true}","steps":[{"action":"%[1]s","compensate":""},{"action":"%[1]s","compensate":""},{"action":"%[1]s","compensate":""}],"payloads":["{}","{}","{}"]}`, p.HTTP("act"))
	wantSuccess(t, send(t, r, "/submit", saga, 200))
	p.Await("node-saga", "02", "action", 1)
	if p.Count("node-saga", "03", "action") != 0 {
		t.Error("step 3 did not wait for its orders")
	}
	p.Release()
	r.Await("node-saga", succeed)
}

// PHP dtm-client 0.3 over HTTP: the whole context in every body, orders null, request_branch fields.
func TestPHPHTTPBodiesCarryTheirWholeContext(t *testing.T) {
	r, p := start(t)
	body := fmt.Sprintf(`{"gid":"php","trans_type":"saga","dtm":"","branch_id":"","sub_branch_id":0,"op":"","phase2_url":"","custom_data":"{\"concurrent\":true,\"orders\":null}","wait_result":true,"timeout_to_fail":null,"retry_interval":null,"passthrough_headers":[],"branch_headers":{},"concurrent":false,"steps":[{"action":"%s","compensate":"%s"}],"payloads":["{\"amount\":30}"],"bin_payloads":[],"query_prepared":"","protocol":"http"}`, p.HTTP("act"), p.HTTP("undo"))
	wantSuccess(t, send(t, r, "/submit", body, 200))
	wantEnd(t, r, "php", succeed, prepared, succeed)
	for _, path := range []string{"/query?gid=php", "/all?last_id=&limit=10", "/subscribe?topic=t&url=http%3A%2F%2Fa&remark="} {
		if code, out, _ := r.Get(path); code != 200 {
			t.Errorf("%s answered %d %s", path, code, out)
		}
	}
	// Its branch_headers of nobody come as an empty array: PHP does not tell an empty map from an empty list.
	if code, out, _ := r.Post("/submit", fmt.Sprintf(`{"gid":"php2","trans_type":"saga","branch_headers":[],"steps":[{"action":"%s"}],"payloads":["{}"]}`, p.HTTP("act"))); code != 200 && code != 400 {
		t.Errorf("an empty list of headers answered %d %s", code, out)
	}
}

// PHP over gRPC: field 4 of DtmTransOptions, and branches that answer 409 and 425 as their gRPC status.
func TestPHPGRPCOldFieldAndRawStatusCodes(t *testing.T) {
	r, p := start(t)
	var opts []byte
	opts = protowire.AppendTag(opts, 1, protowire.VarintType)
	opts = protowire.AppendVarint(opts, 1)
	opts = protowire.AppendTag(opts, 4, protowire.BytesType)
	opts = protowire.AppendString(opts, "passed-through")
	steps, _ := json.Marshal([]map[string]string{{"action": p.GRPC("Act"), "compensate": p.GRPC("Undo")}, {"action": p.GRPC("Act"), "compensate": p.GRPC("Undo")}})
	req := func(gid string) []byte {
		var b []byte
		for n, v := range map[protowire.Number]string{1: gid, 2: "saga", 3: string(opts), 7: string(steps)} {
			b = protowire.AppendTag(b, n, protowire.BytesType)
			b = protowire.AppendString(b, v)
		}
		for range 2 {
			b = protowire.AppendTag(b, 5, protowire.BytesType)
			b = protowire.AppendBytes(b, []byte("payload"))
		}
		return b
	}
	conn, err := grpc.NewClient("passthrough:///"+r.GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()))
	noErr(t, err)
	defer conn.Close()
	submit := func(gid string) error {
		in, out := req(gid), []byte{}
		return conn.Invoke(context.Background(), "/dtmgimp.Dtm/Submit", &in, &out, grpc.ForceCodec(bytesCodec{}))
	}
	noErr(t, submit("php-grpc"))
	wantEnd(t, r, "php-grpc", succeed, prepared, succeed, prepared, succeed)

	p.Once("02", "action", rig.Answer{Code: codes.Code(425), Message: "later"}, rig.Answer{Code: codes.Code(409), Message: "no money"})
	wantCode(t, submit("php-409"), "FailedPrecondition")
	wantEnd(t, r, "php-409", submitted, prepared, succeed, prepared, prepared)
	r.Advance(ongoingPause)
	r.Await("php-409", failed)
	wantEnd(t, r, "php-409", failed, succeed, succeed, succeed, failed)
	// And the same as JSON-RPC error codes.
	p.Once("01", "action", rig.Answer{RPC: 425}, rig.Answer{RPC: 409})
	wantSuccess(t, send(t, r, "/submit", fmt.Sprintf(`{"gid":"php-rpc","trans_type":"saga","protocol":"json-rpc","steps":[{"action":"%s","compensate":""}],"payloads":["{}"]}`, p.RPC("act")), 200))
	r.PassOver("php-rpc")
	r.Advance(ongoingPause)
	r.Await("php-rpc", failed)
}

// bytesCodec sends bytes as they are.
type bytesCodec struct{}

func (bytesCodec) Name() string                       { return "proto" }
func (bytesCodec) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (bytesCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }

// .NET Dtmcli 1.4: indented JSON, nulls for everything unset, an XA url that is not encoded; an abort after a submit.
func TestDotNetXAAndTCC(t *testing.T) {
	r, p := start(t)
	begin := "{\r\n  \"gid\": \"net\",\r\n  \"trans_type\": \"xa\",\r\n  \"steps\": null,\r\n  \"payloads\": null,\r\n  \"custom_data\": null,\r\n  \"branch_headers\": null,\r\n  \"wait_result\": true,\r\n  \"timeout_to_fail\": 0,\r\n  \"retry_interval\": 0,\r\n  \"rollback_reason\": null,\r\n  \"concurrent\": false\r\n}"
	wantSuccess(t, send(t, r, "/prepare", begin, 200))
	raw := p.HTTP("xa?user=1&name=a/b:c")
	wantSuccess(t, send(t, r, "/registerBranch", "{\r\n  \"gid\": \"net\",\r\n  \"trans_type\": \"xa\",\r\n  \"branch_id\": \"01\",\r\n  \"url\": \""+raw+"\"\r\n}", 200))
	wantSuccess(t, send(t, r, "/submit", begin, 200))
	if c := p.Calls("net", "01", "commit"); len(c) != 1 || c[0].Query.Get("name") != "a/b:c" || c[0].Query.Get("user") != "1" {
		t.Errorf("commits are %+v", c)
	}
	send(t, r, "/abort", begin, 409)
	wantEnd(t, r, "net", succeed, prepared, succeed)
	// Its rollback_reason is cut to 1023 characters; ours keeps what it gets.
	wantSuccess(t, send(t, r, "/prepare", `{"Gid":"net2","Trans_Type":"tcc"}`, 200))
	reason := strings.Repeat("r", 1023)
	wantSuccess(t, send(t, r, "/abort", `{"gid":"net2","trans_type":"tcc","rollback_reason":"`+reason+`"}`, 200))
	if tx, _ := r.Query("net2"); tx == nil || tx.Status != failed || tx.RollbackReason != reason {
		t.Errorf("the transaction shows %+v", tx)
	}
}

// Services and clients of DTM before 1.10: the payload in the step's field data.
func TestOldClientsPutThePayloadIntoTheStep(t *testing.T) {
	r, p := start(t)
	wantSuccess(t, send(t, r, "/submit", fmt.Sprintf(`{"gid":"old","trans_type":"saga","steps":[{"action":"%[1]s","compensate":"%[1]s","data":"{\"amount\":30}"},{"action":"%[1]s","compensate":"%[1]s","data":"{\"amount\":31}"}]}`, p.HTTP("act")), 200))
	r.Await("old", succeed)
	for i, want := range []string{`{"amount":30}`, `{"amount":31}`} {
		if c := p.Calls("old", "0"+fmt.Sprint(i+1), "action"); len(c) != 1 || string(c[0].Body) != want {
			t.Errorf("calls are %+v, want the body %s", c, want)
		}
	}
}

// Section 7: a payload of null is text and is posted, an empty one is a GET.
func TestPayloadsNullAndEmpty(t *testing.T) {
	r, p := start(t)
	wantSuccess(t, send(t, r, "/submit", fmt.Sprintf(`{"gid":"n","trans_type":"saga","wait_result":true,"steps":[{"action":"%[1]s"},{"action":"%[1]s"}],"payloads":["null",""]}`, p.HTTP("act")), 200))
	if c := p.Calls("n", "01", "action")[0]; c.Method != "POST" || string(c.Body) != "null" {
		t.Errorf("null came as %s %q", c.Method, c.Body)
	}
	if c := p.Calls("n", "02", "action")[0]; c.Method != "GET" || len(c.Body) != 0 {
		t.Errorf("nothing came as %s %q", c.Method, c.Body)
	}
}
