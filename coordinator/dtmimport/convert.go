package dtmimport

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lockstep-tx/lockstep/coordinator/dtmwire"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// global is a transaction as DTM stores it. Times that are not set are zero.
type global struct {
	Gid            string    `json:"gid"`
	TransType      string    `json:"trans_type"`
	Status         string    `json:"status"`
	QueryPrepared  string    `json:"query_prepared"`
	Protocol       string    `json:"protocol"`
	Options        string    `json:"options"`
	CustomData     string    `json:"custom_data"`
	ExtData        string    `json:"ext_data"`
	Result         string    `json:"result"`
	RollbackReason string    `json:"rollback_reason"`
	Created        time.Time `json:"-"`
	Updated        time.Time `json:"-"`
}

// row is one call of a branch, or a workflow's progress.
type row struct {
	BranchID string    `json:"branch_id"`
	Op       string    `json:"op"`
	URL      string    `json:"url"`
	Status   string    `json:"status"`
	Data     []byte    `json:"bin_data"`
	Created  time.Time `json:"-"`
	Finished time.Time `json:"-"`
}

// DTM's words for statuses.
const (
	prepared  = "prepared"
	submitted = "submitted"
	aborting  = "aborting"
	succeed   = "succeed"
	failed    = "failed"
)

// convert gives the state in which Lockstep goes on. lossy says that DTM may have lost the results of a saga's calls.
func convert(g *global, rows []row, lossy bool, now time.Time) (txn.State, error) {
	c := &conversion{g: g, rows: rows, lossy: lossy}
	s := &c.s
	if err := dtmwire.CheckGid(g.Gid); err != nil {
		return *s, err
	}
	var ok bool
	if s.Mode, ok = txn.ParseMode(g.TransType); !ok {
		return *s, fmt.Errorf("unknown trans_type %q", g.TransType)
	}
	s.Gid = txn.Gid(g.Gid)
	// A clock that was ahead must not prolong a timeout.
	s.BegunAt = min(millis(g.Created), now.UnixMilli())
	if g.Created.IsZero() {
		s.BegunAt = now.UnixMilli()
	}
	s.UpdatedAt = max(s.BegunAt, min(millis(g.Updated), now.UnixMilli()))
	if err := c.options(); err != nil {
		return *s, err
	}
	s.Custom, s.Result = valid(g.CustomData), valid(g.Result)
	for i := range rows {
		if err := checkRow(&rows[i]); err != nil {
			return *s, err
		}
	}
	var err error
	switch s.Mode {
	case txn.ModeTCC:
		err = c.registered("confirm", "cancel")
	case txn.ModeXA:
		err = c.registered("commit", "rollback")
	case txn.ModeSaga:
		err = c.saga()
	case txn.ModeMsg:
		err = c.msg()
	case txn.ModeWorkflow:
		err = c.workflow()
	}
	if err == nil {
		err = txn.Check(s)
	}
	return *s, err
}

// conversion is one transaction under way.
type conversion struct {
	g     *global
	rows  []row
	lossy bool
	s     txn.State
}

// millis is t in unix milliseconds; 0 for a time that is not set.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func valid(s string) string { return strings.ToValidUTF8(s, "?") }

// decide enters a phase behind the decision.
func (c *conversion) decide(p txn.Phase) {
	c.s.Phase, c.s.DecidedAt, c.s.Query.Status = p, c.s.UpdatedAt, txn.OpSkipped
	if p == txn.PhaseAborting && c.s.Reason == "" {
		c.s.Reason = valid(c.g.RollbackReason)
	}
}

// unfit refuses a status that the mode cannot have.
func (c *conversion) unfit() error {
	return fmt.Errorf("a %s cannot be %s: end it with DTM's client or stop it by DTM's forceStop", c.g.TransType, c.g.Status)
}

// secondsMax bounds every time, in seconds: ten years, as for new transactions.
const secondsMax = 10 * 365 * 24 * 3600

// options reads DTM's options and the headers that its server added.
func (c *conversion) options() error {
	var v struct {
		WaitResult     bool              `json:"wait_result"`
		TimeoutToFail  int64             `json:"timeout_to_fail"`
		RequestTimeout int64             `json:"request_timeout"`
		RetryInterval  int64             `json:"retry_interval"`
		BranchHeaders  map[string]string `json:"branch_headers"`
		Concurrent     bool              `json:"concurrent"`
		RetryLimit     int64             `json:"retry_limit"`
		RetryCount     int64             `json:"retry_count"`
	}
	var ext struct {
		Headers map[string]string `json:"headers"`
	}
	for _, f := range []struct {
		name, text string
		into       any
	}{{"options", c.g.Options, &v}, {"ext_data", c.g.ExtData, &ext}} {
		if f.text == "" {
			continue
		}
		if err := json.Unmarshal([]byte(f.text), f.into); err != nil {
			return fmt.Errorf("%s is not DTM's JSON: %w", f.name, err)
		}
	}
	o := &c.s.Opt
	var ok bool
	if o.Protocol, ok = txn.ParseProtocol(c.g.Protocol); !ok {
		return fmt.Errorf("unknown protocol %q", c.g.Protocol)
	}
	for _, t := range []struct {
		name string
		n    int64
		into *time.Duration
	}{{"timeout_to_fail", v.TimeoutToFail, &o.Timeout}, {"request_timeout", v.RequestTimeout, &o.RequestTimeout}, {"retry_interval", v.RetryInterval, &o.RetryInterval}} {
		if t.n < 0 || t.n > secondsMax {
			return fmt.Errorf("%s of %d seconds is out of range", t.name, t.n)
		}
		*t.into = time.Duration(t.n) * time.Second
	}
	if v.RetryLimit < 0 || v.RetryLimit > math.MaxInt32 || v.RetryCount < 0 || v.RetryCount > math.MaxInt32 {
		return fmt.Errorf("retry_limit %d, retry_count %d: out of range", v.RetryLimit, v.RetryCount)
	}
	o.RetryLimit, c.s.Retries = int(v.RetryLimit), int(v.RetryCount)
	o.WaitResult, o.Concurrent = v.WaitResult, v.Concurrent
	for _, headers := range []map[string]string{ext.Headers, v.BranchHeaders} { // the client's win
		for k, text := range headers {
			if !utf8.ValidString(k) || !utf8.ValidString(text) {
				return fmt.Errorf("branch_headers: %q is not valid UTF-8", k)
			}
		}
		if o.Headers == nil && len(headers) > 0 {
			o.Headers = map[string]string{}
		}
		maps.Copy(o.Headers, headers)
	}
	return nil
}

