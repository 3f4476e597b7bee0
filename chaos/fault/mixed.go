package fault

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/proc"
)

// Mixed has both coordinators of the first region, which run the version before, ended in good order and started on this one, one after
// the other, and then the same back: each version reads what the other has written, and both share an etcd and a journal (the other
// half of P11).
type Mixed struct{ off bool }

// mixedStays is how long the two versions share the region each time.
const mixedStays = 3 * time.Second

// Name is the fault's.
func (Mixed) Name() string { return "rolling-upgrade-and-back" }

// Available wants a region with two coordinators.
func (Mixed) Available(e Env) error { return paired(e, 0) }

func (m Mixed) disabled() Fault { m.off = true; return m }

// Inject brings this version in.
func (m Mixed) Inject(ctx context.Context, e Env) (Active, error) {
	a := &mixed{e: e, off: m.off, r: e.Deployment.Regions[0]}
	if m.off {
		return a, nil
	}
	return a, a.roll(ctx, e.Deployment.Program("lockstep"))
}

type mixed struct {
	e   Env
	off bool
	r   *proc.Region
	// of each roll so far: the versions of the coordinators' programs before it, between its two halves, and after it, and the decisions
	// a second between the halves.
	rolls []roll
}

type roll struct {
	before, between, after []string
	rate                   float64
}

// roll restarts one coordinator after the other on another program.
func (a *mixed) roll(ctx context.Context, program string) (err error) {
	var r roll
	if r.before, err = a.versions(ctx); err != nil {
		return err
	}
	from := int64(0)
	for i, n := range a.r.Coordinators {
		tctx, cancel := context.WithTimeout(ctx, a.e.wait(drainLimit))
		err := n.Terminate(tctx)
		cancel()
		if err != nil {
			return fmt.Errorf("%s did not end in good order: %w", n.Name, err)
		}
		if i > 0 {
			r.rate = history.Rate(a.e.Log.Ops(), from, a.e.Log.Now())
		}
		n.Program(program)
		if err := n.Start(ctx); err != nil {
			return err
		}
		if i == 0 {
			from = a.e.Log.Now()
			time.Sleep(a.e.wait(mixedStays))
			if r.between, err = a.versions(ctx); err != nil {
				return err
			}
		}
	}
	if r.after, err = a.versions(ctx); err != nil {
		return err
	}
	a.rolls = append(a.rolls, r)
	return nil
}

// versions are those of the programs that run, as the kernel names them, by what each says of itself: a version may be too old to say it
// where coordinators are asked.
func (a *mixed) versions(ctx context.Context) (out []string, err error) {
	for _, n := range a.r.Coordinators {
		program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", n.PID()))
		if err != nil {
			return nil, err
		}
		said, err := exec.CommandContext(ctx, program, "version").Output()
		if err != nil {
			return nil, fmt.Errorf("%s version: %w", program, err)
		}
		out = append(out, strings.TrimSpace(string(said)))
	}
	return out, nil
}

// done says whether a roll went from one version to another, through both at once, with decisions meanwhile.
func (r *roll) done() bool {
	return r.before[0] == r.before[1] && r.after[0] == r.after[1] && r.before[0] != r.after[0] &&
		r.between[0] == r.after[0] && r.between[1] == r.before[1] && r.rate > 0
}

func (r *roll) String() string {
	return fmt.Sprintf("the programs of the coordinators' processes were %q, then %q, then %q; %.0f decisions a second of both versions at once", r.before, r.between, r.after, r.rate)
}

// Effective wants both to run this version, and to have run it side by side with the one before.
func (a *mixed) Effective(context.Context) (Evidence, error) { return a.proven(1) }

// Recover takes this version out again.
func (a *mixed) Recover(ctx context.Context) error {
	if a.off {
		return nil
	}
	return a.roll(ctx, a.e.Deployment.Before("lockstep"))
}

// Recovered wants the version before to run again, in the same way.
func (a *mixed) Recovered(context.Context) (Evidence, error) { return a.proven(2) }

func (a *mixed) proven(rolls int) (Evidence, error) {
	if len(a.rolls) < rolls {
		return Evidence{}, fmt.Errorf("%w: %d of %d times was another version brought in", ErrNoEffect, len(a.rolls), rolls)
	}
	r := &a.rolls[rolls-1]
	ev := Evidence{r.String(), map[string]int64{"rate": int64(r.rate)}}
	if !r.done() {
		return ev, fmt.Errorf("%w: %s", ErrNoEffect, ev.What)
	}
	return ev, nil
}

func (a *mixed) Cleanup() error { return nil }
