package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/fault"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/report"
	"github.com/lockstep-tx/lockstep/chaos/scenario"
	"github.com/lockstep-tx/lockstep/chaos/sweep"
)

// exitError ends the program with a code of its own and says nothing more: the report has said it.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit %d", int(e)) }

type runCmd struct {
	Out       string        `help:"Directory for the reports, the histories and the processes' logs." default:"chaos-out" type:"path"`
	Seed      uint64        `help:"What the load draws from. Defaults to one of the clock's."`
	Budget    time.Duration `help:"No scenario is begun that would not end in time; what is not run makes the run inconclusive." default:"12m"`
	Scenario  []string      `help:"Only these. See list." placeholder:"ID"`
	Nightly   bool          `help:"The nightly set instead of the pull-request set."`
	Without   []string      `help:"All but these: for hosts that cannot have them, where --strict is to be red for anything else." placeholder:"ID"`
	Bin       string        `help:"Where lockstep and lockstep-participants are. Defaults to this program's directory." type:"path"`
	DB        string        `help:"PostgreSQL, MySQL or MariaDB server for the wallets, instead of SQLite, of the scenarios that name no server." name:"db" placeholder:"postgres://…|mysql://…"`
	Journal   string        `help:"PostgreSQL server for the journal of regions with two coordinators, and for the wallets of scenarios that name it; without it they are skipped." env:"LOCKSTEP_TEST_POSTGRES_URL" placeholder:"postgres://…"`
	MySQL     string        `help:"MySQL or MariaDB server for the wallets of scenarios that name it; without it they are skipped." name:"mysql" env:"LOCKSTEP_TEST_MYSQL_URL" placeholder:"mysql://…"`
	Devctl    string        `help:"Program that starts database servers of the suite's own, for scenarios that kill one or move its clock; without it they are skipped." env:"LOCKSTEP_TEST_DEVCTL" placeholder:"FILE"`
	Previous  string        `help:"Where lockstep of the version before is, for scenarios that run both; without it they are skipped." type:"path" placeholder:"DIR"`
	Topology  string        `help:"YAML file that names a participant of your own, which is started in place of our wallets. See docs/chaos.md." type:"existingfile" placeholder:"FILE"`
	Lanes     int           `help:"Clients at once." default:"24"`
	Quiet     time.Duration `help:"How long to wait after the load for nothing to be open any more, on the reference machine." default:"30s"`
	Brief     bool          `help:"End each load soon after the healing: enough to look for violations, too little to arm all checkers."`
	Shared    bool          `help:"Other work comes and goes on this machine: the load's rates are told and not compared, beyond that there are some before and after the fault."`
	NoFault   bool          `help:"Inject nothing. Every scenario must end inconclusive: a test of the suite itself."`
	Env       []string      `help:"Added to the environment of the programs." placeholder:"NAME=VALUE" hidden:""`
	Strict    bool          `help:"A scenario that is skipped makes the run inconclusive."`
	KeepGoing bool          `help:"Run the rest after a violation too." default:"true" negatable:""`
	Verbose   bool          `help:"Tell each seed of the drift sweep, and each look for it."`
	sweepFlags
}

const scenarioEstimate = 75 * time.Second

// sweepEstimate is what the drift sweep takes.
const sweepEstimate = 4 * time.Minute

