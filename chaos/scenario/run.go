package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/fault"
	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/workload"
)

const (
	warmUp         = 3 * time.Second
	inFlightNeeded = 10
	rateNeeded     = 40.0 // decisions a second before the fault, on the reference machine
	rateBack       = 0.8  // of it, after the healing
	backLimit      = 15 * time.Second
	quietLimit     = 30 * time.Second
	// A little more than what the checkers I14 and I4 want.
	operationsWanted = 550
	abortsWanted     = 60
	afterMin         = 2 * time.Second
	snapshotEvery    = 250 * time.Millisecond
	reachEvery       = time.Second
	transactionLimit = 3 * time.Second // what is not decided by then is aborted
)

// running is one scenario under way.
type running struct {
	s   Scenario
	o   Options
	d   *proc.Deployment
	own *proc.Server // that the scenario may kill; nil: it has none
	log *history.Log
	env fault.Env
	res Result
	win check.Window
	// until is when the fault began to heal; plan is what was drawn.
	until int64
	plan  *Schedule
	// crashes are those that a fault made one after another, within win.
	crashes []check.Window

	mu     sync.Mutex
	snaps  []check.Snapshot
	reach  []check.Reach
	lagged int

	before   map[string]uint64 // raft terms at the beginning, by cluster
	relisted int
	plants   []check.Plant
	givenUp  []string // transactions
	// broken are promises that the product broke while the fault was healed.
	broken []*fault.Broken
}

func (r *running) scaled(d time.Duration) time.Duration {
	return time.Duration(float64(d) * max(1, r.o.Slow))
}

// Run runs a scenario to its verdict. What it has left behind is in o.Dir.
func Run(ctx context.Context, s Scenario, o Options) (res Result) {
	began := time.Now()
	r := &running{s: s, o: o, log: history.New(), res: Result{ID: s.ID, Title: s.Title, Seed: o.Seed}}
	defer func() {
		if p := recover(); p != nil {
			res = r.res
			res.Harness, res.Verdict = fmt.Sprintf("panic: %v", p), check.Inconclusive
		}
		res.Seconds = time.Since(began).Seconds()
	}()
	if why := r.lacks(); why != "" {
		r.res.Verdict, r.res.Reasons = check.Skipped, []string{"skipped: " + why}
		return r.res
	}
	if err := fresh(o.Dir); err != nil {
		r.res.Harness, r.res.Verdict = err.Error(), check.Inconclusive
		return r.res
	}
	evidence, err := r.play(ctx)
	// A violation counts more than that the suite could not go on: it may be why.
	if b := (*fault.Broken)(nil); errors.As(err, &b) {
		r.broken, err = append(r.broken, b), nil
		if evidence != nil {
			r.res.Checks = check.AtAnyTime(evidence)
		}
	} else if err != nil {
		r.res.Harness, r.res.Verdict = err.Error(), check.Inconclusive
		if evidence != nil {
			r.res.Checks = check.AtAnyTime(evidence)
		}
	} else {
		r.res.Checks, r.res.Rare = check.All(evidence, s.Arms), check.Sometimes(evidence)
	}
	for _, b := range r.broken {
		r.res.Checks = append(r.res.Checks, check.Broken(b.Promise, b.Err))
	}
	if err == nil || len(r.res.Checks) > 0 {
		r.res.settle()
	}
	// Also of a run that was broken off: a red that nobody can look at, or make again, is half of one.
	if evidence != nil {
		if err := evidence.Save(o.Dir); err != nil {
			r.res.Harness = err.Error()
		}
	}
	if r.plan != nil {
		if err := r.plan.Save(o.Dir); err != nil {
			r.res.Harness = err.Error()
		}
	}
	return r.res
}

// fresh takes away what an earlier run has left in a directory that is a scenario's alone, and would be judged as this one's.
func fresh(dir string) error {
	for _, of := range []string{"*.json", "*.jsonl", "*.log"} {
		old, err := filepath.Glob(filepath.Join(dir, of))
		for _, path := range old {
			err = errors.Join(err, os.Remove(path))
		}
		if err != nil {
			return fmt.Errorf("what an earlier run has left: %w", err)
		}
	}
	return nil
}

