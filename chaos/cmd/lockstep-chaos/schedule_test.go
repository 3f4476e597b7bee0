//go:build servers

package main

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/report"
	"github.com/lockstep-tx/lockstep/chaos/scenario"
)

// shrinks: a mutant's red run is red again by its schedule, and fewer operations are enough for it; correct programs are not red
// by the same schedule.
func shrinks(t *testing.T, broken string) {
	dir := t.TempDir()
	mutant := []string{"--bin", broken, "--env", "LOCKSTEP_MUTANT=wrong-sign"}
	do := func(args ...string) (int, string) {
		var out bytes.Buffer
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
		defer cancel()
		code := run(ctx, args, &out, &out)
		t.Log(out.String())
		return code, out.String()
	}
	if code, _ := do(append([]string{"run", "--out", dir, "--scenario", "M2", "--brief", "--quiet", "1s"}, mutant...)...); code != report.ExitViolation {
		t.Fatalf("exit %d: the mutant is not found", code)
	}
	of := filepath.Join(dir, "M2")
	if code, said := do(append([]string{"replay", of, "--wait", "1s"}, mutant...)...); code != report.ExitViolation || !strings.Contains(said, "1 of 1 red") {
		t.Errorf("replayed: exit %d", code)
	}
	if code, said := do("replay", of, "--bin", broken); code != report.ExitHeld || !strings.Contains(said, "0 of 1 red") {
		t.Errorf("replayed with correct programs: exit %d", code)
	}
	if code, _ := do(append([]string{"shrink", of, "--wait", "1s", "--tries", "1", "--budget", "90s"}, mutant...)...); code != report.ExitViolation {
		t.Errorf("shrunk: exit %d", code)
	}
	all, err := scenario.LoadSchedule(of)
	if err != nil {
		t.Fatal(err)
	}
	small, err := scenario.LoadSchedule(filepath.Join(of, "shrink"))
	if err != nil {
		t.Fatal(err)
	}
	if len(small.Operations) > len(all.Operations)/2 || len(small.Faults) != 0 {
		t.Errorf("of %d operations and %d faults %d and %d are left", len(all.Operations), len(all.Faults), len(small.Operations), len(small.Faults))
	}
}