// Run runs the scenarios.
func (c *runCmd) Run(ctx context.Context, out io.Writer) error {
	ids, classes, sweeps, err := parted(c.Scenario)
	if err != nil {
		return err
	}
	list, err := c.list(ids)
	if err != nil {
		return usageError{err}
	}
	// With nothing named the sweep is part of the pull-request set; its seeds are in our wallets' tables.
	sweeps = sweeps && !slices.Contains(c.Without, sweepID) && c.Topology == "" && (!c.Nightly || len(c.Scenario) > 0)
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
	var own *proc.Participant
	if c.Topology != "" {
		if own, err = proc.Load(c.Topology); err != nil {
			return usageError{err}
		}
	}
	slow, err := scenario.Calibrate(c.Out)
	if err != nil {
		return err
	}
	run := &report.Run{Seed: c.Seed, Slow: slow, Bed: c.bed(ctx)}
	fmt.Fprintf(out, "%s; seed %d, this machine is %.1f times slower than the reference\n", run.Bed, c.Seed, slow)
	end := time.Now().Add(c.Budget)
	for i, s := range list {
		if ctx.Err() != nil || i > 0 && time.Until(end) < scenarioEstimate {
			run.Unrun = append(run.Unrun, s.ID)
			continue
		}
		sctx, cancel := context.WithDeadline(ctx, end)
		res := scenario.Run(sctx, s, scenario.Options{Dir: filepath.Join(c.Out, s.ID), Bin: c.Bin, Seed: c.Seed, Lanes: c.Lanes, Slow: slow, Disabled: c.NoFault, Quiet: c.Quiet, Brief: c.Brief, Shared: c.Shared, Env: c.Env,
			Journal: c.Journal, MySQL: c.MySQL, DB: c.DB, Devctl: c.Devctl, Previous: c.Previous, Participant: own, Say: func(f string, args ...any) { fmt.Fprintf(out, f+"\n", args...) }})
		cancel()
		report.One(out, &res)
		run.Scenarios = append(run.Scenarios, res)
		if res.Verdict == check.Failed && !c.KeepGoing {
			break
		}
	}
	if sweeps && len(list) > 0 && time.Until(end) < sweepEstimate {
		run.Unrun, sweeps = append(run.Unrun, sweepID), false
	}
	if sweeps && (c.KeepGoing || run.Exit() != report.ExitViolation) {
		sctx, cancel := context.WithDeadline(ctx, end)
		err := c.sweep(sctx, out, run, classes, slow)
		if cancel(); err != nil { // what was run before it is reported all the same
			res := scenario.Result{ID: sweepID, Title: "the drift sweep", Seed: c.Seed, Harness: err.Error(), Verdict: check.Inconclusive}
			report.One(out, &res)
			run.Scenarios = append(run.Scenarios, res)
		}
	}
	if err := run.Write(c.Out); err != nil {
		return err
	}
	run.Sometimes(out)
	fmt.Fprintln(out, run.Summary())
	code := run.Exit()
	// A whole nightly set in which something never happened did not look there.
	if _, never := run.Rare(); code == report.ExitHeld && c.Strict && c.Nightly && len(c.Scenario) == 0 && len(never) > 0 {
		fmt.Fprintf(out, "inconclusive: never seen: %s\n", strings.Join(never, "; "))
		code = report.ExitInconclusive
	}
	if code == report.ExitHeld && c.Strict && slices.ContainsFunc(run.Scenarios, func(s scenario.Result) bool { return s.Verdict == check.Skipped }) {
		code = report.ExitInconclusive
	}
	if code != report.ExitHeld {
		return exitError(code)
	}
	return nil
}

// list is what is to run.
func (c *runCmd) list(ids []string) ([]scenario.Scenario, error) {
	without, _, _, err := parted(c.Without)
	if err != nil {
		return nil, err
	}
	if len(c.Without) > 0 {
		if _, err := scenario.Find(without); err != nil {
			return nil, err
		}
	}
	var list []scenario.Scenario
	set, rest := scenario.PullRequest(c.Journal, c.MySQL)
	if c.Topology != "" || c.DB != "" { // all of them run where that says
		set, rest = scenario.All(), nil
	}
	switch {
	case len(ids) > 0:
		if list, err = scenario.Find(ids); err != nil {
			return nil, err
		}
	case len(c.Scenario) > 0: // the sweep alone
	case c.Nightly:
		list = append(scenario.Nightly(), rest...)
	default:
		list = set
	}
	return slices.DeleteFunc(list, func(s scenario.Scenario) bool { return slices.Contains(c.Without, s.ID) }), nil
}

// bed says what the run is on.
func (c *runCmd) bed(ctx context.Context) string {
	v, err := exec.CommandContext(ctx, filepath.Join(c.Bin, "lockstep"), "version").Output()
	if err != nil {
		v = []byte("of unknown version")
	}
	db := "SQLite"
	if kind, _, ok := strings.Cut(c.DB, ":"); ok {
		db = map[string]string{"mysql": "MySQL or MariaDB", "mariadb": "MariaDB"}[kind]
		db = cmp.Or(db, "PostgreSQL")
	}
	if c.Topology != "" {
		return fmt.Sprintf("lockstep %s: two regions of real processes, an arbiter of one member, the participant of %s, Lockstep's own broker in Kafka's place", strings.TrimSpace(string(v)), c.Topology)
	}
	return fmt.Sprintf("lockstep %s: two regions of real processes, an arbiter of one member, wallets on %s where the scenario names nothing else, Lockstep's own broker in Kafka's place", strings.TrimSpace(string(v)), db)
}

type listCmd struct{}

// Run lists the scenarios and the checkers that each arms.
func (listCmd) Run(out io.Writer) error {
	for _, s := range scenario.All() {
		describe(out, "", &s)
	}
	for _, s := range scenario.Nightly() {
		describe(out, "nightly; ", &s)
	}
	fmt.Fprintf(out, "%-14s drift of each class, seeded and measured: %s\n", sweepID, strings.Join(sweep.IDs(), " "))
	_, err := fmt.Fprintf(out, "checkers: %s\n", strings.Join(check.IDs(), " "))
	return err
}

