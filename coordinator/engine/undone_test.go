package engine_test

import (
	"context"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// A coordinator closed a slot and died, and the move was undone before another one could bring the seal into the journal: whoever
// takes the slot at the next epoch does, for the chain goes on behind it (the simulator).
func TestWhatAnUndoneMoveLeftGetsIntoTheJournal(t *testing.T) {
	const gid = txn.Gid("{tag}live")
	ctx := context.Background()
	n := slot.Of(string(gid))
	w := newWorld("east", "west")
	o := w.owner(n)
	p := w.places[o.Region]
	claims, err := p.store.Claim(ctx, "dead", []int{n}, func(int) uint64 { return uint64(o.Epoch) })
	if err != nil {
		t.Fatal(err)
	}
	var head record.Head
	var events []record.Event
	for _, e := range []record.Event{{Kind: record.KindCarry, Gid: gid, Body: []byte("as it was")}, {Kind: record.KindSeal}} {
		head = head.Next(n, uint64(o.Epoch), e.Kind, e.Gid, e.Body)
		e.Slot, e.Epoch, e.Head = n, uint64(o.Epoch), head
		events = append(events, e)
	}
	if err := p.store.Commit(ctx, &engine.Batch{Guards: []engine.Guard{{Slot: n, Term: claims[0].Term, Head: &head, Close: true}}, Events: events}); err != nil {
		t.Fatal(err)
	}
	undone := o
	undone.Epoch = o.Epoch.Next(p.index)
	if err := w.change(n, o, undone); err != nil {
		t.Fatal(err)
	}
	p.join(t, newDesk())
	if got := p.journal.Carried(n, uint64(o.Epoch)); len(got) != 1 || string(got[0]) != "as it was" {
		t.Errorf("the journal has %q of what was carried", got)
	}
	if left, err := p.store.Events(ctx, n); err != nil || len(left) > 0 {
		t.Errorf("the store still has %d events: %v", len(left), err)
	}
}
