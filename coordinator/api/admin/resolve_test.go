package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// lateOf has one record, and notes what is posted.
type lateOf struct {
	tx     *record.Tx
	err    error
	posted int
}

func (l *lateOf) Record(context.Context, txn.Gid) (*record.Tx, error) { return l.tx, l.err }
func (l *lateOf) Post(context.Context, *record.Tx) error              { l.posted++; return nil }

// TestResolvingIsAudited: who ended a transaction in doubt, how and on whose word is in the log, also where it was refused; what was
// not understood ended nothing.
func TestResolvingIsAudited(t *testing.T) {
	for _, c := range []struct {
		name, query string
		err         error
		code        int
		line        map[string]string // nil: none
	}{
		{name: "abort", query: "decision=abort&reason=the+client+was+told+no", code: http.StatusOK,
			line: map[string]string{"level": "INFO", "msg": "audit", "act": "resolve", "gid": "g1", "decision": "abort", "reason": "the client was told no"}},
		{name: "commit", query: "decision=commit&reason=T-1", code: http.StatusOK,
			line: map[string]string{"level": "INFO", "msg": "audit", "act": "resolve", "gid": "g1", "decision": "commit", "reason": "T-1"}},
		{name: "refused", query: "decision=commit&reason=T-1", err: &txn.Error{Code: txn.CodePhase, Gid: "g1", Text: "it is aborted"}, code: http.StatusConflict,
			line: map[string]string{"level": "WARN", "msg": "audit: refused", "act": "resolve", "gid": "g1", "decision": "commit", "reason": "T-1"}},
		{name: "no reason", query: "decision=commit", code: http.StatusBadRequest},
		{name: "no decision", query: "reason=T-1", code: http.StatusBadRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log bytes.Buffer
			s := serverOf(&fake{err: c.err, rep: engine.Reply{State: open("g1")}})
			s.Log = slog.New(slog.NewJSONHandler(&log, nil))
			w := httptest.NewRecorder()
			s.Handler().ServeHTTP(w, httptest.NewRequest("POST", "/v1/transaction/resolve?gid=g1&"+c.query, nil))
			if w.Code != c.code {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			var lines []map[string]string
			for raw := range strings.Lines(log.String()) {
				line := map[string]string{}
				if err := json.Unmarshal([]byte(raw), &line); err != nil {
					t.Fatal(raw, err)
				}
				if line["act"] != "" {
					lines = append(lines, line)
				}
			}
			if (c.line == nil) != (len(lines) == 0) || len(lines) > 1 {
				t.Fatalf("%d lines: %v", len(lines), lines)
			}
			for k, v := range c.line {
				if lines[0][k] != v {
					t.Errorf("%s is %q, want %q", k, lines[0][k], v)
				}
			}
			if _, named := c.line["act"]; named && (lines[0]["role"] == "" || c.err != nil && lines[0]["err"] == "") {
				t.Errorf("it does not say by whose right, or why not: %v", lines[0])
			}
		})
	}
}

// TestACommitThatTheLostRegionHadAbortedPostsNothing: an operator's word for a transaction that is committed here is compared with what
// the lost region's own record says before effects are posted from it.
func TestACommitThatTheLostRegionHadAbortedPostsNothing(t *testing.T) {
	at := func(p txn.Phase) *record.Tx {
		s := open("g1")
		s.Phase = p
		return &record.Tx{State: s}
	}
	broken := errors.New("the store does not answer")
	for _, c := range []struct {
		name   string
		late   lateOf
		posted int
		code   int
	}{
		{name: "it had committed it", late: lateOf{tx: at(txn.PhaseCommitted)}, posted: 1, code: http.StatusOK},
		{name: "it had not decided it", late: lateOf{tx: at(txn.PhasePrepared)}, posted: 1, code: http.StatusOK},
		{name: "it had aborted it", late: lateOf{tx: at(txn.PhaseAborted)}, code: http.StatusConflict},
		{name: "it was aborting it", late: lateOf{tx: at(txn.PhaseAborting)}, code: http.StatusConflict},
		{name: "it knows nothing of it", code: http.StatusOK},
		{name: "nobody can say", late: lateOf{err: broken}, code: http.StatusServiceUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fake{rep: engine.Reply{State: at(txn.PhaseCommitted).State}}
			s := serverOf(f)
			late := c.late
			s.Late = &late
			w := httptest.NewRecorder()
			s.Handler().ServeHTTP(w, httptest.NewRequest("POST", "/v1/transaction/resolve?gid=g1&decision=commit&reason=T-1", nil))
			if w.Code != c.code || late.posted != c.posted {
				t.Errorf("%d %s, posted %d times, want %d and %d", w.Code, w.Body, late.posted, c.code, c.posted)
			}
			if c.code != http.StatusOK && len(f.asks) > 0 {
				t.Errorf("it was resolved all the same: %+v", f.asks)
			}
			if c.code == http.StatusConflict && !strings.Contains(w.Body.String(), "says it was aborted") {
				t.Errorf("it does not say why: %s", w.Body)
			}
		})
	}
}