// play makes the deployment, does everything to it, and reads what it left.
func (r *running) play(ctx context.Context) (e *check.Evidence, err error) {
	if r.o.System != nil {
		return r.playOther(ctx)
	}
	cfg := proc.Config{Bin: r.o.Bin, Env: r.o.Env, Pair: r.s.Pair, Three: r.s.Three, Five: r.s.Five, Brokers: r.s.Brokers, Clocks: r.s.Clocks, Volumes: r.volumes(), Syncs: r.s.Syncs, Participant: r.o.Participant, Now: r.log.Now}
	if r.s.Previous {
		cfg.Previous = r.o.Previous
	}
	if cfg.Dir, err = os.MkdirTemp("", "lockstep-chaos-"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(cfg.Dir)) }()
	if err := os.MkdirAll(r.o.Dir, 0o755); err != nil {
		return nil, err
	}
	// Coordinators of a chaos build write their transitions there, for conform; others do not know the variable.
	cfg.Env = append(append([]string(nil), cfg.Env...), "LOCKSTEP_TRACE="+r.o.Dir)
	end, err := r.server(ctx)
	defer func() { err = errors.Join(err, end()) }()
	if err != nil {
		return nil, fmt.Errorf("the database server did not start: %w", err)
	}
	drop, err := r.databases(ctx, &cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, drop()) }()
	r.d, err = proc.New(ctx, cfg)
	defer func() {
		err = errors.Join(err, r.d.Close())
		err = errors.Join(err, keepLogs(cfg.Dir, r.o.Dir))
	}()
	if err != nil {
		return nil, fmt.Errorf("the deployment did not start: %w", err)
	}
	r.env = fault.Env{Deployment: r.d, Log: r.log, Server: r.own, Slow: r.o.Slow, Seed: r.o.Seed, Draws: r.draws(), Dir: r.o.Dir}
	if err := r.s.Fault.Available(r.env); err != nil {
		return nil, err
	}
	if err := r.underLoad(ctx); err != nil {
		e, serr := r.soFar(ctx)
		return e, errors.Join(err, serr)
	}
	r.quiet(ctx)
	return r.read(ctx)
}

// keepLogs copies the processes' output.
func keepLogs(from, to string) error {
	logs, err := filepath.Glob(filepath.Join(from, "*.log"))
	for _, l := range logs {
		in, oerr := os.Open(l)
		if oerr != nil {
			return oerr
		}
		raw, rerr := io.ReadAll(io.LimitReader(in, 4<<20))
		err = errors.Join(err, rerr, in.Close(), os.WriteFile(filepath.Join(to, filepath.Base(l)), raw, 0o600))
	}
	return err
}

// underLoad runs the load and, in it, the fault.
func (r *running) underLoad(ctx context.Context) error {
	o := workload.Options{Seed: r.o.Seed, Lanes: r.o.Lanes, TryLimit: r.s.TryLimit, Timeout: transactionLimit, RetryLimit: 2, Repeats: !r.s.Lost}
	if o.TryLimit == 0 {
		o.TryLimit = time.Second
	}
	load, leave, err := r.load(ctx, o)
	defer leave()
	if err != nil {
		return err
	}
	r.before = r.terms(ctx)
	stop := r.snapshots(ctx)
	defer stop()
	if r.o.Schedule != nil {
		return r.again(ctx, load)
	}
	if load != nil {
		defer func() { r.plan = r.schedule(load) }()
	}
	if err := r.warm(ctx); err != nil {
		return err
	}
	active, err := r.inject(ctx)
	if active != nil {
		defer func() {
			if cerr := active.Cleanup(); cerr != nil {
				r.o.Say("%s: clean up: %v", r.s.ID, cerr)
			}
		}()
	}
	if err != nil {
		return err
	}
	return r.faulty(ctx, active)
}

// inject injects the scenario's fault.
func (r *running) inject(ctx context.Context) (fault.Active, error) {
	f := r.s.Fault
	if r.o.Disabled {
		f = fault.Disabled{Fault: f}
	}
	r.win = check.Window{Fault: f.Name(), InFlight: len(r.log.Flying()), Crash: r.s.Crash, Drift: r.s.Drift, Lost: r.s.Lost, Injected: r.log.Now()}
	r.res.InFlight = r.win.InFlight
	active, err := f.Inject(ctx, r.env)
	if err != nil {
		return active, fmt.Errorf("inject %s: %w", f.Name(), err)
	}
	return active, nil
}

// warm waits for the load to be what it is to be.
func (r *running) warm(ctx context.Context) error {
	// The first answers come when the coordinators have heard of the wallets and of their slots.
	for end := time.Now().Add(r.scaled(20 * time.Second)); history.Rate(r.log.Ops(), r.log.Now()-1e9, r.log.Now()) < rateNeeded/4 && time.Now().Before(end); {
		if !sleep(ctx, 100*time.Millisecond) {
			return ctx.Err()
		}
	}
	from := r.log.Now()
	if !sleep(ctx, warmUp) {
		return ctx.Err()
	}
	for end := time.Now().Add(5 * time.Second); len(r.log.Flying()) < inFlightNeeded && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	r.res.Rate = history.Rate(r.log.Ops(), from, r.log.Now())
	if need := r.wanted(rateNeeded / max(1, r.o.Slow)); r.res.Rate < need {
		r.res.inconclusive("%.0f decisions a second before the fault, %.0f are needed", r.res.Rate, need)
	}
	return nil
}

// wanted is how many decisions a second are wanted on this machine, where an idle one must have so many.
func (r *running) wanted(idle float64) float64 {
	if r.o.Shared {
		return min(idle, 1)
	}
	return idle
}

