package participanttest_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
	"github.com/lockstep-tx/lockstep/participants/participanttest"
)

type order struct {
	Amount int64 `json:"amount"`
}

// bank is a participant made with the kit: it moves an amount from a to held to b.
func bank(t *testing.T) *branch.Participant {
	t.Helper()
	ctx := context.Background()
	db, err := barrier.OpenSQLite(ctx, filepath.Join(t.TempDir(), "bank.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := barrier.Migrate(ctx, db, barrier.SQLite); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{`CREATE TABLE account (name TEXT PRIMARY KEY, minor INTEGER CHECK (minor >= 0))`, `INSERT INTO account VALUES ('a', 100000), ('held', 0), ('b', 0)`} {
		if _, err := db.Exec(s); err != nil {
			t.Fatal(err)
		}
	}
	b, err := barrier.New(db, barrier.SQLite, barrier.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := branch.New(b, branch.Options{})
	move := func(from, to string) branch.Op[order] {
		return func(ctx context.Context, tx *sql.Tx, _ *barrier.Call, o order) error {
			if o.Amount > 100_000 {
				return fmt.Errorf("%w: there is not so much", barrier.ErrRefused)
			}
			for name, n := range map[string]int64{from: -o.Amount, to: o.Amount} {
				if _, err := tx.ExecContext(ctx, `UPDATE account SET minor = minor + ? WHERE name = ?`, n, name); err != nil {
					return err
				}
			}
			return nil
		}
	}
	branch.HandleTCC(p, "pay", branch.TCC[order]{Try: move("a", "held"), Confirm: move("held", "b"), Cancel: move("held", "a")})
	t.Cleanup(func() { p.Close(); db.Close() })
	return p
}

// serve serves p over HTTP with its balances at /state.
func serve(t *testing.T, p *branch.Participant) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("/", p.Handler())
	mux.HandleFunc("/state", func(w http.ResponseWriter, r *http.Request) {
		rows, err := p.Barrier().DB().QueryContext(r.Context(), `SELECT name, minor FROM account`)
		if err != nil {
			http.Error(w, err.Error(), 500)
			return
		}
		defer rows.Close()
		out := map[string]int64{}
		for rows.Next() {
			var name string
			var n int64
			if err := rows.Scan(&name, &n); err != nil {
				http.Error(w, err.Error(), 500)
				return
			}
			out[name] = n
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"balances": out})
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL
}

func targetOf(url string) participanttest.Target {
	return participanttest.Target{Try: url + "/pay/try", Confirm: url + "/pay/confirm", Cancel: url + "/pay/cancel", Payload: []byte(`{"amount":30}`), Refused: []byte(`{"amount":1000000}`), StateURL: url + "/state"}
}

func TestARightParticipantPasses(t *testing.T) {
	p := bank(t)
	participanttest.Run(t, targetOf(serve(t, p)))
	t.Run("over gRPC", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		g := p.GRPCServer()
		go func() { _ = g.Serve(l) }()
		t.Cleanup(g.Stop)
		at := l.Addr().String() + "/pay/"
		participanttest.Run(t, participanttest.Target{Try: at + "Try", Confirm: at + "Confirm", Cancel: at + "Cancel", Payload: []byte(`{"amount":30}`), Refused: []byte(`{"amount":1000000}`), StateURL: serve(t, p) + "/state"})
	})
}

// Without balances and epochs the report says what it does not know.
func TestWhatIsNotSeenIsNotPassed(t *testing.T) {
	target := targetOf(serve(t, bank(t)))
	target.StateURL, target.Refused, target.Unfenced = "", nil, false
	r, err := participanttest.Check(context.Background(), target)
	if err != nil || r.Count(participanttest.NotChecked) != 8 || r.Count(participanttest.Fail) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	var out bytes.Buffer
	r.Write(&out)
	if !strings.Contains(out.String(), "NOT CHECKED  the sum of all balances never changes\n             no state URL was given\n") || !strings.Contains(out.String(), "12 passed, 0 failed, 8 not checked") {
		t.Errorf("the report:\n%s", out.String())
	}
}

func TestWhatCannotBeChecked(t *testing.T) {
	down := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(down.Close)
	for _, target := range []participanttest.Target{targetOf(down.URL), targetOf("ftp://x"), {}} {
		if r, err := participanttest.Check(context.Background(), target); err == nil {
			t.Errorf("%+v: %+v", target, r)
		}
	}
}

// mistakes are participants with one mistake each, made by somebody who stands in front of a right one.
var mistakes = map[string]struct {
	check string // that must find it
	do    func(m *mistaken, w http.ResponseWriter, r *http.Request, right http.Handler)
}{
	"it takes a late try": {"a try after its cancel is refused with 409", func(m *mistaken, w http.ResponseWriter, r *http.Request, right http.Handler) {
		if rec := record(r, right); rec.Code == http.StatusConflict {
			w.WriteHeader(200)
		} else {
			copyTo(w, rec)
		}
	}},
	"it does what it refuses": {"a try that the business refuses is answered 409, as its repeat is, and its cancel succeeds", func(m *mistaken, w http.ResponseWriter, r *http.Request, right http.Handler) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(bytes.ReplaceAll(body, []byte("1000000"), []byte("1"))))
		right.ServeHTTP(w, r)
	}},
	"it refuses repeats": {"repeats of try and confirm succeed", func(m *mistaken, w http.ResponseWriter, r *http.Request, right http.Handler) {
		if m.seen(r.URL.RawQuery) > 1 {
			http.Error(w, "duplicate", http.StatusConflict)
			return
		}
		right.ServeHTTP(w, r)
	}},
	"it has no barrier": {"repeats of try and confirm move what one of each moves", func(m *mistaken, w http.ResponseWriter, r *http.Request, right http.Handler) {
		q := r.URL.Query() // each call as if it were the first of its kind
		q.Set("branch_id", fmt.Sprint(m.seen("")))
		r.URL.RawQuery = q.Encode()
		right.ServeHTTP(w, r)
	}},
	"it knows no epochs": {"a try, a confirm and a cancel of an older epoch are Stale (412)", func(m *mistaken, w http.ResponseWriter, r *http.Request, right http.Handler) {
		if r.Header.Get(barrier.HeaderEpoch) != "" {
			r.Header.Set(barrier.HeaderEpoch, "5")
			r.Header.Set(barrier.HeaderAccountEpoch, "5")
		}
		right.ServeHTTP(w, r)
	}},
	"it takes calls without an epoch": {"a confirm and a cancel without an epoch are no success", func(m *mistaken, w http.ResponseWriter, r *http.Request, right http.Handler) {
		if r.Header.Get(barrier.HeaderEpoch) == "" {
			r.Header.Set(barrier.HeaderEpoch, "2")
			r.Header.Set(barrier.HeaderSlot, fmt.Sprint(barrier.SlotOf(r.URL.Query().Get("gid"))))
		}
		right.ServeHTTP(w, r)
	}},
	"it answers every cancel with success": {"a cancel after the confirm is no success", func(m *mistaken, w http.ResponseWriter, r *http.Request, right http.Handler) {
		rec := record(r, right)
		if r.URL.Query().Get("op") == "cancel" && rec.Code != http.StatusPreconditionFailed && r.Header.Get(barrier.HeaderEpoch) != "" {
			rec.Code = 200
		}
		copyTo(w, rec)
	}},
	"it answers every confirm with success": {"a confirm after the cancel is no success", func(m *mistaken, w http.ResponseWriter, r *http.Request, right http.Handler) {
		rec := record(r, right)
		if r.URL.Query().Get("op") == "confirm" && rec.Code != http.StatusPreconditionFailed && r.Header.Get(barrier.HeaderEpoch) != "" {
			rec.Code = 200
		}
		copyTo(w, rec)
	}},
	"it loses a cent at each confirm": {"the sum of all balances never changes", func(m *mistaken, w http.ResponseWriter, r *http.Request, right http.Handler) {
		right.ServeHTTP(w, r)
		if r.URL.Query().Get("op") == "confirm" {
			_, _ = m.db.Exec(`UPDATE account SET minor = minor - 1 WHERE name = 'b' AND minor > 0`)
		}
	}},
	"it forgets to give back": {"try and cancel leave every balance as it was", func(m *mistaken, w http.ResponseWriter, r *http.Request, right http.Handler) {
		right.ServeHTTP(w, r)
		if r.URL.Query().Get("op") == "cancel" && m.seen(r.URL.Query().Get("gid")) == 1 {
			_, _ = m.db.Exec(`UPDATE account SET minor = minor + CASE name WHEN 'a' THEN -1 ELSE 1 END WHERE name IN ('a', 'held')`)
		}
	}},
	"it takes anything for a payload": {"a broken payload is no success", func(m *mistaken, w http.ResponseWriter, r *http.Request, right http.Handler) {
		body, _ := io.ReadAll(r.Body)
		if !json.Valid(body) {
			body = []byte(`{}`)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		right.ServeHTTP(w, r)
	}},
	"it answers a batch as a whole": {"members of a batch have their own answers", func(m *mistaken, w http.ResponseWriter, r *http.Request, right http.Handler) {
		if r.URL.Path != branch.BatchPath {
			right.ServeHTTP(w, r)
			return
		}
		rec := record(r, right)
		_, _ = w.Write(bytes.ReplaceAll(rec.Body.Bytes(), []byte{0x08, 0x99, 0x03}, []byte{0x08, 0xc8, 0x01})) // 409 becomes 200
	}},
}

