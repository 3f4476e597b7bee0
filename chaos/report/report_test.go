package report

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/scenario"
)

func verdicts(v ...check.Verdict) *Run {
	r := &Run{}
	for _, x := range v {
		r.Scenarios = append(r.Scenarios, scenario.Result{ID: "S" + string(x), Verdict: x})
	}
	return r
}

func TestExitCodesInTheirOrder(t *testing.T) {
	harness := verdicts(check.Passed, check.Inconclusive, check.Inconclusive)
	harness.Scenarios[2].Harness = "it did not start"
	broken := verdicts(check.Inconclusive, check.Failed)
	broken.Scenarios[0].Harness = "it did not start"
	unrun := verdicts(check.Passed)
	unrun.Unrun = []string{"M8"}
	for _, c := range []struct {
		what string
		run  *Run
		want int
	}{
		{"all held", verdicts(check.Passed, check.Skipped), ExitHeld},
		{"one is inconclusive", verdicts(check.Passed, check.Inconclusive), ExitInconclusive},
		{"nothing ran", &Run{}, ExitInconclusive},
		{"everything was skipped", verdicts(check.Skipped), ExitInconclusive},
		{"the budget was used up", unrun, ExitInconclusive},
		{"the suite failed", harness, ExitHarness},
		{"a violation beside all that", broken, ExitViolation},
	} {
		if got := c.run.Exit(); got != c.want {
			t.Errorf("%s: exit %d, want %d", c.what, got, c.want)
		}
	}
}

func TestJUnitCountsAndSaysHowToRepeat(t *testing.T) {
	r := verdicts(check.Passed, check.Failed, check.Inconclusive, check.Skipped)
	r.Scenarios[1].Checks = []check.Result{{ID: "I1", Count: 1, Violations: []string{"a < b & c"}}}
	dir := t.TempDir()
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "junit.xml"))
	if err != nil {
		t.Fatal(err)
	}
	var s suite
	if err := xml.Unmarshal(raw, &s); err != nil {
		t.Fatal(err)
	}
	if s.Tests != 5 || s.Failures != 3 || s.Skipped != 1 || s.Errors != 0 {
		t.Errorf("%+v", s)
	}
	if k := s.Cases[3]; k.Failure == nil || !strings.HasPrefix(k.Failure.Message, "inconclusive") || !strings.Contains(k.Failure.Message, "--scenario") {
		t.Errorf("an inconclusive scenario is %+v", k)
	}
	back, err := Load(dir)
	if err != nil || back.Summary() != "1 passed, 1 failed, 1 inconclusive, 1 skipped" {
		t.Errorf("%v, %v", back, err)
	}
}
