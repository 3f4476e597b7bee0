// Package scenario runs a fault under load, end to end: a deployment of its own, a load, the fault with its evidence, the
// healing with its evidence, quiet, and then the checkers.
//
// Its law: a scenario passes only if its fault took effect, its load was really in flight, and every checker that it arms
// has examined something that could have been wrong. Else it is inconclusive, which is red. A violation is a violation,
// whatever else was not proven.
package scenario

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/fault"
	"github.com/lockstep-tx/lockstep/chaos/proc"
)

// Scenario is a fault and what it arms.
type Scenario struct {
	ID, Title string
	Fault     fault.Fault
	// Hold is how long the fault stays after it is proven.
	Hold time.Duration
	// Arms are the checkers that must have proven something.
	Arms []string
	// Pair wants a region with two coordinators on one etcd, for which a journal server is needed.
	Pair bool
	// Brokers puts links before the regions' own brokers.
	Brokers bool
	// Three gives the arbiter, and the etcd of a Pair, three members each.
	Three bool
	// Five gives the arbiter five members that can be cut from each other.
	Five bool
	// Wallets is the server that the wallets are on; the zero one is SQLite, or what the run says.
	Wallets Server
	// Again is the scenario that this one is once more, on the server that Wallets names; "" for none.
	Again string
	// Own has the wallets on a server of that kind that is the suite's own and may be killed, or have its clock moved.
	Own Server
	// Skew has that server's clock such that it can be moved.
	Skew bool
	// Clocks has coordinators whose clock can be moved.
	Clocks bool
	// Crash: a process dies at the injection.
	Crash bool
	// Drift: money is altered behind the product's back, and repaired at the healing.
	Drift bool
	// Lost: a region's slots are taken by force, and it returns.
	Lost bool
	// Previous has the first region's coordinators start on the version before.
	Previous bool
	// Files wants all of the regions' data in files: it erases them.
	Files bool
	// TryLimit is how long a branch call may take; 0 is the usual.
	TryLimit time.Duration
	// Volumes are the sets of parts of the first region whose data are on volumes of their own; the seed says which set.
	Volumes [][]string
	// Syncs has their syncs be such that they can be slowed, and made to fail.
	Syncs bool
}

// always are armed by the load alone.
var always = []string{"I1", "I2", "I4", "I7", "I14"}

func armed(more ...string) []string { return append(append([]string(nil), always...), more...) }

