package dtm

import (
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/scenario"
)

func TestWhatIsWrittenDownIsComparedBothWays(t *testing.T) {
	red := check.Result{ID: "I4", Count: 1, Violations: []string{"half"}}
	other := check.Result{ID: "I2", Count: 1, Violations: []string{"below zero"}}
	known := Case{ID: "x", Finds: on([]string{"I4"}, Boltdb)}
	race := known
	race.Race = true
	for name, c := range map[string]struct {
		of   Case
		on   Store
		res  scenario.Result
		want string
	}{
		"known, and it shows":                  {known, Boltdb, scenario.Result{Verdict: check.Failed, Checks: []check.Result{red}}, ""},
		"known, and it does not show":          {known, Boltdb, scenario.Result{Verdict: check.Passed}, "did not show"},
		"known of another store":               {known, Redis, scenario.Result{Verdict: check.Failed, Checks: []check.Result{red}}, "not written down: I4, half"},
		"beside what is known":                 {known, Boltdb, scenario.Result{Verdict: check.Failed, Checks: []check.Result{red, other}}, "not written down: I2"},
		"a race that was not lost":             {race, Boltdb, scenario.Result{Verdict: check.Passed}, ""},
		"a race whose fault was not proven":    {race, Boltdb, scenario.Result{Verdict: check.Inconclusive, Reasons: []string{"no effect"}}, "no effect"},
		"nothing is known, nothing was proven": {known, Redis, scenario.Result{Verdict: check.Inconclusive, Reasons: []string{"no effect"}}, "no effect"},
		"nothing is known, nothing was found":  {known, Redis, scenario.Result{Verdict: check.Passed}, ""},
		"an error of the suite":                {known, Boltdb, scenario.Result{Verdict: check.Failed, Harness: "no port", Checks: []check.Result{red}}, "no port"},
		"skipped":                              {known, Boltdb, scenario.Result{Verdict: check.Skipped}, ""},
	} {
		if got := c.of.Differs(c.on, &c.res); got != c.want && (c.want == "" || !strings.Contains(got, c.want)) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestEveryCaseRunsAndItsFindingsAreOfStoresItRunsOn(t *testing.T) {
	for _, c := range Cases() {
		if !slices.ContainsFunc(Stores(), func(s Store) bool { return c.Runs(s) }) {
			t.Errorf("%s runs on no store", c.ID)
		}
		for s, ids := range c.Finds {
			for _, id := range ids {
				if _, gone := lacks[id]; gone || !slices.Contains(check.IDs(), id) {
					t.Errorf("%s on %s finds by %s, which does not run there", c.ID, s, id)
				}
			}
			if !c.Runs(s) || c.Why == "" {
				t.Errorf("%s finds something on %s: it does not run there, or nobody says why", c.ID, s)
			}
		}
		for _, id := range c.arms {
			if _, gone := lacks[id]; gone {
				t.Errorf("%s arms %s, which is not applicable", c.ID, id)
			}
		}
	}
	if _, err := Find([]string{"P1", "P0"}); err == nil {
		t.Error("a scenario that is not there is found")
	}
}

// TestStatusIsReadAsADecision: a status that is not known must not pass for one that is, and submitted is a decision already.
func TestStatusIsReadAsADecision(t *testing.T) {
	of := func(status string) *verdict {
		v := &verdict{}
		if status != "" {
			v.Transaction = &struct {
				Status         string `json:"status"`
				RollbackReason string `json:"rollback_reason,omitempty"`
			}{Status: status}
		}
		return v
	}
	for status, want := range map[string]struct {
		value history.Value
		ended bool
	}{
		"": {history.Open, false}, "prepared": {history.Open, false}, "submitted": {history.Committed, false}, "succeed": {history.Committed, true},
		"aborting": {history.Aborted, false}, "failed": {history.Aborted, true}, "other": {history.None, false},
	} {
		if v := of(status); v.value() != want.value || v.ended() != want.ended {
			t.Errorf("%q is %q, ended %v", status, v.value(), v.ended())
		}
	}
}
