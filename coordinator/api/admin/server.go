package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/auth"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Engine is what the API needs of the engine.
type Engine interface {
	Do(ctx context.Context, req engine.Request) (engine.Reply, error)
	List(ctx context.Context, f engine.Filter, cursor string, limit int) ([]engine.Reply, string, error)
	View() *engine.View
	Floors(ctx context.Context) (map[int]int64, error)
	Ready() bool
}

// Server answers operators. Safe for concurrent use.
type Server struct {
	Engine Engine
	Log    *slog.Logger
	// CheckGid says why a gid cannot be used; the text begins with "gid: ". nil takes every gid but the empty one.
	CheckGid func(gid string) error
	// Late is nil where there is one region.
	Late Late
	// Advance moves the debug clock and gives the gids that became due; nil without --debug-clock.
	Advance func(ctx context.Context, by time.Duration) ([]txn.Gid, error)
}

// Error is a refusal. Next is a command to paste; no refusal is without one.
type Error struct {
	Code string `json:"code"`
	Text string `json:"error"`
	Next string `json:"next"`
}

func (e *Error) Error() string { return e.Text }

// List is a page of transactions.
type List struct {
	Transactions []Transaction `json:"transactions"`
	NextCursor   string        `json:"next_cursor"`
}

// Status is what the coordinators of the region are doing.
type Status struct {
	Ready   bool           `json:"ready"`
	Members []MemberStatus `json:"members"`
	Unheld  int            `json:"slots_without_holder"`
}

// MemberStatus is one coordinator.
type MemberStatus struct {
	engine.Member
	Slots int `json:"slots"`
}

// Handler answers below /v1 and, with a debug clock, /debug/clock.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/transactions", s.list)
	mux.HandleFunc("GET /v1/transaction", s.show)
	mux.HandleFunc("POST /v1/transaction/retry", s.act("retry", txn.Retry{}))
	mux.HandleFunc("POST /v1/transaction/stop", s.act("stop", txn.Stop{}))
	mux.HandleFunc("POST /v1/transaction/resolve", s.resolve)
	mux.HandleFunc("POST /v1/adopt", s.adopt)
	mux.HandleFunc("GET /v1/status", s.status)
	mux.HandleFunc("GET /v1/slots", s.slots)
	mux.HandleFunc("GET /v1/floors", s.floors)
	if s.Advance != nil {
		mux.HandleFunc("POST /debug/clock/advance", s.advance)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		text := fmt.Sprintf("there is no %s %s here", r.Method, r.URL.Path)
		writeError(w, http.StatusNotFound, &Error{Code: "not_found", Text: text, Next: "lockstep tx --help"})
	})
	return mux
}

// Need is the role that a request needs.
func Need(r *http.Request) auth.Role {
	switch {
	case r.URL.Path == "/v1/adopt" || r.URL.Path == "/debug/clock/advance":
		return auth.RoleAdmin
	case r.Method != http.MethodGet:
		return auth.RoleOperator
	}
	return auth.RoleViewer
}

// Refuse writes a refusal.
func Refuse(w http.ResponseWriter, r *http.Request, status int, text string) {
	e := &Error{Code: "unavailable", Text: text, Next: "lockstep status"}
	switch status {
	case http.StatusUnauthorized:
		e.Code, e.Next = "unauthorized", "export LOCKSTEP_TOKEN=YOUR_TOKEN  # then the same command again"
	case http.StatusForbidden:
		name := auth.From(r.Context()).Name
		if auth.CheckName(name) != nil {
			name = "YOU"
		}
		e.Code, e.Next = "forbidden", fmt.Sprintf("lockstep token new --role %s --name %s  # give the line to whoever keeps the tokens file", Need(r), quote(name))
	}
	writeError(w, status, e)
}

func write(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"code":"internal","error":"the answer could not be encoded","next":"lockstep status"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the client is gone: nobody is left to tell
}

func writeError(w http.ResponseWriter, status int, e *Error) { write(w, status, e) }