// All are the scenarios of the pull-request set, in the order in which they run.
func All() []Scenario {
	all := []Scenario{
		{ID: "P1", Title: "SIGKILL of the coordinator that owns transactions in flight", Fault: fault.Kill{}, Hold: 500 * time.Millisecond, Arms: armed("I3", "I8"), Crash: true},
		{ID: "P1-etcd", Title: "SIGKILL of the leader of a region's etcd of three", Fault: fault.KillMember{}, Hold: 500 * time.Millisecond, Arms: armed("I3", "I8", "I12"), Pair: true, Three: true, Crash: true},
		{ID: "P1-arbiter", Title: "SIGKILL of the leader of an arbiter of three", Fault: fault.KillMember{Arbiter: true}, Hold: 500 * time.Millisecond, Arms: armed("I3", "I8", "I12"), Three: true, Crash: true},
		{ID: "P2", Title: "SIGKILL of the coordinator at each phase of a transaction", Fault: fault.Phases{}, Hold: 500 * time.Millisecond, Arms: armed("I3", "I8", "I9"), Brokers: true},
		{ID: "M1", Title: "confirms and cancels sent three times at once", Fault: fault.Duplicates(), Hold: 2 * time.Second, Arms: armed("I3", "I6")},
		{ID: "M23", Title: "cancel before try, and the try after it", Fault: fault.CancelFirst(true), Hold: 2 * time.Second, Arms: armed("I3", "I5"), TryLimit: 500 * time.Millisecond},
		{ID: "N14", Title: "answers lost after the participant has applied", Fault: fault.LostAnswers(), Hold: 2 * time.Second, Arms: armed("I3", "I6")},
		{ID: "P4", Title: "SIGSTOP for longer than the lease, then SIGCONT", Fault: fault.Pause{}, Hold: time.Second, Arms: armed("I3"), Pair: true},
		{ID: "P9", Title: "the reconciler killed in the middle of a repair", Fault: fault.Repaired{Accounts: 3}, Arms: armed("I3", "I13"), Drift: true},
		{ID: "N8", Title: "the link between the regions cut and healed", Fault: fault.Between{}, Hold: 5 * time.Second, Arms: armed("I3", "I9", "I10")},
		{ID: "N1", Title: "one coordinator isolated", Fault: fault.Isolate{}, Hold: 4 * time.Second, Arms: armed("I3"), Pair: true},
		{ID: "N2", Title: "nothing comes to one coordinator", Fault: fault.IsolateOneWay{Slots: proc.Moving}, Hold: time.Second, Arms: armed("I3", "I11"), Pair: true},
		{ID: "N7", Title: "a coordinator cut from one participant", Fault: fault.Deaf(), Hold: 3 * time.Second, Arms: armed("I3")},
		{ID: "N1k", Title: "one coordinator isolated by the kernel", Fault: fault.IsolateByKernel{}, Hold: 2 * time.Second, Arms: armed("I3"), Pair: true},
		{ID: "M8", Title: "confirms and cancels of an epoch that has ended", Fault: fault.Moved{Slots: proc.Moving}, Hold: time.Second, Arms: armed("I3", "I11")},
		{ID: "O3", Title: "a handover whose coordinator is killed on the way", Fault: fault.Moved{Slots: proc.Moving, Kill: true}, Hold: time.Second, Arms: armed("I3", "I11"), Crash: true},
		{ID: "O3-forced", Title: "a region lost, failed over by force with the tool killed on the way, returned, and failed back", Fault: fault.Lost{}, Hold: 2 * time.Second, Arms: armed("I3", "I8"), Crash: true, Lost: true},
		{ID: "K1", Title: "the power of a participant's or of the coordinator's volume cut", Fault: fault.PowerCut{}, Hold: 500 * time.Millisecond, Arms: armed("I3", "I8"), Crash: true,
			Volumes: [][]string{{proc.Wallet}, {proc.Coordinator}}},
	}
	// The races between calls and the fences are the databases' work: these once more on the servers.
	for _, again := range []struct {
		id string
		on Server
	}{{"M1", OnPostgreSQL}, {"M23", OnPostgreSQL}, {"N14", OnMariaDB}, {"M8", OnMariaDB}} {
		s := all[slices.IndexFunc(all, func(s Scenario) bool { return s.ID == again.id })]
		s.ID, s.Title, s.Wallets, s.Again = s.ID+"-"+strings.ToLower(string(again.on)), s.Title+"; wallets on "+string(again.on), again.on, s.ID
		all = append(all, s)
	}
	return all
}

// PullRequest is All as it is run where nothing is named: what is there once more on a server that is given runs on that one. The
// others, on SQLite, run with the nightly set then.
func PullRequest(postgres, mysql string) (run, nightly []Scenario) {
	all := All()
	for _, s := range all {
		again := slices.ContainsFunc(all, func(v Scenario) bool {
			return v.Again == s.ID && (v.Wallets == OnPostgreSQL && postgres != "" || v.Wallets == OnMariaDB && mysql != "")
		})
		if again {
			nightly = append(nightly, s)
		} else {
			run = append(run, s)
		}
	}
	return run, nightly
}

// Find gives the scenarios with the ids given, of either set; without ids, the pull-request set.
func Find(ids []string) ([]Scenario, error) {
	if len(ids) == 0 {
		return All(), nil
	}
	known := append(All(), Nightly()...)
	var out []Scenario
	for _, id := range ids {
		n := len(out)
		for _, s := range known {
			if s.ID == id {
				out = append(out, s)
			}
		}
		if len(out) == n {
			return nil, fmt.Errorf("there is no scenario %q", id)
		}
	}
	return out, nil
}

