package engine_test

import (
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// TestATryThatALostHomeAnsweredIsMadeAgain: only a Done, only of a try, and only where the home was lost since.
func TestATryThatALostHomeAnsweredIsMadeAgain(t *testing.T) {
	lost, kept := slot.Initial(1), slot.Initial(1)
	taken := slot.Owner{Region: "west", Epoch: lost + 200, Lost: lost, Status: slot.Active}
	here := slot.Owner{Region: "east", Epoch: kept, Status: slot.Active}
	try := engine.Call{Op: txn.OpTry, Mode: txn.ModeTCC, AccountEpoch: uint64(lost)}
	change := func(f func(c *engine.Call)) engine.Call { c := try; f(&c); return c }
	for _, c := range []struct {
		name  string
		call  engine.Call
		was   txn.Outcome
		owner slot.Owner
		want  txn.Outcome
	}{
		{"of the lost home", try, txn.Done, taken, txn.Deferred},
		{"refused there, which was its to say", try, txn.Refused, taken, txn.Refused},
		{"not known", try, txn.Unknown, taken, txn.Unknown},
		{"of the new home", change(func(c *engine.Call) { c.AccountEpoch = uint64(taken.Epoch) }), txn.Done, taken, txn.Done},
		{"of a home that is there", try, txn.Done, here, txn.Done},
		{"of a home that gave it away by plan", try, txn.Done, slot.Owner{Region: "west", Epoch: lost + 200, Status: slot.Active}, txn.Done},
		{"a confirm", change(func(c *engine.Call) { c.Op = txn.OpConfirm }), txn.Done, taken, txn.Done},
		{"a saga's step, which holds nothing", change(func(c *engine.Call) { c.Mode = txn.ModeSaga }), txn.Done, taken, txn.Done},
		{"of a participant without fences", change(func(c *engine.Call) { c.AccountEpoch = 0 }), txn.Done, taken, txn.Done},
	} {
		got := engine.AfterLoss(engine.CallResult{Call: &c.call, Outcome: c.was}, c.owner)
		if got.Outcome != c.want {
			t.Errorf("%s: %v, want %v", c.name, got.Outcome, c.want)
		}
		if again := got.Outcome == txn.Deferred; again != (got.RetryAfter > 0) {
			t.Errorf("%s: it is made again after %v", c.name, got.RetryAfter)
		}
	}
}
