package admin

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

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
