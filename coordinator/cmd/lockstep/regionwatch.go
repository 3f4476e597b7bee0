package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/failover"
	"github.com/lockstep-tx/lockstep/region/failover/conduct"
	"github.com/lockstep-tx/lockstep/region/reconcile"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// regionWatchCmd looks whether a region is dead, from here and from the other regions. By itself it does nothing about it.
type regionWatchCmd struct {
	contextFile
	From     string        `help:"Region to watch." required:"" placeholder:"NAME"`
	To       string        `help:"Region that would take its slots." required:"" placeholder:"NAME"`
	DeadFor  time.Duration `help:"How long it must be unheard, from here and from every other region, to be called dead." default:"60s"`
	Every    time.Duration `help:"How often to look." default:"1s"`
	Auto     bool          `help:"Fail over when it is dead and every guard allows it. Wants --fence-cmd."`
	FenceCmd string        `help:"Command that fences the dead region (power or network off), run by sh with LOCKSTEP_REGION; only its exit code 0 is taken as proof." placeholder:"CMD"`
	FencedBy string        `help:"What --fence-cmd does: power, network or quota." enum:"power,network,quota" default:"power"`
	AtRisk   string        `help:"What accounts of the lost region may spend: block, limit or allow." enum:"block,limit,allow" default:"block"`
	Cap      int64         `help:"With limit: how much each such account may spend, in minor units." placeholder:"AMOUNT"`
	CoolDown time.Duration `help:"How long after a forced failover none follows by itself." default:"30m"`
	OnSwitch string        `help:"As of region failover." placeholder:"CMD"`
	Once     bool          `help:"Look once, and say with exit code 1 that it is not alive."`
}

// sight is what one look saw.
type sight struct {
	// Here: no coordinator of the region answers this process. Unheard is how long each other region has not heard of it; -1
	// where that region does not answer itself.
	Here    bool
	Unheard map[string]time.Duration
}

// dead says whether everybody agrees that the region was not heard for so long: here since when it is given, and all other
// regions.
func (s *sight) dead(hereFor, limit time.Duration) (bool, string) {
	if !s.Here {
		return false, "it answers here"
	}
	if hereFor < limit {
		return false, fmt.Sprintf("it does not answer here for %v", hereFor.Truncate(time.Millisecond))
	}
	asked := 0
	for region, age := range s.Unheard {
		switch {
		case age < 0:
		case age < limit:
			return false, fmt.Sprintf("region %s heard it %v ago: only the way from here to it may be cut", region, age.Truncate(time.Millisecond))
		default:
			asked++
		}
	}
	if asked == 0 {
		return false, "no other region answers: this process may be the one that is cut off"
	}
	return true, ""
}

// Run watches until the region is dead, or once.
func (c *regionWatchCmd) Run(e *env) error {
	if c.Auto && c.FenceCmd == "" {
		return usageError{errors.New("--fence-cmd: --auto takes no slots from a region that may still spend; say how it is fenced")}
	}
	return c.with(e, c.run)
}

func (c *regionWatchCmd) run(e *env, o *opened) error {
	if err := c.check(e.ctx, o); err != nil {
		return err
	}
	said := ""
	var hereSince time.Time
	for {
		s := c.look(e, o)
		if !s.Here {
			hereSince = time.Time{}
		} else if hereSince.IsZero() {
			hereSince = time.Now()
		}
		hereFor := time.Duration(0)
		if !hereSince.IsZero() {
			hereFor = time.Since(hereSince)
		}
		dead, why := s.dead(hereFor, c.DeadFor)
		switch {
		case dead:
			return c.found(e, o)
		case c.Once && !s.Here:
			fmt.Fprintf(e.out, "%s lives: %s\n", c.From, why)
			return nil
		case c.Once:
			return &failure{fmt.Errorf("%s is not called dead: %s", c.From, why), fmt.Sprintf("lockstep region watch --from %s --to %s %s", c.From, c.To, c.here())}
		case why != said && s.Here:
			fmt.Fprintf(e.out, "%s: %s\n", c.From, why)
		}
		said = why
		select {
		case <-time.After(c.Every):
		case <-e.ctx.Done():
			return context.Cause(e.ctx)
		}
	}
}

func (c *regionWatchCmd) check(ctx context.Context, o *opened) error {
	dep, err := o.arbiter.Deployment(ctx)
	if err != nil {
		return err
	}
	for _, name := range []string{c.From, c.To} {
		if dep.Index(name) == 0 {
			return usageError{fmt.Errorf("region %q is not one of %s", name, strings.Join(dep.Regions, ", "))}
		}
	}
	if c.From == c.To {
		return usageError{errors.New("--to: it is the region that is watched")}
	}
	return c.failover().check()
}

// look asks the region from here, and every other region when it heard of it last.
func (c *regionWatchCmd) look(e *env, o *opened) sight {
	ctx, cancel := context.WithTimeout(e.ctx, min(c.Timeout, 3*time.Second))
	defer cancel()
	a := c.asker(e, o)
	s := sight{Here: a.view(ctx, c.From, &slot.Map{}).Status == nil, Unheard: map[string]time.Duration{}}
	if !s.Here {
		return s
	}
	for region, ans := range a.askAll(ctx, c.From, "/v1/region/exposure?"+url.Values{"origin": {c.From}}.Encode(), nil, nil) {
		var v regionExposure
		if ans.err != nil || json.Unmarshal(ans.body, &v) != nil {
			s.Unheard[region] = -1
			continue
		}
		s.Unheard[region] = time.Duration(v.HeardMillis) * time.Millisecond // below 0: it never has, and vouches for nothing
	}
	return s
}

