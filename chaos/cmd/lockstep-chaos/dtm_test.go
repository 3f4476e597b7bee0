//go:build servers

package main

import (
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/report"
	"github.com/lockstep-tx/lockstep/coordinator/bench/build"
	"github.com/lockstep-tx/lockstep/coordinator/bench/peer"
)

// dtmPrograms builds DTM's server and the participant with its SDK.
func dtmPrograms(t *testing.T) string {
	t.Helper()
	server, err := peer.Binary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	out, err := build.ForTest("-ldflags", "-s -w", "-o", dir+"/", module+"chaos/cmd/dtm-wallet").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := exec.Command("ln", "-s", server, filepath.Join(dir, "dtmpeer")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

// overDTM runs the command in this process and gives its exit code, what it said and its report.
func overDTM(t *testing.T, args ...string) (int, string, *report.Run) {
	t.Helper()
	dir := t.TempDir()
	var out bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	code := run(ctx, append([]string{"dtm", "--out", dir, "--store", "boltdb", "--shared"}, args...), &out, &out)
	t.Log(out.String())
	r, err := report.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return code, out.String(), r
}

// TestDTMUnderTest: what docs/dtm-under-test.md says of a submit that comes twice shows on DTM's own server, and exits 0 as
// what is written down; without DTM's barrier in the participants the checkers of the barrier and of the entries are red.
func TestDTMUnderTest(t *testing.T) {
	bin := dtmPrograms(t)
	t.Run("a repeated submit leaves half a payment", func(t *testing.T) {
		t.Parallel()
		code, said, r := overDTM(t, "--bin", bin, "--scenario", "submit-twice")
		if code != report.ExitHeld {
			t.Errorf("exit %d: it is written down", code)
		}
		for _, id := range []string{"I4", "I7"} {
			if !slices.Contains(failed(r), id) {
				t.Errorf("%s found nothing", id)
			}
		}
		if !bytes.Contains([]byte(said), []byte("has 1 branches posted")) {
			t.Error("no payment has one branch posted and the other not")
		}
		for _, c := range r.Scenarios[0].Checks {
			if (c.ID == "I9" || c.ID == "I11") && c.Verdict() != check.Skipped {
				t.Errorf("%s is %s: DTM has nothing that it is about", c.ID, c.Verdict())
			}
		}
	})
	t.Run("without the barrier it is red", func(t *testing.T) {
		t.Parallel()
		code, _, r := overDTM(t, "--bin", bin, "--scenario", "M1", "--no-barrier")
		if found := failed(r); code != report.ExitViolation || !slices.Contains(found, "I5") || !slices.Contains(found, "I6") {
			t.Errorf("exit %d, found by %v: I5 and I6 are to be among them", code, found)
		}
	})
}
