// Package redisbranch serves branches whose data is in Redis, over HTTP and gRPC as DTM's participants are, and in batches.
//
// Its law is package branch's: a function's work is done inside the barrier or not at all, and its error decides the
// answer. A batch's members are each a script of their own, side by side: what it spares is requests. It is tested with the
// conformance suite of package participanttest on a real Redis, over both protocols.
package redisbranch

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"google.golang.org/grpc"

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
	outside *branch.Outside
}

// New returns a participant without branches.
func New(b *redisbarrier.Barrier, o Options) *Participant {
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Participant{b, o, branch.NewOutside(o.Timeout, b.QueryPrepared, o.Log)}
}

// Handler serves the branches over HTTP, batches of them at branch.BatchPath, and messages' check-back at /query-prepared.
func (p *Participant) Handler() http.Handler { return p.outside.Handler() }

// GRPCServer returns a server that serves the branches, batches of them and check-backs; opts are added to it. The caller serves and stops
// it.
func (p *Participant) GRPCServer(opts ...grpc.ServerOption) *grpc.Server {
	return p.outside.GRPCServer(opts...)
}

// HandleTCC serves a branch at /name/try, /name/confirm and /name/cancel over HTTP, and as the gRPC service name with the
// methods Try, Confirm and Cancel; see branch.HandleTCC. It panics on a name that is taken or is not of lower-case letters,
// digits, hyphens and slashes: a mistake of the program.
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

func handle[P any](p *Participant, name, op string, f Op[P]) {
	if f == nil {
		p.outside.Handle(name, op, nil) // which says what is wrong
		return
	}
	p.outside.Handle(name, op, func(ctx context.Context, call *barrier.Call, raw []byte, overGRPC bool) error {
		payload, err := branch.Decode[P](raw, overGRPC)
		if err != nil {
			return fmt.Errorf("%w: payload: %w", barrier.ErrInvalid, err)
		}
		work, err := f(ctx, call, payload)
		if err == nil {
			err = context.Cause(ctx) // it may have been cut off, and its caller answered
		}
		if err != nil {
			return err
		}
		_, err = p.barrier.Do(ctx, call, work)
		return err
	})
}
