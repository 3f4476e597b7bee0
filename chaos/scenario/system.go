package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/fault"
	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/workload"
)

// System is what is tested in Lockstep's place, under the same rules: the fault must be proven, the load in flight, and the
// checkers armed.
type System interface {
	// Start starts it, with all that it writes in dir. What it gives is what faults work on; its regions need be none. Close ends
	// it, and is called whatever came of Start.
	Start(ctx context.Context, dir string, log *history.Log) (*proc.Deployment, error)
	Close() error
	// Load starts clients, which enter what they ask and are told in the log. stop lets what is under way end.
	Load(ctx context.Context, seed uint64, lanes int) (stop func(), err error)
	// Snapshot looks at all accounts; what it gives must be such that money is conserved in it.
	Snapshot(ctx context.Context) (check.Snapshot, error)
	// Open counts the transactions of which participants hold something: some of them are nobody's but the system's.
	Open(ctx context.Context) int
	// Settled says that nothing is open any more.
	Settled(ctx context.Context) bool
	// Read adds what is left at the end to what the run has gathered. Files for people may go into dir.
	Read(ctx context.Context, e *check.Evidence, dir string) error
}

// playOther does with another system what play does with Lockstep.
func (r *running) playOther(ctx context.Context) (e *check.Evidence, err error) {
	dir, err := os.MkdirTemp("", "lockstep-chaos-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.MkdirAll(r.o.Dir, 0o755); err != nil {
		return nil, err
	}
	r.d, err = r.o.System.Start(ctx, dir, r.log)
	defer func() {
		err = errors.Join(err, r.o.System.Close(), keepLogs(dir, r.o.Dir))
	}()
	if err != nil {
		return nil, fmt.Errorf("the deployment did not start: %w", err)
	}
	r.env = fault.Env{Deployment: r.d, Log: r.log, Slow: r.o.Slow, Seed: r.o.Seed}
	if err := r.s.Fault.Available(r.env); err != nil {
		return nil, err
	}
	if err := r.underLoad(ctx); err != nil {
		return nil, err
	}
	r.quiet(ctx)
	e = r.gathered()
	return e, r.o.System.Read(ctx, e, r.o.Dir)
}

// load starts the clients of what is tested. Another system's are its own: there is no load then, but an end of it.
func (r *running) load(ctx context.Context, o workload.Options) (load *workload.Load, stop func(), err error) {
	if r.o.System != nil {
		stop, err = r.o.System.Load(ctx, o.Seed, o.Lanes)
		return nil, stop, err
	}
	if r.o.Schedule != nil {
		o.Made, o.Lanes = append([]workload.Operation{}, r.o.Schedule.Operations...), r.o.Schedule.Lanes
	}
	load, err = workload.Start(ctx, r.d, r.log, o)
	return load, load.Stop, err
}

// flying counts the transactions that are under way, as clients see it, or as participants do where more are known there.
func (r *running) flying(ctx context.Context) int {
	n := len(r.log.Flying())
	if r.o.System != nil {
		n = max(n, r.o.System.Open(ctx))
	}
	return n
}

// otherSnapshots looks at another system's accounts until it is stopped.
func (r *running) otherSnapshots(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for sleep(ctx, snapshotEvery/2) {
			s, err := r.o.System.Snapshot(ctx)
			if err != nil {
				continue // the arming condition counts those that came
			}
			r.mu.Lock()
			r.snaps = append(r.snaps, s)
			r.mu.Unlock()
		}
	})
	return func() { cancel(); wg.Wait() }
}
