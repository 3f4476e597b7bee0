package fault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/tap"
)

// phase is a point on a transaction's way that shows itself outside the coordinator.
type phase struct {
	name, op string
	// after: the participant has answered; else it has not been asked.
	after bool
	// both: the transaction's other branch has been answered for the same operation.
	both bool
	// heard: the answer is passed on, so that the coordinator dies while it acts on it.
	heard bool
}

// asked is the phase in which a client has asked and no branch has been called: the record may be saved or not.
const asked = "asked"

// phases are in a transaction's order.
var phases = []phase{
	{name: asked},
	{name: "try-sent", op: "try"},                 // the record is saved, nothing is done
	{name: "try-applied", op: "try", after: true}, // one try is done, and its answer lost
	{name: "tries-answered", op: "try", after: true, both: true, heard: true},        // the decision is being saved
	{name: "confirm-sent", op: "confirm"},                                            // the decision is saved, nothing is confirmed
	{name: "between-confirms", op: "confirm", both: true},                            // one branch is confirmed, the other not
	{name: "confirm-applied", op: "confirm", after: true},                            // confirmed, and the answer lost
	{name: "confirms-answered", op: "confirm", after: true, both: true, heard: true}, // the finish is being saved
	{name: "cancel-sent", op: "cancel"},
	{name: "cancel-applied", op: "cancel", after: true},
}

const (
	phaseLimit   = 15 * time.Second // until a transaction comes to a phase
	siblingLimit = time.Second      // until the other branch is answered
)

// Phases kills the first region's coordinator at one phase of a transaction after another, then it or the other region's at
// those of its events' way there, and starts it again each time (P2).
type Phases struct{ off bool }

// Name is the fault's.
func (Phases) Name() string { return "kill-at-each-phase" }

// Available wants links to the brokers, and a journal in a file of the other region.
func (Phases) Available(e Env) error {
	if e.Deployment.Regions[0].BrokerLink == nil || !strings.HasPrefix(e.Deployment.Regions[1].Journal, "sqlite:") {
		return errors.New("the way of events needs a link to the broker, and a journal in a file")
	}
	return nil
}

func (p Phases) disabled() Fault { p.off = true; return p }

// Inject goes through the phases.
func (p Phases) Inject(ctx context.Context, e Env) (Active, error) {
	a := &swept{killed: &killed{n: e.Deployment.Regions[0].Coordinators[0], e: e}}
	if p.off {
		return a, nil
	}
	for _, ph := range phases {
		if err := a.until(ctx, ph.name, func(limit time.Duration) (bool, error) { return a.sweep(ctx, ph, limit) }); err != nil {
			return a, err
		}
	}
	for _, ph := range eventPhases {
		if err := a.until(ctx, ph.name, func(limit time.Duration) (bool, error) { return ph.kill(a, ctx, ph.name, limit) }); err != nil {
			return a, err
		}
	}
	return a, nil
}

// until tries to kill at a phase until it has, or its time is over.
func (a *swept) until(ctx context.Context, name string, try func(limit time.Duration) (bool, error)) error {
	for end := time.Now().Add(a.e.wait(phaseLimit)); time.Now().Before(end) && ctx.Err() == nil; {
		hit, err := try(time.Until(end))
		if err != nil {
			return fmt.Errorf("phase %s: %w", name, err)
		}
		if hit {
			return nil
		}
	}
	a.missed = append(a.missed, name)
	return ctx.Err()
}

// Crash is the end of a process and its return, on the history's clock.
type Crash struct {
	Name     string
	At, Back int64
}

type swept struct {
	*killed
	crashes []Crash
	missed  []string
	behind  int // events that were seen to lack in the other region's journal
}

// Behind is how many events were seen in one region's journal and not in the other's.
func (a *swept) Behind() int { return a.behind }

// Crashes are those that were made.
func (a *swept) Crashes() []Crash { return a.crashes }

// sweep kills at a phase; false where no transaction came to it.
func (a *swept) sweep(ctx context.Context, ph phase, limit time.Duration) (hit bool, err error) {
	if ph.name == asked {
		return a.asked(ctx, limit)
	}
	return a.atCall(ctx, ph, limit)
}

