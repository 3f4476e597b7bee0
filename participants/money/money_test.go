package money_test

import (
	"errors"
	"math"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/money"
)

func TestNormal(t *testing.T) {
	for _, tc := range []struct {
		in money.Transfer
		ok bool
	}{
		{money.Transfer{Account: "a", Minor: 1}, true},
		{money.Transfer{Account: "a", Minor: money.MinorMax, Currency: "EUR"}, true},
		{money.Transfer{Account: "a", Minor: 0}, false},
		{money.Transfer{Account: "a", Minor: -1}, false},
		{money.Transfer{Account: "a", Minor: math.MinInt64}, false},
		{money.Transfer{Account: "a", Minor: money.MinorMax + 1}, false},
		{money.Transfer{Account: "", Minor: 1}, false},
		{money.Transfer{Account: "a", Minor: 1, Currency: "eur"}, false},
		{money.Transfer{Account: "a", Minor: 1, Currency: "EURO"}, false},
	} {
		got, err := tc.in.Normal()
		if (err == nil) != tc.ok || (err != nil && !errors.Is(err, barrier.ErrInvalid)) || (err == nil && got.Currency == "") {
			t.Errorf("%+v: %+v, %v", tc.in, got, err)
		}
	}
}
