package rig

import (
	"errors"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/bench/load"
	"github.com/lockstep-tx/lockstep/coordinator/bench/payees"
)

// The money is right only if the clearing accounts, the accounts on their other side and what was answered all agree.
func TestPaid(t *testing.T) {
	const n = payees.PaymentMinor
	sums := func(clearing, accounts, pending int64) payees.Sums {
		return payees.Sums{Clearing: clearing, Accounts: accounts, Pending: pending}
	}
	before := twoSums{sums(5, 1000, 0), sums(-5, 5, 0)}
	for name, tc := range map[string]struct {
		after  twoSums
		failed int
		ok     bool
	}{
		"right":                            {twoSums{sums(5+2*n, 1000-2*n, 0), sums(-5-2*n, 5+2*n, 0)}, 0, true},
		"one more, whose answer was lost":  {twoSums{sums(5+3*n, 1000-3*n, 0), sums(-5-3*n, 5+3*n, 0)}, 1, true},
		"one more than was answered":       {twoSums{sums(5+3*n, 1000-3*n, 0), sums(-5-3*n, 5+3*n, 0)}, 0, false},
		"held still":                       {twoSums{sums(5+2*n, 1000-2*n, 1), sums(-5-2*n, 5+2*n, 0)}, 0, false},
		"it did not arrive":                {twoSums{sums(5+2*n, 1000-2*n, 0), sums(-5-n, 5+n, 0)}, 0, false},
		"buyers' accounts kept a cent":     {twoSums{sums(5+2*n, 1001-2*n, 0), sums(-5-2*n, 5+2*n, 0)}, 0, false},
		"merchants' accounts lost a cent":  {twoSums{sums(5+2*n, 1000-2*n, 0), sums(-5-2*n, 4+2*n, 0)}, 0, false},
		"less than was answered, on all 4": {twoSums{sums(5+n, 1000-n, 0), sums(-5-n, 5+n, 0)}, 0, false},
	} {
		r := load.Result{}
		r.TotalOK, r.TotalFailed = 2, tc.failed
		if err := paid(r, before, tc.after); (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrIncomplete) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
