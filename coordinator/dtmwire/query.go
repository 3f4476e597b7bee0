package dtmwire

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// transaction is DTM's TransGlobal as its readers expect it (reference, section 3.4): id is a number that fits 31
// bits, times are never null, empty fields are left out.
type transaction struct {
	ID               int64               `json:"id"`
	CreateTime       string              `json:"create_time"`
	UpdateTime       string              `json:"update_time"`
	Gid              string              `json:"gid"`
	TransType        string              `json:"trans_type"`
	Status           string              `json:"status"`
	Steps            []map[string]string `json:"steps,omitempty"`
	Payloads         []string            `json:"payloads,omitempty"`
	QueryPrepared    string              `json:"query_prepared,omitempty"`
	Protocol         string              `json:"protocol,omitempty"`
	FinishTime       string              `json:"finish_time,omitempty"`
	RollbackTime     string              `json:"rollback_time,omitempty"`
	Result           string              `json:"result,omitempty"`
	RollbackReason   string              `json:"rollback_reason,omitempty"`
	Options          string              `json:"options,omitempty"`
	CustomData       string              `json:"custom_data,omitempty"`
	NextCronInterval int64               `json:"next_cron_interval,omitempty"`
	NextCronTime     string              `json:"next_cron_time,omitempty"`
	WaitResult       bool                `json:"wait_result,omitempty"`
	TimeoutToFail    int64               `json:"timeout_to_fail,omitempty"`
	RequestTimeout   int64               `json:"request_timeout,omitempty"`
	RetryInterval    int64               `json:"retry_interval,omitempty"`
	RetryLimit       int64               `json:"retry_limit,omitempty"`
	RetryCount       int64               `json:"retry_count,omitempty"`
	BranchHeaders    map[string]string   `json:"branch_headers,omitempty"`
	Concurrent       bool                `json:"concurrent"`
}

type branchRow struct {
	ID           int64  `json:"id"`
	CreateTime   string `json:"create_time"`
	UpdateTime   string `json:"update_time"`
	Gid          string `json:"gid,omitempty"`
	URL          string `json:"url,omitempty"`
	BinData      []byte `json:"bin_data,omitempty"`
	BranchID     string `json:"branch_id,omitempty"`
	Op           string `json:"op,omitempty"`
	Status       string `json:"status,omitempty"`
	FinishTime   string `json:"finish_time,omitempty"`
	RollbackTime string `json:"rollback_time,omitempty"`
}

// idOf makes a stable number of a gid that fits 31 bits.
func idOf(gid txn.Gid) int64 {
	h := uint32(2166136261)
	for i := 0; i < len(gid); i++ {
		h = (h ^ uint32(gid[i])) * 16777619
	}
	return int64(h & 0x7fffffff)
}

func rfc3339(ms int64) string {
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z07:00")
}

func optional(ms int64) string {
	if ms == 0 {
		return ""
	}
	return rfc3339(ms)
}

func transactionOf(st *txn.State) *transaction {
	t := &transaction{
		ID: idOf(st.Gid), CreateTime: rfc3339(st.BegunAt), UpdateTime: rfc3339(st.UpdatedAt), Gid: string(st.Gid),
		TransType: st.Mode.String(), Status: statusOf(st.Phase, st.Mode, st.Stopped), QueryPrepared: st.QueryURL,
		Protocol: st.Opt.Protocol.String(), Result: st.Result, RollbackReason: st.Reason, CustomData: st.Custom,
		WaitResult: st.Opt.WaitResult, TimeoutToFail: int64(st.Opt.Timeout / time.Second),
		RequestTimeout: int64(st.Opt.RequestTimeout / time.Second), RetryInterval: int64(st.Opt.RetryInterval / time.Second),
		RetryLimit: int64(st.Opt.RetryLimit), RetryCount: int64(st.Retries), BranchHeaders: st.Opt.Headers, Concurrent: st.Opt.Concurrent,
	}
	if st.Phase == txn.PhaseCommitted {
		t.FinishTime = optional(st.FinishedAt)
	} else if st.Phase == txn.PhaseAborted {
		t.RollbackTime = optional(st.FinishedAt)
	}
	if next := txn.NextWake(st); next > 1 {
		t.NextCronTime = rfc3339(next)
		t.NextCronInterval = max(0, (next-st.UpdatedAt)/1000)
	}
	opts, err := json.Marshal(optionsJSON(st))
	if err == nil {
		t.Options = string(opts)
	}
	if st.Mode == txn.ModeSaga || st.Mode == txn.ModeMsg {
		for i := range st.Branches {
			b := &st.Branches[i]
			step := map[string]string{"action": b.Try, "compensate": b.Cancel}
			if st.Mode == txn.ModeMsg {
				step = map[string]string{"action": b.Confirm}
			}
			t.Steps = append(t.Steps, step)
			t.Payloads = append(t.Payloads, toValid(string(b.Payload)))
		}
	}
	return t
}

