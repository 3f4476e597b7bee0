// Package redisbranch serves branches whose data is in Redis, over HTTP as DTM's participants are.
//
// Its law is package branch's: a function's work is done inside the barrier or not at all, and its error decides the
// answer. It takes single calls; a batch would spare nothing, since a call is one round trip. It is tested with the
// conformance suite of package participanttest on a real Redis.
package redisbranch

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/barrier/redisbarrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
)

// Op says what a call is to do. It is asked for repeats too, so it answers from the call and its payload alone and
// changes nothing itself; what depends on balances belongs into the work. Its error says what the coordinator learns, as
// a branch.Op's does.
type Op[P any] func(ctx context.Context, call *barrier.Call, payload P) (redisbarrier.Work, error)

// TCC are the functions of a branch that tries first. All three get the same payload.
type TCC[P any] struct{ Try, Confirm, Cancel Op[P] }

// Saga are the functions of a saga's step. Compensate may be nil where there is nothing to take back.
type Saga[P any] struct{ Action, Compensate Op[P] }

// Options of a Participant. Zero fields take the default given.
type Options struct {
	// Timeout bounds one call. Defaults to 5 s.
	Timeout time.Duration
	// Log gets what went wrong; nil discards.
	Log *slog.Logger
}

// Participant serves branches behind one barrier. Register its branches first, then serve it.
type Participant struct {
	barrier *redisbarrier.Barrier
	options Options
	mux     *http.ServeMux
}

// New returns a participant without branches.
func New(b *redisbarrier.Barrier, o Options) *Participant {
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := &Participant{b, o, http.NewServeMux()}
	p.mux.Handle("/query-prepared", branch.Serve(barrier.OpMsg, func(ctx context.Context, call *barrier.Call, _ []byte) error {
		return b.QueryPrepared(ctx, call)
	}, o.Log))
	return p
}

// Handler serves the branches and messages' check-back at /query-prepared.
func (p *Participant) Handler() http.Handler { return p.mux }

// HandleTCC serves a branch at /name/try, /name/confirm and /name/cancel. It panics on a name that is taken or is not of
// lower-case letters, digits, hyphens and slashes: a mistake of the program.
func HandleTCC[P any](p *Participant, name string, t TCC[P]) {
	handle(p, name, barrier.OpTry, t.Try)
	handle(p, name, barrier.OpConfirm, t.Confirm)
	handle(p, name, barrier.OpCancel, t.Cancel)
}

// HandleSaga serves a saga's step at /name/action and /name/compensate; see HandleTCC.
func HandleSaga[P any](p *Participant, name string, s Saga[P]) {
	handle(p, name, barrier.OpAction, s.Action)
	if s.Compensate != nil {
		handle(p, name, barrier.OpCompensate, s.Compensate)
	}
}

// HandleMessage serves a consumer of messages at /name/action; see HandleTCC.
func HandleMessage[P any](p *Participant, name string, f Op[P]) { handle(p, name, barrier.OpAction, f) }

var branchName = regexp.MustCompile(`^[a-z][a-z0-9-]*(/[a-z][a-z0-9-]*)*$`)

func handle[P any](p *Participant, name, op string, f Op[P]) {
	if !branchName.MatchString(name) || f == nil {
		panic(fmt.Sprintf("redisbranch: %q with op %s: a name has lower-case letters, digits, hyphens and slashes, and a function", name, op))
	}
	p.mux.Handle("/"+name+"/"+op, branch.Serve(op, func(ctx context.Context, call *barrier.Call, raw []byte) error {
		var payload P
		if len(raw) > 0 {
			if err := json.Unmarshal(raw, &payload); err != nil {
				return fmt.Errorf("%w: payload: %w", barrier.ErrInvalid, err)
			}
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.options.Timeout)
		defer cancel()
		work, err := asked(ctx, f, call, payload)
		if err != nil {
			return err
		}
		_, err = p.barrier.Do(ctx, call, work)
		return err
	}, p.options.Log))
}

func asked[P any](ctx context.Context, f Op[P], call *barrier.Call, payload P) (w redisbarrier.Work, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v", v)
		}
	}()
	return f(ctx, call, payload)
}
