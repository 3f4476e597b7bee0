package fault

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/seed"
	barriers "github.com/lockstep-tx/lockstep/participants/barrier"
)

// Skewed has the clock of the database server that all wallets are on wrong by minutes, first one way and then, while it runs and is
// written to, the other way, as the seed says (C4). Nothing that a barrier decides may ask that clock.
type Skewed struct{ off bool }

const (
	skewMin  = 2 * time.Minute
	skewSpan = 8 * time.Minute
	// skewSeen is by how much a clock that was read may differ from what it was set to: the way there and back.
	skewSeen = 2 * time.Second
	// skewStays is how long the first of the two stays.
	skewStays = 2 * time.Second
	// skewDecided is how many decisions are wanted under each of the two.
	skewDecided = 10
)

// Name is the fault's.
func (Skewed) Name() string { return "database-clock-skew" }

// Needs is what the host lacks.
func (Skewed) Needs() error {
	_, err := proc.Faketime()
	return err
}

// Available wants a server of the suite's own, started with a clock that can be moved.
func (Skewed) Available(e Env) error {
	if e.Server == nil || !e.Server.Clock() {
		return errors.New("the wallets' server is not the suite's, or its clock cannot be moved")
	}
	return nil
}

func (s Skewed) disabled() Fault { s.off = true; return s }

// Inject moves the clock, and moves it again the other way.
func (s Skewed) Inject(ctx context.Context, e Env) (Active, error) {
	a := &skewed{e: e, off: s.off}
	rnd := e.rand(53)
	for i := range a.by {
		a.by[i] = skewMin + time.Duration(rnd.Int64N(int64(skewSpan))).Round(time.Second)
	}
	a.by[rnd.IntN(2)] *= -1
	if s.off {
		return a, nil
	}
	for i, by := range a.by {
		if err := a.to(ctx, by); err != nil {
			return a, err
		}
		a.since[i] = e.Log.Now()
		if i == 0 {
			time.Sleep(e.wait(skewStays))
		}
	}
	return a, nil
}

type skewed struct {
	e     Env
	off   bool
	by    [2]time.Duration // one after the other
	since [2]int64         // when a connection had read it
}

// to sets the clock and waits until the server says so.
func (a *skewed) to(ctx context.Context, by time.Duration) error {
	if err := a.e.Server.SetClock(by); err != nil {
		return err
	}
	_, err := until(ctx, a.e.wait(10*time.Second), func() (Evidence, bool, error) {
		off, err := a.offset(ctx)
		return Evidence{What: fmt.Sprintf("the server's clock is %v off, %v is wanted", off, by)}, (off - by).Abs() < skewSeen, err
	})
	return err
}

// offset asks the server what time it is, and says how much later than here that is.
func (a *skewed) offset(ctx context.Context) (off time.Duration, err error) {
	db, d, err := seed.Open(ctx, a.e.Server.URL)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	query := "SELECT extract(epoch FROM now())::float8"
	if d.Dialect == barriers.MySQL {
		query = "SELECT unix_timestamp(now(6)) + 0e0"
	}
	var at float64
	if err := db.QueryRowContext(ctx, query).Scan(&at); err != nil {
		return 0, err
	}
	return time.UnixMicro(int64(at * 1e6)).Sub(time.Now()).Round(time.Millisecond), nil
}

// Effective wants the second one to be read, and enough decisions under both.
func (a *skewed) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(10*time.Second), func() (Evidence, bool, error) {
		off, err := a.offset(ctx)
		first, second := a.decided(a.since[0], a.since[1]), a.decided(a.since[1], a.e.Log.Now())
		return Evidence{fmt.Sprintf("the %s server says that it is %v later than here, and was asked to be %v off, then %v; %d transactions were decided under the first, %d under the second", a.e.Server.Kind, off, a.by[0], a.by[1], first, second),
			map[string]int64{"offset_ms": off.Milliseconds(), "first": first, "second": second}}, a.since[1] > 0 && (off-a.by[1]).Abs() < skewSeen && min(first, second) >= skewDecided, err
	})
}

// decided counts what clients were told of in a time.
func (a *skewed) decided(from, to int64) (n int64) {
	for _, op := range a.e.Log.Ops() {
		if op.Kind != history.Read && op.Outcome == history.OK && op.End > from && op.End <= to && (op.Value == history.Committed || op.Value == history.Aborted) {
			n++
		}
	}
	return n
}

// Recover sets the clock right.
func (a *skewed) Recover(ctx context.Context) error {
	if a.off {
		return nil
	}
	return a.to(ctx, 0)
}

// Recovered wants it to be right.
func (a *skewed) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(10*time.Second), func() (Evidence, bool, error) {
		off, err := a.offset(ctx)
		return Evidence{What: fmt.Sprintf("the %s server's clock is %v off", a.e.Server.Kind, off)}, off.Abs() < skewSeen, err
	})
}

func (a *skewed) Cleanup() error { return nil }
