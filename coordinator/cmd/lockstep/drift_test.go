package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/region/reconcile"
)

// What was only looked at is not said to be compared.
func TestTheSummaryOfALookSaysWhatWasNotCompared(t *testing.T) {
	var out bytes.Buffer
	(&driftFlags{Output: "table"}).summary(&env{out: &out}, &reconcile.Report{Chains: 40, ChainsMoving: 3, Skipped: []string{"region west: no route"}})
	for _, want := range []string{"compared 40 chains (3 on their way), ", "NOT COMPARED: region west: no route\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in %q", want, out.String())
		}
	}
}

// TestADecisionIsAuditedAndStandsInTheFinding: what was quarantined is decided by a person, with a reason; what has a repair is
// not a person's to decide.
func TestADecisionIsAuditedAndStandsInTheFinding(t *testing.T) {
	w := newWorld(t)
	w.must("region", "init")
	found := []reconcile.Finding{{Class: reconcile.PhantomEntry, Region: "east", Account: "ann", Text: "entries of nobody"},
		{Class: reconcile.EventMissing, Region: "east", Gid: "g", Repair: "fetch it", Evidence: []byte("{}")}}
	found, err := reconcile.Save(t.Context(), w.arbiter, found, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if out, code := w.command("drift", "decide", found[1].ID, "--accept", "--reason", "x", "--who", "ann"); code != exitFailure || !strings.Contains(out, "next: lockstep drift show") {
		t.Error(code, out)
	}
	if out, code := w.command("drift", "decide", found[0].ID, "--repair", "cancel", "--reason", "x", "--who", "ann"); code != exitFailure {
		t.Error(code, out)
	}
	if out := w.must("drift", "decide", found[0].ID, "--accept", "--reason", "booked by hand", "--who", "ann"); !strings.Contains(out, "next: lockstep drift verify") {
		t.Error(out)
	}
	if audit := w.audit(); !strings.Contains(audit, "ann drift decide D09 "+found[0].ID+" in east: accept: booked by hand") {
		t.Error(audit)
	}
	if out := w.must("drift", "list"); strings.Contains(out, found[0].ID) {
		t.Error(out)
	}
	if out := w.must("drift", "show", found[0].ID); !strings.Contains(out, `"reason": "booked by hand"`) || !strings.Contains(out, `"status": "accepted"`) {
		t.Error(out)
	}
}
