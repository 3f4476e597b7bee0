package dtmimport

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

var (
	now   = time.Date(2026, 11, 22, 7, 0, 0, 0, time.UTC)
	begun = now.Add(-time.Minute)
)

// rowsOf writes rows as "branch op status", with an address that tells them apart and a payload per branch.
func rowsOf(lines ...string) []row {
	var out []row
	for _, line := range lines {
		f := strings.Fields(line)
		out = append(out, row{BranchID: f[0], Op: f[1], Status: f[2], URL: "http://busi/" + f[1], Data: []byte(f[0]), Created: begun, Finished: begun})
	}
	return out
}

func globalOf(mode, status string) global {
	return global{Gid: "g", TransType: mode, Status: status, Protocol: "http", Options: `{"concurrent":false}`, Created: begun, Updated: begun.Add(time.Second)}
}

// sketch is a state in one line: the phase and, for each branch, phase one's and the second call's status, with a + where
// the forward call counts as begun.
func sketch(s *txn.State) string {
	out := s.Phase.String()
	for i := range s.Branches {
		b := &s.Branches[i]
		begun := ""
		if b.One.Status == txn.OpPending && b.One.Attempts > 0 {
			begun = "+"
		}
		out += fmt.Sprintf(" %s:%s%s/%s", b.ID, b.One.Status, begun, b.Two.Status)
	}
	return out
}

func TestStates(t *testing.T) {
	sagaRows := func(one, two, three string) []row {
		var lines []string
		for i, st := range []string{one, two, three} {
			comp, act, _ := strings.Cut(st, "/")
			lines = append(lines, fmt.Sprintf("%02d compensate %s", i+1, comp), fmt.Sprintf("%02d action %s", i+1, act))
		}
		return rowsOf(lines...)
	}
	const pp, ps, pf = "prepared/prepared", "prepared/succeed", "prepared/failed"
	twoTCC := func(a, b, c, d string) []row {
		return rowsOf("01 cancel "+a, "01 confirm "+b, "02 cancel "+c, "02 confirm "+d)
	}
	const P, S = "prepared", "succeed"
	for _, tc := range []struct {
		name         string
		mode, status string
		edit         func(g *global)
		rows         []row
		lossy        bool
		want         string
	}{
		{name: "tcc waits for its client", mode: "tcc", status: P, rows: twoTCC(P, P, P, P), want: "prepared 01:pending/pending 02:pending/pending"},
		{name: "tcc without a branch", mode: "tcc", status: P, want: "prepared"},
		{name: "tcc owes one confirm", mode: "tcc", status: submitted, rows: twoTCC(P, P, P, S), want: "committing 01:pending/pending 02:pending/done"},
		{name: "tcc owes one cancel", mode: "tcc", status: aborting, rows: twoTCC(S, P, P, P), want: "aborting 01:pending/done 02:pending/pending"},
		{name: "xa", mode: "xa", status: submitted, rows: rowsOf("01 rollback prepared", "01 commit succeed", "02 rollback prepared", "02 commit prepared"), want: "committing 01:pending/done 02:pending/pending"},
		{name: "saga in the middle", mode: "saga", status: submitted, rows: sagaRows(ps, pp, pp), want: "running 01:done/pending 02:pending+/pending 03:pending/pending"},
		{name: "saga in the middle where results may be lost", mode: "saga", status: submitted, rows: sagaRows(ps, pp, pp), lossy: true, want: "running 01:done/pending 02:pending+/pending 03:pending+/pending"},
		{name: "timeout makes DTM write at once", mode: "saga", status: submitted, edit: func(g *global) { g.Options = `{"timeout_to_fail":60}` }, rows: sagaRows(ps, pp, pp), lossy: true, want: "running 01:done/pending 02:pending+/pending 03:pending/pending"},
		{name: "saga refused and not yet aborting", mode: "saga", status: submitted, rows: sagaRows(ps, pf, pp), want: "aborting 01:done/pending 02:refused/pending 03:pending/skipped"},
		{name: "saga aborting", mode: "saga", status: aborting, rows: sagaRows(ps, "succeed/failed", pp), lossy: true, want: "aborting 01:done/pending 02:refused/done 03:pending/skipped"},
		{name: "saga timed out in its first step", mode: "saga", status: aborting, rows: sagaRows(pp, pp, pp), want: "aborting 01:pending+/pending 02:pending/skipped 03:pending/skipped"},
		{name: "saga aborting where results may be lost", mode: "saga", status: aborting, rows: sagaRows(pp, pp, pp), lossy: true, want: "aborting 01:pending+/pending 02:pending+/pending 03:pending+/pending"},
		{name: "concurrent saga: whatever could start", mode: "saga", status: aborting, edit: func(g *global) { g.CustomData = `{"concurrent":true,"orders":{"2":[0,1]}}` }, rows: sagaRows(ps, pf, pp), lossy: true, want: "aborting 01:done/pending 02:refused/pending 03:pending/skipped"},
		{name: "concurrent saga: all could start", mode: "saga", status: aborting, edit: func(g *global) { g.CustomData = `{"concurrent":true,"orders":null}` }, rows: sagaRows(ps, pf, pp), want: "aborting 01:done/pending 02:refused/pending 03:pending+/pending"},
		{name: "saga prepared", mode: "saga", status: P, rows: sagaRows(pp, pp, pp), want: "prepared 01:pending/pending 02:pending/pending 03:pending/pending"},
		{name: "msg prepared", mode: "msg", status: P, edit: func(g *global) { g.QueryPrepared = "http://busi/query" }, rows: rowsOf("01 action prepared", "02 action prepared"), want: "prepared 01:skipped/pending 02:skipped/pending"},
		{name: "msg submitted", mode: "msg", status: submitted, rows: rowsOf("01 action succeed", "02-01 action prepared"), want: "committing 01:skipped/done 02-01:skipped/pending"},
		{name: "workflow", mode: "workflow", status: P, edit: func(g *global) {
			g.QueryPrepared, g.CustomData = "busi:58081/workflow.Workflow/Execute", `{"name":"wf","data":"aGk="}`
		}, rows: rowsOf("01 action succeed", "02 business failed"), want: "prepared"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := globalOf(tc.mode, tc.status)
			if tc.edit != nil {
				tc.edit(&g)
			}
			s, err := convert(&g, tc.rows, tc.lossy, now)
			if err != nil {
				t.Fatal(err)
			}
			if got := sketch(&s); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			if s.BegunAt != begun.UnixMilli() {
				t.Errorf("begun at %d: its timeout would not hold", s.BegunAt)
			}
			tr := Transaction{Gid: g.Gid, State: s}
			raw, err := tr.Record()
			if err != nil {
				t.Fatal(err)
			}
			back, err := record.Decode(raw)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(s, back.State, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("the record holds another state:\n%s", d)
			}
			again := txn.Reloaded(s)
			if again.Phase != txn.PhasePrepared && txn.NextWake(&again) == 0 {
				t.Error("something is owed, and it would not wake")
			}
		})
	}
}

