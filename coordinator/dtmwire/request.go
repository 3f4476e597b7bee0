package dtmwire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

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

// branchEvent checks a registration.
func (s *Server) branchEvent(b *branch) (txn.Event, error) {
	if err := checkGid(b.Gid); err != nil {
		return nil, err
	}
	switch {
	case txn.CheckName(b.BranchID) != nil:
		return nil, invalid("branch_id", "%v", txn.CheckName(b.BranchID))
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
