package check

import (
	"fmt"
	"slices"
	"sort"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/tap"
)

// violationsMax is how many violations of one checker are told; the rest is counted.
const violationsMax = 10

// Result is what a checker found.
type Result struct {
	ID         string   `json:"id"`
	Title      string   `json:"title"`
	Examined   int      `json:"examined"`
	Violations []string `json:"violations,omitempty"`
	Count      int      `json:"count"` // of all violations
	// Armed says whether what the checker is to notice could have happened; Arming says what was seen of it.
	Armed  bool   `json:"armed"`
	Arming string `json:"arming"`
	// Required by the scenario: else it may find violations, and proves nothing by finding none.
	Required bool `json:"required"`
	// Skipped is why it was not run.
	Skipped string `json:"skipped,omitempty"`
	// TimedOut: it came to no answer.
	TimedOut bool `json:"timed_out,omitempty"`

	whole bool // all violations are told
}

// Verdict of a checker, or of a scenario.
type Verdict string

// The verdicts.
const (
	Passed       Verdict = "passed"
	Failed       Verdict = "failed"
	Inconclusive Verdict = "inconclusive"
	Skipped      Verdict = "skipped"
)

// Verdict is failed with a violation, and inconclusive where it is required and has proven nothing.
func (r *Result) Verdict() Verdict {
	switch {
	case r.Count > 0:
		return Failed
	case r.Skipped != "":
		return Skipped
	case r.TimedOut || r.Required && (r.Examined == 0 || !r.Armed):
		return Inconclusive
	}
	return Passed
}

func (r *Result) bad(format string, args ...any) {
	if r.Count++; r.whole || len(r.Violations) < violationsMax {
		r.Violations = append(r.Violations, fmt.Sprintf(format, args...))
	}
}

// arm notes an arming condition: have of what, at least need.
func (r *Result) arm(have, need int, what string) {
	r.Armed = have >= need
	r.Arming = fmt.Sprintf("%d %s (%d wanted)", have, what, need)
}

// checkers by id, in the order of the report.
var checkers = []struct {
	id, title string
	run       func(*view, *Result)
}{
	{"I1", "money is conserved", conservation},
	{"I2", "no account goes below zero", nonNegative},
	{"I3", "every transaction ends", terminality},
	{"I4", "one outcome for all branches, the one that was decided", atomic},
	{"I5", "the barrier's rows and the book's agree, and only in the allowed ways", barrier},
	{"I6", "every effect happens once", exactlyOnce},
	{"I7", "no orphan freezes", orphans},
	{"I8", "what was acknowledged is durable", acknowledged},
	{"I9", "events are complete", complete},
	{"I10", "all regions have the same events", same},
	{"I11", "an old epoch has no effect", fencing},
	{"I12", "an etcd's members and its readers have the same", equal},
	{"I13", "repairs touch what was altered, can be made twice, and leave the ambiguous", repairs},
	{"I14", "each transaction, and each slot's owner, is a linearizable register", linearizable},
}

// brokenID is that of what the suite itself saw of a broken promise, which no checker reads from the evidence.
const brokenID = "healing"

// Broken is the result for a promise that was broken while a fault was healed.
func Broken(promise string, err error) Result {
	r := Result{ID: brokenID, Title: promise, Examined: 1, Armed: true, Arming: "seen by the fault itself", Required: true}
	r.bad("%v", err)
	return r
}

// Seen says whether a result is of what was seen while the run went on: no evidence has it, and it stays as it is.
func (r *Result) Seen() bool { return r.ID == brokenID }

// ourBooks are the checkers that read the tables of our wallets.
var ourBooks = []string{"I2", "I5", "I6", "I7", "I13"}

// IDs are those of all checkers.
func IDs() (out []string) {
	for _, c := range checkers {
		out = append(out, c.id)
	}
	return out
}

// All runs every checker; those in required must have proven something.
func All(e *Evidence, required []string) []Result { return run(e, required, false) }

// AtAnyTime are the checkers that hold while everything is under way: of a run that was broken off, they alone can be asked.
func AtAnyTime(e *Evidence) (found []Result) {
	for _, r := range run(e, nil, false) {
		if r.Count > 0 && (r.ID == "I11" || r.ID == "I14") {
			found = append(found, r)
		}
	}
	return found
}

// Whole is All for whoever holds every violation against what was planted: none is left out, and nothing is required.
func Whole(e *Evidence) []Result { return run(e, nil, true) }

