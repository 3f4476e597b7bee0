package main

import (
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// unsettled counts the slots whose loss is not worked off.
func (w *world) unsettled() (n int) {
	w.t.Helper()
	m, err := w.arbiter.Owners(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, o := range m {
		if o.Lost != 0 {
			n++
		}
	}
	return n
}

// TestWhatALostRegionAloneHadIsGivenUpByNameOnly: when its disks are gone nobody works off what was taken from it; an operator
// gives that up, with the region's name and a reason, and it is in the audit.
func TestWhatALostRegionAloneHadIsGivenUpByNameOnly(t *testing.T) {
	w := left(t)
	w.must("region", "failover", "--from", "east", "--to", "west", "--at-risk", "block", "--fenced-by", "power", "--confirm-region", "east", "--plan", "any", "--slots", "0-49")
	if n := w.unsettled(); n != 25 {
		t.Fatalf("%d slots were taken, not 25", n)
	}
	for _, c := range []struct {
		args []string
		says string
		ok   bool
	}{
		{[]string{"--from", "north", "--why", "T-1"}, `--from: "north" is not one of the regions`, false},
		{[]string{"--from", "east", "--why", "T-1"}, "--confirm-region: type the region's name", false},
		{[]string{"--from", "east", "--why", "T-1", "--confirm-region", "west"}, "next: lockstep region settle --from east --confirm-region east", false},
		{[]string{"--from", "east", "--why", "T-1", "--confirm-region", "east", "--dry-run"}, "nothing was written", true},
	} {
		out, code := w.command(append([]string{"region", "settle"}, c.args...)...)
		if (code == 0) != c.ok || !strings.Contains(out, c.says) || w.unsettled() != 25 {
			t.Errorf("%v: exit code %d, %d slots unsettled\n%s", c.args, code, w.unsettled(), out)
		}
	}
	w.must("region", "settle", "--from", "east", "--why", "T-1", "--confirm-region", "east", "--who", "ann")
	if n := w.unsettled(); n != 0 {
		t.Errorf("%d slots are not settled", n)
	}
	if out := w.must("region", "history"); !strings.Contains(out, "T-1: 25 slots of east are given up") || !strings.Contains(out, "ann") {
		t.Errorf("it is not in the audit:\n%s", out)
	}
}

// TestARestoredArbiterIsNotRaisedUnderAnOperation: a slot that is taken and not served yet belongs to a failover that goes on.
func TestARestoredArbiterIsNotRaisedUnderAnOperation(t *testing.T) {
	w := left(t)
	m, err := w.arbiter.Owners(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	taken, err := m[2].Take("west", "op", 2, slot.Risk{Policy: slot.Block})
	if err == nil {
		err = w.arbiter.Change(t.Context(), arbiter.Change{Slot: 2, From: m[2], To: taken})
	}
	if err != nil {
		t.Fatal(err)
	}
	out, code := w.command("region", "restored")
	if m, err = w.arbiter.Owners(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code == 0 || !strings.Contains(out, "taken by force and not served yet") || !strings.Contains(out, "next: lockstep region resume") || !m[2].Equal(taken) {
		t.Errorf("exit code %d, slot 2 is %+v\n%s", code, m[2], out)
	}
}
