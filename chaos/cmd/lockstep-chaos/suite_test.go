//go:build servers

package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/report"
	"github.com/lockstep-tx/lockstep/coordinator/bench/build"
)

const module = "github.com/lockstep-tx/lockstep/"

// programs builds what the suite runs; with the tag chaos it can be broken.
func programs(t *testing.T, tags string) string {
	t.Helper()
	dir := t.TempDir()
	out, err := build.ForTest("-tags", tags, "-ldflags", "-s -w", "-o", dir+"/", module+"coordinator/cmd/lockstep", module+"participants/cmd/lockstep-participants").CombinedOutput()
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
	code := run(ctx, append([]string{"run", "--out", dir, "--budget", "150s", "--shared"}, args...), &out, &out)
	t.Log(out.String())
	r, err := report.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"junit.xml", "report.html"} {
		if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
			t.Error(err)
		}
	}
	return code, r
}

// conforms runs a scenario on programs that write their transitions down, and replays those.
func conforms(t *testing.T, bin string, args ...string) (int, string) {
	t.Helper()
	dir := t.TempDir()
	var out bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	run(ctx, append([]string{"run", "--out", dir, "--bin", bin, "--scenario", "M2", "--brief", "--quiet", "1s"}, args...), &out, &out) // its verdict is not looked at
	out.Reset()
	return run(ctx, []string{"conform", dir}, &out, &out), out.String()
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

// TestTheSuite: correct code is green, and has no switch to break it. Other packages are tested meanwhile: --shared.
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
}

// TestItProvesItself: a fault that does nothing is inconclusive, and each way in which the product can be broken here is found
// by the checker that is there for it. make chaos ends with it.
func TestItProvesItself(t *testing.T) {
	t.Run("a disabled fault is inconclusive", func(t *testing.T) {
		t.Parallel()
		sound := programs(t, "")
		if code, r := suite(t, "--bin", sound, "--scenario", "P1", "--no-fault"); code != report.ExitInconclusive || r.Scenarios[0].Verdict != check.Inconclusive {
			t.Errorf("exit %d, %s", code, r.Scenarios[0].Verdict)
		}
	})
	broken := programs(t, "chaos")
	t.Run("transitions are the core's", func(t *testing.T) {
		t.Parallel()
		if code, said := conforms(t, broken); code != report.ExitHeld {
			t.Errorf("exit %d: %s", code, said)
		}
	})
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) { found(t, broken, m) })
	}
}

// TestFurtherMutants has those for which TestItProvesItself's time does not suffice.
func TestFurtherMutants(t *testing.T) {
	if os.Getenv("LOCKSTEP_FURTHER_MUTANTS") == "" {
		t.Skip("make chaos-mutants runs them")
	}
	t.Cleanup(func() { matrix.print(t) }) // when all of them, which run side by side, have ended
	broken := programs(t, "chaos")
	for _, m := range furtherMutants {
		t.Run(m.name, func(t *testing.T) { found(t, broken, m) })
	}
	t.Run("a red run is made again and shrinks", func(t *testing.T) { shrinks(t, broken) })
	t.Run("transition-outside-step", func(t *testing.T) {
		if code, said := conforms(t, broken, "--env", "LOCKSTEP_MUTANT=transition-outside-step"); code != report.ExitViolation {
			t.Errorf("exit %d: %s", code, said)
		}
	})
	// The page cache outlives a killed process: that is why there is K1.
	t.Run("SIGKILL does not find ack-before-fsync", func(t *testing.T) {
		if _, r := suite(t, "--bin", broken, "--env", "LOCKSTEP_MUTANT=ack-before-fsync", "--scenario", "P1"); len(failed(r)) > 0 {
			t.Errorf("found by %v", failed(r))
		}
	})
}

// mutation is a way in which the product can be broken, with a scenario in which that shows, and the checkers that must
// find it.
type mutation struct {
	name, scenario string
	checkers       []string
	args           []string
}

var mutants = []mutation{
	{"no-barrier-on-confirm", "M1", []string{"I5"}, nil},
	{"no-empty-cancel-row", "M23", []string{"I5"}, nil},
	{"no-fencing", "M8", []string{"I11"}, nil},
	// What the coordinator decides itself it decides again after the crash, the same: only a client's own commits and aborts
	// are lost. Many clients, so that some are.
	{"ack-before-store", "P1", []string{"I8"}, []string{"--lanes", "96"}},
	{"event-skipped", "P1", []string{"I9", "I10"}, nil},
	{"apply-out-of-order", "P1", []string{"I9", "I10"}, nil},
	{"watermark-too-early", "P1", []string{"I1", "I8"}, nil},
	{"repair-not-idempotent", "P9", []string{"I1", "I6"}, nil},
}

// sweepArgs make the drift sweep short.
var sweepArgs = []string{"--drift-seeds", "2", "--quiet-control", "0", "--drift-limit", "10s"}

