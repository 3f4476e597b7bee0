package fault

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/proc"
)

// Kill sends SIGKILL to the coordinator in a region, with its embedded etcd where it has one, and starts it again.
type Kill struct {
	Region int
	off    bool
}

// Name is kill's.
func (Kill) Name() string { return "kill" }

// Available is always.
func (Kill) Available(Env) error { return nil }

func (k Kill) disabled() Fault { k.off = true; return k }

// Inject kills.
func (k Kill) Inject(_ context.Context, e Env) (Active, error) {
	n := e.Deployment.Regions[k.Region].Coordinators[0]
	a := &killed{n: n, e: e}
	for _, op := range e.Log.Flying() {
		if op.Region == e.Deployment.Regions[k.Region].Name {
			a.owned++
		}
	}
	if !k.off {
		n.Kill()
	}
	return a, nil
}

type killed struct {
	n     *proc.Node
	e     Env
	owned int64
}

func (a *killed) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(3*time.Second), func() (Evidence, bool, error) {
		ev := Evidence{fmt.Sprintf("%s (pid %d) reaped: %v, its port refuses: %v, it had been asked for %d transactions", a.n.Name, a.n.PID(), !a.n.Alive(), a.n.Refuses(), a.owned),
			map[string]int64{"in_flight_there": a.owned}}
		return ev, !a.n.Alive() && a.n.Refuses() && a.owned > 0, nil
	})
}

func (a *killed) Recover(ctx context.Context) error {
	if a.n.Alive() {
		return nil
	}
	return restart(ctx, a.n)
}

func (a *killed) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		return Evidence{What: fmt.Sprintf("%s runs: %v", a.n.Name, a.n.Alive())}, a.n.Alive() && !a.n.Refuses(), nil
	})
}

func (a *killed) Cleanup() error { return nil }

// Pause stops the first of two coordinators of a region for longer than its lease, so that the other takes its slots over,
// and lets it go on: it finds that it is no longer what it was.
type Pause struct {
	Region int
	off    bool
}

// Name is pause's.
func (Pause) Name() string { return "pause" }

// Available wants a region with two coordinators.
func (p Pause) Available(e Env) error { return paired(e, p.Region) }

func paired(e Env, region int) error {
	if len(e.Deployment.Regions[region].Coordinators) < 2 {
		return fmt.Errorf("region %s has one coordinator: nobody could take its slots over", e.Deployment.Regions[region].Name)
	}
	return nil
}

func (p Pause) disabled() Fault { p.off = true; return p }

// Inject stops the process.
func (p Pause) Inject(_ context.Context, e Env) (Active, error) {
	all := e.Deployment.Regions[p.Region]
	a := &paused{n: all.Coordinators[0], e: e, heir: all.Admin[1], before: held(all.Admin[1])}
	if p.off {
		return a, nil
	}
	return a, a.n.Signal(syscall.SIGSTOP)
}

type paused struct {
	n      *proc.Node
	e      Env
	heir   string
	before float64
}

func (a *paused) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(15*time.Second), func() (Evidence, bool, error) {
		s, err := a.n.State()
		now := held(a.heir)
		return Evidence{fmt.Sprintf("%s is in state %c, the other coordinator holds %v slots, %v before", a.n.Name, s, now, a.before), map[string]int64{"slots_before": int64(a.before), "slots_after": int64(now)}},
			s == 'T' && now > a.before, err
	})
}

func (a *paused) Recover(context.Context) error { return a.n.Signal(syscall.SIGCONT) }

func (a *paused) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		s, err := a.n.State()
		return Evidence{What: fmt.Sprintf("%s is in state %c", a.n.Name, s)}, err == nil && s != 'T' && !a.n.Refuses(), err
	})
}

func (a *paused) Cleanup() error {
	if !a.n.Alive() {
		return nil
	}
	return a.n.Signal(syscall.SIGCONT)
}
