//go:build servers

package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/report"
	"github.com/lockstep-tx/lockstep/coordinator/bench/build"
)

// wallet is ours, as a user's own would be named; till is somebody else's.
const (
	walletFile = `participant:
  command: [lockstep-participants, wallet, --db, "{db}", --listen, "{listen}"]
  ready: /healthz
  pay: {try: /wallet/pay/try, confirm: /wallet/pay/confirm, cancel: /wallet/pay/cancel}
  receive: {try: /wallet/receive/try, confirm: /wallet/receive/confirm, cancel: /wallet/receive/cancel}
  payload: '{"account":"{account}","amount":{amount}}'
  account_field: account
  open_path: /accounts
  open: '{"id":"{account}","balance":{amount}}'
  balances: /balances
`
	tillFile = `participant:
  command: [TILL, "{listen}"]
  ready: /up
  pay: {try: /spend/hold, confirm: /spend/take, cancel: /spend/drop}
  receive: {try: /load/hold, confirm: /load/take, cancel: /load/drop}
  payload: '{"card":"{account}","cents":{amount}}'
  account_field: card
  open_path: /cards
  open: '{"card":"{account}","cents":{amount}}'
  balances: /cards
`
)

// ownParticipant runs a participant by its file. Checkers that would read our tables say that they were skipped, the others prove something.
func ownParticipant(t *testing.T, bin, text string, args ...string) (int, *report.Run) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "topology.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	code, r := suite(t, append([]string{"--bin", bin, "--topology", file, "--scenario", "P1"}, args...)...)
	for i := range r.Scenarios[0].Checks {
		c := &r.Scenarios[0].Checks[i]
		if ours := slices.Contains([]string{"I2", "I5", "I6", "I7", "I13"}, c.ID); ours != (c.Verdict() == check.Skipped) {
			t.Errorf("%s is %s: %s", c.ID, c.Verdict(), c.Arming)
		}
	}
	return code, r
}

// TestAUsersOwnParticipant: our wallet named by a file, and a small one that knows nothing of us, are green; the small one
// with a bug is red under I1.
func TestAUsersOwnParticipant(t *testing.T) {
	if os.Getenv("LOCKSTEP_FURTHER_MUTANTS") == "" {
		t.Skip("make chaos-mutants runs it")
	}
	bin := programs(t, "")
	if out, err := build.ForTest("-o", filepath.Join(bin, "till"), "./testdata/till").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	till := "participant:\n  command: [" + filepath.Join(bin, "till") + tillFile[len("participant:\n  command: [TILL"):]
	t.Run("ours", func(t *testing.T) {
		if code, _ := ownParticipant(t, bin, walletFile); code != report.ExitHeld {
			t.Errorf("exit %d", code)
		}
	})
	t.Run("another's", func(t *testing.T) {
		if code, _ := ownParticipant(t, bin, till); code != report.ExitHeld {
			t.Errorf("exit %d", code)
		}
	})
	t.Run("another's with a bug", func(t *testing.T) {
		code, r := ownParticipant(t, bin, till, "--env", "TILL_BUG=double", "--brief", "--quiet", "1s")
		if by := failed(r); code != report.ExitViolation || !slices.Contains(by, "I1") {
			t.Errorf("exit %d, found by %v", code, by)
		}
	})
	t.Run("another's with a bug, made again", func(t *testing.T) { redAgain(t, bin, till) })
}

// redAgain: the schedule of a run says which participant it was; with its bug it is red again, without it is not.
func redAgain(t *testing.T, bin, text string) {
	dir := t.TempDir()
	file := filepath.Join(dir, "topology.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	do := func(args ...string) (int, string) {
		var out bytes.Buffer
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		code := run(ctx, append(args, "--bin", bin), &out, &out)
		t.Log(out.String())
		return code, out.String()
	}
	if code, _ := do("run", "--out", dir, "--topology", file, "--scenario", "P1", "--brief", "--quiet", "1s", "--env", "TILL_BUG=double"); code != report.ExitViolation {
		t.Fatalf("exit %d: the bug is not found", code)
	}
	if err := os.Remove(file); err != nil { // the schedule has what was in it
		t.Fatal(err)
	}
	of := filepath.Join(dir, "P1")
	if code, said := do("replay", of, "--env", "TILL_BUG=double", "--wait", "1s"); code != report.ExitViolation || !strings.Contains(said, "1 of 1 red") {
		t.Errorf("replayed: exit %d", code)
	}
	if code, said := do("replay", of); code != report.ExitHeld || !strings.Contains(said, "0 of 1 red") {
		t.Errorf("replayed without the bug: exit %d", code)
	}
}
