package report

import (
	"bytes"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/chaos/sweep"
)

// TestThePageHasTheRecallWithItsBounds: a class's, the mix's, and what is proven of false findings.
func TestThePageHasTheRecallWithItsBounds(t *testing.T) {
	r, _ := stored(t)
	r.Sweep = &sweep.Result{Each: 5, Deployments: 1, Beds: []string{"SQLite"}, Precision: 1, PrecLower: 0.942,
		Rows:    []sweep.Row{{Class: "D01", Title: "lost confirm", Seeds: 5, Found: 4, Missed: 1, Recall: 0.8, Lower: 0.343, Joint: 0.101, Wrong: []string{"D01-1: it was made twice"}}},
		All:     sweep.Row{Class: "all", Seeds: 120, Found: 120, Recall: 1, Lower: 0.9753, Detect: sweep.Times{P50: 1.5, P95: 3, Max: 4}},
		Control: &sweep.Control{Wanted: 5000, Reconciled: 6000, Cuts: 2, Lagging: 1}}
	var out bytes.Buffer
	if err := r.HTML(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"lost confirm", "34.3 %", "10.1 %", "97.5 %", "1.5, 3.0, 4.0", `failed">1<`, "5.0e-04 of transactions", "6000 reconciled", "at least 94.2 %"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the page does not have %q", want)
		}
	}
	r.Sweep = nil
	out.Reset()
	if err := r.HTML(&out); err != nil || strings.Contains(out.String(), `id="recall"`) {
		t.Errorf("a run without a sweep: %v, or it has its table", err)
	}
}
