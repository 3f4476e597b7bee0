package demo

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// programs builds the two programs that the demo starts.
func programs(t *testing.T) (lockstep, participants string) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", dir+"/", "github.com/lockstep-tx/lockstep/coordinator/cmd/lockstep", "github.com/lockstep-tx/lockstep/participants/cmd/lockstep-participants")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return filepath.Join(dir, "lockstep"), filepath.Join(dir, "lockstep-participants")
}

// The whole demo, with few payments; and what it says when the money is not right, or a refusal is none: a demo that
// cannot fail shows nothing.
func TestDemo(t *testing.T) {
	lockstep, participants := programs(t)
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var out bytes.Buffer
	cfg := Config{Out: &out, Lockstep: lockstep, Participants: participants, Load: 20}
	fresh := func() *demo { out.Reset(); return &demo{cfg: cfg, start: time.Now()} }
	leftovers := func() {
		t.Helper()
		if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
			t.Errorf("it left %v behind, %v", left, err)
		}
	}

	if err := Run(ctx, cfg); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{"act 6: ", "SIGKILL", "not a cent is off", "payments 24, refused 3; still frozen 0"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, out.String())
		}
	}
	leftovers()

	d := fresh()
	err := d.play(ctx, d.open, d.payWithDTM, func(ctx context.Context) error { return d.parts.create(ctx, "buyer", "from-nowhere", 1) }, d.count)
	if err == nil || !strings.Contains(err.Error(), "THE MONEY IS WRONG") || !strings.Contains(err.Error(), "1 fen are missing or too many") || strings.Contains(out.String(), "not a cent is off") {
		t.Errorf("with a cent too much it ended with %v:\n%s", err, out.String())
	}
	leftovers()

	d = fresh()
	err = d.play(ctx, d.open, func(context.Context) error { return d.coord.kill() }, d.refuse)
	if err == nil || !strings.Contains(err.Error(), "was not refused but failed") {
		t.Errorf("without a coordinator the refusal ended with %v:\n%s", err, out.String())
	}
	leftovers()
}