func optionsJSON(st *txn.State) map[string]any {
	o := map[string]any{"concurrent": st.Opt.Concurrent}
	if st.Opt.WaitResult {
		o["wait_result"] = true
	}
	for key, d := range map[string]time.Duration{"timeout_to_fail": st.Opt.Timeout, "request_timeout": st.Opt.RequestTimeout, "retry_interval": st.Opt.RetryInterval} {
		if d > 0 {
			o[key] = int64(d / time.Second)
		}
	}
	if st.Opt.RetryLimit > 0 {
		o["retry_limit"] = st.Opt.RetryLimit
	}
	if len(st.Opt.Headers) > 0 {
		o["branch_headers"] = st.Opt.Headers
	}
	return o
}

// branchesOf lists the rows of DTM's branch table in the order that its readers index into (reference, section 3.5).
func branchesOf(st *txn.State) []branchRow {
	rows := []branchRow{}
	add := func(b *txn.Branch, op, url, status string, doneAt int64) {
		row := branchRow{
			ID: int64(len(rows) + 1), CreateTime: rfc3339(st.BegunAt), UpdateTime: rfc3339(max(doneAt, st.BegunAt)), Gid: string(st.Gid),
			URL: url, BinData: b.Payload, BranchID: string(b.ID), Op: op, Status: status,
		}
		switch status {
		case "succeed":
			row.FinishTime = optional(doneAt)
		case "failed":
			row.RollbackTime = optional(doneAt)
		}
		rows = append(rows, row)
	}
	for i := range st.Branches {
		b := &st.Branches[i]
		commit, abort := second(st, b, true), second(st, b, false)
		switch {
		case b.Message || st.Mode == txn.ModeMsg:
			add(b, "action", b.Confirm, commit, b.Two.DoneAt)
		case st.Mode == txn.ModeTCC:
			add(b, "cancel", b.Cancel, abort, b.Two.DoneAt)
			add(b, "confirm", b.Confirm, commit, b.Two.DoneAt)
		case st.Mode == txn.ModeXA:
			add(b, "rollback", b.Cancel, abort, b.Two.DoneAt)
			add(b, "commit", b.Confirm, commit, b.Two.DoneAt)
		case st.Mode == txn.ModeSaga:
			add(b, "compensate", b.Cancel, abort, b.Two.DoneAt)
			status := "prepared"
			switch b.One.Status {
			case txn.OpDone:
				status = "succeed"
			case txn.OpRefused:
				status = "failed"
			case txn.OpPending, txn.OpSkipped:
			}
			add(b, "action", b.Try, status, b.One.DoneAt)
		}
	}
	for i := range st.Steps {
		w := &st.Steps[i]
		status := "succeed"
		if w.Failed {
			status = "failed"
		}
		add(&txn.Branch{ID: w.Branch, Payload: w.Data}, w.Op, "", status, w.At)
	}
	return rows
}

// second is DTM's status of a branch's call after the decision named.
func second(st *txn.State, b *txn.Branch, commit bool) string {
	if st.Phase.Decided() && st.Phase.Commit() == commit && b.Two.Status == txn.OpDone {
		return "succeed"
	}
	return "prepared"
}

// find reads one transaction; nil when it is unknown.
func (s *Server) find(ctx context.Context, gid string) (*txn.State, error) {
	rep, err := s.do(ctx, engine.Request{Gid: txn.Gid(gid), Want: engine.WantAccepted}, verbQuery)
	if err != nil {
		return nil, err
	}
	if rep.State.Phase == txn.PhaseNone {
		return nil, nil
	}
	return &rep.State, nil
}

func (s *Server) httpQuery(w http.ResponseWriter, r *http.Request) error {
	gid := r.URL.Query().Get("gid")
	if gid == "" {
		return &Fault{Kind: FaultInternal, Text: "no gid specified"}
	}
	st, err := s.find(r.Context(), gid)
	if err != nil {
		return err
	}
	if st == nil {
		return writeJSON(w, map[string]any{"transaction": nil, "branches": []any{}})
	}
	return writeJSON(w, map[string]any{"transaction": transactionOf(st), "branches": branchesOf(st)})
}

// number reads a number of the query; DTM's text for one that is none.
func number(r *http.Request, key string, def int64) (int64, error) {
	v := r.URL.Query().Get(key)
	if v == "" {
		return def, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return 0, &Fault{Kind: FaultInternal, Text: "convert to int error: " + err.Error()}
	}
	return n, nil
}

// pageMax bounds one page of a listing.
const pageMax = 1000

