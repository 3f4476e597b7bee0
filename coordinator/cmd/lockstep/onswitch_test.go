package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/lockstep-tx/lockstep/region/failover"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// TestOutsideTrafficIsMovedByWhoeverGoesOn: the command failed, or the tool was killed before it; resume runs it, until it has run well,
// and not once more.
func TestOutsideTrafficIsMovedByWhoeverGoesOn(t *testing.T) {
	w := left(t)
	dir := t.TempDir()
	moved := func() string {
		raw, err := os.ReadFile(filepath.Join(dir, "moved"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return string(raw)
	}
	command := "test -e " + dir + "/go && echo $LOCKSTEP_FROM to $LOCKSTEP_TO >> " + dir + "/moved"
	out, code := w.command(taking("--slots", "0-9", "--on-switch", command)...)
	if code != exitFailure || !strings.Contains(out, "the outside traffic was not moved") || !strings.Contains(out, "next: lockstep region resume --context "+w.file+"  # runs it again: LOCKSTEP_FROM=east LOCKSTEP_TO=west sh -c '") {
		t.Fatal(code, out)
	}
	if out, code := w.command("region", "resume"); code != exitFailure || !strings.Contains(out, "has ended, and outside traffic was not moved") || moved() != "" {
		t.Fatal(code, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := w.must("region", "resume", "--dry-run"); !strings.Contains(out, "nothing was run: LOCKSTEP_FROM=east") || moved() != "" {
		t.Fatal(out)
	}
	const nothing = "no operation is under way"
	if out := w.must("region", "resume", "--who", "ann"); !strings.Contains(out, "outside traffic: moved after") || !strings.Contains(out, "next: lockstep tx list --in-doubt") || moved() != "east to west\n" {
		t.Fatal(moved(), out)
	}
	if !strings.Contains(w.audit(), "ann switched "+command) {
		t.Fatal(w.audit())
	}
	if out, code := w.command("region", "resume"); code != exitFailure || !strings.Contains(out, nothing) || moved() != "east to west\n" {
		t.Fatal(code, out)
	}

	// Killed between the end of the operation and the command.
	p := failover.Plan{ID: uuid.NewString()[:13], Kind: failover.Forced, From: "east", To: "west", Slots: []int{10}, Batch: 1, DeadlineMillis: 5000, Who: "test",
		Loss: &failover.Loss{Evidence: failover.Power, Risk: slot.Risk{Policy: slot.Block}, Epochs: []slot.Epoch{slot.Initial(1)}, OnSwitch: command}}
	m := &moveFlags{contextFile: contextFile{Context: w.file, Timeout: 10 * time.Second}}
	err := m.with(&env{ctx: t.Context(), getenv: noEnv, out: t.Output()}, func(e *env, o *opened) error {
		c := m.conductor(e, o)
		if err := m.start(e.ctx, c, p); err != nil {
			return err
		}
		_, err := c.Drive(e.ctx, p.ID)
		return err
	})
	if err != nil || moved() != "east to west\n" {
		t.Fatal(moved(), err)
	}
	if out := w.must("region", "resume"); moved() != "east to west\neast to west\n" {
		t.Fatal(moved(), out)
	}
	if out, code := w.command("region", "resume"); code != exitFailure || !strings.Contains(out, nothing) {
		t.Fatal(code, out)
	}
}
