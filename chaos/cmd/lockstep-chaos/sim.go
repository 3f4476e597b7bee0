package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/sim"
)

// simCommands are the simulator's part of the command line.
type simCommands struct {
	Sim    simCmd    `cmd:"" help:"Run seeds of the deterministic simulator. Exits 1 at the first violation."`
	Replay replayCmd `cmd:"" help:"Make a scenario's run again on real processes, by the schedule that it has written; or run one seed of the simulator and print its trace."`
	Shrink shrinkCmd `cmd:"" help:"Take the fault and operations out of a run that is red, as long as it is; or faults and transactions out of a seed of the simulator."`
}

// simFlags say which run of the simulator is meant: the same flags give the same run, to the byte.
type simFlags struct {
	Seed    uint64 `help:"The simulator's seed."`
	Mode    string `help:"safety: all faults heal and everything ends. liveness: what is broken stays so, and the rest goes on." enum:"safety,liveness" default:"safety"`
	Clients int    `help:"How many transactions are begun." default:"120"`
	Without string `help:"Switch one rule off, to see what follows: cancel-tried, spend-early, seal-at-target, serve-early, last-seal-alone, no-barrier or cut-nothing."`
}

// valid wants a seed where no directory names a run, and a rule that there is.
func (f *simFlags) valid(dir string) error {
	if (dir == "") == (f.Seed == 0) {
		return errors.New("a directory of a run on real processes, or --seed of the simulator: one of the two")
	}
	if _, ok := sim.Shortcut(f.Without); f.Without != "" && !ok {
		return fmt.Errorf("--without %s: there is no such rule; there are %s", f.Without, strings.Join(sim.Shortcuts(), ", "))
	}
	return nil
}

func (f *simFlags) options() sim.Options {
	rules, _ := sim.Shortcut(f.Without)
	return sim.Options{Mode: sim.Mode(f.Mode), Clients: f.Clients, Rules: rules}
}

// simCmd runs many seeds.
type simCmd struct {
	From  uint64        `help:"The first seed." default:"1"`
	Seeds uint64        `help:"How many seeds to run, half of them in each mode." default:"1000"`
	For   time.Duration `help:"Stop after this time, whatever the seeds; 0 for no limit." default:"0"`
}

// Run ends at the first violation.
func (c *simCmd) Run(out io.Writer) error {
	start, begun, runs := time.Now(), 0, 0
	for seed := c.From; seed < c.From+c.Seeds && (c.For == 0 || time.Since(start) < c.For); seed++ {
		mode := sim.Safety
		if seed%2 == 0 {
			mode = sim.Liveness
		}
		r := sim.Run(seed, sim.Options{Mode: mode})
		if begun, runs = begun+r.Begun, runs+1; r.Err != nil {
			fmt.Fprintf(out, "seed %d, mode %s: %v\nnext: lockstep-chaos shrink --seed %d --mode %s\n", seed, mode, r.Err, seed, mode)
			return exitError(1)
		}
	}
	took := time.Since(start)
	fmt.Fprintf(out, "%d seeds, %d transactions, %.0f a second, no violation, %s\n", runs, begun, float64(begun)/took.Seconds(), took.Round(time.Millisecond))
	return nil
}

type replayCmd struct {
	Dir string `arg:"" optional:"" help:"A scenario's directory in what a run has left (--out), or its schedule.json."`
	simFlags
	realFlags
	Times int  `help:"How often; processes are not deterministic." default:"1"`
	Quiet bool `help:"Of the simulator's run: print the script and the result, not the trace."`
}

// Validate is kong's.
func (c *replayCmd) Validate() error { return c.valid(c.Dir) }

// Run prints the trace of one run.
func (c *replayCmd) Run(ctx context.Context, out io.Writer) error {
	if c.Dir != "" {
		return c.real(ctx, out)
	}
	opt := c.options()
	opt.Keep = !c.Quiet
	return show(out, sim.Run(c.Seed, opt))
}

type shrinkCmd struct {
	Dir string `arg:"" optional:"" help:"A scenario's directory in what a run has left (--out), or its schedule.json."`
	simFlags
	realFlags
	Tries  int           `help:"How often a smaller schedule of real processes is tried before it counts as green." default:"2"`
	Budget time.Duration `help:"On real processes, no run is begun after it." default:"15m"`
}

// Validate is kong's.
func (c *shrinkCmd) Validate() error { return c.valid(c.Dir) }

// Run prints the smallest script that still fails, and the trace of its run.
func (c *shrinkCmd) Run(ctx context.Context, out io.Writer) error {
	if c.Dir != "" {
		return c.real(ctx, out)
	}
	s, failed := sim.Shrink(c.Seed, c.options())
	if !failed {
		fmt.Fprintf(out, "seed %d does not fail: there is nothing to shrink\n", c.Seed)
		return nil
	}
	fmt.Fprintf(out, "%d runs; %d transactions and %d faults are enough\n", s.Runs, s.Options.Clients, len(s.Script))
	s.Options.Keep = true
	return show(out, sim.Run(c.Seed, s.Options))
}

// show prints a run; a violation is exit code 1.
func show(out io.Writer, r sim.Result) error {
	for _, line := range r.Lines {
		fmt.Fprintln(out, line)
	}
	fmt.Fprintf(out, "seed %d, script:\n%s\ntrace %s, %d events, %d ms of simulated time\n", r.Seed, r.Script, r.Trace, r.Events, r.Millis)
	if r.Err != nil {
		fmt.Fprintln(out, "violation:", r.Err)
		return exitError(1)
	}
	fmt.Fprintf(out, "no violation: %d transactions, %d committed, %d aborted\n", r.Begun, r.Committed, r.Aborted)
	return nil
}
