package dtmwire

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// global is DTM's TransGlobal as clients send it. Unknown fields, nulls, repeated and oddly cased keys are borne, as
// Go's decoder bears them.
type global struct {
	Gid            string              `json:"gid"`
	TransType      string              `json:"trans_type"`
	Steps          []map[string]string `json:"steps"`
	Payloads       []string            `json:"payloads"`
	BinPayloads    [][]byte            `json:"-"`
	QueryPrepared  string              `json:"query_prepared"`
	Protocol       string              `json:"protocol"`
	CustomData     string              `json:"custom_data"`
	WaitResult     bool                `json:"wait_result"`
	TimeoutToFail  int64               `json:"timeout_to_fail"`
	RequestTimeout int64               `json:"request_timeout"`
	RetryInterval  int64               `json:"retry_interval"`
	RetryLimit     int64               `json:"retry_limit"`
	BranchHeaders  map[string]string   `json:"branch_headers"`
	Concurrent     bool                `json:"concurrent"`
	RollbackReason string              `json:"rollback_reason"`
	ReqExtra       map[string]string   `json:"req_extra"`
}

// branch is a registerBranch request: a flat object of strings.
type branch struct {
	Gid, TransType, BranchID string
	Data                     []byte
	Confirm, Cancel          string
	URL                      string
	Op, Status               string
}

// decodeGlobal reads a TransGlobal.
func decodeGlobal(body []byte) (*global, error) {
	g := &global{}
	if err := json.Unmarshal(body, g); err != nil {
		return nil, badJSON(err)
	}
	return g, nil
}

func badJSON(err error) error {
	if te, ok := err.(*json.UnmarshalTypeError); ok && te.Field != "" {
		return invalid(te.Field, "a JSON %s stands where %s belongs", te.Value, te.Type)
	}
	return invalid("body", "it is not a JSON object: %v", err)
}

// decodeBranch reads a registerBranch request. DTM's clients send strings only.
func decodeBranch(body []byte) (*branch, error) {
	var in struct {
		Gid       string `json:"gid"`
		TransType string `json:"trans_type"`
		BranchID  string `json:"branch_id"`
		Data      string `json:"data"`
		Confirm   string `json:"confirm"`
		Cancel    string `json:"cancel"`
		URL       string `json:"url"`
		Op        string `json:"op"`
		Status    string `json:"status"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, badJSON(err)
	}
	b := &branch{
		Gid: in.Gid, TransType: in.TransType, BranchID: in.BranchID, Confirm: in.Confirm, Cancel: in.Cancel, URL: in.URL, Op: in.Op, Status: in.Status,
	}
	if in.Data != "" {
		b.Data = []byte(in.Data)
	}
	return b, nil
}

// checkGid refuses gids that no barrier table or client could carry.
func checkGid(gid string) error {
	switch {
	case gid == "":
		return invalid("gid", "no gid specified")
	case len(gid) > txn.GidBytesMax:
		return invalid("gid", "it has %d bytes; at most %d fit the barrier table", len(gid), txn.GidBytesMax)
	case !utf8.ValidString(gid):
		return invalid("gid", "it is not valid UTF-8")
	}
	for _, r := range gid {
		if r < 0x20 || r == 0x7f || r == ';' {
			return invalid("gid", "the character %q is not allowed", r)
		}
	}
	return nil
}

// secondsMax bounds every time that a client sends, in seconds: ten years.
const secondsMax = 10 * 365 * 24 * 3600

func seconds(field string, n int64) (time.Duration, error) {
	if n < 0 || n > secondsMax {
		return 0, invalid(field, "%d seconds is out of range: 0 (the default) to %d", n, secondsMax)
	}
	return time.Duration(n) * time.Second, nil
}

func toValid(s string) string { return strings.ToValidUTF8(s, "?") }

// options reads and checks what all modes share.
func (g *global) options() (txn.Options, error) {
	var o txn.Options
	var ok bool
	if o.Protocol, ok = txn.ParseProtocol(g.Protocol); !ok {
		return o, invalid("protocol", "unknown protocol %q; it is one of http, grpc, json-rpc", g.Protocol)
	}
	var err error
	if o.Timeout, err = seconds("timeout_to_fail", g.TimeoutToFail); err != nil {
		return o, err
	}
	if o.RequestTimeout, err = seconds("request_timeout", g.RequestTimeout); err != nil {
		return o, err
	}
	if o.RetryInterval, err = seconds("retry_interval", g.RetryInterval); err != nil {
		return o, err
	}
	if g.RetryLimit < 0 || g.RetryLimit > math.MaxInt32 {
		return o, invalid("retry_limit", "%d is out of range", g.RetryLimit)
	}
	o.RetryLimit, o.WaitResult, o.Concurrent = int(g.RetryLimit), g.WaitResult, g.Concurrent
	if err := checkHeaders("branch_headers", g.BranchHeaders, o.Protocol == txn.ProtocolGRPC); err != nil {
		return o, err
	}
	if len(g.BranchHeaders) > 0 {
		o.Headers = g.BranchHeaders
	}
	return o, nil
}

// checkHeaders refuses headers that no call could carry; grpc says that some go as gRPC metadata.
func checkHeaders(field string, headers map[string]string, grpc bool) error {
	size := 0
	for k, v := range headers {
		size += len(k) + len(v)
		switch {
		case !headerName(k) || !headerValue(v):
			return invalid(field, "%q is no header name, or its value holds a control character", k)
		case grpc && (!metadataName(k) || !printable(v)):
			return invalid(field, "%q or its value cannot go as gRPC metadata: letters, digits, - _ . in the name, printable ASCII in the value", k)
		case size > headersBytesMax:
			return invalid(field, "they have more than %d bytes", headersBytesMax)
		}
	}
	return nil
}

// headersBytesMax bounds the branch headers of one transaction.
const headersBytesMax = 16 << 10

// headerValue says that net/http takes v as a header's value.
func headerValue(v string) bool {
	for i := range len(v) {
		if c := v[i]; (c < ' ' && c != '\t') || c == 0x7f {
			return false
		}
	}
	return true
}

// printable says that v may stand in gRPC metadata.
func printable(v string) bool {
	for i := range len(v) {
		if v[i] < ' ' || v[i] > '~' {
			return false
		}
	}
	return true
}

func metadataName(k string) bool {
	for i := range len(k) {
		if c := k[i] | 0x20; !(c >= 'a' && c <= 'z') && !(k[i] >= '0' && k[i] <= '9') && strings.IndexByte("-_.", k[i]) < 0 {
			return false
		}
	}
	return true
}

func headerName(k string) bool {
	for i := range len(k) {
		if c := k[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`()<>@,;:\"/[]?={}`, c) >= 0 {
			return false
		}
	}
	return k != ""
}

