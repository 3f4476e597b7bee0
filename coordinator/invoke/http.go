package invoke

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// Headers that carry the fence (design, section 6).
const (
	HeaderSlot         = "Lockstep-Slot"
	HeaderEpoch        = "Lockstep-Epoch"
	HeaderAccountSlot  = "Lockstep-Account-Slot"
	HeaderAccountEpoch = "Lockstep-Account-Epoch"
	headerDurability   = "Lockstep-Durability"
	headerSuspense     = "Lockstep-Suspense"
)

// statusStale is the HTTP status of Stale: a newer epoch has been here.
const statusStale = http.StatusPreconditionFailed

// bodyMax bounds what is read of an answer: enough for a result and for the words that decide.
const bodyMax = 64 << 10

func (v *Invoker) callHTTP(ctx context.Context, c *engine.Call, res *engine.CallResult) {
	body := c.Payload
	if len(c.Results) > 0 {
		var err error
		if body, err = withResults(c.Payload, c.Results); err != nil {
			unknown(res, err)
			return
		}
	}
	method := http.MethodGet
	if len(body) > 0 || c.Mode == txn.ModeXA {
		method = http.MethodPost
	}
	answer, status, err := v.roundTrip(ctx, c, method, identity(c), body)
	if err != nil {
		unknown(res, err)
		return
	}
	res.Outcome, res.Text = judge(status, answer)
	if res.Outcome == txn.Done && c.WantResult {
		keep(res, answer, v.cfg.ResultBytesMax)
	}
}

// identity adds gid, trans_type, branch_id and op to the url's own query.
func identity(c *engine.Call) string {
	var b strings.Builder
	b.Grow(len(c.URL) + 2*len(c.Gid) + 64)
	base, fragment, _ := strings.Cut(c.URL, "#")
	b.WriteString(base)
	if strings.Contains(base, "?") {
		if !strings.HasSuffix(base, "?") && !strings.HasSuffix(base, "&") {
			b.WriteByte('&')
		}
	} else {
		b.WriteByte('?')
	}
	b.WriteString("branch_id=")
	b.WriteString(url.QueryEscape(string(c.Branch)))
	b.WriteString("&gid=")
	b.WriteString(url.QueryEscape(string(c.Gid)))
	b.WriteString("&op=")
	b.WriteString(url.QueryEscape(c.OpWord))
	b.WriteString("&trans_type=")
	b.WriteString(c.Mode.String())
	if fragment != "" {
		b.WriteByte('#')
		b.WriteString(fragment)
	}
	return b.String()
}

// fence names the slots of the transaction and of the account, and their epochs.
func fence(c *engine.Call, set func(k, v string)) {
	set(HeaderSlot, strconv.Itoa(c.Slot))
	set(HeaderEpoch, strconv.FormatUint(c.Epoch, 10))
	n, epoch := account(c)
	set(HeaderAccountSlot, strconv.Itoa(n))
	set(HeaderAccountEpoch, strconv.FormatUint(epoch, 10))
	said(c, set)
}

// said is what a participant must know of the transaction beside its fences: what its durability is, after whose region is lost.
func said(c *engine.Call, set func(k, v string)) {
	if c.Global {
		set(headerDurability, "global")
	}
}

// ours says that a header is the coordinator's to set: a client's never takes its place.
func ours(name string) bool {
	return strings.EqualFold(name, headerDurability) || strings.EqualFold(name, headerSuspense)
}

// account is the account's slot and its epoch; the transaction's own where nobody has resolved the call.
func account(c *engine.Call) (int, uint64) {
	if c.AccountEpoch == 0 {
		return c.Slot, c.Epoch
	}
	return c.AccountSlot, c.AccountEpoch
}

// statusMoved answers a call to an account whose home is not there, or not yet: nothing was done.
const statusMoved = http.StatusMisdirectedRequest

// movedPause is how long a call waits whose account is on its way.
const movedPause = 50 * time.Millisecond

// judge reads an answer as DTM's clients write it: the status first; the words only in a body that came with 200
// (services written for DTM before 1.10).
func judge(status int, body []byte) (txn.Outcome, string) {
	switch {
	case status == http.StatusTooEarly:
		return txn.Ongoing, text(body)
	case status == http.StatusConflict:
		return txn.Refused, text(body)
	case status == statusStale:
		return txn.Stale, text(body)
	case status == statusMoved:
		return txn.Deferred, text(body)
	case status != http.StatusOK:
		return txn.Unknown, fmt.Sprintf("HTTP status %d: %s", status, text(body))
	case bytes.Contains(body, []byte("ONGOING")):
		return txn.Ongoing, text(body)
	case bytes.Contains(body, []byte("FAILURE")):
		return txn.Refused, text(body)
	}
	return txn.Done, ""
}