// asked kills as soon as a client asks for a transaction; false where a branch had been called by then.
func (a *swept) asked(ctx context.Context, limit time.Duration) (bool, error) {
	next := a.e.Log.Next(func(op *history.Op) bool {
		return op.Kind == history.Execute && op.Region == a.e.Deployment.Regions[0].Name
	})
	select {
	case op := <-next:
		dead, err := a.kill(ctx, a.n, asked)
		at := a.crashes[len(a.crashes)-1].At
		// By now what was under way is written down.
		return dead && a.count(func(c *tap.Call) bool { return c.Gid == op.Gid && c.Start <= at }) == 0, err
	case <-time.After(limit):
	case <-ctx.Done():
	}
	return false, nil
}

// atCall kills at a call of a branch of a transaction of the first region's.
func (a *swept) atCall(ctx context.Context, ph phase, limit time.Duration) (bool, error) {
	trap := tap.NewTrap(ph.after, func(c *tap.Call) bool {
		// Calls with an epoch are coordinators'; the first region's slots are the even ones.
		return c.Op == ph.op && c.Epoch > 0 && c.Slot%2 == 0 && (!ph.after || c.Status == http.StatusOK)
	})
	a.arm(trap)
	defer a.arm(nil)
	select {
	case c := <-trap.Caught():
		if ph.both && !a.otherAnswered(ctx, &c) {
			trap.Let(true)
			return false, nil
		}
		if ph.heard {
			trap.Let(true)
		}
		dead, err := a.kill(ctx, a.n, ph.name)
		if !ph.heard {
			trap.Let(false) // only now: the coordinator must not learn that its call was lost
		}
		return dead, err
	case <-time.After(limit):
	case <-ctx.Done():
	}
	return false, nil
}

func (a *swept) arm(trap *tap.Trap) {
	for _, r := range a.e.Deployment.Regions {
		r.Tap.Arm(trap)
	}
}

func (a *swept) count(match func(*tap.Call) bool) (n int) {
	for _, r := range a.e.Deployment.Regions {
		n += r.Tap.Count(match)
	}
	return n
}

// otherAnswered waits for the answer of the call's other branch.
func (a *swept) otherAnswered(ctx context.Context, c *tap.Call) bool {
	_, err := until(ctx, a.e.wait(siblingLimit), func() (Evidence, bool, error) {
		n := a.count(func(o *tap.Call) bool {
			return o.Gid == c.Gid && o.Branch != c.Branch && o.Op == c.Op && o.Status == http.StatusOK
		})
		return Evidence{}, n > 0, nil
	})
	return err == nil
}

// kill ends the process, says whether it is dead, and starts it again.
func (a *swept) kill(ctx context.Context, n *proc.Node, name string) (dead bool, err error) {
	dead, c := a.end(n, name)
	return dead, a.again(ctx, n, c)
}

// end ends a process and says whether it is dead.
func (a *swept) end(n *proc.Node, name string) (bool, Crash) {
	n.Kill()
	return !n.Alive() && n.Refuses(), Crash{Name: "kill at " + name, At: a.e.Log.Now()}
}

// again starts it, and notes when it was away.
func (a *swept) again(ctx context.Context, n *proc.Node, c Crash) error {
	err := restart(ctx, n)
	c.Back = a.e.Log.Now()
	a.crashes = append(a.crashes, c)
	return err
}

// Effective wants every phase to have been hit.
func (a *swept) Effective(context.Context) (Evidence, error) {
	var names []string
	for _, c := range a.crashes {
		names = append(names, strings.TrimPrefix(c.Name, "kill at "))
	}
	ev := Evidence{fmt.Sprintf("coordinators were reaped, and their ports refused, at %s", strings.Join(names, ", ")), map[string]int64{"crashes": int64(len(a.crashes))}}
	if len(a.crashes) == 0 || len(a.missed) > 0 {
		return ev, fmt.Errorf("%w: no transaction was caught at %v, of %d phases", ErrNoEffect, a.missed, len(phases)+len(eventPhases))
	}
	return ev, nil
}

// Cleanup takes the traps away.
func (a *swept) Cleanup() error {
	a.arm(nil)
	for _, k := range a.links() {
		k.Heal()
	}
	return nil
}