// TestNothingLeftToCallEndsAtTheFirstTick: what DTM had carried out but not ended is due at once.
func TestNothingLeftToCallEndsAtTheFirstTick(t *testing.T) {
	for _, tc := range []struct {
		mode, status string
		rows         []row
	}{
		{"tcc", submitted, rowsOf("01 cancel prepared", "01 confirm succeed")},
		{"tcc", aborting, nil},
		{"saga", submitted, rowsOf("01 compensate prepared", "01 action succeed")},
		{"saga", aborting, rowsOf("01 compensate succeed", "01 action failed")},
		{"msg", submitted, rowsOf("01 action succeed")},
	} {
		g := globalOf(tc.mode, tc.status)
		s, err := convert(&g, tc.rows, false, now)
		if err != nil {
			t.Fatal(err)
		}
		again := txn.Reloaded(s)
		if txn.NextWake(&again) == 0 {
			t.Errorf("%s %s: it would not wake", tc.mode, tc.status)
		}
		end, _, err := txn.Step(again, txn.Tick{At: now.UnixMilli(), Epoch: s.Epoch})
		if err != nil || !end.Phase.Finished() {
			t.Errorf("%s %s: a tick leads to %s, %v", tc.mode, tc.status, end.Phase, err)
		}
	}
}

func TestOptions(t *testing.T) {
	g := globalOf("msg", submitted)
	g.Protocol, g.CustomData = "grpc", `{"delay":90}`
	g.Options = `{"wait_result":true,"timeout_to_fail":60,"request_timeout":5,"retry_interval":7,"branch_headers":{"a":"client"},"concurrent":true,"retry_limit":3,"retry_count":2}`
	g.ExtData = `{"headers":{"a":"server","b":"server"}}`
	g.RollbackReason = "none"
	s, err := convert(&g, rowsOf("01 action prepared", "02 action prepared"), false, now)
	if err != nil {
		t.Fatal(err)
	}
	want := txn.Options{Protocol: txn.ProtocolGRPC, WaitResult: true, Concurrent: true, Timeout: time.Minute, RequestTimeout: 5 * time.Second,
		RetryInterval: 7 * time.Second, RetryLimit: 3, Delay: 90 * time.Second, Headers: map[string]string{"a": "client", "b": "server"}}
	if d := cmp.Diff(want, s.Opt); d != "" {
		t.Error(d)
	}
	if s.Retries != 2 || s.Branches[1].After != nil {
		t.Errorf("retries %d, second step waits for %v", s.Retries, s.Branches[1].After)
	}
	if at := txn.Reloaded(s); at.Branches[0].Two.NextAt != begun.Add(90*time.Second).UnixMilli() {
		t.Errorf("the delay does not hold: due at %d", at.Branches[0].Two.NextAt)
	}
	// A clock that was ahead prolongs nothing; a time that was wiped counts from now.
	for _, created := range []time.Time{now.Add(time.Hour), {}} {
		g.Created = created
		if s, err := convert(&g, nil, false, now); err != nil || s.BegunAt != now.UnixMilli() {
			t.Errorf("begun at %d, %v", s.BegunAt, err)
		}
	}
}

