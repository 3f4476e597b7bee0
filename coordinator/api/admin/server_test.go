package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/dtmwire"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// fake is an engine that answers as told.
type fake struct {
	err  error
	rep  engine.Reply
	asks []engine.Request
}

func (f *fake) Do(_ context.Context, req engine.Request) (engine.Reply, error) {
	f.asks = append(f.asks, req)
	return f.rep, f.err
}

func (f *fake) List(context.Context, engine.Filter, string, int) ([]engine.Reply, string, error) {
	return nil, "", f.err
}
func (*fake) View() *engine.View                            { return nil }
func (*fake) Floors(context.Context) (map[int]int64, error) { return map[int]int64{7: 5}, nil }
func (*fake) Ready() bool                                   { return false }

func serverOf(f *fake) *Server {
	return &Server{Engine: f, Log: slog.New(slog.DiscardHandler), CheckGid: dtmwire.CheckGid, Advance: func(context.Context, time.Duration) ([]txn.Gid, error) { return nil, f.err }}
}

// recordOf gives the body that adopts a state.
func recordOf(t testing.TB, s txn.State) string {
	t.Helper()
	raw, err := (&record.Tx{State: s}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func open(gid string) txn.State {
	return txn.State{Gid: txn.Gid(gid), Mode: txn.ModeTCC, Phase: txn.PhasePrepared, BegunAt: 5, UpdatedAt: 5}
}

// pasteable is what a next line may be: a command of ours, of curl, or the token, in plain text without an ellipsis.
var pasteable = regexp.MustCompile(`^(lockstep (status|tx|tx list|tx show|tx retry|token new|import-dtm|config check)( |$)|export LOCKSTEP_TOKEN=|curl -X POST ')[^…]*$`)

// judge reads a refusal and says what it lacks.
func judge(t *testing.T, name string, w *httptest.ResponseRecorder) Error {
	t.Helper()
	var e Error
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Code == "" || e.Text == "" {
		t.Errorf("%s: %d %q is no refusal of the API (%v)", name, w.Code, w.Body, err)
	}
	if !pasteable.MatchString(e.Next) {
		t.Errorf("%s: the next line %q cannot be pasted", name, e.Next)
	}
	return e
}

// TestEveryRefusalSaysWhatToDoNext walks through every refusal of the API: each ends in a command to paste, and one of a
// field names it. Nothing that is refused at the door reaches the engine.
func TestEveryRefusalSaysWhatToDoNext(t *testing.T) {
	large := open("g")
	large.Custom = strings.Repeat("x", adoptBytesMax)
	circle := open("g")
	circle.Branches = []txn.Branch{{ID: "a", After: []int{1}}, {ID: "b", After: []int{0}}}
	ended := open("g")
	ended.Phase, ended.DecidedAt, ended.FinishedAt = txn.PhaseCommitted, 6, 7
	type refusal struct {
		name, method, path, body string
		status                   int
		field                    string // what the text begins with
	}
	door := []refusal{
		{"no such status", "GET", "/v1/transactions?status=happy", "", 400, "status: "},
		{"phase none", "GET", "/v1/transactions?status=none", "", 400, "status: "},
		{"no such mode", "GET", "/v1/transactions?mode=x", "", 400, "mode: "},
		{"slot", "GET", "/v1/transactions?slot=1024", "", 400, "slot: "},
		{"limit", "GET", "/v1/transactions?limit=0", "", 400, "limit: "},
		{"stuck", "GET", "/v1/transactions?stuck=-1", "", 400, "stuck: "},
		{"begun after", "GET", "/v1/transactions?begun_after=now", "", 400, "begun_after: "},
		{"begun before", "GET", "/v1/transactions?begun_before=now", "", 400, "begun_before: "},
		{"show nothing", "GET", "/v1/transaction", "", 400, "gid: "},
		{"show no gid", "GET", "/v1/transaction?gid=%01", "", 400, "gid: "},
		{"retry nothing", "POST", "/v1/transaction/retry", "", 400, "gid: "},
		{"stop nothing", "POST", "/v1/transaction/stop", "", 400, "gid: "},
		{"adopt nothing", "POST", "/v1/adopt", "", 400, "body: "},
		{"adopt no base64", "POST", "/v1/adopt", `"%"`, 400, "body: "},
		{"adopt no record", "POST", "/v1/adopt", `"AAAA"`, 400, "body: "},
		{"adopt two", "POST", "/v1/adopt", recordOf(t, open("g")) + `"AAAA"`, 400, "body: "},
		{"adopt too much", "POST", "/v1/adopt", recordOf(t, large), 400, "body: "},
		{"adopt what has ended", "POST", "/v1/adopt", recordOf(t, ended), 400, "body: "},
		{"adopt a circle", "POST", "/v1/adopt", recordOf(t, circle), 400, "body: "},
		{"adopt no gid", "POST", "/v1/adopt", recordOf(t, open("a\x01")), 400, "body: gid: "},
		{"adopt a long gid", "POST", "/v1/adopt", recordOf(t, open(strings.Repeat("g", txn.GidBytesMax+1))), 400, "body: gid: "},
		{"advance by nothing", "POST", "/debug/clock/advance", "", 400, "by: "},
		{"advance back", "POST", "/debug/clock/advance?by=-1s", "", 400, "by: "},
		{"no such path", "GET", "/v1/nothing", "", 404, ""},
		{"no such method", "DELETE", "/v1/transaction", "", 404, ""},
	}
	ask := func(f *fake, r refusal) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		serverOf(f).Handler().ServeHTTP(w, httptest.NewRequest(r.method, r.path, strings.NewReader(r.body)))
		return w
	}
	for _, r := range door {
		f := &fake{}
		w := ask(f, r)
		e := judge(t, r.name, w)
		if w.Code != r.status || !strings.HasPrefix(e.Text, r.field) || len(f.asks) != 0 {
			t.Errorf("%s: %d %q after %d requests to the engine, want %d %q and none", r.name, w.Code, e.Text, len(f.asks), r.status, r.field)
		}
	}
	// What the engine refuses, on every path that asks it.
	errs := []error{engine.ErrUnavailable, engine.ErrNotHolder, engine.ErrStopping, &engine.OverloadedError{Why: "full", RetryAfter: time.Second}, context.Canceled, errors.New("disk on fire")}
	for c := txn.CodeInvalid; c <= txn.CodeStaleEpoch; c++ {
		errs = append(errs, &txn.Error{Code: c, Gid: "it's g", Text: "why"})
	}
	for _, err := range errs {
		for _, r := range []refusal{
			{"list", "GET", "/v1/transactions?cursor=x", "", 0, ""}, {"show", "GET", "/v1/transaction?gid=it's+g", "", 0, ""}, {"retry", "POST", "/v1/transaction/retry?gid=it's+g", "", 0, ""},
			{"stop", "POST", "/v1/transaction/stop?gid=it's+g", "", 0, ""}, {"adopt", "POST", "/v1/adopt", recordOf(t, open("it's g")), 0, ""}, {"advance", "POST", "/debug/clock/advance?by=1s", "", 0, ""},
		} {
			w := ask(&fake{err: err}, r)
			if judge(t, fmt.Sprintf("%s: %v", r.name, err), w); w.Code < 400 {
				t.Errorf("%s: %v is answered %d", r.name, err, w.Code)
			}
		}
	}
	if e := judge(t, "unknown", ask(&fake{}, refusal{method: "GET", path: "/v1/transaction?gid=g"})); e.Code != txn.CodeNotFound.String() {
		t.Errorf("an unknown gid is %q", e.Code)
	}
	// What the guard refuses.
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests, http.StatusInternalServerError} {
		w := httptest.NewRecorder()
		Refuse(w, httptest.NewRequest("GET", "/v1/status", nil), status, "why")
		judge(t, http.StatusText(status), w)
	}
	w := httptest.NewRecorder()
	write(w, http.StatusOK, math.NaN())
	judge(t, "an answer that cannot be encoded", w)
}

