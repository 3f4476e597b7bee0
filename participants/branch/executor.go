package branch

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// errBusy answers a call when too many wait. It says nothing of the call's outcome.
var errBusy = errors.New("too many calls wait at this participant; call again later")

var errClosed = errors.New("the participant is stopping; call again later")

// ErrCutOff is the outcome of a function that did not return in time.
var ErrCutOff = errors.New("the function did not return in time and was cut off")

// executor runs calls: what waits for a worker shares the next local transaction. It never waits for company.
type executor struct {
	barrier *barrier.Barrier
	o       Options
	alone   chan struct{}
	account func(payload []byte) string // nil where accounts stay

	mu      sync.Mutex
	queue   []*job
	running int
	closed  bool
	wg      sync.WaitGroup
}

type job struct {
	ctx      context.Context
	op       operation
	call     *barrier.Call
	payload  []byte
	overGRPC bool
	cut      bool // its function was cut off: it does not run again for this call
	done     func(error)
}

func newExecutor(b *barrier.Barrier, o Options) *executor {
	return &executor{barrier: b, o: o, alone: make(chan struct{}, o.AloneMax)}
}

// start takes jobs; each is done exactly once, from any goroutine.
func (x *executor) start(jobs []*job) {
	x.mu.Lock()
	for _, j := range jobs {
		if x.account != nil && !j.call.Fence.Given() && !j.call.Account.Given() && j.op.op != OpApply && j.op.op != OpHold {
			// A DTM client's own call: what it works on stands in its payload alone.
			if id := x.account(j.payload); id != "" {
				j.call.Account.Slot, j.call.Named = barrier.SlotOf(id), true
			}
		}
		if j.op.op == OpApply {
			// It shares the confirm's row, and no epoch: the journal it comes from is the authority.
			j.call.Op, j.call.Apply, j.call.Fence.Epoch, j.call.Account.Epoch = barrier.OpConfirm, true, 0, 0
		}
		if j.op.op == OpHold { // the record of whoever drives the transaction is the authority
			j.call.Op, j.call.Apply, j.call.Fence.Epoch, j.call.Account.Epoch = barrier.OpTry, true, 0, 0
		}
		switch {
		case x.closed:
			go j.done(errClosed)
		case len(x.queue) >= x.o.QueueMax:
			go j.done(errBusy)
		case j.op.alone:
			x.wg.Add(1)
			go x.runAlone(j)
		default:
			x.queue = append(x.queue, j)
		}
	}
	for range min(x.o.Workers-x.running, len(x.queue)) {
		x.running++
		x.wg.Add(1)
		go x.work()
	}
	x.mu.Unlock()
}

func (x *executor) close() {
	x.mu.Lock()
	x.closed = true
	x.mu.Unlock()
	x.wg.Wait()
}

func (x *executor) runAlone(j *job) {
	defer x.wg.Done()
	select {
	case x.alone <- struct{}{}:
		defer func() { <-x.alone }()
	case <-j.ctx.Done():
		j.done(context.Cause(j.ctx))
		return
	}
	x.together([]*job{j}, &runner{})
}

// work runs what waits until nothing does.
func (x *executor) work() {
	defer x.wg.Done()
	r := &runner{}
	defer r.stop()
	for {
		x.mu.Lock()
		n := min(len(x.queue), x.o.BatchMax)
		if n == 0 {
			x.queue = nil
			x.running--
			x.mu.Unlock()
			return
		}
		jobs := make([]*job, n)
		copy(jobs, x.queue)
		clear(x.queue[:n])
		x.queue = x.queue[n:]
		x.mu.Unlock()
		x.together(jobs, r)
	}
}