func TestWorkflowKeepsItsProgress(t *testing.T) {
	g := globalOf("workflow", prepared)
	g.QueryPrepared, g.CustomData = "http://busi/wf", `{"name":"wf","data":"aGk="}`
	s, err := convert(&g, rowsOf("01 action succeed", "02 business failed"), false, now)
	if err != nil {
		t.Fatal(err)
	}
	want := []txn.WorkflowStep{
		{Branch: "01", Op: "action", Data: []byte("01"), At: begun.UnixMilli()},
		{Branch: "02", Op: "business", Failed: true, Data: []byte("02"), At: begun.UnixMilli()},
	}
	if d := cmp.Diff(want, s.Steps); d != "" {
		t.Error(d)
	}
	if s.Custom != g.CustomData || s.QueryURL != g.QueryPrepared {
		t.Errorf("callback %q with %q", s.QueryURL, s.Custom)
	}
}

// TestWhatCannotBeCarriedOverIsAnError, and says why.
func TestWhatCannotBeCarriedOverIsAnError(t *testing.T) {
	tcc := []string{"01 cancel prepared", "01 confirm prepared"}
	for _, tc := range []struct {
		name, mode, status string
		lines              []string
		edit               func(g *global, rows []row)
		want               string
	}{
		{"gid", "tcc", prepared, tcc, func(g *global, _ []row) { g.Gid = "a;b" }, "not allowed"},
		{"mode", "tpc", prepared, nil, nil, "trans_type"},
		{"discovery", "tcc", prepared, tcc, func(_ *global, r []row) { r[0].URL = "etcd://busi/x" }, "service discovery"},
		{"grpc address", "tcc", prepared, tcc, func(_ *global, r []row) { r[0].URL = "busi/x" }, "no gRPC address"},
		{"half a branch", "tcc", prepared, tcc[:1], nil, "lacks its confirm"},
		{"two payloads", "tcc", prepared, tcc, func(_ *global, r []row) { r[0].Data = nil }, "another payload"},
		{"foreign call", "tcc", prepared, []string{"01 try prepared"}, nil, `no call "try"`},
		{"confirmed undecided", "tcc", prepared, []string{"01 cancel prepared", "01 confirm succeed"}, nil, "confirm is succeed"},
		{"confirmed and cancelled", "tcc", aborting, []string{"01 cancel prepared", "01 confirm succeed"}, nil, "confirm is succeed"},
		{"strange status", "saga", submitted, []string{"01 compensate prepared", "01 action odd"}, nil, `unknown status "odd"`},
		{"compensated and running", "saga", submitted, []string{"01 compensate succeed", "01 action succeed"}, nil, "is compensated"},
		{"circle", "saga", submitted, []string{"01 compensate prepared", "01 action prepared", "02 compensate prepared", "02 action prepared"},
			func(g *global, _ []row) { g.CustomData = `{"concurrent":true,"orders":{"0":[1],"1":[0]}}` }, "circle"},
		{"order out of range", "saga", submitted, []string{"01 compensate prepared", "01 action prepared"},
			func(g *global, _ []row) { g.CustomData = `{"concurrent":true,"orders":{"0":[7]}}` }, "cannot wait for [7]"},
		{"no check-back", "msg", prepared, []string{"01 action prepared"}, nil, "check-back"},
		{"msg aborting", "msg", aborting, nil, nil, "cannot be aborting"},
		{"no callback", "workflow", prepared, nil, func(g *global, _ []row) { g.CustomData = `{"name":"x"}` }, "callback"},
		{"no name", "workflow", prepared, nil, func(g *global, _ []row) { g.QueryPrepared = "http://busi/x" }, "name"},
		{"workflow submitted", "workflow", submitted, nil, nil, "cannot be submitted"},
		{"options", "tcc", prepared, tcc, func(g *global, _ []row) { g.Options = "{" }, "options is not"},
		{"timeout", "tcc", prepared, tcc, func(g *global, _ []row) { g.Options = `{"timeout_to_fail":-1}` }, "timeout_to_fail"},
		{"protocol", "tcc", prepared, tcc, func(g *global, _ []row) { g.Protocol = "thrift" }, "protocol"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g, rows := globalOf(tc.mode, tc.status), rowsOf(tc.lines...)
			if tc.edit != nil {
				tc.edit(&g, rows)
			}
			_, err := convert(&g, rows, false, now)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want something of %q", err, tc.want)
			}
		})
	}
}