// refused puts an error of the engine into the API's form.
func refused(w http.ResponseWriter, gid string, err error) {
	var te *txn.Error
	switch {
	case errors.As(err, &te):
		code := http.StatusConflict
		next := "lockstep tx show " + word(gid)
		switch te.Code {
		case txn.CodeNotFound:
			code, next = http.StatusNotFound, "lockstep tx list"
		case txn.CodeInvalid:
			code, next = http.StatusBadRequest, "lockstep tx list"
		case txn.CodePhase, txn.CodeMismatch, txn.CodeDuplicateStep, txn.CodeStaleEpoch, txn.CodeIncomplete:
		}
		writeError(w, code, &Error{Code: te.Code.String(), Text: te.Error(), Next: next})
	default:
		writeError(w, http.StatusServiceUnavailable, &Error{Code: "unavailable", Text: err.Error(), Next: "lockstep status"})
	}
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	f := engine.Filter{Slot: -1, GidPrefix: q.Get("gid_prefix")}
	bad := func(field, text string) {
		writeError(w, http.StatusBadRequest, &Error{Code: "invalid", Text: field + ": " + text, Next: "lockstep tx list --help"})
	}
	for _, st := range q["status"] {
		if st == "stopped" {
			f.Stopped = true
			continue
		}
		if st == "in-doubt" {
			f.InDoubt = true
			continue
		}
		p, ok := txn.ParsePhase(st)
		if !ok || p == txn.PhaseNone {
			bad("status", fmt.Sprintf("%q is none of prepared, running, committing, aborting, committed, aborted, stopped, in-doubt", st))
			return
		}
		f.Phases = append(f.Phases, p)
	}
	if m := q.Get("mode"); m != "" {
		mode, ok := txn.ParseMode(m)
		if !ok {
			bad("mode", fmt.Sprintf("%q is none of tcc, saga, msg, xa, workflow", m))
			return
		}
		f.Mode = mode
	}
	limit := 50
	for field, into := range map[string]*int{"slot": &f.Slot, "limit": &limit, "stuck": &f.StuckFails} {
		if v := q.Get(field); v != "" {
			n, err := strconv.Atoi(v)
			if err != nil || n < 0 || (field == "slot" && n >= slot.Count) || (field == "limit" && (n < 1 || n > 10_000)) {
				bad(field, fmt.Sprintf("%q is out of range", v))
				return
			}
			*into = n
		}
	}
	for field, into := range map[string]*int64{"begun_after": &f.BegunAfter, "begun_before": &f.BegunBefore} {
		if v := q.Get(field); v != "" {
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				bad(field, fmt.Sprintf("%q is no unix time in milliseconds", v))
				return
			}
			*into = n
		}
	}
	list, next, err := s.Engine.List(r.Context(), f, q.Get("cursor"), limit)
	if te := (*txn.Error)(nil); errors.As(err, &te) && te.Code == txn.CodeInvalid {
		bad("cursor", te.Text)
		return
	}
	if err != nil {
		refused(w, "", err)
		return
	}
	out := List{Transactions: []Transaction{}, NextCursor: next}
	for i := range list {
		out.Transactions = append(out.Transactions, ViewOf(&list[i], false))
	}
	write(w, http.StatusOK, out)
}

// gidOf reads the gid of a request; false when it was refused.
func (s *Server) gidOf(w http.ResponseWriter, r *http.Request) (string, bool) {
	gid := r.URL.Query().Get("gid")
	if err := s.checkGid(gid); err != nil {
		writeError(w, http.StatusBadRequest, &Error{Code: "invalid", Text: err.Error(), Next: "lockstep tx list"})
		return "", false
	}
	return gid, true
}

func (s *Server) checkGid(gid string) error {
	if s.CheckGid != nil {
		return s.CheckGid(gid)
	}
	if gid == "" {
		return errors.New("gid: no gid specified")
	}
	return nil
}

func (s *Server) show(w http.ResponseWriter, r *http.Request) {
	gid, ok := s.gidOf(w, r)
	if !ok {
		return
	}
	rep, err := s.Engine.Do(r.Context(), engine.Request{Gid: txn.Gid(gid), Want: engine.WantAccepted})
	if err == nil && rep.State.Phase == txn.PhaseNone {
		err = &txn.Error{Code: txn.CodeNotFound, Gid: txn.Gid(gid), Text: "it is unknown: never begun here, or ended longer ago than outcomes are kept"}
	}
	if err != nil {
		refused(w, gid, err)
		return
	}
	write(w, http.StatusOK, ViewOf(&rep, true))
}

// act makes a handler that does something to one transaction and logs who did it.
func (s *Server) act(name string, ev txn.Event) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		gid, ok := s.gidOf(w, r)
		if !ok {
			return
		}
		rep, err := s.Engine.Do(r.Context(), engine.Request{Gid: txn.Gid(gid), Event: ev, Want: engine.WantAccepted})
		Audit(r.Context(), s.Log, name, gid, err)
		if err != nil {
			refused(w, gid, err)
			return
		}
		write(w, http.StatusOK, ViewOf(&rep, true))
	}
}

// Audit logs an act on one transaction with who did it.
func Audit(ctx context.Context, log *slog.Logger, act, gid string, err error) {
	AuditOf(ctx, log, act, err, "gid", gid)
}

// AuditOf logs an administrative act with who did it; on names what it was done to, as pairs of key and value.
func AuditOf(ctx context.Context, log *slog.Logger, act string, err error, on ...any) {
	id := auth.From(ctx)
	attrs := append(append([]any{"act", act}, on...), "who", id.Name, "role", id.Role.String(), "how", id.How)
	if err != nil {
		log.Warn("audit: refused", append(attrs, "err", err)...)
		return
	}
	log.Info("audit", attrs...)
}

