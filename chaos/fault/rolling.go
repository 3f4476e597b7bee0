package fault

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/proc"
)

// Rolling ends both coordinators of the first region in good order, one after the other, and starts each again before the next, as
// who brings in another version does (P11).
type Rolling struct{ off bool }

// drainLimit is how long a coordinator may take to end in good order.
const drainLimit = 20 * time.Second

// Name is the fault's.
func (Rolling) Name() string { return "rolling-restart" }

// Available wants a region with two coordinators.
func (Rolling) Available(e Env) error { return paired(e, 0) }

func (r Rolling) disabled() Fault { r.off = true; return r }

// Inject restarts.
func (r Rolling) Inject(ctx context.Context, e Env) (Active, error) {
	a := &rolled{e: e, r: e.Deployment.Regions[0], began: e.Log.Now()}
	a.unknown = a.unknowns()
	for _, n := range a.r.Coordinators {
		if r.off {
			break
		}
		pid, from := n.PID(), time.Now()
		tctx, cancel := context.WithTimeout(ctx, e.wait(drainLimit))
		err := n.Terminate(tctx)
		cancel()
		if err != nil {
			return a, fmt.Errorf("%s did not end in good order: %w", n.Name, err)
		}
		took := time.Since(from)
		if err := n.Start(ctx); err != nil {
			return a, err
		}
		if n.PID() != pid && n.Alive() {
			a.done = append(a.done, fmt.Sprintf("%s (pid %d, then %d; it ended with 0 after %v)", n.Name, pid, n.PID(), took.Round(time.Millisecond)))
		}
		time.Sleep(time.Second) // it takes its slots
	}
	a.over = e.Log.Now()
	return a, nil
}

type rolled struct {
	e           Env
	r           *proc.Region
	began, over int64
	done        []string
	unknown     int
}

// unknowns counts what clients have not been told.
func (a *rolled) unknowns() (n int) {
	for _, op := range a.e.Log.Ops() {
		if op.Outcome == history.Unknown {
			n++
		}
	}
	return n
}

// Effective wants both to have ended with 0 and to run as other processes, and decisions meanwhile.
func (a *rolled) Effective(context.Context) (Evidence, error) {
	rate := history.Rate(a.e.Log.Ops(), a.began, a.over)
	ev := Evidence{fmt.Sprintf("restarted: %v; %.0f decisions a second meanwhile, %d requests whose clients were not told", a.done, rate, a.unknowns()-a.unknown), map[string]int64{"restarted": int64(len(a.done)), "rate": int64(rate)}}
	if len(a.done) < len(a.r.Coordinators) || rate == 0 {
		return ev, fmt.Errorf("%w: %s", ErrNoEffect, ev.What)
	}
	return ev, nil
}

// Recover has nothing to do: all of them run.
func (a *rolled) Recover(ctx context.Context) (err error) {
	for _, n := range a.r.Coordinators {
		if !n.Alive() {
			err = errors.Join(err, n.Start(ctx))
		}
	}
	return err
}

// Recovered wants both to hold slots.
func (a *rolled) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		one, two := held(a.r.Admin[0]), held(a.r.Admin[1])
		return Evidence{What: fmt.Sprintf("they hold %v and %v slots", one, two)}, one > 0 && two > 0, nil
	})
}

func (a *rolled) Cleanup() error { return nil }
