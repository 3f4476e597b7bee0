package money_test

import (
	"errors"
	"math"
	"strings"
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

// A code that ISO 4217 does not know is refused before any account is in it, and the error says where and what to write.
func TestCheckCurrency(t *testing.T) {
	for _, c := range []string{"CNY", "EUR", "USD", "JPY", "KWD", "HKD", "DEM", "VES", "SLE", "XCG"} {
		if err := money.CheckCurrency(c); err != nil {
			t.Errorf("%s: %v", c, err)
		}
	}
	for _, c := range []string{"", "ABC", "ZZZ", "QQQ", "XXX", "XTS", "eur", "Eur", "EURO", "EU", "EUR ", " EUR", "E R", "€", "\x00\x00\x00", "ЕUR"} {
		err := money.CheckCurrency(c)
		if !errors.Is(err, barrier.ErrInvalid) || !strings.Contains(err.Error(), "currency") || !strings.Contains(err.Error(), money.CurrencyWanted) {
			t.Errorf("%q: %v", c, err)
		}
	}
}
