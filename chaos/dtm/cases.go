package dtm

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/fault"
	"github.com/lockstep-tx/lockstep/chaos/scenario"
)

// Case is a scenario of DTM, on the stores that it is about.
type Case struct {
	ID, Title string
	// Finds are the checkers that find something, by store: one of them at least in each run, or where Race is set in most of
	// them. On a store without an entry the run is green. Why is the cause.
	Finds  map[Store][]string
	Race   bool
	Why    string
	stores []Store // nil: all that make uses
	hold   time.Duration
	arms   []string
	crash  bool
	fault  func(*System) fault.Fault
}

// servers are the stores that are servers of their own, which two of DTM's servers share.
var servers = []Store{Postgres, MariaDB, Redis}

// usual are the stores on which each case runs; RedisAOF is there to be compared with Redis.
var usual = []Store{Boltdb, Postgres, MariaDB, Redis}

func on(finds []string, stores ...Store) map[Store][]string {
	m := map[Store][]string{}
	for _, s := range stores {
		m[s] = finds
	}
	return m
}

// unsaved is why clients are told of commits that were never stored.
const unsaved = "a submit whose write to the store fails is answered as one that succeeded"

// Cases are all of them, in the order in which they run.
func Cases() []Case {
	always := []string{"I1", "I2", "I3", "I4", "I7", "I14"}
	armed := func(more ...string) []string { return append(slices.Clone(always), more...) }
	plain := func(f fault.Fault) func(*System) fault.Fault { return func(*System) fault.Fault { return f } }
	own := func(f func(*System) *deed) func(*System) fault.Fault {
		return func(s *System) fault.Fault { return f(s) }
	}
	return []Case{
		{ID: "P1", Title: "SIGKILL of a server that was asked for transactions in flight", hold: 500 * time.Millisecond, arms: armed("I8"), crash: true, fault: plain(fault.Kill{})},
		{ID: "P2", Title: "SIGKILL of all servers at each phase of a transaction", hold: 500 * time.Millisecond, arms: always, crash: true, fault: own((*System).killAtPhases)},
		{ID: "P4", Title: "SIGSTOP of one of two servers until the other has taken its transactions over, then SIGCONT", stores: servers, hold: time.Second, arms: always, fault: own((*System).pause)},
		{ID: "P5", Title: "a participant killed between its commit and its reply", hold: time.Second, arms: armed("I8"), crash: true, fault: plain(fault.Participant())},
		{ID: "M1", Title: "confirms and cancels sent three times at once", hold: 2 * time.Second, arms: armed("I6"), fault: plain(fault.Duplicates())},
		{ID: "M2", Title: "cancel before a try that never comes", hold: 2 * time.Second, arms: always, fault: plain(fault.CancelFirst(false))},
		{ID: "M23", Title: "cancel before try, and the try after it", hold: 2 * time.Second, arms: armed("I5"), fault: plain(fault.CancelFirst(true))},
		{ID: "N14", Title: "answers lost after the participant has applied", hold: 2 * time.Second, arms: armed("I6"), fault: plain(fault.LostAnswers())},
		{ID: "N7", Title: "the servers cut off from one participant for longer than transactions may take", hold: 5 * time.Second, arms: always, fault: own((*System).cutWallet)},
		{ID: "sulking", Title: "confirms and cancels answered 409, 425 and 500", hold: 2 * time.Second, arms: always, fault: own((*System).sulk)},
		{ID: "answers-lost", Title: "the servers' answers lost: clients that submitted ask for the abort", hold: time.Second, arms: always, fault: own((*System).loseAnswers)},
		{ID: "store-cut", Title: "the servers cut off from their store", stores: servers, hold: 2 * time.Second, arms: always, fault: own((*System).cutStore),
			Finds: on([]string{"I8", "I14"}, Postgres, MariaDB, Redis), Why: unsaved},
		{ID: "store-killed", Title: "SIGKILL of the store with the settings that it has by itself, and with each write synced", stores: []Store{Redis, RedisAOF}, hold: time.Second, arms: armed("I8"), crash: true, fault: own((*System).killStore), Why: unsaved + "; and a Redis that keeps snapshots of its memory alone comes back without what it had acknowledged since the last",
			Finds: map[Store][]string{Redis: {"I1", "I3", "I4", "I5", "I7", "I8", "I14"}, RedisAOF: {"I8", "I14"}}},
		{ID: "submit-twice", Title: "each submit sent a second time", hold: 6 * time.Second, arms: always, fault: own((*System).submitTwice),
			Finds: on([]string{"I1", "I3", "I4", "I7", "I8"}, usual...), Why: "a submit of what is submitted makes a pass over no branches and ends the transaction; the first pass then stops at its next write"},
		{ID: "late-branch", Title: "branches registered while the transaction's time runs out", hold: 2 * time.Second, arms: always, fault: own((*System).registerLate), Race: true,
			Finds: on([]string{"I3", "I5", "I7"}, usual...), Why: "the poll reads the branches before it ends the time in which more may be registered: one that comes in between is never cancelled"},
		{ID: "gid-prefix", Title: "transactions whose gid begins with another's", hold: 2 * time.Second, arms: always, fault: own((*System).countedGids),
			Finds: on([]string{"I1", "I3", "I4", "I5", "I7", "I8"}, Boltdb), Why: "boltdb's rows are found by the gid as the beginning of their key, and the look ends at the first row of another gid"},
	}
}

