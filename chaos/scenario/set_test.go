package scenario

import (
	"slices"
	"testing"
)

// TestWhatRunsOnAServerDoesNotRunTwice: each scenario runs in one of the two sets, on its server where that is given.
func TestWhatRunsOnAServerDoesNotRunTwice(t *testing.T) {
	ids := func(list []Scenario) (out []string) {
		for _, s := range list {
			out = append(out, s.ID)
		}
		return out
	}
	for _, tc := range []struct {
		postgres, mysql string
		nightly         []string
	}{
		{"", "", nil}, {"postgres://x", "", []string{"M1", "M23"}}, {"", "mysql://x", []string{"N14", "M8"}}, {"postgres://x", "mysql://x", []string{"M1", "M23", "N14", "M8"}},
	} {
		run, nightly := PullRequest(tc.postgres, tc.mysql)
		if got := ids(nightly); !slices.Equal(got, tc.nightly) {
			t.Errorf("with %q and %q the nightly set has %v of it, not %v", tc.postgres, tc.mysql, got, tc.nightly)
		}
		both := append(ids(run), ids(nightly)...)
		want := ids(All())
		slices.Sort(both)
		slices.Sort(want)
		if !slices.Equal(both, want) {
			t.Errorf("with %q and %q run %v, of %v", tc.postgres, tc.mysql, both, want)
		}
	}
}
