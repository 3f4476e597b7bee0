package storetest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
)

// claimAt claims one slot at an epoch.
func claimAt(t *testing.T, s engine.Store, holder string, n int, epoch uint64) []engine.Claim {
	t.Helper()
	c, err := s.Claim(ctxOf(t), holder, []int{n}, func(int) uint64 { return epoch })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func at(epoch uint64) func(int) uint64 { return func(int) uint64 { return epoch } }

// epochsGrow: a slot is never taken at an epoch below the one at which it stands.
func epochsGrow(t *testing.T, s engine.Store) {
	first := claimAt(t, s, "a", 9, 101)
	if len(first) != 1 || first[0].Epoch != 101 {
		t.Fatalf("%+v", first)
	}
	if c := claimAt(t, s, "b", 9, 202); len(c) != 1 || c[0].Epoch != 202 || c[0].Prev != first[0].Term {
		t.Fatalf("%+v", c)
	}
	if c := claimAt(t, s, "old", 9, 101); len(c) != 0 {
		t.Fatalf("an owner of before took the slot: %+v", c)
	}
	if c := claim(t, s, "c", 9); c.Epoch != 202 {
		t.Fatalf("a claim without an epoch changed it to %d", c.Epoch)
	}
	// Beside one that is left out the others are taken.
	c, err := s.Claim(ctxOf(t), "d", []int{9, 10}, at(101))
	if err != nil || len(c) != 1 || c[0].Slot != 10 {
		t.Fatalf("%+v, %v", c, err)
	}
}

// closedEpochs: the batch that closes a slot is its epoch's last: nobody writes or takes it until there is a higher one.
func closedEpochs(t *testing.T, s engine.Store) {
	const n = 12
	c := claimAt(t, s, "a", n, 101)[0]
	gid := gidIn(n, 1)
	if err := s.Commit(ctxOf(t), &engine.Batch{Guards: []engine.Guard{{Slot: n, Term: c.Term}}, Puts: put(n, gid, "live")}); err != nil {
		t.Fatal(err)
	}
	carry := record.Event{Slot: n, Kind: record.KindCarry, Gid: gid, Epoch: 101, Body: []byte("live")}
	carry.Head = c.Head.Next(n, 101, carry.Kind, gid, carry.Body)
	seal := record.Event{Slot: n, Kind: record.KindSeal, Epoch: 101}
	seal.Head = carry.Head.Next(n, 101, seal.Kind, "", nil)
	if err := s.Commit(ctxOf(t), &engine.Batch{Guards: []engine.Guard{{Slot: n, Term: c.Term, Head: &seal.Head, Close: true}}, Events: []record.Event{carry, seal}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctxOf(t), &engine.Batch{Guards: []engine.Guard{{Slot: n, Term: c.Term}}, Puts: put(n, gid, "late")}); !errors.Is(err, engine.ErrFenced) {
		t.Fatalf("a write after the close: %v", err)
	}
	for _, epoch := range []uint64{0, 101} {
		got := claimAt(t, s, "b", n, epoch)
		if len(got) != 1 || !got[0].Closed || got[0].Term != 0 || got[0].Head != seal.Head {
			t.Fatalf("a closed slot was given as %+v", got)
		}
	}
	events, err := s.Events(ctxOf(t), n)
	if diff := cmp.Diff([]record.Event{carry, seal}, events, cmp.Comparer(sameEvent)); err != nil || diff != "" {
		t.Fatalf("%v\n%s", err, diff)
	}
	if err := s.Purge(ctxOf(t), n, 202); !errors.Is(err, engine.ErrFenced) {
		t.Fatalf("purged for another epoch: %v", err)
	}
	// Undone: the source goes on at a higher epoch, with what it had.
	next := claimAt(t, s, "c", n, 201)
	if len(next) != 1 || next[0].Closed || next[0].Head != seal.Head {
		t.Fatalf("%+v", next)
	}
	if diff := cmp.Diff(map[string]string{string(gid): "live"}, load(t, s, n)); diff != "" {
		t.Error(diff)
	}
	if err := s.Purge(ctxOf(t), n, 101); !errors.Is(err, engine.ErrFenced) {
		t.Fatalf("a slot that goes on was purged: %v", err)
	}
	if err := s.ForgetEvents(ctxOf(t), n, carry.Head.Seq); err != nil {
		t.Fatal(err)
	}
	if events, err = s.Events(ctxOf(t), n); err != nil || len(events) != 1 || events[0].Kind != record.KindSeal {
		t.Fatalf("%+v, %v", events, err)
	}
}

func sameEvent(a, b record.Event) bool {
	return a.Slot == b.Slot && a.Kind == b.Kind && a.Gid == b.Gid && a.Epoch == b.Epoch && a.Head == b.Head && string(a.Body) == string(b.Body)
}

// purged: the records of a slot that has gone are removed, and an import is remembered with its last batch.
func purged(t *testing.T, s engine.Store) {
	const n = 13
	c := claimAt(t, s, "a", n, 101)[0]
	var puts []engine.Put
	for i := range 30 {
		puts = append(puts, put(n, gidIn(n, i), fmt.Sprint(i))...)
	}
	if err := s.Commit(ctxOf(t), &engine.Batch{Guards: []engine.Guard{{Slot: n, Term: c.Term, Imported: 77}}, Puts: puts}); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctxOf(t), &engine.Batch{Guards: []engine.Guard{{Slot: n, Term: c.Term, Close: true}}}); err != nil {
		t.Fatal(err)
	}
	views, err := s.Watch(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	if v := <-views; v.Closed[n] != 101 || v.Holders[n] != "" {
		t.Fatalf("the view has it closed for %d, held by %q", v.Closed[n], v.Holders[n])
	}
	for range 2 {
		if err := s.Purge(ctxOf(t), n, 101); err != nil {
			t.Fatal(err)
		}
	}
	if got := load(t, s, n); len(got) != 0 {
		t.Fatalf("%d records are left", len(got))
	}
	if c := claimAt(t, s, "b", n, 301); len(c) != 1 || c[0].Imported != 77 {
		t.Fatalf("%+v", c)
	}
}