// adoptBytesMax bounds one adopted record: it must fit one write of the store.
const adoptBytesMax = 1 << 20

// adoptable reads the body of an adopt: a JSON string with a base64 record of a transaction that can be driven on.
func (s *Server) adoptable(r io.Reader) (*record.Tx, error) {
	var raw []byte
	dec := json.NewDecoder(r)
	if err := dec.Decode(&raw); err != nil {
		return nil, fmt.Errorf("body: a JSON string with a base64 record belongs here: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("body: something follows the record")
	}
	if len(raw) > adoptBytesMax {
		return nil, fmt.Errorf("body: the record has %d bytes; at most %d fit a write of the store", len(raw), adoptBytesMax)
	}
	tx, err := record.Decode(raw)
	switch {
	case err != nil:
		return nil, fmt.Errorf("body: %w", err)
	case tx.State.Phase.Finished():
		return nil, fmt.Errorf("body: transaction %q has ended; open ones are adopted", string(tx.State.Gid))
	case txn.Cycle(tx.State.Branches) >= 0:
		return nil, fmt.Errorf("body: the branches of transaction %q wait for one another in a circle", string(tx.State.Gid))
	}
	if err := s.checkGid(string(tx.State.Gid)); err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	return tx, nil
}

// adopt takes over one transaction of another coordinator: the body is its record.
func (s *Server) adopt(w http.ResponseWriter, r *http.Request) {
	tx, err := s.adoptable(http.MaxBytesReader(w, r.Body, 2*adoptBytesMax))
	if err != nil {
		writeError(w, http.StatusBadRequest, &Error{Code: "invalid", Text: err.Error(), Next: "lockstep import-dtm --help"})
		return
	}
	gid := tx.State.Gid
	rep, err := s.Engine.Do(r.Context(), engine.Request{Gid: gid, Event: engine.Adopt{Tx: *tx}, Want: engine.WantAccepted})
	Audit(r.Context(), s.Log, "adopt", string(gid), err)
	if err != nil {
		refused(w, string(gid), err)
		return
	}
	write(w, http.StatusOK, ViewOf(&rep, true))
}

// Floors is what GET /v1/floors answers: by slot that this process holds, the time in milliseconds since 1970 of its
// oldest unfinished transaction whose gid carries one, or the present. Participants clean their barriers by it.
type Floors struct {
	Floors map[int]int64 `json:"floors"`
}

func (s *Server) floors(w http.ResponseWriter, r *http.Request) {
	floors, err := s.Engine.Floors(r.Context())
	if err != nil {
		refused(w, "", err)
		return
	}
	write(w, http.StatusOK, Floors{floors})
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	out := Status{Ready: s.Engine.Ready(), Members: []MemberStatus{}}
	if v := s.Engine.View(); v != nil {
		slots := map[string]int{}
		for _, h := range v.Holders {
			slots[h]++
		}
		for _, m := range v.Members {
			out.Members = append(out.Members, MemberStatus{Member: m, Slots: slots[m.ID]})
			delete(slots, m.ID)
		}
		for _, n := range slots {
			out.Unheld += n
		}
	}
	write(w, http.StatusOK, out)
}

// Slots is what GET /v1/slots answers: what this process believes of the region's slots, which the store may know better.
type Slots struct {
	Slots []Slot `json:"slots"`
}

// Slot is one slot in it. Holder is a coordinator's id, empty where nobody holds the slot; Term is the store's revision at
// which that was written.
type Slot struct {
	Slot   int    `json:"slot"`
	Holder string `json:"holder,omitempty"`
	Term   uint64 `json:"term"`
}

func (s *Server) slots(w http.ResponseWriter, _ *http.Request) {
	out := Slots{Slots: []Slot{}}
	if v := s.Engine.View(); v != nil {
		for n, term := range v.Terms {
			if term != 0 {
				out.Slots = append(out.Slots, Slot{n, v.Holders[n], uint64(term)})
			}
		}
	}
	write(w, http.StatusOK, out)
}

func (s *Server) advance(w http.ResponseWriter, r *http.Request) {
	by, err := time.ParseDuration(r.URL.Query().Get("by"))
	if err != nil || by < 0 {
		writeError(w, http.StatusBadRequest, &Error{Code: "invalid", Text: "by: a time such as 35s belongs here", Next: "curl -X POST " + quote("http://"+r.Host+"/debug/clock/advance?by=35s")})
		return
	}
	gids, err := s.Advance(r.Context(), by)
	Audit(r.Context(), s.Log, "advance the clock by "+by.String(), "", err)
	if err != nil {
		refused(w, "", err)
		return
	}
	if gids == nil {
		gids = []txn.Gid{}
	}
	write(w, http.StatusOK, map[string]any{"gids": gids})
}