var furtherMutants = []mutation{
	{"skip-balance-check", "M2", []string{"I2"}, nil},
	{"wrong-sign", "M2", []string{"I1"}, nil},
	{"float-rounding", "M2", []string{"I6"}, nil},
	{"timeout-cancels-after-decision", "M2", []string{"I4"}, nil},
	{"stale-replica-read", "M2", []string{"I14"}, nil},
	{"skip-confirm-retry", "N7", []string{"I3"}, nil},
	{"recover-forgets-confirming", "P1", []string{"I3"}, nil},
	{"cancel-without-barrier", "M2", []string{"I5"}, nil},
	{"no-suspension-check", "M23", []string{"I5"}, nil},
	{"event-after-ack-only-in-memory", "P1", []string{"I8"}, nil},
	{"double-outbox", "M2", []string{"I9", "I10"}, nil},
	{"dedupe-window-too-small", "P1", []string{"I9"}, nil},
	{"dedupe-window-too-small", "M5", []string{"I10"}, nil},
	{"offset-commit-before-apply", "M2", []string{"I9"}, nil},
	{"lost-last-batch-item", "M2", []string{"I9", "I10"}, nil},
	{"quarantine-dropped", "P9", []string{"I13"}, nil},
	{"repair-not-idempotent", "P9", []string{"I13"}, nil},
	{"cache-ignores-watch-compaction", "S3", []string{"I12"}, nil},
	{"epoch-reuse", "M8", []string{"I14"}, nil},
	// Both kinds of volume: the wallet's and the coordinator's.
	{"ack-before-fsync", "K1", []string{"I8"}, []string{"--seed", "2"}},
	{"ack-before-fsync", "K1", []string{"I8"}, []string{"--seed", "3"}},
	{"ack-before-fsync", "K4", []string{"I8"}, []string{"--seed", "3"}}, // the coordinator's; a wallet's database is often past opening then
	{"epoch-reuse", "N4", []string{"I14"}, nil},
	{"skips-last-page", "R01", []string{"E1"}, sweepArgs},
	{"watermark-too-late", "E0", []string{"E0"}, []string{"--quiet-control", "600"}},
	{"repair-guesses-ambiguous", "R10", []string{"E1"}, sweepArgs},
}

// killers is which checkers found each mutant, for the table that make chaos-mutants prints.
type killers struct {
	mu  sync.Mutex
	row map[string][]string
}

var matrix = killers{row: map[string][]string{}}

func (k *killers) note(m mutation, by []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key := m.name + " (" + strings.Join(append([]string{m.scenario}, m.args...), " ") + ")"
	k.row[key] = append(k.row[key], by...)
}

// print writes mutant by checker; a checker that found none stands at the end.
func (k *killers) print(t *testing.T) {
	k.mu.Lock()
	defer k.mu.Unlock()
	text, dead := "", map[string]bool{}
	for _, id := range check.IDs() {
		text, dead[id] = text+fmt.Sprintf("%5s", id), true
	}
	text = fmt.Sprintf("%-48s%s", "", text)
	for _, name := range slices.Sorted(maps.Keys(k.row)) {
		text += fmt.Sprintf("\n%-48s", name)
		for _, id := range check.IDs() {
			mark := "."
			if slices.Contains(k.row[name], id) {
				mark, dead[id] = "x", false
			}
			text += fmt.Sprintf("%5s", mark)
		}
	}
	for _, id := range check.IDs() {
		if dead[id] {
			text += "\nno mutant of these was found by " + id
		}
	}
	t.Log("\n" + text)
}

// found runs a mutant's scenario, and wants it red under each of its checkers.
func found(t *testing.T, broken string, m mutation) {
	t.Parallel() // they only have to go red: that they slow each other down matters little
	code, r := suite(t, append([]string{"--bin", broken, "--env", "LOCKSTEP_MUTANT=" + m.name, "--scenario", m.scenario, "--quiet", "1s", "--brief"}, m.args...)...)
	if r.Scenarios[0].Verdict == check.Skipped {
		if os.Getenv("LOCKSTEP_FURTHER_MUTANTS") != "" && !slices.Contains(strings.Split(os.Getenv("LOCKSTEP_MUTANTS_WITHOUT"), ","), m.scenario) {
			t.Fatalf("%v; a mutant that was not run was not found: name its scenario in LOCKSTEP_MUTANTS_WITHOUT where this host cannot have it", r.Scenarios[0].Reasons)
		}
		t.Skip(r.Scenarios[0].Reasons)
	}
	by := failed(r)
	matrix.note(m, by)
	for _, checker := range m.checkers {
		if code != report.ExitViolation || !slices.Contains(by, checker) {
			t.Errorf("exit %d, found by %v, want %s among them", code, by, checker)
		}
	}
}