// failover is the command that an operator would run.
func (c *regionWatchCmd) failover() *regionFailoverCmd {
	return &regionFailoverCmd{contextFile: c.contextFile, From: c.From, To: c.To, FencedBy: c.FencedBy, ConfirmRegion: c.From, Plan: anyPlan, AtRisk: c.AtRisk, Cap: c.Cap, OnSwitch: c.OnSwitch,
		Why: fmt.Sprintf("watch: unheard for %v from here and from every other region", c.DeadFor), Scan: scanLimit}
}

// found tells that the region is dead, and where that was asked for and every guard allows it, fails over.
func (c *regionWatchCmd) found(e *env, o *opened) error {
	fmt.Fprintf(e.out, "%s is dead: it was not heard for %v, neither from here nor from any other region\n", c.From, c.DeadFor)
	f := c.failover()
	f.Why = whyNot
	by := f.again("--dry-run")
	if !c.Auto {
		next(e.out, by)
		return nil
	}
	g, err := c.guards(e, o)
	if err != nil {
		return &failure{err, by}
	}
	if against := g.against(c.CoolDown); len(against) > 0 {
		return &failure{fmt.Errorf("nothing is done by itself: %s", strings.Join(against, "; ")), by}
	}
	cmd := exec.CommandContext(e.ctx, "sh", "-c", c.FenceCmd)
	cmd.Env = append(os.Environ(), "LOCKSTEP_REGION="+c.From)
	cmd.Stdout, cmd.Stderr = e.out, e.err
	if err := cmd.Run(); err != nil {
		return &failure{fmt.Errorf("--fence-cmd: %w: %s may still spend, and nothing is done by itself", err, c.From), by}
	}
	return c.failover().run(e, o)
}

// guards are what must be true for a failover that nobody decided (multi-region reference, section 4.1).
type guards struct {
	Members int       // of the arbiter that vote, as the arbiter itself has them
	Dead    []string  // regions that do not answer
	Forced  time.Time // the last forced failover; zero where there was none
	Running string    // the operation under way; "" none
	Stopped int       // chains that do not go on in the target
	Drift   int       // findings that are not repaired
	Taken   int       // slots whose last loss is not worked off
}

func (g *guards) against(coolDown time.Duration) (out []string) {
	add := func(yes bool, format string, args ...any) {
		if yes {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	add(g.Members < 3, "the arbiter has %d members: there is no witness in a third failure domain", g.Members)
	add(len(g.Dead) > 1, "%d regions do not answer (%s): one at most", len(g.Dead), strings.Join(g.Dead, ", "))
	add(!g.Forced.IsZero() && time.Since(g.Forced) < coolDown, "the last forced failover was %v ago: %v must pass", time.Since(g.Forced).Truncate(time.Second), coolDown)
	add(g.Running != "", "%s", g.Running)
	add(g.Stopped > 0, "%d chains do not go on in the target", g.Stopped)
	add(g.Drift > 0, "%d findings of drift are open", g.Drift)
	add(g.Taken > 0, "%d slots were taken by force, and that loss is not worked off", g.Taken)
	return out
}

func (c *regionWatchCmd) guards(e *env, o *opened) (*guards, error) {
	views, owners, err := c.contextFile.look(e, o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.within(e.ctx)
	defer cancel()
	voters, err := o.arbiter.Voters(ctx)
	if err != nil {
		return nil, err
	}
	g := &guards{Members: len(voters)}
	for _, v := range views {
		if v.Status == nil {
			g.Dead = append(g.Dead, v.Region)
			continue
		}
		if v.Region == c.To {
			for _, or := range v.Status.Origins {
				for _, st := range or.Stopped {
					if !st.Missing || or.Region != c.From { // what the dead region alone has is missing now
						g.Stopped++
					}
				}
			}
		}
	}
	for _, w := range owners {
		if w.Lost != 0 {
			g.Taken++
		}
	}
	if g.Running, err = c.underWay(e, o, owners); err != nil {
		return nil, err
	}
	findings, err := reconcile.List(e.ctx, o.arbiter)
	if err != nil {
		return nil, err
	}
	for i := range findings {
		if s := findings[i].Status; s != reconcile.Repaired && s != reconcile.Accepted {
			g.Drift++
		}
	}
	g.Forced, err = lastForced(e.ctx, o.arbiter)
	return g, err
}

func lastForced(ctx context.Context, a *arbiter.Arbiter) (last time.Time, err error) {
	runs, err := (&conduct.Conductor{Arbiter: a}).Runs(ctx)
	for _, r := range runs {
		if at := time.UnixMilli(r.BegunMillis); r.Plan.Kind == failover.Forced && r.Plan.Loss.Evidence != failover.Rehearsed && at.After(last) {
			last = at
		}
	}
	return last, err
}