// together runs jobs in one local transaction and answers each.
func (x *executor) together(jobs []*job, r *runner) {
	live := jobs[:0:0]
	calls := make([]*barrier.Call, 0, len(jobs))
	for _, j := range jobs {
		if j.ctx.Err() != nil {
			j.done(context.Cause(j.ctx)) // its caller has left already, and will call again
			continue
		}
		live = append(live, j)
		calls = append(calls, j.call)
	}
	if len(live) == 0 {
		return
	}
	// The transaction belongs to all members: none of them ends it by leaving.
	ctx := context.WithoutCancel(live[0].ctx)
	results := x.barrier.DoWork(ctx, 2*x.o.Timeout, calls, barrier.Work{
		One: func(i int, tx *sql.Tx) error { return x.business(live[i], tx, r) },
		Set: func(i int) int {
			if live[i].op.all == nil || live[i].cut {
				return -1
			}
			return live[i].op.set
		},
		All: func(set []int, tx *sql.Tx) error {
			jobs := make([]*job, len(set))
			for n, i := range set {
				jobs[n] = live[i]
			}
			return x.businessOf(jobs, tx, r)
		},
	})
	for i, res := range results {
		live[i].done(res.Err)
	}
}

// business runs one member's function.
func (x *executor) business(j *job, tx *sql.Tx, r *runner) error {
	if j.cut {
		return ErrCutOff
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(j.ctx), x.o.Timeout)
	defer cancel()
	err, ok := r.run(ctx, func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				x.o.Log.Error("a branch function panicked", "call", j.call.String(), "panic", p, "stack", string(debug.Stack()))
				err = fmt.Errorf("panic: %v", p)
			}
		}()
		return j.op.run(ctx, tx, j.call, j.payload, j.overGRPC)
	})
	if ok && err != nil && ctx.Err() != nil {
		// It gave up in time, but a statement that was broken off may have cost the connection.
		j.cut = true
		return fmt.Errorf("%w: %w", err, barrier.ErrAlone)
	}
	if !ok {
		j.cut = true
		x.o.Log.Error("a branch function was cut off", "call", j.call.String(), "after", x.o.Timeout)
		return fmt.Errorf("%w: %w", ErrCutOff, barrier.ErrAlone)
	}
	return err
}

// businessOf runs one function for many members. Cut off, it has cost the batch's transaction, and nobody's answer: each
// member runs by itself then.
func (x *executor) businessOf(jobs []*job, tx *sql.Tx, r *runner) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(jobs[0].ctx), x.o.Timeout)
	defer cancel()
	err, ok := r.run(ctx, func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				x.o.Log.Error("a branch function panicked", "calls", len(jobs), "first", jobs[0].call.String(), "panic", p, "stack", string(debug.Stack()))
				err = fmt.Errorf("panic: %v", p)
			}
		}()
		return jobs[0].op.all(ctx, tx, jobs)
	})
	if !ok || (err != nil && ctx.Err() != nil) {
		return fmt.Errorf("%w: %w", ErrCutOff, barrier.ErrAlone)
	}
	return err
}

// runner is a goroutine that runs one function after another. It can be left behind with one that hangs.
type runner struct {
	in  chan func() error
	out chan error
}

// run runs f; false if ctx ended first: f may still be running then, with a transaction that will be rolled back.
func (r *runner) run(ctx context.Context, f func() error) (error, bool) {
	if r.in == nil {
		r.in, r.out = make(chan func() error), make(chan error, 1)
		go func(in chan func() error, out chan error) {
			for f := range in {
				out <- f()
			}
		}(r.in, r.out)
	}
	r.in <- f
	select {
	case err := <-r.out:
		return err, true
	case <-ctx.Done():
	}
	// The function heeds its context, most likely: a moment lets it say so itself.
	select {
	case err := <-r.out:
		return err, true
	case <-time.After(grace):
	}
	r.stop()
	return nil, false
}

// grace is how long a function may take to notice that its time is over.
const grace = 50 * time.Millisecond

func (r *runner) stop() {
	if r.in != nil {
		close(r.in)
		r.in = nil
	}
}
