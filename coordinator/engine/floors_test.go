package engine_test

import (
	"context"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// The floor of a slot is its oldest unfinished transaction, decided or not; finished ones do not hold it back, and a slot
// that another process has taken is not spoken for.
func TestFloorsAreTheOldestUnfinishedTransactions(t *testing.T) {
	ctx := context.Background()
	r := newRegion(t)
	d := newDesk()
	a, _ := r.join("a", d)
	begun := time.UnixMilli(1_700_000_000_000)
	inSlot := func(n int, after time.Duration) txn.Gid {
		return txn.Gid(slot.NewGid(begun.Add(after), func(m int) bool { return m == n }))
	}
	older, newer, ended, lost := inSlot(3, 0), inSlot(3, time.Hour), inSlot(4, 0), inSlot(5, 0)
	execute := func(gid txn.Gid) <-chan told {
		return ask(a, engine.Request{Gid: gid, Event: txn.Execute{Spec: oneBranch()}, Want: engine.WantFinished})
	}
	first := execute(older)
	tryOlder := d.next(t, older, txn.OpTry)
	execute(newer)
	d.next(t, newer, txn.OpTry)
	done := execute(ended)
	d.next(t, ended, txn.OpTry).answer(txn.Done)
	d.next(t, ended, txn.OpConfirm).answer(txn.Done)
	<-done
	execute(lost)
	d.next(t, lost, txn.OpTry)
	if _, err := r.store.Claim(ctx, "another", []int{5}, nil); err != nil { // a knows nothing of it
		t.Fatal(err)
	}
	floors := func() map[int]int64 {
		t.Helper()
		f, err := a.Floors(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	got := floors()
	if got[3] != begun.UnixMilli() {
		t.Errorf("slot 3: %d, want the oldest's %d", got[3], begun.UnixMilli())
	}
	until(t, "the journal has the end of the transaction in slot 4", func() bool { got = floors(); return got[4] != begun.UnixMilli() })
	if got[4] <= begun.Add(time.Hour).UnixMilli() || got[6] <= begun.Add(time.Hour).UnixMilli() {
		t.Errorf("a slot of ended transactions: %d; an empty one: %d; want the present", got[4], got[6])
	}
	if _, ok := got[5]; ok {
		t.Error("a slot that another process has taken was spoken for")
	}
	if len(got) != slot.Count-1 {
		t.Errorf("%d slots", len(got))
	}
	// Decided, it still holds the floor until it has ended.
	tryOlder.answer(txn.Done)
	confirm := d.next(t, older, txn.OpConfirm)
	if got := floors(); got[3] != begun.UnixMilli() {
		t.Errorf("decided: %d", got[3])
	}
	confirm.answer(txn.Done)
	<-first
	until(t, "the floor of slot 3 is the newer's", func() bool { return floors()[3] == begun.Add(time.Hour).UnixMilli() })
}

// A record that cannot be read may be of any age: its slot is not spoken for.
func TestNoFloorWhereARecordCannotBeRead(t *testing.T) {
	ctx := context.Background()
	r := newRegion(t)
	const bad = txn.Gid("{tag}bad")
	n := slot.Of(string(bad))
	claims, err := r.store.Claim(ctx, "earlier", []int{n}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.store.Commit(ctx, &engine.Batch{Guards: []engine.Guard{{Slot: n, Term: claims[0].Term}}, Puts: []engine.Put{{Slot: n, Gid: bad, Value: []byte("\xffof a later version")}}}); err != nil {
		t.Fatal(err)
	}
	a, _ := r.join("a", newDesk())
	got, err := a.Floors(ctx)
	if _, ok := got[n]; err != nil || ok || len(got) != slot.Count-1 {
		t.Errorf("%d floors, one for its slot: %v; %v", len(got), ok, err)
	}
}
