// Package money is an amount as participants carry it in payloads.
//
// Its law: amounts are integers in the currency's minor unit (fen, cents) and positive; there is no floating point and
// no sign to get wrong. It is tested by a table of valid and invalid amounts.
package money

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/text/currency"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// MinorMax bounds one amount, far below where sums of many could overflow an int64.
const MinorMax = 1_000_000_000_000_000

// Transfer is the payload of a branch that moves money on or off one account.
type Transfer struct {
	Account  string `json:"account"`
	Minor    int64  `json:"amount"`             // in minor units
	Currency string `json:"currency,omitempty"` // ISO 4217; empty means DefaultCurrency
}

// DefaultCurrency is meant where a payload names none.
const DefaultCurrency = "CNY"

// Normal returns t with its currency filled in, or an error that wraps barrier.ErrInvalid.
func (t Transfer) Normal() (Transfer, error) {
	if t.Currency == "" {
		t.Currency = DefaultCurrency
	}
	if err := barrier.CheckID("account", t.Account, 128); err != nil {
		return t, err
	}
	if t.Minor <= 0 || t.Minor > MinorMax {
		return t, fmt.Errorf("%w: amount %d; 1 to %d minor units are possible", barrier.ErrInvalid, t.Minor, int64(MinorMax))
	}
	return t, CheckCurrency(t.Currency)
}

// CheckCurrency returns an error that wraps barrier.ErrInvalid unless c is a currency of ISO 4217, written in capitals as the
// standard and every stored row have it. Currencies that are no longer in use pass: old books are kept in them. XXX (no
// currency) and XTS (for tests) do not: no money is in them.
func CheckCurrency(c string) error {
	_, err := currency.ParseISO(c)
	known := (err == nil && c == strings.ToUpper(c) && c != "XXX" && c != "XTS") || slices.Contains(newer, c)
	if !known {
		return fmt.Errorf("%w: currency %q: %s", barrier.ErrInvalid, c, CurrencyWanted)
	}
	return nil
}

// CurrencyWanted says what belongs into a field that CheckCurrency refuses.
const CurrencyWanted = "a code of ISO 4217 in capital letters belongs here, such as CNY, EUR or USD"

// newer are the codes that ISO 4217 has had since the table of package currency was made (CLDR 32, 2017), up to amendment 180.
var newer = []string{"MRU", "SLE", "UYW", "VED", "VES", "XAD", "XCG", "ZWG"}