// spec checks a TransGlobal and turns it into what the core takes. At a submit, TCC and XA need nothing but their
// options: their branches were registered before.
func (s *Server) spec(ctx context.Context, g *global, submit bool) (txn.Spec, error) {
	sp := txn.Spec{}
	if err := checkGid(g.Gid); err != nil {
		return sp, err
	}
	var ok bool
	if sp.Mode, ok = txn.ParseMode(g.TransType); !ok {
		return sp, invalid("trans_type", "unknown trans type: %q; it is one of tcc, saga, msg, xa, workflow", g.TransType)
	}
	var err error
	if sp.Opt, err = g.options(); err != nil {
		return sp, err
	}
	if len(g.CustomData) > s.lim.PayloadBytes {
		return sp, invalid("custom_data", "it has %d bytes; at most %d are taken", len(g.CustomData), s.lim.PayloadBytes)
	}
	sp.Custom = toValid(g.CustomData)
	switch sp.Mode {
	case txn.ModeTCC, txn.ModeXA:
	case txn.ModeSaga:
		err = s.sagaSpec(g, &sp)
	case txn.ModeMsg:
		err = s.msgSpec(ctx, g, &sp, submit)
	case txn.ModeWorkflow:
		err = s.workflowSpec(g, &sp)
	}
	if err != nil {
		return sp, err
	}
	if i := txn.UncallableByRPC(sp.Opt.Protocol, sp.Branches); i >= 0 {
		return sp, invalid("payloads", "branch %s is called by JSON-RPC, so its payload is a JSON object, whose fields become the call's params; send {…} or nothing", sp.Branches[i].ID)
	}
	return sp, s.checkBranches(g.Gid, sp.Branches)
}

// payload is the body of step i: payloads first, then the legacy field data of the steps.
func (g *global) payloads() ([][]byte, error) {
	out := g.BinPayloads
	if out == nil {
		for _, p := range g.Payloads {
			out = append(out, []byte(p))
		}
		for _, st := range g.Steps {
			if d, ok := st["data"]; ok && d != "" {
				out = append(out, []byte(d))
			}
		}
	}
	if len(out) < len(g.Steps) {
		return nil, invalid("payloads", "%d payloads for %d steps: each step needs one", len(out), len(g.Steps))
	}
	return out, nil
}