// Options of a run.
type Options struct {
	Dir, Bin string // for reports and logs; of the programs
	Seed     uint64
	Env      []string
	Lanes    int
	// Slow is how much slower this machine is than the reference; see Calibrate.
	Slow float64
	// Disabled faults do nothing: the scenario must notice.
	Disabled bool
	// Journal is a PostgreSQL server, for a journal that coordinators share and wallets that are to be there, MySQL one of
	// MySQL or MariaDB; DB is the server for all other wallets. "" where there is none.
	Journal, MySQL, DB string
	// Devctl is the program that starts database servers of the suite's own; "" where there is none.
	Devctl string
	// Previous is where lockstep of the version before is; "" where there is none.
	Previous string
	// Participant is started in place of our wallets; nil: ours.
	Participant *proc.Participant
	// Quiet is how long is waited for nothing to be open any more, before it is scaled; 0 is the usual.
	Quiet time.Duration
	// Brief ends the load soon after the healing, whether or not it is back and has done what arms all checkers: enough to
	// look for violations, too little to prove anything.
	Brief bool
	// Shared says that other work runs on this machine, which comes and goes: a load's rate before and after the fault is
	// told, and judged only in that there must be one.
	Shared bool
	// Schedule is done again instead of a load and a fault that are drawn; Seed and Lanes are its own then. nil: all is drawn.
	Schedule *Schedule
	// System is tested in Lockstep's place; nil: Lockstep. Bin, Env, Journal, MySQL, DB and Participant are not looked at then.
	System System
	// Say tells what goes on.
	Say func(format string, args ...any)
}

// Result of a scenario.
type Result struct {
	ID      string         `json:"id"`
	Title   string         `json:"title"`
	Seed    uint64         `json:"seed"`
	Verdict check.Verdict  `json:"verdict"`
	Reasons []string       `json:"reasons,omitempty"` // why it is not passed
	Checks  []check.Result `json:"checks,omitempty"`
	// Effective and Recovered are the fault's evidence.
	Effective fault.Evidence `json:"effective"`
	Recovered fault.Evidence `json:"recovered"`
	InFlight  int            `json:"in_flight"`
	// Rate before the fault and in the best second after it, decisions a second; Back is how long that took, in seconds.
	Rate      float64 `json:"rate"`
	RateAfter float64 `json:"rate_after"`
	Back      float64 `json:"back_s"`
	Ops       int     `json:"ops"`
	Unknown   int     `json:"unknown"`
	Seconds   float64 `json:"seconds"`
	// Timeline and Windows, on one clock, are for reports.
	Timeline []Second       `json:"timeline,omitempty"`
	Windows  []check.Window `json:"windows,omitempty"`
	// Rare is how often what is to happen sometimes did: of a whole set, each is to be seen.
	Rare []check.Rare `json:"sometimes,omitempty"`
	// Harness is an error of the suite itself.
	Harness string `json:"harness,omitempty"`
	// Again is the command that draws the same once more, where that is not run's.
	Again string `json:"again,omitempty"`
}

// inconclusive adds a reason for which nothing is proven.
func (r *Result) inconclusive(format string, args ...any) {
	r.Reasons = append(r.Reasons, "inconclusive: "+fmt.Sprintf(format, args...))
}

// Recheck puts other findings in the place of the checkers'.
func (r *Result) Recheck(checks []check.Result) {
	var own []string
	for _, why := range r.Reasons {
		if strings.HasPrefix(why, "inconclusive: ") && !strings.Contains(why, " examined ") {
			own = append(own, why)
		}
	}
	r.Reasons, r.Checks = own, checks
	r.settle()
}

// Settle is for results that were not made by Run: it gives the verdict that follows from the checks and the reasons.
func (r *Result) Settle() {
	r.settle()
	if r.Harness != "" && r.Verdict == check.Passed {
		r.Verdict = check.Inconclusive
	}
}

// settle gives the verdict: a violation counts more than what was not proven.
func (r *Result) settle() {
	r.Verdict = check.Passed
	if len(r.Reasons) > 0 {
		r.Verdict = check.Inconclusive
	}
	for i := range r.Checks {
		c := &r.Checks[i]
		switch c.Verdict() {
		case check.Failed:
			r.Verdict = check.Failed
			r.Reasons = append(r.Reasons, fmt.Sprintf("%s (%s): %d violations; %s", c.ID, c.Title, c.Count, c.Violations[0]))
		case check.Inconclusive:
			r.inconclusive("%s examined %d; %s; search ended early: %v", c.ID, c.Examined, c.Arming, c.TimedOut)
			if r.Verdict == check.Passed {
				r.Verdict = check.Inconclusive
			}
		case check.Passed, check.Skipped: // a checker that was skipped says so
		}
	}
}
