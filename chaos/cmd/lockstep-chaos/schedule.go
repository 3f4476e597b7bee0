package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/report"
	"github.com/lockstep-tx/lockstep/chaos/scenario"
)

// realFlags say on what a schedule is made again.
type realFlags struct {
	Out      string        `help:"Directory for what the runs leave. Defaults to replay or shrink beside the schedule." type:"path"`
	Bin      string        `help:"Where lockstep and lockstep-participants are. Defaults to this program's directory." type:"path"`
	Journal  string        `help:"PostgreSQL server, as for run." env:"LOCKSTEP_TEST_POSTGRES_URL" placeholder:"postgres://…"`
	MySQL    string        `help:"MySQL or MariaDB server, as for run." name:"mysql" env:"LOCKSTEP_TEST_MYSQL_URL" placeholder:"mysql://…"`
	Devctl   string        `help:"Program that starts database servers of the suite's own, as for run." env:"LOCKSTEP_TEST_DEVCTL" placeholder:"FILE"`
	Previous string        `help:"Where lockstep of the version before is, as for run." type:"path" placeholder:"DIR"`
	Wait     time.Duration `help:"How long to wait after the load for nothing to be open any more, on the reference machine." default:"15s"`
	Env      []string      `help:"Added to the environment of the programs." placeholder:"NAME=VALUE" hidden:""`
}

// replayer makes schedules again.
type replayer struct {
	realFlags
	ctx  context.Context
	out  io.Writer
	slow float64
	runs int
}

// replayer reads the schedule that path names, and makes what makes it again. What that leaves goes to name beside it.
func (f realFlags) replayer(ctx context.Context, out io.Writer, path, name string) (*replayer, *scenario.Schedule, error) {
	s, err := scenario.LoadSchedule(path)
	if err != nil {
		return nil, nil, err
	}
	if f.Bin == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, nil, err
		}
		f.Bin = filepath.Dir(exe)
	}
	if i, err := os.Stat(path); err == nil && !i.IsDir() {
		path = filepath.Dir(path)
	}
	f.Out = cmp.Or(f.Out, filepath.Join(path, name))
	if err := os.MkdirAll(f.Out, 0o755); err != nil {
		return nil, nil, err
	}
	r := &replayer{realFlags: f, ctx: ctx, out: out}
	r.slow, err = scenario.Calibrate(f.Out)
	return r, s, err
}

// once makes a schedule again, and tells in a line what came of it.
func (r *replayer) once(s *scenario.Schedule) (scenario.Result, error) {
	found, err := scenario.Find([]string{s.Scenario})
	if err != nil {
		return scenario.Result{}, err
	}
	found[0].Wallets = s.Wallets
	r.runs++
	res := scenario.Run(r.ctx, found[0], scenario.Options{Dir: filepath.Join(r.Out, fmt.Sprintf("run-%d", r.runs)), Bin: r.Bin, Seed: s.Seed, Lanes: s.Lanes, Slow: r.slow, Schedule: s,
		Quiet: r.Wait, Env: r.Env, Journal: r.Journal, MySQL: r.MySQL, Devctl: r.Devctl, Previous: r.Previous, Participant: s.Participant, Say: func(string, ...any) {}})
	red := strings.Join(res.Red(), " ")
	fmt.Fprintf(r.out, "run %d: %d operations, %d faults, red: %s; %.0f s\n", r.runs, len(s.Operations), len(s.Faults), cmp.Or(red, "none"), res.Seconds)
	switch {
	case res.Harness != "":
		return res, fmt.Errorf("the suite itself: %s", res.Harness)
	case len(res.Checks) == 0: // it was skipped
		return res, fmt.Errorf("%s", strings.Join(res.Reasons, "; "))
	}
	return res, r.ctx.Err()
}

// real makes a run again, some times, and says in how many of them a checker was red.
func (c *replayCmd) real(ctx context.Context, out io.Writer) error {
	r, s, err := c.replayer(ctx, out, c.Dir, "replay")
	if err != nil {
		return err
	}
	n := 0
	for range c.Times {
		res, err := r.once(s)
		if err != nil {
			return err
		}
		for _, k := range res.Checks {
			for _, v := range k.Violations {
				fmt.Fprintf(out, "  %-4s %s\n", k.ID, v)
			}
		}
		if len(res.Red()) > 0 {
			n++
		}
	}
	fmt.Fprintf(out, "%d of %d red; what they left is in %s\n", n, c.Times, r.Out)
	if n > 0 {
		return exitError(report.ExitViolation)
	}
	return nil
}

// real makes a run smaller, and writes the schedule of what is left.
func (c *shrinkCmd) real(ctx context.Context, out io.Writer) error {
	r, s, err := c.replayer(ctx, out, c.Dir, "shrink")
	if err != nil {
		return err
	}
	end := time.Now().Add(c.Budget)
	var broken error
	enough := func() bool { return broken != nil || ctx.Err() != nil || time.Now().After(end) }
	of := ""
	red := func(s *scenario.Schedule) bool {
		for range c.Tries {
			if enough() {
				return false
			}
			res, err := r.once(s)
			if broken = err; err != nil {
				return false
			}
			ids := res.Red()
			if of == "" && len(ids) > 0 {
				of = ids[0]
			}
			if slices.Contains(ids, of) {
				return true
			}
		}
		return false
	}
	if !red(s) {
		if broken != nil {
			return broken
		}
		fmt.Fprintf(out, "not red in %d runs: there is nothing to shrink\n", r.runs)
		return nil
	}
	small := scenario.Shrink(s, red, enough)
	if broken != nil {
		return broken
	}
	if err := small.Save(r.Out); err != nil {
		return err
	}
	fmt.Fprintf(out, "%d runs; %d of %d operations and %d of %d faults are enough for %s\nnext: lockstep-chaos replay %s\n",
		r.runs, len(small.Operations), len(s.Operations), len(small.Faults), len(s.Faults), of, r.Out)
	return exitError(report.ExitViolation)
}