// checkRow refuses what no branch here could be.
func checkRow(r *row) error {
	if r.BranchID == "" || len(r.BranchID) > txn.GidBytesMax || !utf8.ValidString(r.BranchID) || !utf8.ValidString(r.Op) {
		return fmt.Errorf("branch id %q is not a text of at most %d bytes", r.BranchID, txn.GidBytesMax)
	}
	if err := checkAddress(r.URL); err != nil {
		return fmt.Errorf("branch %s, %s: %w", r.BranchID, r.Op, err)
	}
	return nil
}

// checkAddress refuses what the coordinator cannot call; an empty address is answered without a call.
func checkAddress(raw string) error {
	switch {
	case raw == "":
		return nil
	case !utf8.ValidString(raw) || strings.ContainsAny(raw, " \r\n\t\x00"):
		return fmt.Errorf("%.60q is no address", raw)
	case strings.HasPrefix(raw, "http://"), strings.HasPrefix(raw, "https://"):
		if u, err := url.Parse(raw); err != nil || u.Hostname() == "" {
			return fmt.Errorf("%.200q is no http address", raw)
		}
		return nil
	case strings.Contains(raw, "://"):
		return fmt.Errorf("%.200q needs a driver of DTM's for service discovery; http, https and host:port/package.Service/Method are spoken here", raw)
	}
	target, method, _ := strings.Cut(raw, "/")
	if host, _, err := net.SplitHostPort(target); err != nil || host == "" || method == "" {
		return fmt.Errorf("%.200q is no gRPC address: host:port/package.Service/Method", raw)
	}
	return nil
}

// call turns a row's status into that of a call.
func call(r *row) (txn.OpState, error) {
	switch r.Status {
	case prepared:
		return txn.OpState{}, nil
	case succeed:
		return txn.OpState{Status: txn.OpDone, Attempts: 1, DoneAt: millis(r.Finished)}, nil
	case failed:
		return txn.OpState{Status: txn.OpRefused, Attempts: 1, DoneAt: millis(r.Finished)}, nil
	}
	return txn.OpState{}, fmt.Errorf("branch %s, %s: unknown status %q", r.BranchID, r.Op, r.Status)
}

// pair is a branch's two rows.
type pair struct {
	id         string
	first, end *row // what goes forward or commits, and what undoes
}

// pairs puts the rows of each branch together, in the order of registration.
func (c *conversion) pairs(forward, back string) ([]pair, error) {
	var out []pair
	index := map[string]int{}
	for i := range c.rows {
		r := &c.rows[i]
		k, ok := index[r.BranchID]
		if !ok {
			k = len(out)
			index[r.BranchID] = k
			out = append(out, pair{id: r.BranchID})
		}
		into := &out[k].first
		switch r.Op {
		case forward:
		case back:
			into = &out[k].end
		default:
			return nil, fmt.Errorf("branch %s: a %s has no call %q", r.BranchID, c.g.TransType, r.Op)
		}
		if *into != nil {
			return nil, fmt.Errorf("branch %s has its %s twice", r.BranchID, r.Op)
		}
		*into = r
	}
	for _, p := range out {
		switch {
		case p.first == nil || p.end == nil:
			return nil, fmt.Errorf("branch %s lacks its %s or its %s", p.id, forward, back)
		case string(p.first.Data) != string(p.end.Data):
			return nil, fmt.Errorf("branch %s has another payload for its %s than for its %s", p.id, forward, back)
		}
	}
	return out, nil
}

// registered converts TCC and XA: the client drives phase one, so a prepared one waits for it or its timeout.
func (c *conversion) registered(commit, abort string) error {
	list, err := c.pairs(commit, abort)
	if err != nil {
		return err
	}
	c.s.Query.Status = txn.OpSkipped
	c.s.Phase = txn.PhasePrepared
	switch c.g.Status {
	case prepared:
	case submitted:
		c.decide(txn.PhaseCommitting)
	case aborting:
		c.decide(txn.PhaseAborting)
	default:
		return c.unfit()
	}
	for _, p := range list {
		done, never := p.first, p.end
		if c.s.Phase == txn.PhaseAborting {
			done, never = p.end, p.first
		}
		if never.Status != prepared || done.Status == failed || (c.s.Phase == txn.PhasePrepared && done.Status != prepared) {
			return fmt.Errorf("branch %s: its %s is %s and its %s is %s in a transaction that is %s", p.id, done.Op, done.Status, never.Op, never.Status, c.g.Status)
		}
		b := txn.Branch{ID: txn.BranchID(p.id), Confirm: p.first.URL, Cancel: p.end.URL, Payload: p.first.Data}
		if b.Two, err = call(done); err != nil {
			return err
		}
		c.s.Branches = append(c.s.Branches, b)
	}
	return nil
}
