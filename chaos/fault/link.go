package fault

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/netproxy"
	"github.com/lockstep-tx/lockstep/chaos/tap"
)

// Between cuts everything between the regions' coordinators and brokers (N8).
type Between struct{ off bool }

// Name is the fault's.
func (Between) Name() string { return "cut-between-regions" }

// Available is always.
func (Between) Available(Env) error { return nil }

func (Between) disabled() Fault { return Between{off: true} }

// Inject cuts.
func (b Between) Inject(_ context.Context, e Env) (Active, error) {
	return cut(e, "between the regions", e.Deployment.Links, b.off)
}

// Isolate cuts the first of a region's two coordinators off from its etcd, the other coordinator, and the other region (N1).
type Isolate struct {
	Region int
	off    bool
}

// Name is the fault's.
func (Isolate) Name() string { return "isolate-coordinator" }

// Available wants a region with two coordinators.
func (i Isolate) Available(e Env) error { return paired(e, i.Region) }

func (i Isolate) disabled() Fault { i.off = true; return i }

// Inject cuts.
func (i Isolate) Inject(_ context.Context, e Env) (Active, error) {
	return cut(e, e.Deployment.Regions[i.Region].Coordinators[0].Name, around(e, i.Region), i.off)
}

// around are the links by which the first coordinator of a region reaches its etcd, and is reached by the other coordinator
// and the other region.
func around(e Env, region int) []*netproxy.Link {
	r := e.Deployment.Regions[region]
	links := append([]*netproxy.Link{r.PeerLinks[0]}, r.EtcdLinks[0]...)
	for _, k := range e.Deployment.Links {
		if c := k.Counters(); c.To == r.GRPC[0] || c.To == r.Admin[0] {
			links = append(links, k)
		}
	}
	return links
}

func cut(e Env, what string, links []*netproxy.Link, off bool) (Active, error) {
	a := &severed{what: what, e: e, links: links}
	a.bytes, a.conns = a.refused()
	for _, k := range links {
		if off {
			break
		}
		if err := k.Cut(netproxy.Drop); err != nil {
			return a, err
		}
	}
	return a, nil
}

type severed struct {
	what         string
	e            Env
	links        []*netproxy.Link
	bytes, conns uint64 // refused before
	carried      uint64 // at the healing
}

func (a *severed) refused() (bytes, conns uint64) {
	for _, k := range a.links {
		c := k.Counters()
		bytes, conns = bytes+c.RefusedBytes, conns+c.RefusedConns
	}
	return bytes, conns
}

func (a *severed) sum() (n uint64) {
	for _, k := range a.links {
		n += k.Counters().Bytes
	}
	return n
}

// Effective wants bytes that were swallowed, and connections that came anew: somebody's deadline has run out.
func (a *severed) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(15*time.Second), func() (Evidence, bool, error) {
		b, c := a.refused()
		b, c = b-a.bytes, c-a.conns
		return Evidence{fmt.Sprintf("%s: %d bytes were swallowed, and %d connections that came after deadlines had run out", a.what, b, c), map[string]int64{"bytes": int64(b), "conns": int64(c)}}, b > 0 && c > 0, nil
	})
}

func (a *severed) heal() {
	for _, k := range a.links {
		k.Heal()
	}
}

func (a *severed) Recover(context.Context) error {
	a.carried = a.sum()
	a.heal()
	return nil
}

func (a *severed) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(15*time.Second), func() (Evidence, bool, error) {
		n := a.sum() - a.carried
		return Evidence{What: fmt.Sprintf("%s: %d bytes were carried since", a.what, n)}, n > 0, nil
	})
}

func (a *severed) Cleanup() error { a.heal(); return nil }

// Moved hands slots of the first region over to the second under load, and then sends confirms and cancels of before once
// more: they speak for an owner that is no more (M8). With Kill the
// coordinator that gives the slots away is killed on the way.
type Moved struct {
	Slots int // below this, the first region's
	Kill  bool
	off   bool
}

// Name is the fault's.
func (m Moved) Name() string {
	if m.Kill {
		return "handover-and-kill"
	}
	return "stale-epoch"
}

// Available is always.
func (Moved) Available(Env) error { return nil }

func (m Moved) disabled() Fault { m.off = true; return m }

// Inject keeps calls for a while, then hands over.
func (m Moved) Inject(ctx context.Context, e Env) (Active, error) {
	a := &moved{m: m, e: e}
	if m.off {
		return a, nil
	}
	for _, r := range e.Deployment.Regions {
		r.Tap.Set(tap.Rules{Keep: true})
	}
	time.Sleep(2 * time.Second)
	if m.Kill {
		killed := make(chan error, 1)
		a.killed = killed
		go func() { killed <- a.killOnTheWay(ctx) }()
	}
	return a, a.handover(ctx, "east", "west")
}