// mistaken is what a mistake remembers.
type mistaken struct {
	db   *sql.DB
	mu   sync.Mutex
	seeN map[string]int
}

func (m *mistaken) seen(key string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seeN[key]++
	return m.seeN[key]
}

func record(r *http.Request, h http.Handler) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

func copyTo(w http.ResponseWriter, rec *httptest.ResponseRecorder) {
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(rec.Code)
	if rec.Code == 200 {
		return
	}
	_, _ = w.Write(rec.Body.Bytes())
}

func TestEveryMistakeIsFound(t *testing.T) {
	for name, mistake := range mistakes {
		t.Run(name, func(t *testing.T) {
			p := bank(t)
			m := &mistaken{db: p.Barrier().DB(), seeN: map[string]int{}}
			right := p.Handler()
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { mistake.do(m, w, r, right) }))
			t.Cleanup(s.Close)
			target := targetOf(s.URL)
			target.StateURL = serve(t, p) + "/state"
			r, err := participanttest.Check(context.Background(), target)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range r.Findings {
				if f.Check == mistake.check {
					if f.Verdict != participanttest.Fail || f.Why == "" {
						t.Errorf("%q says %s", f.Check, f.Verdict)
					}
					return
				}
			}
			t.Errorf("no check is called %q", mistake.check)
		})
	}
}
