package fault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/tap"
)

// Nodes kills processes of the deployment, all at once, or pauses them, and starts them again or lets them go on.
type Nodes struct {
	Title string
	Pick  func(d *proc.Deployment) []*proc.Node
	Pause bool
	// Quorum, where it is set, is what is left of an etcd of which a majority is killed: it must not answer any more. Serves says
	// that decisions must go on all the same.
	Quorum func(d *proc.Deployment) *proc.Node
	Serves bool
	// AtReply waits for a confirm that the first region's wallet has applied, and loses its answer.
	AtReply bool
	off     bool
}

// Region kills everything of the first region: its coordinator with its etcd, its wallet, its broker (P3).
func Region() Fault {
	return Nodes{Title: "kill-region", Pick: func(d *proc.Deployment) []*proc.Node {
		r := d.Regions[0]
		return append([]*proc.Node{r.Broker, r.Wallet}, r.Coordinators...)
	}}
}

// Participant kills the first region's wallet between its commit and its reply (P5).
func Participant() Fault {
	return Nodes{Title: "kill-participant-before-reply", AtReply: true, Pick: func(d *proc.Deployment) []*proc.Node { return []*proc.Node{d.Regions[0].Wallet} }}
}

// Broker kills the first region's broker, or pauses it (P8).
func Broker(pause bool) Fault {
	title := "kill-broker"
	if pause {
		title = "pause-broker"
	}
	return Nodes{Title: title, Pause: pause, Pick: func(d *proc.Deployment) []*proc.Node { return []*proc.Node{d.Regions[0].Broker} }}
}

// NoQuorum kills two of three members of the first region's etcd (S1), or of the arbiter (S2): what owns its slots then goes on.
func NoQuorum(arbiter bool) Fault {
	of := func(d *proc.Deployment) []*proc.Node {
		if arbiter {
			return d.Arbiter
		}
		return d.Regions[0].Etcd
	}
	title := "no-quorum-of-regional-etcd"
	if arbiter {
		title = "no-quorum-of-arbiter"
	}
	return Nodes{Title: title, Serves: arbiter, Pick: func(d *proc.Deployment) []*proc.Node { return of(d)[1:] }, Quorum: func(d *proc.Deployment) *proc.Node { return of(d)[0] }}
}

// Name is the fault's.
func (n Nodes) Name() string { return n.Title }

// Available is always.
func (Nodes) Available(Env) error { return nil }

func (n Nodes) disabled() Fault { n.off = true; return n }

// Inject kills, or pauses.
func (n Nodes) Inject(ctx context.Context, e Env) (Active, error) {
	a := &gone{f: n, e: e, nodes: n.Pick(e.Deployment), owned: int64(len(e.Log.Flying()))}
	if n.off {
		return a, nil
	}
	if n.AtReply {
		trap := tap.NewTrap(true, func(c *tap.Call) bool { return c.Op == "confirm" && c.Status == http.StatusOK })
		t := e.Deployment.Regions[0].Tap
		t.Arm(trap)
		defer t.Arm(nil)
		select {
		case c := <-trap.Caught():
			defer trap.Let(false)
			a.at = c.Key()
		case <-time.After(e.wait(phaseLimit)):
			return a, nil // Effective says so
		case <-ctx.Done():
			return a, ctx.Err()
		}
	}
	for _, p := range a.nodes {
		if n.Pause {
			if err := p.Signal(syscall.SIGSTOP); err != nil {
				return a, err
			}
			continue
		}
		p.Kill()
	}
	a.since = e.Log.Now()
	return a, nil
}

type gone struct {
	f     Nodes
	e     Env
	nodes []*proc.Node
	owned int64
	at    string // the branch whose answer was lost
	since int64
}

func (a *gone) names() string {
	var out []string
	for _, n := range a.nodes {
		out = append(out, n.Name)
	}
	return strings.Join(out, ", ")
}

// away says whether a process is away: reaped, and its port refuses; or stopped.
func (a *gone) away(n *proc.Node) bool {
	if a.f.Pause {
		s, err := n.State()
		return err == nil && s == 'T'
	}
	return !n.Alive() && n.Refuses()
}

// Effective wants all of them away, and what else the fault promises.
func (a *gone) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(10*time.Second), func() (Evidence, bool, error) {
		n := int64(0)
		for _, p := range a.nodes {
			if a.away(p) {
				n++
			}
		}
		ev := Evidence{fmt.Sprintf("of %s %d are away; %d transactions were under way", a.names(), n, a.owned), map[string]int64{"away": n, "in_flight": a.owned}}
		ok := n == int64(len(a.nodes)) && a.owned > 0
		if a.f.AtReply {
			ev.What += fmt.Sprintf("; the confirm of %q had been applied", a.at)
			ok = ok && a.at != ""
		}
		if a.f.Quorum != nil {
			err := a.asks(ctx)
			ev.What += fmt.Sprintf("; %s, asked for what all of them know, says: %v", a.f.Quorum(a.e.Deployment).Name, err)
			ok = ok && err != nil
		}
		if a.f.Serves {
			decided := history.Rate(a.e.Log.Ops(), a.since+1e9, a.e.Log.Now())
			ev.What += fmt.Sprintf("; %.0f decisions a second since", decided)
			ok = ok && a.since > 0 && a.e.Log.Now() > a.since+3e9 && decided > 0
		}
		return ev, ok, nil
	})
}

// asks reads by consensus at what is left.
func (a *gone) asks(ctx context.Context) error {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{a.f.Quorum(a.e.Deployment).Addr}, DialTimeout: time.Second})
	if err != nil {
		return err
	}
	defer cli.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err = cli.Get(ctx, "x")
	return err
}

// Recover starts them again, or lets them go on.
func (a *gone) Recover(ctx context.Context) error {
	for _, n := range a.nodes {
		if a.f.Pause {
			if err := a.Cleanup(); err != nil {
				return err
			}
			continue
		}
		if !n.Alive() {
			if err := restart(ctx, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// Recovered wants them to run, and a majority to answer.
func (a *gone) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		up := 0
		for _, n := range a.nodes {
			if n.Alive() && !a.away(n) && !n.Refuses() {
				up++
			}
		}
		var err error
		if a.f.Quorum != nil {
			err = a.asks(ctx)
		}
		return Evidence{What: fmt.Sprintf("%d of %s run", up, a.names())}, up == len(a.nodes), err
	})
}

// Cleanup lets what is paused go on.
func (a *gone) Cleanup() (err error) {
	for _, n := range a.nodes {
		if s, serr := n.State(); a.f.Pause && n.Alive() && serr == nil && s == 'T' {
			err = errors.Join(err, n.Signal(syscall.SIGCONT))
		}
	}
	return err
}
