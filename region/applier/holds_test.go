package applier

import (
	"slices"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// TestOnlyWhatALostHomeMayHaveHeldIsHeldAgain: a try that nobody has answered is the new home's to judge.
func TestOnlyWhatALostHomeMayHaveHeldIsHeldAgain(t *testing.T) {
	parts := registry.NewTable([]registry.Participant{{
		Name: "wallet", Endpoints: map[string]string{"east": "http://east-w:1", "west": "http://west-w:1"}, Can: &registry.Capabilities{Fenced: true, Apply: true, Hold: true},
	}})
	a := New(Config{Self: "west", Table: func() *registry.Table { return parts }})
	const account, home = "taken", 7
	n := slot.Of(account)
	branch := func(id string, one txn.OpStatus) txn.Branch {
		base := "lockstep://wallet/wallet/" + id
		return txn.Branch{ID: txn.BranchID(id), Account: account, Try: base + "/try", Confirm: base + "/confirm", Cancel: base + "/cancel", One: txn.OpState{Status: one}}
	}
	both := []txn.Branch{branch("asked", txn.OpPending), branch("held", txn.OpDone)}
	for _, c := range []struct {
		name  string
		slot  int
		state txn.State
		want  []string
	}{
		{"driven here, undecided", home, txn.State{Phase: txn.PhaseRunning}, []string{"held"}},
		{"driven by its client, who may have made every try", home, txn.State{Phase: txn.PhasePrepared}, []string{"asked", "held"}},
		{"committing", home, txn.State{Phase: txn.PhaseCommitting}, []string{"asked", "held"}},
		{"committed", home, txn.State{Phase: txn.PhaseCommitted}, []string{"asked", "held"}},
		{"aborting", home, txn.State{Phase: txn.PhaseAborting}, nil},
		{"in doubt", home, txn.State{Phase: txn.PhasePrepared, InDoubt: true}, nil},
		{"of the account's own slot, with which it came", n, txn.State{Phase: txn.PhaseRunning}, []string{"held"}},
	} {
		tx := &record.Tx{State: c.state}
		tx.State.Gid, tx.State.Mode, tx.State.Branches = "g", txn.ModeTCC, both
		var got []string
		for _, call := range a.Holds(tx, c.slot, func(k int) bool { return k == n }) {
			if call.OpWord != HoldWord || call.AccountSlot != n {
				t.Errorf("%s: the call is %s of slot %d", c.name, call.OpWord, call.AccountSlot)
			}
			got = append(got, string(call.Branch))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: held again is %v, want %v", c.name, got, c.want)
		}
	}
	elsewhere := &record.Tx{State: txn.State{Gid: "g", Mode: txn.ModeTCC, Phase: txn.PhasePrepared, Branches: both}}
	if calls := a.Holds(elsewhere, home, func(int) bool { return false }); len(calls) != 0 {
		t.Errorf("%d calls for slots that were not taken", len(calls))
	}
}