// describe prints one scenario.
func describe(out io.Writer, set string, s *scenario.Scenario) {
	needs := ""
	switch {
	case s.Previous:
		needs = "; needs LOCKSTEP_TEST_POSTGRES_URL and --previous"
	case s.Own != scenario.OnSQLite:
		needs = "; needs LOCKSTEP_TEST_DEVCTL"
	case s.Wallets == scenario.OnMariaDB:
		needs = "; needs LOCKSTEP_TEST_MYSQL_URL"
	case s.Pair || s.Wallets == scenario.OnPostgreSQL:
		needs = "; needs LOCKSTEP_TEST_POSTGRES_URL"
	}
	if f, ok := s.Fault.(interface{ Needs() error }); ok && f.Needs() != nil {
		needs += "; cannot be had here, see doctor"
	}
	fmt.Fprintf(out, "%-14s %s (%s%s; arms %s%s)\n", s.ID, s.Title, set, s.Fault.Name(), strings.Join(s.Arms, " "), needs)
}

type checkCmd struct {
	Dir string `arg:"" help:"Directory of a run (--out)." type:"existingdir"`
}

// Run runs all checkers on what was stored. The verdicts on the faults and the load stay as they were.
func (c *checkCmd) Run(out io.Writer) error {
	run, err := report.Load(c.Dir)
	if err != nil {
		return err
	}
	for i := range run.Scenarios {
		s := &run.Scenarios[i]
		if len(s.Checks) == 0 || slices.Contains(sweep.IDs(), s.ID) {
			continue // what the sweep has measured is not judged again
		}
		e, err := check.Load(filepath.Join(c.Dir, s.ID))
		if errors.Is(err, os.ErrNotExist) {
			fmt.Fprintf(out, "%s: there is no evidence of it: its verdict stays as it was\n", s.ID)
			continue
		}
		if err != nil {
			return err
		}
		var required []string
		var seen []check.Result
		for _, r := range s.Checks {
			switch {
			case r.Seen():
				seen = append(seen, r)
			case r.Required:
				required = append(required, r.ID)
			}
		}
		again := check.All
		if s.Harness != "" || len(seen) > 0 { // it was broken off: nothing was at rest
			again = func(e *check.Evidence, _ []string) []check.Result { return check.AtAnyTime(e) }
		}
		s.Recheck(append(again(e, required), seen...))
		report.One(out, s)
	}
	fmt.Fprintln(out, run.Summary())
	if code := run.Exit(); code != report.ExitHeld {
		return exitError(code)
	}
	return nil
}

type doctorCmd struct {
	Bin    string `help:"Where lockstep and lockstep-participants are. Defaults to this program's directory." type:"path"`
	Strict bool   `help:"Exit with 3 where something is missing for which a scenario would be skipped."`
}

// Run says what the suite finds here.
func (c *doctorCmd) Run(out io.Writer) error {
	if c.Bin == "" {
		exe, err := os.Executable()
		if err != nil {
			return err
		}
		c.Bin = filepath.Dir(exe)
	}
	var bad error
	line := func(what string, err error, without string) {
		if err == nil {
			fmt.Fprintf(out, "ok       %s\n", what)
			return
		}
		fmt.Fprintf(out, "missing  %s (%v): %s\n", what, err, without)
	}
	for _, program := range []string{"lockstep", "lockstep-participants"} {
		_, err := os.Stat(filepath.Join(c.Bin, program))
		bad = errors.Join(bad, err)
		line(program, err, "nothing runs; make build")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		l.Close()
	}
	line("loopback", err, "nothing runs")
	dir, err := os.MkdirTemp("", "lockstep-chaos-")
	bad = errors.Join(bad, err)
	line("temporary directory", err, "nothing runs")
	if err == nil {
		slow, err := scenario.Calibrate(dir)
		line(fmt.Sprintf("synced writes and arithmetic: %.1f times slower than the reference", slow), err, "nothing runs")
		bad = errors.Join(bad, err, os.RemoveAll(dir))
	}
	unset := false
	for _, server := range []struct{ name, variable, without string }{
		{"PostgreSQL", "LOCKSTEP_TEST_POSTGRES_URL", "scenarios of regions with two coordinators (list says which) and those that end in -postgresql are skipped; bin/devctl run -- …"},
		{"MariaDB", "LOCKSTEP_TEST_MYSQL_URL", "those that end in -mariadb are skipped; bin/devctl run -- …"},
		{"database servers of the suite's own", "LOCKSTEP_TEST_DEVCTL", "P6, P7, C2 and C4 are skipped; bin/devctl run -- …"},
	} {
		var err error
		if os.Getenv(server.variable) == "" {
			err, unset = errors.New(server.variable+" is not set"), true
		}
		line(server.name, err, server.without)
	}
	lacking := false
	for _, k := range fault.Capabilities() {
		err, without := k.Probe(), k.Absent
		if k.Scenarios != "" {
			without = k.Scenarios + " " + without
		}
		line(k.Name, err, without)
		lacking = lacking || err != nil && k.Scenarios != ""
	}
	if c.Strict && (lacking || unset) && bad == nil {
		return exitError(report.ExitInconclusive)
	}
	return bad
}