// FuzzAdopt: a body is one open transaction that can be driven on, or it is refused, says why, and never reaches the
// engine.
func FuzzAdopt(f *testing.F) {
	ended := open("g")
	ended.Phase, ended.DecidedAt, ended.FinishedAt = txn.PhaseAborted, 6, 7
	for _, s := range []txn.State{open("g"), open(""), open("a;b"), ended, {Gid: "g", Mode: txn.ModeSaga, Phase: txn.PhaseRunning, BegunAt: 5, Branches: []txn.Branch{{ID: "a", Try: "http://a"}, {ID: "b", After: []int{0}}}}} {
		f.Add([]byte(recordOf(f, s)))
	}
	for _, s := range []string{``, `null`, `{}`, `[1,2]`, `"AAAA"`, `"AAAA" 1`, `7`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		e := &fake{rep: engine.Reply{State: open("g")}}
		w := httptest.NewRecorder()
		serverOf(e).Handler().ServeHTTP(w, httptest.NewRequest("POST", "/v1/adopt", bytes.NewReader(body)))
		if w.Code != http.StatusOK {
			if got := judge(t, "adopt", w); len(e.asks) != 0 || w.Code != http.StatusBadRequest || !strings.HasPrefix(got.Text, "body: ") {
				t.Errorf("%d %q after %d requests to the engine", w.Code, got.Text, len(e.asks))
			}
			return
		}
		if len(e.asks) != 1 {
			t.Fatalf("%d requests reached the engine", len(e.asks))
		}
		ad, ok := e.asks[0].Event.(engine.Adopt)
		if s := &ad.Tx.State; !ok || s.Gid != e.asks[0].Gid || dtmwire.CheckGid(string(s.Gid)) != nil || txn.Check(s) != nil || s.Phase.Finished() || s.Phase == txn.PhaseNone || txn.Cycle(s.Branches) >= 0 {
			t.Errorf("%+v reached the engine", e.asks[0])
		}
	})
}

