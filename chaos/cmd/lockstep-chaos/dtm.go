package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/dtm"
	"github.com/lockstep-tx/lockstep/chaos/report"
	"github.com/lockstep-tx/lockstep/chaos/scenario"
	"github.com/lockstep-tx/lockstep/coordinator/bench/peer"
)

type dtmCmd struct {
	Out       string        `help:"Directory for the reports, the histories and the processes' logs." default:"chaos-dtm" type:"path"`
	Seed      uint64        `help:"What the load draws from. Defaults to one of the clock's."`
	Budget    time.Duration `help:"No scenario is begun that would not end in time; what is not run makes the run inconclusive." default:"60m"`
	Scenario  []string      `help:"Only these: see docs/dtm-under-test.md." placeholder:"ID"`
	Store     []string      `help:"Stores of DTM: boltdb, postgres, mysql, redis, redis-aof. Defaults to all." placeholder:"STORE"`
	Bin       string        `help:"Where dtmpeer and dtm-wallet are. Defaults to this program's directory." type:"path"`
	Postgres  string        `help:"PostgreSQL server." env:"LOCKSTEP_TEST_POSTGRES_URL" placeholder:"postgres://…"`
	MySQL     string        `help:"MySQL or MariaDB server." name:"mysql" env:"LOCKSTEP_TEST_MYSQL_URL" placeholder:"mysql://…"`
	Lanes     int           `help:"Clients at once." default:"24"`
	Quiet     time.Duration `help:"How long to wait after the load for nothing to be open any more, on the reference machine." default:"40s"`
	Shared    bool          `help:"Other work comes and goes on this machine: the load's rates are told and not compared, beyond that there are some before and after the fault."`
	NoFault   bool          `help:"Inject nothing. Every scenario must end inconclusive: a test of the suite itself."`
	NoBarrier bool          `help:"The participants leave DTM's barrier out: a test of the suite itself."`
	Verdicts  bool          `help:"Exit by the verdicts alone, also where a violation is one that is written down."`
}

// Run runs the scenarios of DTM, and compares what they find with what is written down.
func (c *dtmCmd) Run(ctx context.Context, out io.Writer) error {
	cases, err := dtm.Find(c.Scenario)
	if err != nil {
		return err
	}
	for _, s := range c.Store {
		if !slices.Contains(dtm.Stores(), dtm.Store(s)) {
			return fmt.Errorf("there is no store %q: %v", s, dtm.Stores())
		}
	}
	if c.Bin == "" {
		exe, err := os.Executable()
		if err != nil {
			return err
		}
		c.Bin = filepath.Dir(exe)
	}
	if c.Seed == 0 {
		c.Seed = uint64(time.Now().UnixNano() % 1_000_000)
	}
	if err := os.MkdirAll(c.Out, 0o755); err != nil {
		return err
	}
	slow, err := scenario.Calibrate(c.Out)
	if err != nil {
		return err
	}
	run := &report.Run{Program: "dtm", Seed: c.Seed, Slow: slow, Bed: "DTM " + peer.Version + ": its server, and participants with its SDK's barrier on PostgreSQL and on MariaDB; nothing of Lockstep's coordinator or participants"}
	fmt.Fprintf(out, "%s; seed %d, this machine is %.1f times slower than the reference\n", run.Bed, c.Seed, slow)
	end := time.Now().Add(c.Budget)
	var differ []string
	for _, k := range cases {
		for _, store := range dtm.Stores() {
			if !k.Runs(store) || len(c.Store) > 0 && !slices.Contains(c.Store, string(store)) {
				continue
			}
			if ctx.Err() != nil || len(run.Scenarios) > 0 && time.Until(end) < scenarioEstimate {
				run.Unrun = append(run.Unrun, k.Name(store))
				continue
			}
			res := k.Run(ctx, dtm.Config{Bin: c.Bin, Store: store, Postgres: c.Postgres, MySQL: c.MySQL, Bare: c.NoBarrier},
				scenario.Options{Dir: filepath.Join(c.Out, k.Name(store)), Seed: c.Seed, Lanes: c.Lanes, Slow: slow, Quiet: c.Quiet, Shared: c.Shared, Say: func(f string, args ...any) { fmt.Fprintf(out, f+"\n", args...) }}, c.NoFault)
			report.One(out, &res)
			run.Scenarios = append(run.Scenarios, res)
			if len(k.Finds[store]) > 0 {
				fmt.Fprintf(out, "  known of DTM on %s: %s find something, because %s\n", store, strings.Join(k.Finds[store], ", "), k.Why)
			}
			if why := k.Differs(store, &res); why != "" {
				differ = append(differ, k.Name(store)+": "+why)
			}
		}
	}
	if err := run.Write(c.Out); err != nil {
		return err
	}
	fmt.Fprintln(out, run.Summary())
	return c.exit(out, run, differ)
}

// exit says where the run and docs/dtm-under-test.md differ; the code is of that, or of the verdicts.
func (c *dtmCmd) exit(out io.Writer, run *report.Run, differ []string) error {
	code := run.Exit()
	if !c.Verdicts && !c.NoFault && !c.NoBarrier {
		code = report.ExitHeld
		skipped := slices.ContainsFunc(run.Scenarios, func(s scenario.Result) bool { return s.Verdict == check.Skipped })
		if len(run.Unrun) > 0 || len(run.Scenarios) == 0 || skipped { // what was not run is not as the page says
			code = report.ExitInconclusive
		}
		if len(differ) > 0 {
			code = report.ExitViolation
			fmt.Fprintf(out, "other than docs/dtm-under-test.md says:\n  %s\n", strings.Join(differ, "\n  "))
		} else if code == report.ExitHeld {
			fmt.Fprintln(out, "all as docs/dtm-under-test.md says")
		} else {
			fmt.Fprintln(out, "what was run is as docs/dtm-under-test.md says, and not all of it was")
		}
	}
	if code != report.ExitHeld {
		return exitError(code)
	}
	return nil
}
