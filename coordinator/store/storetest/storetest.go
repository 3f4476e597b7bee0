// Package storetest is the conformance suite of engine.Store: the memory store, the embedded etcd and an external
// cluster pass the same cases. A store that passes keeps G3 as far as one process can see it.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Run runs every case on a store of its own; open gives an empty one.
func Run(t *testing.T, open func(t *testing.T) engine.Store) {
	for _, tc := range []struct {
		name string
		run  func(*testing.T, engine.Store)
	}{
		{"WritesUnderTheTermAreReadBack", writesUnderTheTerm},
		{"AnOldTermWritesNothing", oldTerm},
		{"GuardsAloneAreCompared", guardsAlone},
		{"OneFencedSlotStopsTheWholeBatch", wholeBatch},
		{"TheHeadTravelsWithTheClaim", headWithClaim},
		{"GidsThatArePrefixesOfOneAnotherStayApart", prefixes},
		{"ReleaseNeedsTheTerm", release},
		{"OfTwoClaimersTheLaterHoldsAlone", twoClaimers},
		{"ManyRecordsOfASlotAreAllLoaded", manyRecords},
		{"EpochsGrow", epochsGrow},
		{"ACloseIsTheEndOfAnEpoch", closedEpochs},
		{"WhatHasGoneIsPurged", purged},
		{"MembersComeAndGoInTheView", members},
		{"RowsOfTheSharedTableAreComparedAndSet", sharedTable},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, open(t)) })
	}
}

func ctxOf(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func claim(t *testing.T, s engine.Store, holder string, n int) engine.Claim {
	t.Helper()
	c, err := s.Claim(ctxOf(t), holder, []int{n}, nil)
	if err != nil || len(c) != 1 || c[0].Slot != n || c[0].Epoch == 0 {
		t.Fatalf("Claim(%s, %d) = %+v, %v", holder, n, c, err)
	}
	return c[0]
}

func load(t *testing.T, s engine.Store, n int) map[string]string {
	t.Helper()
	got := map[string]string{}
	if err := s.Load(ctxOf(t), n, func(gid txn.Gid, v []byte) error { got[string(gid)] = string(v); return nil }); err != nil {
		t.Fatalf("Load(%d): %v", n, err)
	}
	return got
}

// gidIn gives the i-th gid of a slot.
func gidIn(n, i int) txn.Gid {
	for k := 0; ; k++ {
		if tag := fmt.Sprintf("t%d", k); slot.Of(tag) == n {
			return txn.Gid(fmt.Sprintf("{%s}%d", tag, i))
		}
	}
}

func put(n int, gid txn.Gid, v string) []engine.Put {
	return []engine.Put{{Slot: n, Gid: gid, Value: []byte(v)}}
}

func writesUnderTheTerm(t *testing.T, s engine.Store) {
	c := claim(t, s, "a", 7)
	g := []engine.Guard{{Slot: 7, Term: c.Term}}
	one, two := gidIn(7, 1), gidIn(7, 2)
	if err := s.Commit(ctxOf(t), &engine.Batch{Guards: g, Puts: append(put(7, one, "x"), put(7, two, "y")...)}); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctxOf(t), &engine.Batch{Guards: g, Puts: put(7, one, "z"), Deletes: []engine.Delete{{Slot: 7, Gid: two}}}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{string(one): "z"}, load(t, s, 7)); diff != "" {
		t.Errorf("slot 7 (-want +got):\n%s", diff)
	}
	if v, err := s.Get(ctxOf(t), one); err != nil || string(v) != "z" {
		t.Errorf("Get = %q, %v", v, err)
	}
	if v, err := s.Get(ctxOf(t), two); err != nil || v != nil {
		t.Errorf("Get of what was deleted = %q, %v", v, err)
	}
}

// oldTerm is G3: the write of a holder whose slot was taken is refused, however late it comes.
func oldTerm(t *testing.T, s engine.Store) {
	old := claim(t, s, "a", 3)
	now := claim(t, s, "b", 3)
	if old.Term == now.Term || now.Prev != old.Term {
		t.Fatalf("claims %+v and %+v: another term, that follows the first, was expected", old, now)
	}
	err := s.Commit(ctxOf(t), &engine.Batch{Guards: []engine.Guard{{Slot: 3, Term: old.Term}}, Puts: put(3, gidIn(3, 0), "late")})
	var fe *engine.FencedError
	if !errors.As(err, &fe) || len(fe.Slots) != 1 || fe.Slots[0] != 3 || !errors.Is(err, engine.ErrFenced) {
		t.Fatalf("an old term's write: %v", err)
	}
	if got := load(t, s, 3); len(got) != 0 {
		t.Errorf("an old term wrote %v", got)
	}
}

