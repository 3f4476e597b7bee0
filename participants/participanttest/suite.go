// Package participanttest checks a participant from outside, whatever it is written in: it makes branch calls as a
// coordinator does, in the orders that networks and crashes produce, and compares answers and balances with what the
// design promises (guarantee G5).
//
// Its law: a check passes because of what the participant answered or shows, never for want of evidence: where the
// balances are not to be seen, those checks say NotChecked. It is tested against a participant that is right, over HTTP
// and gRPC, and against ones with a single mistake each, every one of which it must find.
package participanttest

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// Target is the participant's one TCC branch that is checked. Calls move real balances there: use accounts made for it.
type Target struct {
	// Try, Confirm and Cancel are the addresses as a coordinator calls them: http(s)://… or host:port/Service/Method.
	Try, Confirm, Cancel string
	// Payload is sent with each of them. The try must be possible at least thirty times.
	Payload []byte
	// Refused is the payload of a try that is to be refused for a business reason. Empty means that none is checked.
	Refused []byte
	// StateURL answers a GET with the balances of all accounts that the branch touches, as {"balances":{"name":minor}} or
	// {"name":minor}; their sum must not change. Empty means that no balance is checked.
	StateURL string
	// RegionURL is the base behind which the participant serves /lockstep/…, where its accounts move between regions. Empty
	// means that it is not checked.
	RegionURL string
	// Unfenced says that the participant knows no epochs (written with DTM's SDK): those checks say NotChecked.
	Unfenced bool
	// Timeout bounds one call. Defaults to 10 s.
	Timeout time.Duration
	// Seed begins the gids, so that two runs against one participant do not meet. Defaults to the time.
	Seed string
}

// Verdict of one check.
type Verdict string

// The verdicts.
const (
	Pass       Verdict = "PASS"
	Fail       Verdict = "FAIL"
	NotChecked Verdict = "NOT CHECKED"
)

// Finding is one check and what came of it.
type Finding struct {
	Check   string // what must hold
	Verdict Verdict
	Why     string // what happened instead, or why it was not checked
}

// Report of a run, in the order of the checks.
type Report struct{ Findings []Finding }

// Count counts the findings with that verdict.
func (r *Report) Count(v Verdict) (n int) {
	for _, f := range r.Findings {
		if f.Verdict == v {
			n++
		}
	}
	return n
}

// Write writes the report for people.
func (r *Report) Write(w io.Writer) {
	for _, f := range r.Findings {
		fmt.Fprintf(w, "%-11s  %s\n", f.Verdict, f.Check)
		if f.Why != "" {
			fmt.Fprintf(w, "             %s\n", strings.ReplaceAll(f.Why, "\n", "\n             "))
		}
	}
	fmt.Fprintf(w, "\n%d passed, %d failed, %d not checked\n", r.Count(Pass), r.Count(Fail), r.Count(NotChecked))
}

// Run checks the target as subtests of t; a check that could not be made fails, unless the target says why.
func Run(t *testing.T, target Target) {
	t.Helper()
	r, err := Check(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		t.Run(f.Check, func(t *testing.T) {
			switch {
			case f.Verdict == Fail:
				t.Error(f.Why)
			case f.Verdict == NotChecked && !target.Unfenced && target.StateURL != "":
				t.Errorf("not checked: %s", f.Why)
			}
		})
	}
}

