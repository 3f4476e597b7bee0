// Package fault is what is done to a deployment, each with evidence that it took effect and that it is over.
//
// Its law: a signal that was sent and a rule that was installed are no evidence. Effective looks for what the fault has
// done (a reaped process, bytes that a link swallowed, answers that were lost) and fails where it does not come in time,
// by which the scenario proves nothing.
package fault

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/proc"
)

// Env is what faults work on.
type Env struct {
	Deployment *proc.Deployment
	Log        *history.Log
	// Server is the suite's own database server, on which all wallets are; nil where there is none.
	Server *proc.Server
	// Slow scales waits for this machine; at least 1.
	Slow float64
	// Seed is the run's.
	Seed uint64
	// Draws notes what faults draw; nil: they draw from the seed, and nobody notes it.
	Draws *Draws
	// Dir is for what is to be kept of the run.
	Dir string
}

// wait is d on this machine.
func (e Env) wait(d time.Duration) time.Duration { return time.Duration(float64(d) * max(1, e.Slow)) }

// Evidence is what was seen.
type Evidence struct {
	What   string           `json:"what"`
	Counts map[string]int64 `json:"counts,omitempty"`
}

// Broken is what the product did not do that it promises while a fault was healed: a violation, and no failure of the suite.
type Broken struct {
	Promise string
	Err     error
}

func (b *Broken) Error() string { return b.Promise + ": " + b.Err.Error() }
func (b *Broken) Unwrap() error { return b.Err }

// broken is err as the product's. Where the run's own time is over it is nobody's.
func broken(ctx context.Context, promise string, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	return &Broken{promise, err}
}

// restart starts a process of the product's on what is left to it: one that does not come up breaks its promise.
func restart(ctx context.Context, n *proc.Node) error {
	return broken(ctx, "a process starts on what a crash has left", n.Start(ctx))
}

// Fault can be injected.
type Fault interface {
	Name() string
	// Available is nil, or why the scenario is skipped here.
	Available(Env) error
	Inject(ctx context.Context, e Env) (Active, error)
}

// Active is an injected fault.
type Active interface {
	// Effective blocks until the effect is proven, or says why it is not.
	Effective(ctx context.Context) (Evidence, error)
	Recover(ctx context.Context) error
	// Recovered blocks until it is proven that the fault is over.
	Recovered(ctx context.Context) (Evidence, error)
	// Cleanup leaves nothing of the fault behind. It may be called at any time, and twice.
	Cleanup() error
}

// ErrNoEffect: the evidence did not come in time.
var ErrNoEffect = errors.New("the fault has no proven effect")

// Disabled is a fault that does nothing when it is injected. It is there to show that this is noticed.
type Disabled struct{ Fault }

// Inject looks for the effects of what was not done.
func (d Disabled) Inject(ctx context.Context, e Env) (Active, error) {
	if n, ok := d.Fault.(interface{ disabled() Fault }); ok {
		return n.disabled().Inject(ctx, e)
	}
	return nil, fmt.Errorf("fault %s cannot be disabled", d.Name())
}

// until polls for evidence.
func until(ctx context.Context, limit time.Duration, look func() (Evidence, bool, error)) (Evidence, error) {
	end := time.Now().Add(limit)
	for {
		ev, ok, err := look()
		if ok && err == nil {
			return ev, nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return ev, errors.Join(fmt.Errorf("%w within %v: %s", ErrNoEffect, limit, ev.What), err, ctx.Err())
		}
		time.Sleep(20 * time.Millisecond)
	}
}
