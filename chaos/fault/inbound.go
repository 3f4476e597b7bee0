package fault

import (
	"context"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/netproxy"
	"github.com/lockstep-tx/lockstep/chaos/tap"
)

// IsolateOneWay lets nothing come to the first of a region's two coordinators (N2), or nothing of its go out (N3): its etcd
// does what it asks and it is not told, or it is told and not heard. When its slots are the other coordinator's, some of them are
// handed over to the other region, and calls that it had made before are delivered late: they speak for an owner that is no more.
type IsolateOneWay struct {
	Outbound bool
	Slots    int // below this, the first region's
	off      bool
}

// Name is the fault's.
func (i IsolateOneWay) Name() string {
	if i.Outbound {
		return "isolate-coordinator-outbound"
	}
	return "isolate-coordinator-inbound"
}

// Available wants a region with two coordinators.
func (i IsolateOneWay) Available(e Env) error { return paired(e, 0) }

func (i IsolateOneWay) disabled() Fault { i.off = true; return i }

// way is a link, and its direction that is cut.
type way struct {
	link *netproxy.Link
	d    netproxy.Direction
}

// ways are those by which something comes to the coordinator, or goes out: as the one that connects, or is connected to.
func (i IsolateOneWay) ways(e Env) []way {
	r := e.Deployment.Regions[0]
	connects, connected := netproxy.Back, netproxy.Forth
	if i.Outbound {
		connects, connected = netproxy.Forth, netproxy.Back
	}
	out := []way{{r.PeerLinks[1], connects}, {r.PeerLinks[0], connected}}
	for _, k := range r.EtcdLinks[0] {
		out = append(out, way{k, connects})
	}
	for _, k := range e.Deployment.Links {
		if c := k.Counters(); c.To == r.GRPC[0] || c.To == r.Admin[0] {
			out = append(out, way{k, connected})
		}
	}
	return out
}

// Inject keeps calls for a while, cuts, and hands over once the slots have been taken over.
func (i IsolateOneWay) Inject(ctx context.Context, e Env) (Active, error) {
	r := e.Deployment.Regions[0]
	a := &oneWay{moved: moved{m: Moved{Slots: i.Slots, off: i.off}, e: e}, name: r.Coordinators[0].Name, heir: r.Admin[1], before: held(r.Admin[1]), ways: i.ways(e)}
	a.bytes = a.refused()
	if i.off {
		return a, nil
	}
	for _, r := range e.Deployment.Regions {
		r.Tap.Set(tap.Rules{Keep: true})
	}
	time.Sleep(2 * time.Second)
	a.before = held(a.heir)
	for _, w := range a.ways {
		w.link.CutOneWay(w.d)
	}
	a.after = a.before
	if _, err := until(ctx, e.wait(15*time.Second), func() (Evidence, bool, error) {
		a.after = held(a.heir)
		return Evidence{}, a.after > a.before && a.refused() > a.bytes, nil
	}); err != nil {
		return a, nil // Effective says so
	}
	a.swallowed = a.refused() - a.bytes
	return a, a.handover(ctx, "east", "west")
}

type oneWay struct {
	moved
	name          string
	heir          string
	before, after float64 // slots that the other coordinator held
	ways          []way
	bytes         uint64 // refused before
	swallowed     uint64
}

func (a *oneWay) refused() (n uint64) {
	for _, w := range a.ways {
		n += w.link.Counters().RefusedBytes
	}
	return n
}

// Effective wants bytes swallowed in the one direction, the lease to have run out for it, and late calls to have come.
func (a *oneWay) Effective(ctx context.Context) (Evidence, error) {
	what := fmt.Sprintf("%s: %d bytes were swallowed; its lease ran out: the other coordinator held %v slots, %v before", a.name, a.swallowed, a.after, a.before)
	if a.m.off || a.swallowed == 0 || a.after <= a.before {
		return Evidence{What: what}, fmt.Errorf("%w: %s", ErrNoEffect, what)
	}
	ev, err := a.moved.Effective(ctx)
	ev.What = what + "; " + ev.What
	return ev, err
}

func (a *oneWay) heal() {
	for _, w := range a.ways {
		w.link.Heal()
	}
}

// Recover heals, and moves the slots back.
func (a *oneWay) Recover(ctx context.Context) error {
	a.heal()
	return a.moved.Recover(ctx)
}

// Recovered wants the coordinator to hold slots again.
func (a *oneWay) Recovered(ctx context.Context) (Evidence, error) {
	own := a.e.Deployment.Regions[0].Admin[0]
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		n := held(own)
		return Evidence{What: fmt.Sprintf("the slots were moved back, and %s holds %v", a.name, n)}, n > 0, nil
	})
}

// Cleanup heals whatever happened.
func (a *oneWay) Cleanup() error {
	a.heal()
	return a.moved.Cleanup()
}