// guardsAlone: who writes nothing learns whether its terms still stand.
func guardsAlone(t *testing.T, s engine.Store) {
	a, b := claim(t, s, "a", 14), claim(t, s, "a", 15)
	both := &engine.Batch{Guards: []engine.Guard{{Slot: 14, Term: a.Term}, {Slot: 15, Term: b.Term}}}
	if err := s.Commit(ctxOf(t), both); err != nil {
		t.Fatalf("guards of terms that stand: %v", err)
	}
	claim(t, s, "b", 15)
	err := s.Commit(ctxOf(t), both)
	var fe *engine.FencedError
	if !errors.As(err, &fe) || len(fe.Slots) != 1 || fe.Slots[0] != 15 {
		t.Fatalf("got %v, want slot 15 fenced", err)
	}
}

func wholeBatch(t *testing.T, s engine.Store) {
	a, b := claim(t, s, "a", 10), claim(t, s, "a", 11)
	claim(t, s, "b", 11)
	err := s.Commit(ctxOf(t), &engine.Batch{
		Guards: []engine.Guard{{Slot: 10, Term: a.Term}, {Slot: 11, Term: b.Term}},
		Puts:   append(put(10, gidIn(10, 0), "x"), put(11, gidIn(11, 0), "y")...),
	})
	var fe *engine.FencedError
	if !errors.As(err, &fe) || len(fe.Slots) != 1 || fe.Slots[0] != 11 {
		t.Fatalf("got %v, want slot 11 fenced", err)
	}
	if got := load(t, s, 10); len(got) != 0 {
		t.Errorf("half a batch was written: %v", got)
	}
}

func headWithClaim(t *testing.T, s engine.Store) {
	c := claim(t, s, "a", 5)
	if c.Head != (record.Head{}) {
		t.Fatalf("a fresh slot has head %+v", c.Head)
	}
	h := c.Head.Next(5, 1, record.KindDecision, "g", []byte("body"))
	if err := s.Commit(ctxOf(t), &engine.Batch{Guards: []engine.Guard{{Slot: 5, Term: c.Term, Head: &h}}, Puts: put(5, gidIn(5, 0), "x")}); err != nil {
		t.Fatal(err)
	}
	if got := claim(t, s, "b", 5); got.Head != h {
		t.Errorf("head after claim = %+v, want %+v", got.Head, h)
	}
}