// faulty proves the fault, heals it, and waits for the load to be back.
func (r *running) faulty(ctx context.Context, active fault.Active) (err error) {
	if r.win.InFlight < inFlightNeeded {
		r.res.inconclusive("%d transactions in flight at the injection, %d are needed", r.win.InFlight, inFlightNeeded)
	}
	r.struck(active)
	if r.res.Effective, err = active.Effective(ctx); err != nil {
		r.res.inconclusive("%v", err)
	}
	r.o.Say("%s: %s", r.s.ID, r.res.Effective.What)
	if !sleep(ctx, r.s.Hold) {
		return ctx.Err()
	}
	if err := r.heal(ctx, active); err != nil {
		return err
	}
	for {
		now := r.log.Now()
		r.res.Back = float64(now-r.win.Healed) / 1e9
		r.res.RateAfter = max(r.res.RateAfter, history.Rate(r.log.Ops(), max(r.win.Healed, now-1e9), now))
		back := now-r.win.Healed > 1e9 && r.res.RateAfter >= rateBack*r.res.Rate
		if r.res.Back > afterMin.Seconds() && (r.o.Brief || back && r.enough()) {
			return nil
		}
		if late := r.res.Back > r.scaled(backLimit).Seconds(); late && r.res.RateAfter >= r.wanted(rateBack*r.res.Rate) {
			return nil // what was too little is for the arming conditions to say
		} else if late {
			r.res.inconclusive("%.0f decisions a second at most within %.0f s of the healing, %.0f before the fault", r.res.RateAfter, r.res.Back, r.res.Rate)
			return nil
		}
		if !sleep(ctx, 200*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// struck notes the crashes that a fault made one after another.
func (r *running) struck(active fault.Active) {
	if several, ok := active.(interface{ Crashes() []fault.Crash }); ok {
		for _, c := range several.Crashes() {
			r.crashes = append(r.crashes, check.Window{Fault: c.Name, Injected: c.At, Healed: c.Back, Crash: true})
		}
	}
}

// heal takes the fault away and proves that.
func (r *running) heal(ctx context.Context, active fault.Active) error {
	r.win.AtHeal, r.lagged = r.flying(ctx), r.lag(ctx)
	if b, ok := active.(interface{ Behind() int }); ok {
		r.lagged += b.Behind()
	}
	r.until = r.log.Now()
	if err := active.Recover(ctx); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	var err error
	r.res.Recovered, err = active.Recovered(ctx)
	if b := (*fault.Broken)(nil); errors.As(err, &b) {
		r.broken = append(r.broken, b)
	} else if err != nil {
		r.res.inconclusive("healing: %v", err)
	}
	if p, ok := active.(interface{ Plants() []check.Plant }); ok {
		r.plants = p.Plants()
	}
	if g, ok := active.(interface {
		Erased() (region string, at int64)
		GivenUp() []string
	}); ok {
		r.win.Erased, r.win.Gone = g.Erased()
		r.givenUp = g.GivenUp()
	}
	if c, ok := active.(interface{ Relisted() int }); ok {
		r.relisted = c.Relisted()
	}
	if f, ok := active.(interface{ Fleeting() (string, int64, int64) }); ok {
		r.forget(f.Fleeting())
	}
	r.win.Healed = r.log.Now()
	return nil
}

// forget leaves out how far a region's journal was at a time when it showed what was not on its disk.
func (r *running) forget(region string, from, to int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reach = slices.DeleteFunc(r.reach, func(one check.Reach) bool { return one.Region == region && one.At >= from && one.At <= to })
}

// enough says that the load has done what the checkers that it arms want.
func (r *running) enough() bool {
	ops := r.log.Ops()
	aborted, asked := 0, 0
	for _, op := range ops {
		if op.Kind != history.Abandon && op.Outcome == history.OK {
			asked++
		}
		if op.Kind != history.Read && op.Value == history.Aborted {
			aborted++
		}
	}
	return asked >= operationsWanted && aborted >= abortsWanted
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// snapshots looks at the books and the journals until it is stopped.
func (r *running) snapshots(ctx context.Context) (stop func()) {
	if r.o.System != nil {
		return r.otherSnapshots(ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for _, region := range r.d.Regions {
		wg.Go(func() {
			for sleep(ctx, snapshotEvery) {
				s, err := check.ReadSnapshot(ctx, region.Name, region.DB, r.log.Now)
				if err != nil {
					continue // the arming condition counts those that came
				}
				r.mu.Lock()
				r.snaps = append(r.snaps, s)
				r.mu.Unlock()
			}
		})
		wg.Go(func() {
			seen := map[[2]int64]check.Reach{}
			for sleep(ctx, reachEvery) {
				now, err := check.ReadReaches(ctx, region.Name, region.Journal, r.log.Now)
				if err != nil {
					continue
				}
				r.mu.Lock()
				r.reach = append(r.reach, check.Moved(seen, now)...)
				r.mu.Unlock()
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}
