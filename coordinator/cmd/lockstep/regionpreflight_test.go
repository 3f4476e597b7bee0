package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/region/failover/conduct"
)

// TestThePreflightKnowsClocksVersionsAndChains: what it finds can be waived where an operator may know better, and nowhere else.
func TestThePreflightKnowsClocksVersionsAndChains(t *testing.T) {
	w := newWorld(t)
	w.must("region", "init")
	ahead, broken, lag := time.Duration(0), "", 0
	version := map[string]string{"east": "v1.2.3", "west": "v1.2.3"}
	for region, version := range map[string]func() string{"east": func() string { return version["east"] }, "west": func() string { return version["west"] }} {
		w.admin[region].HandleFunc("GET /v1/region/status", func(rw http.ResponseWriter, _ *http.Request) {
			other := map[string]string{"east": "west", "west": "east"}[region]
			now, chains := time.Now(), ""
			if region == "west" {
				now = now.Add(ahead)
			} else {
				chains = broken
			}
			fmt.Fprintf(rw, `{"member": %q, "version": %q, "now_ms": %d, "arbiter_ms": 5, "unpublishable": {%s}, "origins": [{"region": %q, "heard_ms": 3, "lag_ms": %d}]}`,
				region+"-1", version(), now.UnixMilli(), chains, other, lag)
		})
	}
	preflight := func(args ...string) (string, int) {
		return w.command(append([]string{"region", "preflight", "--from", "east", "--to", "west"}, args...)...)
	}
	has := func(out string, code, want int, lines ...string) {
		t.Helper()
		for _, line := range lines {
			if code != want || !strings.Contains(out, line) {
				t.Fatalf("%d, want %d and %q:\n%s", code, want, line, out)
			}
		}
	}
	out, code := preflight()
	has(out, code, exitOK, "ok   arbiter: a majority answers in", "ok   version: the coordinators are of v1.2.3", "ok   clock of east-1", "ok   clock of west-1", "ok   unpublishable slots: 0 chains")

	ahead, version["west"], lag = 2*time.Second, "v1.3.0", 6000
	out, code = preflight()
	has(out, code, exitFailure, "FAIL version: the coordinators are of v1.2.3, v1.3.0", "FAIL clock of west-1", "FAIL lag", "ok   clock of east-1")
	out, code = preflight("--waive", "version,clock")
	has(out, code, exitFailure, "waived version", "waived clock of west-1", "FAIL lag")
	out, code = preflight("--waive", "version,clock,lag")
	has(out, code, exitOK, "waived lag")
	out, code = preflight("--waive", "version,clock,lag", "-o", "json")
	has(out, code, exitOK, `{"name":"version","ok":false,"waived":true,`)

	broken = `"7": "it does not continue"`
	out, code = preflight("--waive", "version,clock,lag")
	has(out, code, exitFailure, "FAIL unpublishable slots: 1 chains of east do not continue in its journal")
	out, code = preflight("--waive", "unpublishable")
	has(out, code, exitUsage, "--waive:", "lag, version, clock")
	if got := waivedWhy("T-1", []check{{Name: "lag", Waived: true}, {Name: "region east", OK: true}}); got != "T-1 (waived: lag)" {
		t.Error(got)
	}
}

// TestNothingMovesByPlanBeforeItsLossIsWorkedOff: a slot that was taken by force cannot be drained; the move is refused before it holds
// the lock, so that a failover of the region that has it now stays possible, and nobody can waive that.
func TestNothingMovesByPlanBeforeItsLossIsWorkedOff(t *testing.T) {
	w := left(t)
	w.must("region", "failover", "--from", "east", "--to", "west", "--at-risk", "block", "--fenced-by", "power", "--confirm-region", "east", "--plan", "any", "--slots", "0-9")
	w.status("east", calm)
	w.must("participant", "rm", "points") // it cannot be moved
	const says = "FAIL loss: 5 slots were taken by force from east, and what it had of them is not worked off"
	for _, args := range [][]string{
		{"preflight", "--from", "west", "--to", "east"}, {"failback", "--from", "west", "--to", "east"}, {"handover", "--from", "west", "--to", "east", "--slots", "0-20"},
		{"drill", "--from", "west", "--to", "east", "--hold", "1ms"}, {"drill", "--forced", "--from", "west", "--to", "east", "--slots", "0-20"},
	} {
		out, code := w.command(append([]string{"region"}, args...)...)
		if code != exitFailure || !strings.Contains(out, says) || !strings.Contains(out, "next: lockstep region status --context ") {
			t.Errorf("%v: %d\n%s", args, code, out)
		}
		if _, err := w.conductor().Load(t.Context(), ""); !errors.Is(err, conduct.ErrNone) {
			t.Fatalf("%v: an operation holds the lock: %v", args, err)
		}
	}
	if out, code := w.command("region", "failback", "--from", "west", "--to", "east", "--waive", "loss"); code != exitUsage || !strings.Contains(out, "--waive:") {
		t.Error(code, out)
	}
	if out := w.must("region", "preflight", "--from", "west", "--to", "east", "--slots", "11-20"); !strings.Contains(out, "ok   loss:") {
		t.Error(out)
	}
	w.must("region", "settle", "--from", "east", "--why", "T-1", "--confirm-region", "east")
	if out := w.must("region", "preflight", "--from", "west", "--to", "east"); !strings.Contains(out, "ok   loss: no slot has a loss") {
		t.Error(out)
	}
}
