package server

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/journal/sample"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// eventsIn gives the events of rows, in order.
func eventsIn(rows ...engine.Row) (out []record.Event) {
	for _, r := range rows {
		out = append(out, record.Event{Slot: r.Slot, Kind: record.KindDecision, Gid: r.Gid, Epoch: r.DecisionEpoch, Head: r.Decision, Body: r.Closed})
		if r.Finish.Seq != 0 {
			out = append(out, record.Event{Slot: r.Slot, Kind: record.KindFinish, Gid: r.Gid, Epoch: r.FinishEpoch, Head: r.Finish, Body: r.Progress})
		}
	}
	return out
}

// TestNoAccountIsAdoptedBeforeEveryTakenChainIsAtItsSeal: an account is touched from slots anywhere, so that one of a slot that has
// come whole waits for the slot whose copies lack something.
func TestNoAccountIsAdoptedBeforeEveryTakenChainIsAtItsSeal(t *testing.T) {
	maker := &sample.Maker{Epoch: uint64(eastEpoch)}
	events := eventsIn(maker.Row(sample.Payment{Gid: "{b}:1", BegunAt: 1}), maker.Row(sample.Payment{Gid: "{b}:2", BegunAt: 1}))
	whole, behind := slot.Of("{a}:1"), slot.Of("{b}:1")
	s := survive(t, func(n int) string {
		if n == whole || n == behind {
			return "east"
		}
		return "west"
	})
	s.heard(events[:2]...)
	s.take(map[int]record.Head{whole: {}, behind: events[3].Head})
	eventually(t, "what came is applied to the copies", func() bool { return s.regions.applier.Have(1, behind) == 2 })
	for _, n := range []int{whole, behind} {
		if err := s.caughtUp(t.Context(), s.move(n)); !errors.Is(err, errBehind) || !strings.Contains(err.Error(), "its seal is 4") {
			t.Errorf("slot %d: %v", n, err)
		}
	}
	time.Sleep(2 * time.Second) // the engine asks again and again
	if s.wallet.has(whole) || s.wallet.has(behind) {
		t.Fatal("accounts were adopted while the copies lack what was done to them")
	}
	s.heard(events[2:]...)
	eventually(t, "the accounts are adopted", func() bool { return s.wallet.has(whole) && s.wallet.has(behind) })
}

// TestNoAccountIsAdoptedBeforeWhatWasDecidedIsPosted: a transaction that the lost region had committed and not finished is owed to
// its accounts, and they may not spend while their copy refuses it.
func TestNoAccountIsAdoptedBeforeWhatWasDecidedIsPosted(t *testing.T) {
	maker := &sample.Maker{Epoch: uint64(eastEpoch)}
	home, decided := slot.Of("{a}:1"), slot.Of("{b}:1")
	branch := txn.Branch{ID: "01", Confirm: "lockstep://wallet/pay/confirm", Cancel: "lockstep://wallet/pay/cancel", Account: "{a}:account", Payload: []byte("{}"), One: txn.OpState{Status: txn.OpDone}}
	events := eventsIn(maker.Row(sample.Payment{Gid: "{b}:1", BegunAt: 1, Decided: true, Branches: []txn.Branch{branch}}))
	s := survive(t, func(n int) string {
		if n == home || n == decided {
			return "east"
		}
		return "west"
	})
	s.wallet.refuses(true)
	s.heard(events...)
	s.take(map[int]record.Head{home: {}, decided: events[0].Head})
	eventually(t, "the effect is posted again and again", func() bool { return s.wallet.posted() > 3 })
	if err := s.caughtUp(t.Context(), s.move(home)); !errors.Is(err, errBehind) || !strings.Contains(err.Error(), "is decided and not posted") {
		t.Errorf("%v", err)
	}
	if s.wallet.has(home) {
		t.Fatal("an account was adopted while what was decided is not posted to it")
	}
	s.wallet.refuses(false)
	eventually(t, "the accounts are adopted", func() bool { return s.wallet.has(home) })
}
