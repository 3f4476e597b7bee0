package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/report"
	"github.com/lockstep-tx/lockstep/chaos/scenario"
)

// TestOnlyABrokenPromiseIsOne: what the suite cannot do, or is asked for wrongly, is never the code of a violation.
func TestOnlyABrokenPromiseIsOne(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "own.yaml"), []byte("nonsense: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[int][]string{
		exitUsage:          {"run", "--scenario", "P99", "--out", filepath.Join(dir, "out")},
		exitUsage + 100:    {"run", "--topology", filepath.Join(dir, "own.yaml"), "--out", filepath.Join(dir, "out")},
		exitUsage + 200:    {"run", "--no-such-flag"},
		report.ExitHarness: {"check", dir},
		104:                {"conform", dir},
		204:                {"replay", dir},
	} {
		var out bytes.Buffer
		if code := run(t.Context(), args, &out, &out); code != want%100 || out.Len() == 0 {
			t.Errorf("%v: exit %d, want %d\n%s", args, code, want%100, out.String())
		}
	}
}

// TestCheckGoesOnWhereThereIsNoEvidence: a scenario that was broken off keeps its verdict, and those behind it are judged; what the
// fault itself has seen stays.
func TestCheckGoesOnWhereThereIsNoEvidence(t *testing.T) {
	dir := t.TempDir()
	red := check.Broken("drift is found", os.ErrDeadlineExceeded)
	r := &report.Run{Scenarios: []scenario.Result{
		{ID: "P9", Verdict: check.Failed, Checks: []check.Result{red}},
		{ID: "P1", Verdict: check.Failed, Checks: []check.Result{{ID: "I11", Count: 1, Violations: []string{"x"}}}},
		{ID: "P4", Harness: "it broke", Verdict: check.Inconclusive, Checks: []check.Result{red}},
	}}
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"P9", "P4"} {
		if err := os.Mkdir(filepath.Join(dir, id), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := (&check.Evidence{}).Save(filepath.Join(dir, id)); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if code := run(t.Context(), []string{"check", dir}, &out, &out); code != report.ExitViolation {
		t.Errorf("exit %d", code)
	}
	if said := out.String(); !strings.Contains(said, "P1: there is no evidence") || strings.Count(said, "drift is found") < 2 {
		t.Error(said)
	}
}
