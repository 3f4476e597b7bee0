package main

import (
	"testing"

	"github.com/lockstep-tx/lockstep/region/failover/recovery"
)

// TestAConsentIsVoidWhenWhatIsExposedChanges: what is held, by whom, and how it stands belong to what was consented to; the order in
// which participants answer does not.
func TestAConsentIsVoidWhenWhatIsExposedChanges(t *testing.T) {
	of := func(change func(*recovery.Try)) string {
		x := &exposure{Tries: tries("order-7")}
		if change != nil {
			change(&x.Tries["order-7"][0])
		}
		return x.digest()
	}
	was := of(nil)
	for name, change := range map[string]func(*recovery.Try){
		"state": func(r *recovery.Try) { r.State = recovery.Confirmed }, "amount": func(r *recovery.Try) { r.Amount++ }, "currency": func(r *recovery.Try) { r.Currency = "EUR" },
		"account": func(r *recovery.Try) { r.Account = "carol" }, "side": func(r *recovery.Try) { r.Debit = false }, "branch": func(r *recovery.Try) { r.Branch = "03" },
		"participant": func(r *recovery.Try) { r.Participant = "points" }, "durability": func(r *recovery.Try) { r.Global = true },
	} {
		if of(change) == was {
			t.Errorf("another %s is the same exposure", name)
		}
	}
	x := &exposure{Tries: tries("order-7")}
	list := x.Tries["order-7"]
	list[0], list[1] = list[1], list[0]
	if x.digest() != was {
		t.Error("another order of answers is another exposure")
	}
}
