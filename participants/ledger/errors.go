package ledger

import (
	"errors"
	"fmt"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// Reason says why money does not move. The list only grows.
type Reason string

// The reasons of a Refusal.
const (
	NoAccount         Reason = "no_account"
	AccountFrozen     Reason = "account_frozen"
	AccountClosed     Reason = "account_closed"
	AccountExists     Reason = "account_exists" // with another definition
	AccountInUse      Reason = "account_in_use" // to be closed, but not empty
	AccountInternal   Reason = "account_internal"
	WrongCurrency     Reason = "wrong_currency"
	InsufficientFunds Reason = "insufficient_funds"
	CreditCap         Reason = "credit_cap"
	DebitCap          Reason = "debit_cap"
	NoPayment         Reason = "no_payment" // what is to be refunded is not a posted payment in this currency
	RefundExceeds     Reason = "refund_exceeds_payment"
	Reversed          Reason = "reversed" // the reversal came before its original, or the payment is reversed
	Refunded          Reason = "refunded" // what is to be reversed has refunds
	Voided            Reason = "voided"
	AccountAtRisk     Reason = "account_at_risk" // its region was lost, and what that one did is not settled
	NeedsGlobal       Reason = "needs_global"    // a debit of durability regional, of an account that allows global ones alone
)

// Refusal is a No for a business reason. It is barrier.ErrRefused.
type Refusal struct {
	Reason  Reason
	Field   string // of the request: "debit", "credit", "currency", "amount", "refund_of", "id", "state"
	Account string // which it is about, "" if none
	Detail  string
}

func (r *Refusal) Error() string {
	s := string(r.Reason)
	if r.Account != "" {
		s += " " + r.Account
	}
	if r.Detail != "" {
		s += ": " + r.Detail
	}
	return fmt.Sprintf("%s (field %s)", s, r.Field)
}

// Unwrap makes it barrier.ErrRefused.
func (r *Refusal) Unwrap() error { return barrier.ErrRefused }

// MismatchError says that an id is there with another body: two callers use one id, or one has changed its mind. Nothing
// was done. It is no refusal: somebody must look.
type MismatchError struct {
	ID    string
	Kind  string // what is there
	State string // pending, posted, voided
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("ledger: id %q is there as another %s (%s); an id belongs to one body for ever", e.ID, e.Kind, e.State)
}

// ErrNoHold says that there is nothing to post or void under this id. The barrier keeps empty cancels away, so somebody
// must look.
var ErrNoHold = errors.New("ledger: no such hold")