func (s *Server) sagaSpec(g *global, sp *txn.Spec) error {
	payloads, err := g.payloads()
	if err != nil {
		return err
	}
	var custom struct {
		Concurrent bool             `json:"concurrent"`
		Orders     map[string][]int `json:"orders"`
	}
	if strings.TrimSpace(g.CustomData) != "" {
		if err := json.Unmarshal([]byte(g.CustomData), &custom); err != nil {
			return invalid("custom_data", "it is not the JSON of a saga: %v", err)
		}
	}
	for i, st := range g.Steps {
		b := txn.Branch{ID: stepID(i), Try: st["action"], Cancel: st["compensate"], Payload: payloads[i]}
		if b.Try == "" {
			return invalid("steps", "step %d has no action", i)
		}
		if !custom.Concurrent && i > 0 {
			b.After = []int{i - 1}
		}
		sp.Branches = append(sp.Branches, b)
	}
	if !custom.Concurrent {
		return nil
	}
	sp.Opt.Concurrent = true
	for key, after := range custom.Orders {
		i, err := parseIndex(key, len(sp.Branches))
		if err != nil {
			return err
		}
		for _, j := range after {
			if j < 0 || j >= len(sp.Branches) || j == i {
				return invalid("custom_data.orders", "step %d cannot wait for step %d of %d steps", i, j, len(sp.Branches))
			}
		}
		sp.Branches[i].After = after
	}
	if i := txn.Cycle(sp.Branches); i >= 0 {
		return invalid("custom_data.orders", "step %d waits for itself in a circle", i)
	}
	return nil
}

func parseIndex(key string, n int) (int, error) {
	var i int
	if _, err := fmt.Sscanf(key, "%d", &i); err != nil || fmt.Sprint(i) != key || i < 0 || i >= n {
		return 0, invalid("custom_data.orders", "%q is no step of %d", key, n)
	}
	return i, nil
}

func stepID(i int) txn.BranchID { return txn.BranchID(fmt.Sprintf("%02d", i+1)) }

const topicScheme = "topic://"

func (s *Server) msgSpec(ctx context.Context, g *global, sp *txn.Spec, submit bool) error {
	payloads, err := g.payloads()
	if err != nil {
		return err
	}
	if !submit && g.QueryPrepared == "" {
		return invalid("query_prepared", "a prepared message needs its check-back address")
	}
	sp.QueryURL = g.QueryPrepared
	if g.QueryPrepared != "" {
		if err := s.checkURL("query_prepared", g.QueryPrepared, g.Gid); err != nil {
			return err
		}
	}
	var custom struct {
		Delay uint64 `json:"delay"`
	}
	if strings.TrimSpace(g.CustomData) != "" {
		if err := json.Unmarshal([]byte(g.CustomData), &custom); err != nil {
			return invalid("custom_data", "it is not the JSON of a message: %v", err)
		}
	}
	if custom.Delay > secondsMax {
		return invalid("custom_data.delay", "%d seconds is out of range", custom.Delay)
	}
	sp.Opt.Delay = time.Duration(custom.Delay) * time.Second
	for i, st := range g.Steps {
		urls := []string{st["action"]}
		if name, ok := strings.CutPrefix(st["action"], topicScheme); ok {
			if urls, err = s.topics.URLs(ctx, name); err != nil {
				return err
			}
		}
		for k, u := range urls {
			id := stepID(i)
			if len(urls) > 1 {
				id = txn.BranchID(fmt.Sprintf("%s-%02d", id, k+1))
			}
			if u == "" {
				return invalid("steps", "step %d has no action", i)
			}
			b := txn.Branch{ID: id, Confirm: u, Payload: payloads[i]}
			if n := len(sp.Branches); n > 0 && !g.Concurrent {
				b.After = []int{n - 1}
			}
			sp.Branches = append(sp.Branches, b)
		}
	}
	return nil
}

func (s *Server) workflowSpec(g *global, sp *txn.Spec) error {
	var custom struct {
		Name string `json:"name"`
		Data string `json:"data"`
	}
	if err := json.Unmarshal([]byte(g.CustomData), &custom); err != nil || custom.Name == "" {
		return invalid("custom_data", `a workflow needs {"name":…,"data":<base64>}`)
	}
	if g.QueryPrepared == "" {
		return invalid("query_prepared", "a workflow needs its callback address")
	}
	sp.QueryURL = g.QueryPrepared
	return s.checkURL("query_prepared", g.QueryPrepared, g.Gid)
}

// checkBranches bounds the branches and checks their addresses.
func (s *Server) checkBranches(gid string, bs []txn.Branch) error {
	if len(bs) > s.lim.Branches {
		return invalid("steps", "%d branches; at most %d are taken", len(bs), s.lim.Branches)
	}
	total := 0
	for i := range bs {
		total += len(bs[i].Payload)
		for _, u := range []string{bs[i].Try, bs[i].Confirm, bs[i].Cancel} {
			if u == "" {
				continue
			}
			if err := s.checkURL("url", u, gid, string(bs[i].ID)); err != nil {
				return err
			}
		}
	}
	if total > s.lim.PayloadBytes {
		return invalid("payloads", "%d bytes; at most %d are taken", total, s.lim.PayloadBytes)
	}
	return nil
}

