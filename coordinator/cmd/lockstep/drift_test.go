package main

import (
	"bytes"
	"strings"
	"testing"

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
