package invoke

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// FuzzJudge: Refused and Done are said only in the protocol's own words (G2).
func FuzzJudge(f *testing.F) {
	for _, code := range []int{0, 200, 201, 301, 409, 412, 425, 500} {
		for _, body := range []string{"", "FAILURE", "ONGOING", "SUCCESS", "\xff"} {
			f.Add(code, []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, code int, body []byte) {
		out, why := judge(code, body)
		if out == txn.Refused && code != http.StatusConflict && !(code == http.StatusOK && strings.Contains(string(body), "FAILURE")) {
			t.Errorf("%d %q is a refusal", code, body)
		}
		if out == txn.Done && code != http.StatusOK {
			t.Errorf("%d is done", code)
		}
		if !utf8.ValidString(why) || len(why) > 4*txn.ErrorBytesMax {
			t.Errorf("the text is %q", why)
		}
	})
}

// FuzzJudgeRPC: the same for JSON-RPC.
func FuzzJudgeRPC(f *testing.F) {
	for _, body := range []string{"", "{}", `{"error":{"code":-32901}}`, `{"error":{"code":"409"}}`, `{"error":null}`, `{"error":{"code":1e400}}`, `{"result":"FAILURE"}`} {
		f.Add(200, []byte(body))
		f.Add(500, []byte(body))
	}
	f.Fuzz(func(t *testing.T, code int, body []byte) {
		out, _ := judgeRPC(code, body)
		var any struct{ Error json.RawMessage }
		if out == txn.Done && (code != http.StatusOK || json.Unmarshal(body, &any) != nil || (any.Error != nil && string(any.Error) != "null")) {
			t.Errorf("%d %q is done", code, body)
		}
	})
}

// FuzzJudgeGRPC: the same for gRPC.
func FuzzJudgeGRPC(f *testing.F) {
	for _, code := range []uint32{0, 2, 9, 10, 11, 14, 409, 425} {
		f.Add(code, "ONGOING")
		f.Add(code, "FAILURE")
	}
	f.Fuzz(func(t *testing.T, code uint32, text string) {
		out, _ := judgeGRPC(status.Error(codes.Code(code), text))
		if (out == txn.Done) != (code == 0) || (out == txn.Refused && code != uint32(codes.Aborted) && code != 409) {
			t.Errorf("%d %q is %v", code, text, out)
		}
	})
}

// FuzzIdentity: the identity is in the query whatever the url's own query is.
func FuzzIdentity(f *testing.F) {
	f.Add("http://a/x", "g", "01", "confirm")
	f.Add("http://a/x?y=1&", "g&op=x", "0 1", "a#b")
	f.Add("http://a?#", "\"é", "%", "")
	f.Fuzz(func(t *testing.T, raw, gid, branch, op string) {
		if u, err := url.Parse(raw); err != nil || u.Host == "" {
			return
		}
		own, err := url.Parse(raw)
		if err != nil {
			return
		}
		u, err := url.Parse(identity(&engine.Call{URL: raw, Gid: txn.Gid(gid), Branch: txn.BranchID(branch), OpWord: op, Mode: txn.ModeTCC}))
		if err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		for k, want := range map[string]string{"gid": gid, "branch_id": branch, "op": op, "trans_type": "tcc"} {
			if got := u.Query()[k]; !own.Query().Has(k) && (len(got) != 1 || got[0] != want) {
				t.Errorf("%s of %q is %q, want %q", k, u, got, want)
			}
		}
		if u.Host != own.Host || u.Path != own.Path {
			t.Errorf("%q became %q", raw, u)
		}
	})
}

// FuzzCheckURLOfAllow: the checker never crashes, and never lets a metadata address through as such.
func FuzzCheckURLOfAllow(f *testing.F) {
	for _, s := range []string{"", "http://a", "http://169.254.169.254", "169.254.169.254:80/p", "[fe80::1%eth0]:1/x", "http://x@[fe80::1]/"} {
		f.Add(s)
	}
	a := DefaultAllow()
	f.Fuzz(func(t *testing.T, raw string) {
		err := a.CheckURL(raw)
		if u, perr := url.Parse(raw); perr == nil && u.Hostname() == "169.254.169.254" && err == nil && (u.Scheme == "http" || u.Scheme == "https") {
			t.Errorf("%q was let through", raw)
		}
	})
}

// FuzzProtocolIsOneRule: what the door takes for a JSON-RPC call is what is called by JSON-RPC, and a payload that the door
// lets through can be sent.
func FuzzProtocolIsOneRule(f *testing.F) {
	for _, s := range []string{"http://a/x?method=m", "https://a/method", "http://a/x", "a:1/p.S/method", "HTTP://a?method=m", "method"} {
		f.Add(s, uint8(2), []byte(`{}`))
		f.Add(s, uint8(0), []byte(`[1]`))
	}
	f.Add("http://a/?method=m", uint8(2), []byte("\u00a0{}"))
	f.Add("http://a/?method=m", uint8(2), []byte("\xff"))
	f.Fuzz(func(t *testing.T, url string, protocol uint8, payload []byte) {
		p := txn.Protocol(protocol % 3)
		if got, want := p.JSONRPC(url), kindOf(&engine.Call{Protocol: p, URL: url}) == kindJSONRPC; got != want {
			t.Errorf("%v %q: the door says %v, the call %v", p, url, got, want)
		}
		if !p.JSONRPC(url) || txn.UncallableByRPC(p, []txn.Branch{{ID: "a", Confirm: url, Payload: payload}}) >= 0 {
			return
		}
		if text := bytes.TrimSpace(payload); len(text) > 0 && string(text) != "null" {
			var params map[string]json.RawMessage
			if err := json.Unmarshal(text, &params); err != nil {
				t.Errorf("%q was let through: %v", payload, err)
			}
		}
	})
}
