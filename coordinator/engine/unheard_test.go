package engine_test

import (
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// TestNothingIsPurgedBeforeItsLossIsHeardOf: a slot was sealed for a move by plan, and then taken by force. Its owner hears first who
// has it now, and later under which seal it was taken: until then what is in its store may be all that is known of a transaction.
func TestNothingIsPurgedBeforeItsLossIsHeardOf(t *testing.T) {
	const n = 6
	w := newWorld("east", "west")
	east, _ := w.places["east"].join(t, newDesk())
	calls := newDesk()
	west, _ := w.places["west"].join(t, calls)
	ctx, gid := t.Context(), gidIn(n, 1)
	for _, event := range []txn.Event{
		txn.Prepare{Spec: txn.Spec{Mode: txn.ModeTCC}},
		txn.Register{Mode: txn.ModeTCC, Branch: txn.Branch{ID: "01", Confirm: "http://a/confirm", Cancel: "http://a/cancel"}},
	} {
		if _, err := east.Do(ctx, engine.Request{Gid: gid, Event: event, Want: engine.WantAccepted}); err != nil {
			t.Fatal(err)
		}
	}
	from := w.owner(n)
	d, err := from.Drain("west", "op", time.Now().Add(time.Minute))
	if err == nil {
		err = w.change(n, from, d)
	}
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the slot is sealed", func() bool { return w.owner(n).Status == slot.Sealed })
	w.places["east"].fleeting.Store(true) // what is handed back is handed back under the seal that was seen
	left := func() (records int) {
		_ = w.places["east"].store.Load(ctx, n, func(txn.Gid, []byte) error { records++; return nil })
		return records
	}
	w.places["east"].deaf.Store(true)
	sealed := w.owner(n)
	forced := *slot.SealOf(sealed.Epoch, 0, make([]byte, 32)) // nothing of it had left the region
	forced.Forced = true
	if err := w.change(n, sealed, slot.Owner{Region: "west", Epoch: sealed.Epoch.Next(2), Status: slot.Active, Lost: sealed.Epoch, Risk: slot.Risk{Policy: slot.Block}, Seal: &forced}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if left() == 0 {
			t.Fatal("the records are gone, and nobody has been told of them")
		}
	}
	w.places["east"].deaf.Store(false)
	// The owner had ended its epoch: what was carried is the new one's to decide, and the lost one asks until it is.
	until(t, "west has it", func() bool { return holds(t, west, gid) })
	if _, err := west.Do(ctx, engine.Request{Gid: gid, Event: txn.Submit{Spec: txn.Spec{Mode: txn.ModeTCC}}, Want: engine.WantAccepted}); err != nil {
		t.Fatal(err)
	}
	calls.next(t, gid, txn.OpConfirm).answer(txn.Done)
	until(t, "what it had is worked off", func() bool { return w.owner(n).Lost == 0 })
	until(t, "and purged", func() bool { return left() == 0 })
}
