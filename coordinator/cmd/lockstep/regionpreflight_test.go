package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
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
