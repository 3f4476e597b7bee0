package branch

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// host is what serves branch calls: a Participant, or an Outside.
type host interface {
	// branchAt gives what is served at an HTTP path or as a gRPC method.
	branchAt(address string) (operation, bool)
	addresses() map[string]operation
	// hand takes jobs; each is done exactly once, from any goroutine.
	hand(jobs []*job)
	// checkBack answers a message's check-back.
	checkBack(ctx context.Context, call *barrier.Call) error
	log() *slog.Logger
}

func (p *Participant) branchAt(address string) (operation, bool) {
	o, ok := p.branches[address]
	return o, ok
}

func (p *Participant) addresses() map[string]operation { return p.branches }
func (p *Participant) hand(jobs []*job)                { p.exec.start(jobs) }
func (p *Participant) checkBack(ctx context.Context, call *barrier.Call) error {
	return p.barrier.QueryPrepared(ctx, call)
}
func (p *Participant) log() *slog.Logger { return p.options.Log }

// Outside serves branches whose data is in no SQL database, as package redisbranch's: over HTTP, over gRPC and in batches,
// at the addresses that a Participant has. Its functions have a barrier of their own, one call at a time. Register them first,
// then serve it.
type Outside struct {
	timeout  time.Duration
	prepared func(ctx context.Context, call *barrier.Call) error
	logger   *slog.Logger
	branches map[string]operation
}

// OutsideFunc carries out one call, of one operation. overGRPC says how Decode is to read the payload.
type OutsideFunc func(ctx context.Context, call *barrier.Call, payload []byte, overGRPC bool) error

// NewOutside returns an Outside without branches. A function that has not returned after timeout is cut off: its caller is
// told that nothing is known. prepared answers messages' check-backs.
func NewOutside(timeout time.Duration, prepared func(ctx context.Context, call *barrier.Call) error, log *slog.Logger) *Outside {
	return &Outside{timeout, prepared, log, map[string]operation{}}
}

// Handle serves f at /name/op and as the gRPC method that HandleTCC would make of them. It panics as HandleTCC does.
func (o *Outside) Handle(name, op string, f OutsideFunc) {
	register(o.branches, name, operation{op: op, outside: f}, f != nil)
}

// Handler serves the branches over HTTP, batches of them at BatchPath, and messages' check-back at /query-prepared.
func (o *Outside) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", handlerOf(o))
	mux.Handle("/query-prepared", handler(o.logger, func(ctx context.Context, call *barrier.Call, _ []byte) error { return o.prepared(ctx, call) }))
	return mux
}

// GRPCServer is a Participant's.
func (o *Outside) GRPCServer(opts ...grpc.ServerOption) *grpc.Server { return grpcServer(o, opts) }

func (o *Outside) branchAt(address string) (operation, bool) {
	b, ok := o.branches[address]
	return b, ok
}

func (o *Outside) addresses() map[string]operation { return o.branches }
func (o *Outside) checkBack(ctx context.Context, call *barrier.Call) error {
	return o.prepared(ctx, call)
}
func (o *Outside) log() *slog.Logger { return o.logger }

// hand runs members side by side, so that one that hangs keeps nobody from taking effect; those of one branch one after
// another, as a Participant does.
func (o *Outside) hand(jobs []*job) {
	type branchKey struct{ gid, branch string }
	inTurn := map[branchKey][]*job{}
	for _, j := range jobs {
		k := branchKey{j.call.Gid, j.call.BranchID}
		inTurn[k] = append(inTurn[k], j)
	}
	for _, jobs := range inTurn {
		go func() {
			for _, j := range jobs {
				j.done(o.run(j))
			}
		}()
	}
}

// run runs one member's function. One that has begun goes on when its caller leaves.
func (o *Outside) run(j *job) error {
	if j.ctx.Err() != nil {
		return context.Cause(j.ctx)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(j.ctx), o.timeout)
	defer cancel()
	var r runner
	defer r.stop()
	err, ok := r.run(ctx, func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				o.logger.Error("a branch function panicked", "call", j.call.String(), "panic", p, "stack", string(debug.Stack()))
				err = fmt.Errorf("panic: %v", p)
			}
		}()
		return j.op.outside(ctx, j.call, j.payload, j.overGRPC)
	})
	if !ok {
		o.logger.Error("a branch function was cut off", "call", j.call.String(), "after", o.timeout)
		return ErrCutOff
	}
	return err
}

// doOne runs one call on a host and waits for it.
func doOne(ctx context.Context, h host, op operation, call *barrier.Call, payload []byte, overGRPC bool) error {
	ch := make(chan error, 1)
	h.hand([]*job{{ctx: ctx, op: op, call: call, payload: payload, overGRPC: overGRPC, done: func(err error) { ch <- err }}})
	select {
	case err := <-ch:
		return err
	case <-ctx.Done(): // nobody waits for the answer any more; the call goes on
		return context.Cause(ctx)
	}
}
