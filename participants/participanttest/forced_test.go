package participanttest_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/participanttest"
)

// vault is the bank's accounts, which can be moved and settled: each order is of 30.
type vault struct{}

func (vault) Take(context.Context, *sql.Tx, int, []barrier.Row) (json.RawMessage, error) {
	return nil, nil
}

func (vault) Give(context.Context, *sql.Tx, int, json.RawMessage, []barrier.Row, []barrier.Row) error {
	return nil
}

func (vault) Settle(ctx context.Context, tx *sql.Tx, gid, branch, op string) error {
	var n int
	if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM dtm_barrier_barrier WHERE gid = ? AND branch_id = ? AND op = 'try' AND reason = 'try'`, gid, branch).Scan(&n); err != nil {
		return err
	}
	if n == 0 {
		return barrier.ErrNotTried
	}
	to := map[string]string{barrier.OpConfirm: "b", barrier.OpCancel: "a"}[op]
	_, err := tx.ExecContext(ctx, `UPDATE account SET minor = minor + CASE name WHEN 'held' THEN -30 ELSE 30 END WHERE name IN ('held', ?)`, to)
	return err
}

// Mistakes that only the loss of a region shows.
var forcedMistakes = map[string]struct {
	check string // that must find it; empty for none
	do    func(w http.ResponseWriter, r *http.Request, right http.Handler)
}{
	"it makes none": {"", func(w http.ResponseWriter, r *http.Request, right http.Handler) { right.ServeHTTP(w, r) }},
	"it lists no tries": {"what was tried is listed until it has ended", func(w http.ResponseWriter, r *http.Request, right http.Handler) {
		if r.URL.Path == "/lockstep/tries" {
			fmt.Fprint(w, `{"tries":[]}`)
			return
		}
		right.ServeHTTP(w, r)
	}},
	"it raises no fence": {"after a fence every call with a lower epoch is Stale", func(w http.ResponseWriter, r *http.Request, right http.Handler) {
		if r.URL.Path != "/lockstep/fence" {
			right.ServeHTTP(w, r)
		}
	}},
	"it adopts under any policy": {"a copy becomes the home by a forced adoption, field by field", func(w http.ResponseWriter, r *http.Request, right http.Handler) {
		if r.URL.Path == "/lockstep/adopt" && r.URL.Query().Get("forced") == "true" {
			q := r.URL.Query()
			q.Set("at_risk", "allow")
			q.Del("cap")
			r.URL.RawQuery = q.Encode()
		}
		right.ServeHTTP(w, r)
	}},
	"it settles beside the barrier": {"a try is ended by its name, and an ordinary end excludes the other one", func(w http.ResponseWriter, r *http.Request, right http.Handler) {
		if r.URL.Path != "/lockstep/settle" {
			right.ServeHTTP(w, r)
		}
	}},
}

func TestMistakesThatOnlyTheLossOfARegionShowsAreFound(t *testing.T) {
	for name, mistake := range forcedMistakes {
		t.Run(name, func(t *testing.T) {
			p := bank(t)
			p.Move(vault{})
			right := p.Handler()
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				r.Body = io.NopCloser(bytes.NewReader(body))
				mistake.do(w, r, right)
			}))
			t.Cleanup(s.Close)
			target := targetOf(s.URL)
			target.StateURL, target.RegionURL = serve(t, p)+"/state", s.URL
			r, err := participanttest.Check(context.Background(), target)
			if err != nil {
				t.Fatal(err)
			}
			found := mistake.check == ""
			for _, f := range r.Findings {
				switch {
				case f.Check == mistake.check:
					found = f.Verdict == participanttest.Fail
				case f.Verdict != participanttest.Pass && !strings.Contains(f.Check, "applied to a copy"): // which the bank does not serve
					t.Errorf("%q says %s: %s", f.Check, f.Verdict, f.Why)
				}
			}
			if !found {
				t.Errorf("%q finds nothing", mistake.check)
			}
		})
	}
}