// killOnTheWay kills the coordinator of the slots that move, while the arbiter has them as moving, and starts it again.
func (a *moved) killOnTheWay(ctx context.Context) error {
	var arbiter []string
	for _, n := range a.e.Deployment.Arbiter {
		arbiter = append(arbiter, n.Addr)
	}
	c := a.e.Deployment.Regions[0].Coordinators[0]
	for end := time.Now().Add(a.e.wait(10 * time.Second)); time.Now().Before(end); {
		n, err := check.ReadMoving(ctx, arbiter)
		if err != nil {
			return err
		}
		if n == 0 {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		c.Kill()
		if a.onTheWay, err = check.ReadMoving(ctx, arbiter); err != nil {
			return errors.Join(err, c.Start(ctx))
		}
		return restart(ctx, c)
	}
	return nil // Effective says that no slot was on its way
}

type moved struct {
	m      Moved
	e      Env
	stale  int
	killed chan error
	// onTheWay are the slots that the arbiter had as moving when the coordinator was dead.
	onTheWay int
}

func (a *moved) slots() string {
	var all []string
	for n := 0; n < a.m.Slots; n += 2 {
		all = append(all, fmt.Sprint(n))
	}
	return strings.Join(all, ",")
}

// handover is repeated: a tool that was interrupted, or undid what it did, is to be called again.
func (a *moved) handover(ctx context.Context, from, to string) error {
	end := time.Now().Add(a.e.wait(40 * time.Second))
	for {
		out, err := a.try(ctx, from, to)
		if err == nil {
			return nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return errors.Join(fmt.Errorf("handover to %s: %s", to, out), err)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// try hands over once.
func (a *moved) try(ctx context.Context, from, to string) (string, error) {
	return a.e.Deployment.Tool(ctx, "region", "handover", "--context", a.e.Deployment.Regions[0].File, "--from", from, "--to", to, "--slots", a.slots(), "--max-lag", "30s")
}

// Effective sends the old calls again once the participants have heard the new epoch.
func (a *moved) Effective(ctx context.Context) (Evidence, error) {
	if a.m.off {
		return Evidence{}, fmt.Errorf("%w: no slot was moved", ErrNoEffect)
	}
	if a.killed != nil {
		if err := <-a.killed; err != nil {
			return Evidence{}, err
		}
		a.killed = nil
		if a.onTheWay == 0 {
			return Evidence{}, fmt.Errorf("%w: no slot was on its way when the coordinator was killed", ErrNoEffect)
		}
	}
	return until(ctx, a.e.wait(15*time.Second), func() (Evidence, bool, error) {
		for _, r := range a.e.Deployment.Regions {
			newest := newest(r.Tap.Calls())
			n, err := r.Tap.Replay(ctx, func(c *tap.Call) bool {
				return c.Slot < a.m.Slots && c.Epoch > 0 && c.Epoch < newest[c.Slot]
			})
			if a.stale += n; err != nil {
				return Evidence{}, false, err
			}
		}
		what := fmt.Sprintf("%d calls of epochs that had ended came to participants that knew the next", a.stale)
		if a.m.Kill {
			what += fmt.Sprintf("; the coordinator was killed while %d slots were on their way", a.onTheWay)
		}
		return Evidence{what, map[string]int64{"stale_calls": int64(a.stale), "on_the_way": int64(a.onTheWay)}}, a.stale > 0, nil
	})
}

// newest is the highest epoch of each slot that the participant has answered for.
func newest(calls []tap.Call) map[int]int64 {
	out := map[int]int64{}
	for _, c := range calls {
		if c.Status == 200 && c.Op != "apply" && c.Kind != tap.Lost {
			out[c.Slot] = max(out[c.Slot], c.Epoch)
		}
	}
	return out
}

func (a *moved) Recover(ctx context.Context) error {
	if a.m.off {
		return nil
	}
	if err := a.Cleanup(); err != nil {
		return err
	}
	return a.handover(ctx, "west", "east")
}

// Recovered wants no slot to be on its way any more.
func (a *moved) Recovered(ctx context.Context) (Evidence, error) {
	var arbiter []string
	for _, n := range a.e.Deployment.Arbiter {
		arbiter = append(arbiter, n.Addr)
	}
	return until(ctx, a.e.wait(lookLimit), func() (Evidence, bool, error) {
		n, err := check.ReadMoving(ctx, arbiter)
		return Evidence{What: fmt.Sprintf("the slots were moved back; %d are on their way", n)}, n == 0, err
	})
}

func (a *moved) Cleanup() error {
	for _, r := range a.e.Deployment.Regions {
		r.Tap.Set(tap.Rules{})
	}
	return nil
}
