package fault

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Strobed has the clock of the database server that all wallets are on go back and forth the whole time, by as much as the seed says
// (C2). Sessions of PostgreSQL, which are processes, even differ from each other meanwhile.
type Strobed struct{ off bool }

const (
	strobeMin, strobeSpan = 3 * time.Second, 57 * time.Second
	// strobeEvery is how long it stays: a process of the server looks for its clock again when what it has is older than a second, and
	// counts whole ones.
	strobeEvery = 2500 * time.Millisecond
	// strobeBack is how often it must be seen to go back.
	strobeBack = 3
)

// Name is the fault's.
func (Strobed) Name() string { return "database-clock-strobe" }

// Needs is what the host lacks.
func (Strobed) Needs() error { return Skewed{}.Needs() }

// Available wants what Skewed wants.
func (Strobed) Available(e Env) error { return Skewed{}.Available(e) }

func (s Strobed) disabled() Fault { s.off = true; return s }

// Inject begins to move the clock to and fro.
func (s Strobed) Inject(ctx context.Context, e Env) (Active, error) {
	a := &strobed{skewed: skewed{e: e, off: s.off}, by: strobeMin + time.Duration(e.rand(59).Int64N(int64(strobeSpan))).Round(time.Second)}
	if s.off {
		return a, nil
	}
	a.since[0] = e.Log.Now()
	ctx, a.halt = context.WithCancel(ctx)
	a.moving.Go(func() { a.err = a.move(ctx) })
	return a, nil
}

type strobed struct {
	skewed
	by     time.Duration
	halt   context.CancelFunc
	moving sync.WaitGroup
	err    error // of what moves it, once that has ended
	last   time.Duration
	back   int64
}

// move moves the clock until ctx ends.
func (a *strobed) move(ctx context.Context) error {
	for by := a.by; ; by = -by {
		if err := a.e.Server.SetClock(by); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(a.e.wait(strobeEvery)):
		}
	}
}

// Effective wants the clock to be seen to go back by most of what it is moved by, again and again, and decisions meanwhile.
func (a *strobed) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(40*time.Second), func() (Evidence, bool, error) {
		is, err := a.offset(ctx)
		if err == nil && a.last-is > a.by*3/2 {
			a.back++
		}
		if err == nil {
			a.last = is
		}
		decided := a.decided(a.since[0], a.e.Log.Now())
		return Evidence{fmt.Sprintf("the %s server's clock, moved from %v before to %v behind and so on, was seen to go back %d times; %d transactions were decided meanwhile", a.e.Server.Kind, a.by, a.by, a.back, decided),
			map[string]int64{"back": a.back, "decided": decided}}, a.back >= strobeBack && decided >= skewDecided, err
	})
}

// Recover sets the clock right.
func (a *strobed) Recover(ctx context.Context) error {
	return errors.Join(a.Cleanup(), a.skewed.Recover(ctx))
}

// Cleanup has the clock moved no more.
func (a *strobed) Cleanup() error {
	if a.halt == nil {
		return nil
	}
	a.halt()
	a.moving.Wait()
	return a.err
}
