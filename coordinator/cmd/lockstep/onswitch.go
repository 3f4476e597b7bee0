package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/lockstep-tx/lockstep/region/failover"
	"github.com/lockstep-tx/lockstep/region/failover/conduct"
)

// Outside traffic is moved after the operation has let its lock go: payments do not wait for it. So a tool that is killed in between
// leaves an operation that has ended, and an audit without its line "switched": resume finds that, and runs the command once more.

// switched is the audit's word for outside traffic that was moved.
const switched = "switched"

// onSwitch moves outside traffic, where the plan says how: also when it is another one who ends the operation.
func (m *moveFlags) onSwitch(e *env, c *conduct.Conductor, p *failover.Plan) error {
	if p.Loss.OnSwitch == "" {
		return nil
	}
	again := "lockstep region resume " + m.here() + "  # runs it again: " + switchLine(p)
	audit := func(act, text string) error {
		ctx, cancel := m.within(e.ctx)
		defer cancel()
		return c.Audit(ctx, act, text, p.ID, time.Now())
	}
	if err := audit("switch", p.Loss.OnSwitch); err != nil {
		return &failure{fmt.Errorf("--on-switch: it was not run: %w", err), again}
	}
	start := time.Now()
	cmd := exec.CommandContext(e.ctx, "sh", "-c", p.Loss.OnSwitch)
	cmd.Env = append(os.Environ(), "LOCKSTEP_FROM="+p.From, "LOCKSTEP_TO="+p.To)
	cmd.Stdout, cmd.Stderr = e.out, e.err
	err := cmd.Run()
	fmt.Fprintf(e.out, "outside traffic: %v after %d ms\n", orDone(err), time.Since(start).Milliseconds())
	if err != nil {
		err = fmt.Errorf("--on-switch: %w; the slots are served by %s, the outside traffic was not moved", err, p.To)
		return &failure{errors.Join(err, audit("switch", "not done: "+err.Error())), again}
	}
	return audit(switched, p.Loss.OnSwitch)
}

// unswitched is the last operation, if it was a forced failover that has ended well and whose outside traffic nobody has moved; nil
// otherwise.
func unswitched(ctx context.Context, c *conduct.Conductor) (*failover.Run, error) {
	runs, err := c.Runs(ctx)
	if err != nil || len(runs) == 0 {
		return nil, err
	}
	last := slices.MaxFunc(runs, func(a, b failover.Run) int { return int(a.BegunMillis - b.BegunMillis) })
	if last.Status != failover.Done || last.Plan.Loss == nil || last.Plan.Loss.OnSwitch == "" {
		return nil, nil
	}
	lines, err := c.History(ctx)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(lines, func(l conduct.Entry) bool { return l.Act == switched && l.Op == last.Plan.ID }) {
		return nil, nil
	}
	return &last, nil
}

// switchOn is resume where no operation is under way.
func (m *moveFlags) switchOn(e *env, o *opened, c *conduct.Conductor) error {
	r, err := unswitched(e.ctx, c)
	switch {
	case err != nil:
		return err
	case r == nil:
		return &failure{errors.New("no operation is under way"), "lockstep region history " + m.here()}
	}
	fmt.Fprintf(e.out, "%s has ended, and outside traffic was not moved, as far as the audit says\n", holder(r))
	if m.DryRun {
		fmt.Fprintln(e.out, "nothing was run:", shown(switchLine(&r.Plan)))
		next(e.out, m.again("resume", "", ""))
		return nil
	}
	if err := m.onSwitch(e, c, &r.Plan); err != nil {
		return err
	}
	return m.ended(e, o, r)
}

// switchLine is what onSwitch runs, for an operator to paste.
func switchLine(p *failover.Plan) string {
	return fmt.Sprintf("LOCKSTEP_FROM=%s LOCKSTEP_TO=%s sh -c %s", shellQuote(p.From), shellQuote(p.To), shellQuote(p.Loss.OnSwitch))
}

func orDone(err error) string {
	if err == nil {
		return "moved"
	}
	return err.Error()
}
