//go:build servers

package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/report"
)

const module = "github.com/lockstep-tx/lockstep/"

// programs builds what the suite runs; with the tag chaos it can be broken.
func programs(t *testing.T, tags string) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command("go", "build", "-tags", tags, "-ldflags", "-s -w", "-o", dir+"/", module+"coordinator/cmd/lockstep", module+"participants/cmd/lockstep-participants").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

// suite runs the command in this process and gives its exit code and its report.
func suite(t *testing.T, args ...string) (int, *report.Run) {
	t.Helper()
	dir := t.TempDir()
	var out bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	code := run(ctx, append([]string{"run", "--out", dir, "--budget", "150s"}, args...), &out, &out)
	t.Log(out.String())
	r, err := report.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if junit, err := filepath.Glob(filepath.Join(dir, "junit.xml")); err != nil || len(junit) != 1 {
		t.Errorf("junit.xml: %v, %v", junit, err)
	}
	return code, r
}

func failed(r *report.Run) (ids []string) {
	for _, s := range r.Scenarios {
		for i := range s.Checks {
			if s.Checks[i].Verdict() == check.Failed {
				ids = append(ids, s.Checks[i].ID)
			}
		}
	}
	return ids
}

// TestTheSuite: correct code is green, a fault that does nothing is inconclusive, and each way in which the product can be
// broken here is found by the checker that is there for it.
func TestTheSuite(t *testing.T) {
	sound := programs(t, "")
	t.Run("a release has no trace of the mutants", func(t *testing.T) {
		for _, program := range []string{"lockstep", "lockstep-participants"} {
			raw, err := os.ReadFile(filepath.Join(sound, program))
			if err != nil || bytes.Contains(raw, []byte("LOCKSTEP_MUTANT")) {
				t.Errorf("%s: %v, or it can be broken by its environment", program, err)
			}
		}
	})
	t.Run("correct code is green", func(t *testing.T) {
		if code, _ := suite(t, "--bin", sound, "--scenario", "P1,M23"); code != report.ExitHeld {
			t.Errorf("exit %d", code)
		}
	})
	t.Run("a disabled fault is inconclusive", func(t *testing.T) {
		if code, r := suite(t, "--bin", sound, "--scenario", "P1", "--no-fault"); code != report.ExitInconclusive || r.Scenarios[0].Verdict != check.Inconclusive {
			t.Errorf("exit %d, %s", code, r.Scenarios[0].Verdict)
		}
	})
	broken := programs(t, "chaos")
	for _, m := range []struct{ mutant, scenario, checker string }{
		{"no-barrier-on-confirm", "M1", "I5"},
		{"no-empty-cancel-row", "M23", "I5"},
		{"no-fencing", "M8", "I11"},
		{"ack-before-store", "P1", "I8"},
	} {
		t.Run(m.mutant, func(t *testing.T) {
			t.Setenv("LOCKSTEP_MUTANT", m.mutant)
			// What a crash hits of what was told is a matter of milliseconds: three crashes are enough.
			for attempt := 1; ; attempt++ {
				code, r := suite(t, "--bin", broken, "--scenario", m.scenario, "--quiet", "2s")
				switch {
				case code == report.ExitViolation && slices.Contains(failed(r), m.checker):
					return
				case attempt == 3:
					t.Fatalf("exit %d, found by %v, want %s among them", code, failed(r), m.checker)
				}
				t.Logf("run %d: exit %d, found by %v, not by %s", attempt, code, failed(r), m.checker)
			}
		})
	}
}