func (s *Server) httpAll(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	if gid := q.Get("gid"); gid != "" {
		st, err := s.find(r.Context(), gid)
		if err != nil {
			return err
		}
		out := map[string]any{"transactions": nil, "next_position": ""}
		if st != nil {
			out["transactions"] = []*transaction{transactionOf(st)}
		}
		return writeJSON(w, out)
	}
	limit, err := number(r, "limit", 100)
	if err != nil {
		return err
	}
	f := engine.Filter{Slot: -1}
	if f.BegunAfter, err = number(r, "createTimeStart", 0); err != nil {
		return err
	}
	if f.BegunBefore, err = number(r, "createTimeEnd", 0); err != nil {
		return err
	}
	if t := q.Get("transType"); t != "" {
		mode, ok := txn.ParseMode(t)
		if !ok {
			return invalid("transType", "unknown trans type: %q", t)
		}
		f.Mode = mode
	}
	status := q.Get("status")
	phases, ok := phasesOf(status)
	if !ok {
		return invalid("status", "unknown status: %q", status)
	}
	f.Phases = phases
	list, next, err := s.engine.List(r.Context(), f, q.Get("position"), int(min(max(limit, 1), pageMax)))
	if err != nil {
		return s.fault(err, verbQuery)
	}
	out := []*transaction{}
	for i := range list {
		if t := transactionOf(&list[i].State); status == "" || t.Status == status {
			out = append(out, t)
		}
	}
	return writeJSON(w, map[string]any{"transactions": out, "next_position": next})
}

// phasesOf gives the phases that DTM's status word may stand for. A stopped transaction shows as failed whatever its
// phase: the caller compares the word again.
func phasesOf(status string) ([]txn.Phase, bool) {
	switch status {
	case "":
		return nil, true
	case "prepared":
		return []txn.Phase{txn.PhasePrepared, txn.PhaseRunning}, true
	case "submitted":
		return []txn.Phase{txn.PhaseRunning, txn.PhaseCommitting}, true
	case "aborting":
		return []txn.Phase{txn.PhaseAborting}, true
	case "succeed":
		return []txn.Phase{txn.PhaseCommitted}, true
	case "failed":
		return nil, true
	}
	return nil, false
}

func (s *Server) httpResetCronTime(w http.ResponseWriter, r *http.Request) error {
	timeout, err := number(r, "timeout", 105)
	if err != nil {
		return err
	}
	limit, err := number(r, "limit", 100)
	if err != nil {
		return err
	}
	if timeout < 0 || timeout > secondsMax {
		return invalid("timeout", "%d seconds is out of range", timeout)
	}
	n, more, err := s.engine.MakeDue(r.Context(), time.Duration(timeout)*time.Second, int(min(max(limit, 1), 100_000)))
	if err != nil {
		return s.fault(err, verbRetry)
	}
	return writeJSON(w, map[string]any{"has_remaining": more, "succeed_count": n})
}

func (s *Server) subscribe(ctx context.Context, topic, url, remark string) error {
	var err error
	if url != "" {
		err = s.checkURL("url", url)
	}
	if err == nil {
		err = s.topics.Subscribe(ctx, topic, toValid(url), toValid(remark))
	}
	return s.changed(ctx, "subscribe", topic, url, err)
}

func (s *Server) unsubscribe(ctx context.Context, topic, url string) error {
	return s.changed(ctx, "unsubscribe", topic, url, s.topics.Unsubscribe(ctx, topic, url))
}

func (s *Server) deleteTopic(ctx context.Context, topic string) error {
	return s.changed(ctx, "delete topic", topic, "", s.topics.Delete(ctx, topic))
}

// changed tells the audit of a topic's change; it gives err back.
func (s *Server) changed(ctx context.Context, act, topic, url string, err error) error {
	if s.AuditTopic != nil {
		s.AuditTopic(ctx, act, topic, url, err)
	}
	return err
}

type kvRow struct {
	ID         int64  `json:"id"`
	CreateTime string `json:"create_time"`
	UpdateTime string `json:"update_time"`
	Cat        string `json:"cat"`
	K          string `json:"k"`
	V          string `json:"v"`
	Version    int64  `json:"version"`
}

func kvRowOf(p engine.KVPair) kvRow {
	return kvRow{
		ID: idOf(txn.Gid(p.Cat + "\x00" + p.Key)), CreateTime: rfc3339(p.CreatedAt), UpdateTime: rfc3339(p.UpdatedAt),
		Cat: p.Cat, K: p.Key, V: p.Value, Version: p.Version,
	}
}

func (s *Server) httpScanKV(w http.ResponseWriter, r *http.Request) error {
	limit, err := number(r, "limit", 100)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	n := int(min(max(limit, 1), pageMax))
	pairs, err := s.topics.Rows(r.Context(), q.Get("cat"), strings.TrimPrefix(q.Get("position"), "k:"), n)
	if err != nil {
		return s.fault(err, verbQuery)
	}
	rows, next := []kvRow{}, ""
	for _, p := range pairs {
		rows = append(rows, kvRowOf(p))
	}
	if len(pairs) == n {
		next = "k:" + pairs[n-1].Key
	}
	return writeJSON(w, map[string]any{"kv": rows, "next_position": next})
}

func (s *Server) httpQueryKV(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	p, ok, err := s.topics.Row(r.Context(), q.Get("cat"), q.Get("key"))
	if err != nil {
		return s.fault(err, verbQuery)
	}
	rows := []kvRow{}
	if ok {
		rows = append(rows, kvRowOf(p))
	}
	return writeJSON(w, map[string]any{"kv": rows})
}