// Check runs all checks, one after another. An error means that the target cannot be checked at all: a bad address, or a
// participant that does not answer its first try with success.
func Check(ctx context.Context, target Target) (*Report, error) {
	r, err := newRun(ctx, target)
	if err != nil {
		return nil, err
	}
	defer r.close()
	if err := r.probe(); err != nil {
		return nil, err
	}
	for _, c := range []struct {
		check string
		needs need
		run   func(*run) error
	}{
		{"a cancel before its try succeeds", needsNothing, (*run).emptyCancel},
		{"a try after its cancel is refused with 409", needsNothing, (*run).lateTry},
		{"repeats of try and confirm succeed", needsNothing, (*run).repeatedConfirm},
		{"repeats of try and cancel succeed", needsNothing, (*run).repeatedCancel},
		{"a cancel after the confirm is no success", needsNothing, (*run).cancelAfterConfirm},
		{"a confirm after the cancel is no success", needsNothing, (*run).confirmAfterCancel},
		{"parallel repeats all succeed in the end", needsNothing, (*run).parallel},
		{"a broken payload is no success", needsNothing, (*run).brokenPayload},
		{"a try that the business refuses is answered 409, as its repeat is, and its cancel succeeds", needsRefused, (*run).businessRefusal},
		{"a try, a confirm and a cancel of an older epoch are Stale (412)", needsFence, (*run).stale},
		{"a confirm and a cancel without an epoch are no success", needsFence, (*run).unfenced},
		{"a gid that names another slot is no success", needsFence, (*run).wrongSlot},
		{"members of a batch have their own answers", needsBatch, (*run).batch},
		{"the probe answers", needsRegion, (*run).probed},
		{"a slot that is released and adopted again: old calls are refused, new ones put off, nothing is lost", needsRegion, (*run).handedOver},
		{"an effect is applied to a copy once", needsRegion, (*run).appliedOnce},
		{"what was tried is listed until it has ended", needsRegion | needsTries, (*run).triesListed},
		{"after a fence every call with a lower epoch is Stale", needsRegion | needsTries, (*run).fenced},
		{"a copy becomes the home by a forced adoption, field by field", needsRegion | needsTries, (*run).adoptedByForce},
		{"what a home that is lost held is held again at the copy, once, and ends as the try would", needsRegion | needsHold, (*run).heldAgain},
		{"a try is ended by its name, and an ordinary end excludes the other one", needsRegion | needsSettle, (*run).settled},
		{"the sum of all balances never changes", needsState, (*run).conserved},
		{"try and cancel leave every balance as it was", needsState, (*run).cancelRestores},
		{"an empty cancel leaves every balance as it was", needsState, (*run).emptyCancelRestores},
		{"repeats of try and confirm move what one of each moves", needsState, (*run).repeatsMoveOnce},
		{"parallel repeats move what one of each moves", needsState, (*run).parallelMovesOnce},
		{"a stale call moves nothing", needsState | needsFence, (*run).staleMovesNothing},
		{"a refused try moves nothing", needsState, (*run).refusedMovesNothing},
	} {
		if c.needs&needsRegion != 0 && target.RegionURL == "" {
			continue // a participant of one region has nothing to move
		}
		if c.needs&needsTries != 0 && !r.probes().Tries || c.needs&needsSettle != 0 && !r.probes().Settle || c.needs&needsHold != 0 && !r.probes().Hold {
			continue // it does not say that it can
		}
		f := Finding{Check: c.check, Verdict: Pass}
		if why := r.lacks(c.needs); why != "" {
			f.Verdict, f.Why = NotChecked, why
		} else if err := c.run(r); err != nil {
			f.Verdict, f.Why = Fail, err.Error()
		}
		r.report.Findings = append(r.report.Findings, f)
		if ctx.Err() != nil {
			return &r.report, ctx.Err()
		}
	}
	return &r.report, nil
}

// need is what a check cannot do without.
type need int

const (
	needsNothing need = 0
	needsState   need = 1 << iota
	needsFence
	needsBatch
	needsRefused
	needsRegion
	needsTries
	needsSettle
	needsHold
)

func (r *run) lacks(n need) string {
	switch {
	case n&needsState != 0 && r.target.StateURL == "":
		return "no state URL was given"
	case n&needsFence != 0 && r.target.Unfenced:
		return "the participant is said to know no epochs: after a forced failover its open transactions stay in doubt"
	case n&needsRefused != 0 && len(r.target.Refused) == 0:
		return "no payload was given that is to be refused"
	case n&needsBatch != 0 && r.offer == "":
		return "the participant offers no batches: each branch call is a request of its own"
	}
	return ""
}