func TestRedisValues(t *testing.T) {
	text := `{"id":0,"create_time":"2026-11-22T06:59:00Z","update_time":"2026-11-22T06:59:01Z","gid":"g","trans_type":"tcc","status":"prepared","steps":[{"a":"b"}],"options":"{\"concurrent\":false}","concurrent":false}`
	f, isOpen := decodeRedis("g", text)
	if !isOpen || f.err != nil || !f.Created.Equal(begun) || f.TransType != "tcc" || f.Options != `{"concurrent":false}` {
		t.Errorf("%+v %v", f, isOpen)
	}
	if _, isOpen := decodeRedis("g", strings.Replace(text, "prepared", "succeed", 1)); isOpen {
		t.Error("one that has ended is open")
	}
	if f, isOpen := decodeRedis("h", text); !isOpen || f.err == nil || f.Gid != "h" {
		t.Errorf("another's value: %+v", f)
	}
	if f, isOpen := decodeRedis("g", "{"); !isOpen || f.err == nil {
		t.Errorf("no JSON: %+v", f)
	}
	if got := globEscape(`{a}_g_*?[x]\`); got != `{a}_g_\*\?\[x\]\\` {
		t.Error(got)
	}
}

// fake is a store without a server.
type fake struct {
	busy []bool
	list []found
}

func (f *fake) inUse(context.Context) (bool, error) {
	if len(f.busy) == 0 {
		return false, nil
	}
	b := f.busy[0]
	f.busy = f.busy[1:]
	return b, nil
}
func (f *fake) open(context.Context) ([]found, error) { return f.list, nil }
func (f *fake) lossy() bool                           { return false }
func (f *fake) close() error                          { return nil }

func TestReadOrdersAndKeepsGoingPastWhatItCannotRead(t *testing.T) {
	later, broken := globalOf("tcc", prepared), globalOf("tcc", prepared)
	later.Gid, later.Created = "later", begun.Add(time.Second)
	broken.Gid = "broken"
	st := &fake{busy: []bool{true}, list: []found{{global: later}, {global: broken, err: errors.New("no JSON")}, {global: globalOf("tcc", prepared)}}}
	got, err := read(t.Context(), &url.URL{}, Source{}, func(context.Context, *url.URL, Source) (store, error) { return st, nil })
	if err != nil || len(got) != 3 {
		t.Fatal(got, err)
	}
	if got[0].Gid != "broken" || got[0].Err == nil || got[1].Gid != "g" || got[2].Gid != "later" {
		t.Errorf("%+v", got)
	}
	if _, err := got[0].Record(); err == nil {
		t.Error("what cannot be adopted has a record")
	}
}

func TestNoPasswordIsPrinted(t *testing.T) {
	for _, raw := range []string{
		"postgres://dtm:hunter2@127.0.0.1:1/dtm", "mysql://dtm:hunter2@127.0.0.1:1/dtm", "redis://:hunter2@127.0.0.1:1/0",
		"postgres://dtm:hunter2%zz@host/dtm", "mysql://dtm:hunter2@h/dtm?x=y", "oracle://dtm:hunter2@h",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, err := Read(ctx, Source{URL: raw, Force: true})
		cancel()
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", raw, err)
		}
	}
}