// Runs says that the case is run on a store.
func (c *Case) Runs(on Store) bool {
	if c.stores != nil {
		return slices.Contains(c.stores, on)
	}
	return slices.Contains(usual, on)
}

// Name is the case on a store.
func (c *Case) Name(on Store) string { return c.ID + "-" + string(on) }

// Find gives the cases named; all without a name.
func Find(ids []string) (out []Case, err error) {
	all := Cases()
	if len(ids) == 0 {
		return all, nil
	}
	for _, id := range ids {
		i := slices.IndexFunc(all, func(c Case) bool { return c.ID == id })
		if i < 0 {
			return nil, fmt.Errorf("there is no scenario %q of DTM", id)
		}
		out = append(out, all[i])
	}
	return out, nil
}

// Run runs the case on a store; with off its fault does nothing.
func (c *Case) Run(ctx context.Context, cfg Config, o scenario.Options, off bool) scenario.Result {
	res := scenario.Result{ID: c.Name(cfg.Store), Title: c.Title + "; DTM on " + string(cfg.Store), Seed: o.Seed}
	if why := cfg.Lacks(); why != "" {
		res.Verdict, res.Reasons = check.Skipped, []string{"skipped: " + why}
		return res
	}
	s := New(cfg)
	o.System = s
	res = scenario.Run(ctx, scenario.Scenario{ID: res.ID, Title: res.Title, Fault: &late{c.fault, s, c.ID, off}, Hold: c.hold, Arms: c.arms, Crash: c.crash}, o)
	res.Again = fmt.Sprintf("bin/lockstep-chaos dtm --scenario %s --store %s --seed %d --out DIR", c.ID, cfg.Store, o.Seed)
	return res
}

// late is a fault that is made when the system runs.
type late struct {
	of   func(*System) fault.Fault
	s    *System
	name string
	off  bool
}

// Name is the case's.
func (l *late) Name() string { return l.name }

// Available is always.
func (*late) Available(fault.Env) error { return nil }

// Inject makes the fault and injects it.
func (l *late) Inject(ctx context.Context, e fault.Env) (fault.Active, error) {
	f := l.of(l.s)
	if l.off {
		f = disabled(f)
	}
	return f.Inject(ctx, e)
}

// Differs compares what a run found with what is written down of it: "" where they agree. A violation that nobody knows, one
// that is known and did not show, and a scenario that proved nothing all differ.
func (c *Case) Differs(on Store, r *scenario.Result) string {
	if r.Verdict == check.Skipped {
		return ""
	}
	if r.Harness != "" {
		return "the suite itself: " + r.Harness
	}
	known, found := c.Finds[on], false
	for i := range r.Checks {
		k := &r.Checks[i]
		if k.Verdict() != check.Failed {
			continue
		}
		if !slices.Contains(known, k.ID) {
			return fmt.Sprintf("a violation that is not written down: %s, %s", k.ID, k.Violations[0])
		}
		found = true
	}
	switch {
	case found:
		return ""
	case len(known) > 0 && !c.Race:
		return "what is written down did not show: " + strings.Join(known, ", ")
	case r.Verdict != check.Passed:
		return strings.Join(r.Reasons, "; ")
	}
	return ""
}
