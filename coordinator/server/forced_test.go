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

// TestADecisionPastTheSealIsStillKnown: it was taken out of the journal, and is what the region hands back whatever its store says.
func TestADecisionPastTheSealIsStillKnown(t *testing.T) {
	s := survive(t, func(int) string { return "east" })
	maker := &sample.Maker{Epoch: uint64(slot.Initial(2))}
	rows := []engine.Row{maker.Row(sample.Payment{Gid: "{a}:1", BegunAt: 1}), maker.Row(sample.Payment{Gid: "{a}:2", BegunAt: 1, Abort: true}), maker.Row(sample.Payment{Gid: "{a}:3", BegunAt: 1})}
	if err := s.journal.Append(t.Context(), rows); err != nil {
		t.Fatal(err)
	}
	seal := slot.SealOf(slot.Initial(2), rows[0].Finish.Seq, rows[0].Finish.Chain[:])
	seal.Forced = true
	if _, err := s.journal.Cut(t.Context(), rows[0].Slot, *seal); err != nil {
		t.Fatal(err)
	}
	for gid, want := range map[txn.Gid]txn.Phase{"{a}:1": 0, "{a}:2": txn.PhaseAborting, "{a}:3": txn.PhaseCommitting, "{a}:4": 0} {
		tx, err := s.decidedPast(t.Context(), rows[0].Slot, gid)
		if err != nil || (tx == nil) != (want == 0) || tx != nil && tx.State.Phase != want {
			t.Errorf("%s: %+v, %v; want phase %s", gid, tx, err, want)
		}
	}
}