func run(e *Evidence, required []string, whole bool) (out []Result) {
	v := look(e)
	for _, c := range checkers {
		r := Result{ID: c.id, Title: c.title, Required: slices.Contains(required, c.id), whole: whole}
		if why, ok := e.Lacks[c.id]; ok {
			r.Skipped, r.Arming = why, "skipped: "+why
		} else if e.Foreign && c.id == "I5" {
			lateTries(v, &r)
		} else if e.Foreign && slices.Contains(ourBooks, c.id) {
			r.Skipped, r.Arming = "not our books", "skipped: not our books"
		} else {
			c.run(v, &r)
		}
		out = append(out, r)
	}
	return out
}

// branchKey names a branch of a transaction.
type branchKey struct{ gid, branch string }

// view is the evidence, arranged.
type view struct {
	*Evidence
	outcome   map[string]history.Value                // by gid, as the journals have it
	transfers []map[branchKey][]Transfer              // by book
	rows      []map[branchKey]map[string]string       // by book: op to reason
	entries   []map[branchKey][]Entry                 // by book
	asked     map[string]bool                         // gids
	all       []history.Op                            // repeats too, which Ops has not
	told      map[string]map[history.Value]history.Op // by gid, of decisions that clients heard
	givenUp   map[string]bool                         // gids that may have gone with a region's disks
	before    map[string]bool                         // gids that clients had asked for when those were gone
}

func look(e *Evidence) *view {
	first := *e // what checkers ask of an operation is of the first under its gid
	first.Ops = slices.DeleteFunc(slices.Clone(e.Ops), func(op history.Op) bool { return op.Kind == history.Again || op.Kind == history.Other })
	v := &view{Evidence: &first, all: e.Ops, outcome: map[string]history.Value{}, asked: map[string]bool{}, told: map[string]map[history.Value]history.Op{}}
	for _, d := range e.Decided {
		v.outcome[d.Gid] = phaseValue(d.Phase)
	}
	for _, b := range e.Books {
		ts, rs, es := map[branchKey][]Transfer{}, map[branchKey]map[string]string{}, map[branchKey][]Entry{}
		netted := b.netted()
		for _, t := range b.Transfers {
			if netted[t.ID] {
				continue
			}
			k := branchKey{t.Gid, t.Branch}
			ts[k] = append(ts[k], t)
		}
		for _, x := range b.Entries {
			if netted[x.Transfer] {
				continue
			}
			k := branchKey{x.Gid, x.Branch}
			es[k] = append(es[k], x)
		}
		for _, w := range b.Rows {
			k := branchKey{w.Gid, w.Branch}
			if rs[k] == nil {
				rs[k] = map[string]string{}
			}
			rs[k][w.Op] = w.Reason
		}
		v.transfers, v.rows, v.entries = append(v.transfers, ts), append(v.rows, rs), append(v.entries, es)
	}
	for _, op := range e.Ops {
		if op.Kind != history.Read {
			v.asked[op.Gid] = true
		}
		if op.Kind == history.Other {
			continue // it is to be refused; where it was not, I14 says so
		}
		if op.Outcome == history.OK && (op.Value == history.Committed || op.Value == history.Aborted) {
			if v.told[op.Gid] == nil {
				v.told[op.Gid] = map[history.Value]history.Op{}
			}
			if old, ok := v.told[op.Gid][op.Value]; !ok || op.End < old.End {
				v.told[op.Gid][op.Value] = op
			}
		}
	}
	v.erased()
	return v
}

// netted are the ids of transfers that a reversal has taken back whole, of those reversals, and of what was noted as not to be
// counted: together they move nothing, which the accounts' own sums hold against their counters.
func (b *Book) netted() map[string]bool {
	out, by := map[string]bool{}, map[string]*Transfer{}
	for i := range b.Transfers {
		by[b.Transfers[i].ID] = &b.Transfers[i]
	}
	for i := range b.Transfers {
		t := &b.Transfers[i]
		of := by[t.Of]
		switch {
		case t.ID == "":
		case t.Of == "mended" && t.State == "voided":
			out[t.ID] = true
		case t.Kind == "reversal" && of != nil && of.State == "posted" && of.Amount == t.Amount && of.Currency == t.Currency && of.Debit == t.Credit && of.Credit == t.Debit:
			out[t.ID], out[of.ID] = true, true
		}
	}
	return out
}

// phaseValue reads a phase's number in a journal.
func phaseValue(n int) history.Value {
	switch n {
	case 3, 5:
		return history.Committed
	case 4, 6:
		return history.Aborted
	}
	return history.Open
}

// count counts the calls that match.
func (v *view) count(match func(*tap.Call) bool) (n int) {
	for i := range v.Calls {
		if match(&v.Calls[i]) {
			n++
		}
	}
	return n
}

// sorted gives the keys of a map in order, so that a report is the same each time.
func sorted[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}
