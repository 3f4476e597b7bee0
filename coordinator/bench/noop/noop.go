// Package noop is the participants of the benchmarks: they do nothing but count, over HTTP and gRPC, so that what is
// measured is the coordinator and not the work. They run as a process of their own (cmd/bench-participants).
//
//	POST|GET /try, /confirm, /cancel      answered as Mode says, counted
//	POST|GET /batched/{try,confirm,cancel} the same from a participant that takes native batches, at /batched/batch
//	/busi.Noop/{Try,Confirm,Cancel}       the same over gRPC, any message
//	GET  /counts                          Counts as JSON
//	POST /control?confirm=ok|fail|hold&track=true|false   changes Mode and forgets the tracked gids
//	GET  /firsts                          Firsts as JSON
package noop

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/stats"
)

// Op is a phase of a branch.
type Op int

// The three calls that TCC makes on a participant.
const (
	Try Op = iota
	Confirm
	Cancel
	ops
)

// Mode is how confirms are answered; tries and cancels always succeed.
type Mode int32

const (
	ModeOK   Mode = iota // success
	ModeFail             // a temporary error (500, Unavailable): the coordinator has to try again
	ModeHold             // no answer until the caller gives up or the mode changes
)

// Counts is the number of calls received since the start.
type Counts struct {
	Try     int64 `json:"try"`
	Confirm int64 `json:"confirm"`
	Cancel  int64 `json:"cancel"`
}

// Sub returns the calls received between old and c.
func (c Counts) Sub(old Counts) Counts {
	return Counts{Try: c.Try - old.Try, Confirm: c.Confirm - old.Confirm, Cancel: c.Cancel - old.Cancel}
}

// Firsts says when gids were confirmed for the first time since tracking began.
type Firsts struct {
	Gids     int     `json:"gids"`      // different gids with at least one confirm
	Confirms int64   `json:"confirms"`  // confirm calls in all
	FirstMS  float64 `json:"first_ms"`  // from the begin of tracking to the first of these first confirms,
	MedianMS float64 `json:"median_ms"` // to the middle one,
	P99MS    float64 `json:"p99_ms"`    // to the last but one percent,
	LastMS   float64 `json:"last_ms"`   // to the last
}

// Participants count calls. The zero value is not usable; call New.
type Participants struct {
	counts [ops]struct {
		atomic.Int64
		_ [56]byte // a cache line each
	}
	mode  atomic.Int32
	track atomic.Bool

	mu      sync.Mutex
	since   time.Time
	calls   int64
	first   map[string]time.Duration // gid → time of its first confirm after since
	release chan struct{}            // closed when held confirms are to be let go
}

// New returns participants that answer everything with success and track nothing.
func New() *Participants {
	return &Participants{first: map[string]time.Duration{}, release: make(chan struct{})}
}

// call counts one call and returns how to answer it. gid is asked for only while confirms are tracked.
func (p *Participants) call(op Op, gid func() string) Mode {
	p.counts[op].Add(1)
	if op != Confirm {
		return ModeOK
	}
	if p.track.Load() {
		p.seen(gid())
	}
	return Mode(p.mode.Load())
}

func (p *Participants) seen(gid string) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	if _, ok := p.first[gid]; !ok {
		p.first[gid] = now.Sub(p.since)
	}
}

// held returns the channel whose closing releases a confirm that is held now.
func (p *Participants) held() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.release
}

// Control changes how confirms are answered, lets go of those held, and starts tracking afresh (or ends it).
func (p *Participants) Control(m Mode, track bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode.Store(int32(m))
	close(p.release)
	p.release = make(chan struct{})
	p.since, p.calls, p.first = time.Now(), 0, map[string]time.Duration{}
	p.track.Store(track)
}

// Counts returns the calls received so far.
func (p *Participants) Counts() Counts {
	return Counts{Try: p.counts[Try].Load(), Confirm: p.counts[Confirm].Load(), Cancel: p.counts[Cancel].Load()}
}

// Firsts evaluates what was tracked since the last Control.
func (p *Participants) Firsts() Firsts {
	p.mu.Lock()
	at := make([]time.Duration, 0, len(p.first))
	for _, d := range p.first {
		at = append(at, d)
	}
	f := Firsts{Gids: len(at), Confirms: p.calls}
	p.mu.Unlock()
	if len(at) == 0 {
		return f
	}
	slices.Sort(at)
	ms := func(percent int) float64 { return float64(stats.Percentile(at, percent).Microseconds()) / 1000 }
	f.FirstMS, f.MedianMS, f.P99MS, f.LastMS = ms(0), ms(50), ms(99), ms(100)
	return f
}

// Handler is the HTTP side. It does without a ServeMux: on this path every allocation would be measured as part of all
// contenders alike and make their ratios look better than they are.
func (p *Participants) Handler() http.Handler { return http.HandlerFunc(p.serve) }

var (
	success     = []byte(`{"dtm_result":"SUCCESS"}`)
	successLen  = []string{strconv.Itoa(len(success))}
	contentType = []string{"application/json"}
)

func (p *Participants) serve(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/try":
		p.answer(w, r, Try)
	case "/batched/try", "/batched/confirm", "/batched/cancel":
		w.Header()[batchOffer] = batchPath
		p.answer(w, r, batchedOps[r.URL.Path])
	case batchPath[0]:
		p.batch(w, r)
	case "/confirm":
		p.answer(w, r, Confirm)
	case "/cancel":
		p.answer(w, r, Cancel)
	case "/counts":
		writeJSON(w, p.Counts())
	case "/firsts":
		writeJSON(w, p.Firsts())
	case "/control":
		m, ok := map[string]Mode{"ok": ModeOK, "fail": ModeFail, "hold": ModeHold}[r.URL.Query().Get("confirm")]
		if !ok {
			http.Error(w, "confirm must be ok, fail or hold", http.StatusBadRequest)
			return
		}
		p.Control(m, r.URL.Query().Get("track") == "true")
		writeJSON(w, p.Counts())
	default:
		http.NotFound(w, r)
	}
}

func (p *Participants) answer(w http.ResponseWriter, r *http.Request, op Op) {
	m := p.call(op, func() string { return r.URL.Query().Get("gid") })
	if m == ModeHold {
		select {
		case <-p.held():
		case <-r.Context().Done():
		}
		m = Mode(p.mode.Load())
	}
	if m != ModeOK {
		http.Error(w, "told to fail", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h["Content-Type"], h["Content-Length"] = contentType, successLen
	_, _ = w.Write(success)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header()["Content-Type"] = contentType
	_ = json.NewEncoder(w).Encode(v)
}