// FuzzList: a query is a filter or a refusal that names its field.
func FuzzList(f *testing.F) {
	for _, s := range []string{"", "status=stopped&status=running&mode=xa", "slot=-1", "slot=1023&limit=10000&stuck=3", "begun_after=9223372036854775808", "limit=1e3", "status=", "cursor=l:5:g", "%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest("GET", "/v1/transactions", nil)
		r.URL = &url.URL{Path: "/v1/transactions", RawQuery: query}
		w := httptest.NewRecorder()
		serverOf(&fake{}).Handler().ServeHTTP(w, r)
		if w.Code == http.StatusOK {
			return
		}
		if e := judge(t, query, w); w.Code != http.StatusBadRequest || !regexp.MustCompile(`^[a-z_]+: .`).MatchString(e.Text) {
			t.Errorf("%q: %d %q", query, w.Code, e.Text)
		}
	})
}

// docs/reference/cli.md names every field and code of the API's JSON, and every code has one case.
func TestTheCommandLinesJSONIsDocumented(t *testing.T) {
	raw, err := os.ReadFile("../../../docs/reference/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(raw)
	for _, v := range []any{List{}, Transaction{}, Branch{}, Moment{}, Status{}, MemberStatus{}, engine.Member{}} {
		for f := range reflect.TypeOf(v).Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name != "" && !strings.Contains(page, "`"+name+"`") && !strings.Contains(page, `"`+name+`"`) {
				t.Errorf("docs/reference/cli.md does not name %s of %T", name, v)
			}
		}
	}
	codes := []string{"unauthorized", "forbidden", "not_found", "unavailable", "internal"}
	for c := txn.CodeInvalid; c <= txn.CodeStaleEpoch; c++ {
		codes = append(codes, c.String())
	}
	for _, c := range codes {
		if c != strings.ToLower(c) || strings.Contains(c, " ") || !strings.Contains(page, "`"+c+"`") {
			t.Errorf("code %q is not documented, or not in the one case", c)
		}
	}
	for status, want := range map[int]string{401: "unauthorized", 403: "forbidden", 503: "unavailable"} {
		w := httptest.NewRecorder()
		Refuse(w, httptest.NewRequest("GET", "/v1/status", nil), status, "no")
		if e := judge(t, want, w); e.Code != want {
			t.Errorf("%d: code %q, want %q", status, e.Code, want)
		}
	}
}