// text is the beginning of an answer, for people.
func text(body []byte) string {
	return strings.ToValidUTF8(string(body[:min(len(body), txn.ErrorBytesMax)]), "?")
}

// keep takes a result for later branches. One that is too large to be kept is no result: the later branch must not act
// on nothing.
func keep(res *engine.CallResult, body []byte, limit int) {
	if len(body) > limit {
		res.Outcome, res.Text = txn.Unknown, fmt.Sprintf("the answer has %d bytes and a later branch needs it; at most %d are kept", len(body), limit)
		return
	}
	res.Result = append([]byte(nil), body...)
}

// withResults adds the field "results" to a payload that is a JSON object: the answers of earlier branches by branch
// id, as they are where they are JSON, else as text.
func withResults(payload []byte, results []engine.BranchResult) ([]byte, error) {
	obj := map[string]json.RawMessage{}
	if len(bytes.TrimSpace(payload)) > 0 {
		if err := json.Unmarshal(payload, &obj); err != nil {
			return nil, fmt.Errorf("the payload must be a JSON object to take results: %w", err)
		}
	}
	by := map[string]json.RawMessage{}
	for _, r := range results {
		switch {
		case len(r.Body) == 0:
			by[string(r.Branch)] = json.RawMessage("null")
		case json.Valid(r.Body):
			by[string(r.Branch)] = r.Body
		default:
			quoted, err := json.Marshal(string(r.Body))
			if err != nil {
				return nil, err
			}
			by[string(r.Branch)] = quoted
		}
	}
	field, err := json.Marshal(by)
	if err != nil {
		return nil, err
	}
	obj["results"] = field
	return json.Marshal(obj)
}

// jsonRPCError codes of a branch (DTM wire reference, section 2.2); 409 and 425 are what PHP's client answers.
const (
	rpcFailure = -32901
	rpcOngoing = -32902
	rpcStale   = -32903
)

func (v *Invoker) callJSONRPC(ctx context.Context, c *engine.Call, res *engine.CallResult) {
	u, err := url.Parse(c.URL)
	if err != nil {
		unknown(res, fmt.Errorf("bad branch url: %w", err))
		return
	}
	params := map[string]json.RawMessage{}
	if p := bytes.TrimSpace(c.Payload); len(p) > 0 && string(p) != "null" {
		if err := json.Unmarshal(p, &params); err != nil {
			unknown(res, fmt.Errorf("the payload of a JSON-RPC branch must be a JSON object: %w", err))
			return
		}
	}
	for k, val := range map[string]string{"gid": string(c.Gid), "trans_type": c.Mode.String(), "branch_id": string(c.Branch), "op": c.OpWord} {
		quoted, err := json.Marshal(val)
		if err != nil {
			unknown(res, err)
			return
		}
		params[k] = quoted
	}
	body, err := json.Marshal(map[string]any{
		"jsonrpc": "2.0", "id": string(c.Gid) + "-" + string(c.Branch) + "-" + strconv.Itoa(c.Attempt), "method": u.Query().Get("method"), "params": params,
	})
	if err != nil {
		unknown(res, err)
		return
	}
	answer, status, err := v.roundTrip(ctx, c, http.MethodPost, c.URL, body)
	if err != nil {
		unknown(res, err)
		return
	}
	res.Outcome, res.Text = judgeRPC(status, answer)
	if res.Outcome == txn.Done && c.WantResult {
		var r struct{ Result json.RawMessage }
		if json.Unmarshal(answer, &r) == nil {
			keep(res, r.Result, v.cfg.ResultBytesMax)
		}
	}
}

func judgeRPC(status int, body []byte) (txn.Outcome, string) {
	var r struct {
		Error *struct {
			Code    json.Number `json:"code"`
			Message string      `json:"message"`
		} `json:"error"`
	}
	if status != http.StatusOK {
		out, why := judge(status, body)
		return out, why
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return txn.Unknown, "the answer is no JSON-RPC: " + text(body)
	}
	if r.Error == nil {
		return txn.Done, ""
	}
	code, err := r.Error.Code.Float64()
	if err != nil {
		return txn.Unknown, "JSON-RPC error without a number: " + text(body)
	}
	switch code {
	case rpcFailure, http.StatusConflict:
		return txn.Refused, r.Error.Message
	case rpcOngoing, http.StatusTooEarly:
		return txn.Ongoing, r.Error.Message
	case rpcStale, statusStale:
		return txn.Stale, r.Error.Message
	}
	return txn.Unknown, fmt.Sprintf("JSON-RPC error %v: %s", code, r.Error.Message)
}
