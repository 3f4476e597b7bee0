package fault

import (
	"context"
	"fmt"

	"github.com/lockstep-tx/lockstep/chaos/netdrop"
	"github.com/lockstep-tx/lockstep/chaos/netproxy"
)

// IsolateByKernel cuts the same links as Isolate, and has the kernel drop the packets of them (N1k).
type IsolateByKernel struct {
	Region int
	off    bool
}

// Name is the fault's.
func (IsolateByKernel) Name() string { return "isolate-coordinator-kernel" }

// Needs is why it cannot be had on this machine.
func (IsolateByKernel) Needs() error {
	if err := netdrop.Probe(); err != nil {
		return fmt.Errorf("CAP_NET_ADMIN and nf_tables are needed: %w", err)
	}
	return nil
}

// Available wants a region with two coordinators.
func (i IsolateByKernel) Available(e Env) error { return paired(e, i.Region) }

func (i IsolateByKernel) disabled() Fault { i.off = true; return i }

// Inject drops what goes from and to the near ends of the links.
func (i IsolateByKernel) Inject(_ context.Context, e Env) (Active, error) {
	r := e.Deployment.Regions[i.Region]
	a := &dropping{e: e, name: r.Coordinators[0].Name, heir: r.Admin[1], before: held(r.Admin[1]), links: around(e, i.Region)}
	if i.off {
		return a, nil
	}
	t, err := netdrop.Open()
	if err != nil {
		return a, err
	}
	a.table = t
	for _, k := range a.links {
		if err := t.Drop(k.Port()); err != nil {
			return a, err
		}
	}
	return a, nil
}

type dropping struct {
	e      Env
	name   string
	heir   string  // admin address of the coordinator that is to take over
	before float64 // slots that it held
	links  []*netproxy.Link
	table  *netdrop.Table
	healed uint64 // bytes that the links had carried at the healing
}

// Effective wants packets that the kernel has dropped, and the lease that ran out for want of them: the other coordinator
// holds the slots.
func (a *dropping) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(lookLimit*15), func() (Evidence, bool, error) {
		var n uint64
		var err error
		if a.table != nil {
			n, err = a.table.Dropped()
		}
		now := held(a.heir)
		return Evidence{fmt.Sprintf("the kernel dropped %d packets of %s; its lease ran out: the other coordinator holds %v slots, %v before", n, a.name, now, a.before),
			map[string]int64{"packets": int64(n), "slots_before": int64(a.before), "slots_after": int64(now)}}, n > 0 && now > a.before, err
	})
}

func (a *dropping) carried() (n uint64) {
	for _, k := range a.links {
		n += k.Counters().Bytes
	}
	return n
}

// Recover lets packets pass.
func (a *dropping) Recover(context.Context) error {
	a.healed = a.carried()
	return a.Cleanup()
}

// Recovered wants bytes to be carried again.
func (a *dropping) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(lookLimit*30), func() (Evidence, bool, error) {
		n := a.carried() - a.healed
		return Evidence{What: fmt.Sprintf("%s: %d bytes were carried since", a.name, n)}, n > 0, nil
	})
}

// Cleanup removes the rules.
func (a *dropping) Cleanup() error {
	if a.table == nil {
		return nil
	}
	return a.table.Close()
}