// urlBytesMax bounds an address.
const urlBytesMax = 4096

// grpcsScheme begins the address of a gRPC server that is called over TLS.
const grpcsScheme = "grpcs://"

func isHTTP(raw string) bool {
	return strings.HasPrefix(raw, "http://") || strings.HasPrefix(raw, "https://")
}

// checkURL refuses what can never be called: no address, no host, a scheme without a driver, a host that is not
// allowed, a gRPC address for ids that gRPC's metadata cannot carry.
func (s *Server) checkURL(field, raw string, ids ...string) error {
	if len(raw) > urlBytesMax || !utf8.ValidString(raw) || strings.ContainsAny(raw, " \r\n\t\x00") {
		return invalid(field, "%.60q is no address", raw)
	}
	if isHTTP(raw) {
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" || u.Hostname() == "" {
			return invalid(field, "%.200q is no http address: write http://host:port/path", raw)
		}
	} else {
		plain := strings.TrimPrefix(raw, grpcsScheme)
		if strings.Contains(plain, "://") {
			return invalid(field, "call dtmdriver.Use() before you use custom scheme for '%.200s'; http, https, host:port/package.Service/Method and the same behind grpcs:// are spoken here", raw)
		}
		target, method, ok := strings.Cut(plain, "/")
		if !ok {
			return invalid(field, "bad url: '%.200s'. no '/' found", raw)
		}
		if host, _, err := net.SplitHostPort(target); err != nil || host == "" || method == "" {
			return invalid(field, "%.200q is no gRPC address: write host:port/package.Service/Method, behind grpcs:// over TLS", raw)
		}
		for _, id := range ids {
			if !printable(id) {
				return invalid(field, "%.200q is called over gRPC, whose metadata cannot carry the id %q: use printable ASCII", raw, id)
			}
		}
	}
	if err := s.allow.CheckURL(raw); err != nil {
		return invalid(field, "%v", err)
	}
	return nil
}

// branchEvent checks a registration.
func (s *Server) branchEvent(b *branch) (txn.Event, error) {
	if err := checkGid(b.Gid); err != nil {
		return nil, err
	}
	switch {
	case b.BranchID == "":
		return nil, invalid("branch_id", "it is empty")
	case len(b.BranchID) > txn.GidBytesMax || !utf8.ValidString(b.BranchID) || strings.ContainsAny(b.BranchID, "\x00\r\n"):
		return nil, invalid("branch_id", "it is not a text of at most %d bytes", txn.GidBytesMax)
	case len(b.Data) > s.lim.PayloadBytes:
		return nil, invalid("data", "%d bytes; at most %d are taken", len(b.Data), s.lim.PayloadBytes)
	}
	br := txn.Branch{ID: txn.BranchID(b.BranchID), Payload: b.Data}
	switch b.TransType {
	case "tcc":
		br.Confirm, br.Cancel = b.Confirm, b.Cancel
		for field, u := range map[string]string{"confirm": b.Confirm, "cancel": b.Cancel} {
			if u == "" {
				return nil, invalid(field, "it is empty: a TCC branch needs both its confirm and its cancel address")
			}
			if err := s.checkURL(field, u, b.Gid, b.BranchID); err != nil {
				return nil, err
			}
		}
		return txn.Register{Mode: txn.ModeTCC, Branch: br}, nil
	case "xa":
		if b.URL == "" {
			return nil, invalid("url", "it is empty: an XA branch needs its phase-two address")
		}
		if err := s.checkURL("url", b.URL, b.Gid, b.BranchID); err != nil {
			return nil, err
		}
		br.Confirm, br.Cancel = b.URL, b.URL
		return txn.Register{Mode: txn.ModeXA, Branch: br}, nil
	case "workflow":
		switch {
		case b.Op != "action" && b.Op != "commit" && b.Op != "rollback" && b.Op != "business":
			return nil, invalid("op", "%q is none of action, commit, rollback, business", b.Op)
		case b.Status != "succeed" && b.Status != "failed":
			return nil, invalid("status", "%q is neither succeed nor failed", b.Status)
		}
		return txn.RegisterStep{Step: txn.WorkflowStep{Branch: br.ID, Op: b.Op, Failed: b.Status == "failed", Data: bytes.Clone(b.Data)}}, nil
	}
	return nil, &Fault{Kind: FaultInvalid, Text: fmt.Sprintf("trans_type: unknow trans type: %s; branches are registered for tcc, xa and workflow", b.TransType)}
}