func prefixes(t *testing.T, s engine.Store) {
	c := claim(t, s, "a", 20)
	base := string(gidIn(20, 1))
	want := map[string]string{}
	var puts []engine.Put
	for _, suffix := range []string{"", "0", "00", "/", "/x", " y", "ä"} {
		puts = append(puts, put(20, txn.Gid(base+suffix), "v"+suffix)...)
		want[base+suffix] = "v" + suffix
	}
	if err := s.Commit(ctxOf(t), &engine.Batch{Guards: []engine.Guard{{Slot: 20, Term: c.Term}}, Puts: puts}); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctxOf(t), &engine.Batch{Guards: []engine.Guard{{Slot: 20, Term: c.Term}}, Deletes: []engine.Delete{{Slot: 20, Gid: txn.Gid(base)}}}); err != nil {
		t.Fatal(err)
	}
	delete(want, base)
	if diff := cmp.Diff(want, load(t, s, 20)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func release(t *testing.T, s engine.Store) {
	c := claim(t, s, "a", 8)
	d := claim(t, s, "b", 8)
	if err := s.Release(ctxOf(t), 8, c.Term); !errors.Is(err, engine.ErrFenced) {
		t.Errorf("release under an old term: %v", err)
	}
	if err := s.Release(ctxOf(t), 8, d.Term); err != nil {
		t.Errorf("release: %v", err)
	}
	if err := s.Commit(ctxOf(t), &engine.Batch{Guards: []engine.Guard{{Slot: 8, Term: d.Term}}, Puts: put(8, gidIn(8, 0), "x")}); !errors.Is(err, engine.ErrFenced) {
		t.Errorf("a write after the release: %v", err)
	}
}

func twoClaimers(t *testing.T, s engine.Store) {
	var mu sync.Mutex
	terms := map[engine.Term]string{}
	var wg sync.WaitGroup
	for _, holder := range []string{"a", "b", "c"} {
		wg.Go(func() {
			for range 10 {
				cs, err := s.Claim(ctxOf(t), holder, []int{42}, nil)
				if err != nil {
					t.Error(err)
				}
				for _, c := range cs {
					mu.Lock()
					if other, ok := terms[c.Term]; ok {
						t.Errorf("%s and %s share term %d", other, holder, c.Term)
					}
					terms[c.Term] = holder
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	alive := 0
	for term := range terms {
		if s.Commit(ctxOf(t), &engine.Batch{Guards: []engine.Guard{{Slot: 42, Term: term}}, Puts: put(42, gidIn(42, 0), "x")}) == nil {
			alive++
		}
	}
	if alive != 1 {
		t.Errorf("%d terms of one slot may write, want 1", alive)
	}
}

func manyRecords(t *testing.T, s engine.Store) {
	c := claim(t, s, "a", 30)
	const total = 4500
	for i := 0; i < total; i += 100 {
		var puts []engine.Put
		for j := range 100 {
			puts = append(puts, put(30, gidIn(30, i+j), "v")...)
		}
		if err := s.Commit(ctxOf(t), &engine.Batch{Guards: []engine.Guard{{Slot: 30, Term: c.Term}}, Puts: puts}); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(load(t, s, 30)); got != total {
		t.Errorf("loaded %d records, want %d", got, total)
	}
}

func members(t *testing.T, s engine.Store) {
	ctx := ctxOf(t)
	views, err := s.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	await := func(what string, ok func(engine.View) bool) {
		t.Helper()
		for {
			select {
			case v, open := <-views:
				if !open {
					t.Fatalf("watch closed while waiting for %s", what)
				}
				if ok(v) {
					return
				}
			case <-ctx.Done():
				t.Fatalf("never saw %s", what)
			}
		}
	}
	jctx, leave := context.WithCancel(ctx)
	left := make(chan error, 1)
	go func() { left <- s.Join(jctx, engine.Member{ID: "m1", GRPC: "127.0.0.1:1"}, 3*time.Second) }()
	await("the member", func(v engine.View) bool { return len(v.Members) == 1 && v.Members[0].GRPC == "127.0.0.1:1" })
	c := claim(t, s, "m1", 99)
	await("the holder", func(v engine.View) bool { return v.Holders[99] == "m1" && v.Terms[99] == c.Term })
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("Join after leaving: %v", err)
	}
	await("the empty view", func(v engine.View) bool { return len(v.Members) == 0 })
}

func sharedTable(t *testing.T, s engine.Store) {
	ctx, kv := ctxOf(t), s.KV()
	if err := kv.Set(ctx, engine.KVPair{Cat: "topics", Key: "a", Value: "1"}); err != nil {
		t.Fatal(err)
	}
	p, ok, err := kv.Find(ctx, "topics", "a")
	if err != nil || !ok || p.Value != "1" || p.Version != 1 || p.CreatedAt == 0 {
		t.Fatalf("Find = %+v, %v, %v", p, ok, err)
	}
	old := p
	p.Value = "2"
	if err := kv.Set(ctx, p); err != nil {
		t.Fatal(err)
	}
	if err := kv.Set(ctx, old); !errors.Is(err, engine.ErrConflict) {
		t.Errorf("a write over a newer row: %v", err)
	}
	if err := kv.Set(ctx, engine.KVPair{Cat: "topics", Key: "a"}); !errors.Is(err, engine.ErrConflict) {
		t.Errorf("a second creation: %v", err)
	}
	for _, key := range []string{"c", "b"} {
		if err := kv.Set(ctx, engine.KVPair{Cat: "topics", Key: key, Value: key}); err != nil {
			t.Fatal(err)
		}
	}
	if err := kv.Set(ctx, engine.KVPair{Cat: "topics2", Key: "a", Value: "other"}); err != nil {
		t.Fatal(err)
	}
	rows, err := kv.Scan(ctx, "topics", "a", 1)
	if err != nil || len(rows) != 1 || rows[0].Key != "b" {
		t.Errorf("Scan after a = %+v, %v", rows, err)
	}
	p, _, _ = kv.Find(ctx, "topics", "a")
	if p.Version != 2 {
		t.Errorf("version %d after one change, want 2", p.Version)
	}
	if err := kv.Delete(ctx, "topics", "a", old.Rev); !errors.Is(err, engine.ErrConflict) {
		t.Errorf("delete of a newer row: %v", err)
	}
	if err := kv.Delete(ctx, "topics", "a", p.Rev); err != nil {
		t.Fatal(err)
	}
	if _, ok, _ := kv.Find(ctx, "topics", "a"); ok {
		t.Error("a deleted row is found")
	}
}
