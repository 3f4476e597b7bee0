package fault

import (
	"context"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/tap"
)

// Gray has a share of the second region's wallets' answers come late, by up to five seconds: it lives, it does what it is asked, and
// half of those who ask have given up by then (N16).
type Gray struct{ off bool }

const (
	grayShare = 0.2
	grayMax   = 5 * time.Second
)

// Name is the fault's.
func (Gray) Name() string { return "gray-participant" }

// Available is always.
func (Gray) Available(Env) error { return nil }

func (g Gray) disabled() Fault { g.off = true; return g }

// Inject makes it slow.
func (g Gray) Inject(_ context.Context, e Env) (Active, error) {
	a := &gray{e: e, tap: e.Deployment.Regions[1].Tap}
	if !g.off {
		a.tap.Set(tap.Rules{SlowShare: grayShare, SlowMax: grayMax})
	}
	return a, nil
}

type gray struct {
	e   Env
	tap *tap.Tap
}

func (a *gray) seen() (late, left int, most time.Duration) {
	for _, s := range a.tap.Slowed() {
		late++
		if s.Left {
			left++
		} else {
			most = max(most, s.By)
		}
	}
	return late, left, most
}

// Effective wants answers that were late and waited for, and others that nobody waited for.
func (a *gray) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		late, left, most := a.seen()
		return Evidence{fmt.Sprintf("%d answers of %s's wallets were late; for %d of them nobody waited, the others came up to %v late", late, a.tap.Region, left, most.Round(time.Millisecond)),
			map[string]int64{"late": int64(late), "left": int64(left)}}, left >= 10 && late-left >= 10 && most > time.Second, nil
	})
}

func (a *gray) Recover(context.Context) error { return a.Cleanup() }

// Recovered wants no answer to be late any more.
func (a *gray) Recovered(ctx context.Context) (Evidence, error) {
	time.Sleep(grayMax) // those that are kept back
	before, _, _ := a.seen()
	time.Sleep(time.Second)
	late, _, _ := a.seen()
	ev := Evidence{What: fmt.Sprintf("%d answers were late in all, %d of them in the last second", late, late-before)}
	if late > before {
		return ev, fmt.Errorf("%w is over: %s", ErrNoEffect, ev.What)
	}
	return ev, ctx.Err()
}

func (a *gray) Cleanup() error { a.tap.Set(tap.Rules{}); return nil }
