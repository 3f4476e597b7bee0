package journal

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/journal/sample"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// numbered gives events new numbers after a head, in an epoch.
func numbered(head record.Head, epoch uint64, events []record.Event) []record.Event {
	out := make([]record.Event, len(events))
	for i, e := range events {
		e.Epoch = epoch
		head = head.Next(e.Slot, epoch, e.Kind, e.Gid, e.Body)
		e.Head = head
		out[i] = e
	}
	return out
}

// rowsOf puts rows together from events.
func rowsOf(t testing.TB, rows []engine.Row, events []record.Event) []engine.Row {
	t.Helper()
	out := make([]engine.Row, len(rows))
	for i, r := range rows {
		for _, e := range events {
			switch {
			case e.Gid != r.Gid:
			case e.Kind == record.KindDecision:
				r.Decision, r.DecisionEpoch = e.Head, e.Epoch
			case e.Kind == record.KindFinish:
				r.Finish, r.FinishEpoch = e.Head, e.Epoch
			}
		}
		out[i] = r
	}
	return out
}

// forced is slot "a" of region 2, taken from it after event at of epoch 102, and what it does when it has it again.
type forced struct {
	n     int
	rows  []engine.Row
	old   []record.Event // of epoch 102
	seal  slot.Seal
	again []record.Event // of epoch 302, after the seal
}

func forcedAt(at int) *forced {
	f := &forced{rows: inSlot(&sample.Maker{Epoch: 102}, "a", 0, 5)}
	f.old, f.n = chainOfRows(f.rows), f.rows[0].Slot
	head := record.Head{}
	if at > 0 {
		head = f.old[at-1].Head
	}
	f.seal = *slot.SealOf(102, head.Seq, head.Chain[:])
	f.seal.Forced = true
	f.again = numbered(head, 302, chainOfRows(inSlot(&sample.Maker{Epoch: 302}, "a", 100, 4)))
	return f
}

// seals is an arbiter's table.
type seals struct {
	mu    sync.Mutex
	list  []slot.Seal
	asked int
}

func (s *seals) of(context.Context, int) ([]slot.Seal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	return append([]slot.Seal{}, s.list...), nil
}

func (s *seals) add(seal slot.Seal) {
	s.mu.Lock()
	s.list = append(s.list, seal)
	s.mu.Unlock()
}

// applied repeats a batch until none of its slots waits for a seal that is there.
func applied(t testing.TB, a *Applier, b Batch) Result {
	t.Helper()
	for range 100 {
		res := apply(t, a, b)
		if len(res.Waiting) == 0 {
			return res
		}
		a.frozenAsked()
	}
	t.Fatal("it waits for ever")
	return Result{}
}

// frozenAsked forgets when seals were asked for, so that a test need not wait to ask again.
func (a *Applier) frozenAsked() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for n := range a.seals {
		a.seals[n].asked = a.seals[n].asked.Add(-askAgain)
	}
}

func mustDiverge(t testing.TB, j *Journal, origin, n int, want ...record.Event) []Divergence {
	t.Helper()
	list, err := j.Diverged(context.Background(), origin, n)
	if err != nil || len(list) != len(want) {
		t.Fatalf("%d divergences, want %d, %v: %+v", len(list), len(want), err, list)
	}
	for i, d := range list {
		e, err := record.DecodeEvent(d.Event)
		if err != nil || !reflect.DeepEqual(*e, want[i]) && e.Head != want[i].Head || d.Gid != want[i].Gid || d.Epoch != want[i].Epoch || d.Seq != want[i].Head.Seq {
			t.Fatalf("divergence %d is %+v, %v; want event %d of epoch %d", i, d, err, want[i].Head.Seq, want[i].Epoch)
		}
	}
	return list
}

func mustMark(t testing.TB, j *Journal, origin, n int, head record.Head) Mark {
	t.Helper()
	marks, err := j.Marks(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range marks {
		if m.Origin == origin && m.Slot == n {
			if m.Head != head || m.Stopped != "" {
				t.Fatalf("the chain is at event %d, %q; want %d", m.Head.Seq, m.Stopped, head.Seq)
			}
			return m
		}
	}
	t.Fatal("the chain has no watermark")
	return Mark{}
}

// TestAFrozenChainWaitsForItsSealAndEndsThere: ADR 9. Two processes share the journal; one is asked to freeze.
func TestAFrozenChainWaitsForItsSealAndEndsThere(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		ctx := context.Background()
		f, table := forcedAt(6), &seals{}
		one, two := open(t, url), open(t, url)
		a, b := one.Applier(ApplyConfig{Own: 1, Seals: table.of}), two.Applier(ApplyConfig{Own: 1, Seals: table.of})
		apply(t, b, Batch{Origin: 2, Offset: -1, Events: f.old[:4]}) // b has asked for the seals of the epoch, and knows of none
		for range 2 {
			marks, err := one.Freeze(ctx, 2, []Frozen{{f.n, 102}, {f.n, 2}, {(f.n + 1) % slot.Count, 102}})
			if err != nil || len(marks) != 2 {
				t.Fatal(marks, err)
			}
			for _, m := range marks {
				if m.Slot == f.n && (m.Head != f.old[3].Head || m.Epoch != 102 || m.Frozen != 102) || m.Slot != f.n && m.Head.Seq != 0 {
					t.Fatalf("%+v", m)
				}
			}
		}
		for _, x := range []*Applier{a, b, b} {
			res := apply(t, x, Batch{Origin: 2, Offset: -1, Events: f.old})
			if res.Applied != 0 || len(res.Waiting) != 1 || len(res.Stopped)+len(res.Diverged) != 0 {
				t.Fatalf("%+v", res)
			}
		}
		mustMark(t, one, 2, f.n, f.old[3].Head)
		table.add(f.seal)
		res := applied(t, b, Batch{Origin: 2, Offset: -1, Events: f.old})
		if res.Applied != 2 || len(res.Diverged) != 4 || len(res.Stopped) != 0 || res.Diverged[0] != (Diverged{f.n, 7, 102, f.old[6].Gid}) {
			t.Fatalf("%+v", res)
		}
		mustMark(t, one, 2, f.n, f.old[5].Head)
		mustRead(t, one, 2, f.old[:6])
		// again, by the other process, and in the same numbers as the next epoch's events: before, with and after these
		if res := applied(t, a, Batch{Origin: 2, Offset: -1, Events: f.old[6:9]}); len(res.Diverged) != 3 || res.Applied != 0 {
			t.Fatalf("%+v", res)
		}
		both := append(append([]record.Event{}, f.old[6:8]...), f.again[:3]...)
		if res := applied(t, a, Batch{Origin: 2, Offset: -1, Events: both}); len(res.Diverged) != 2 || res.Applied != 3 || len(res.Stopped) != 0 {
			t.Fatalf("%+v", res)
		}
		if res := applied(t, b, Batch{Origin: 2, Offset: -1, Events: slices.Concat(f.old[6:9], f.again)}); len(res.Diverged) != 3 || res.Applied != len(f.again)-3 || len(res.Stopped) != 0 {
			t.Fatalf("%+v", res)
		}
		if res := applied(t, b, Batch{Origin: 2, Offset: -1, Events: f.old}); len(res.Diverged) != 4 || res.Duplicates != 6 || len(res.Stopped) != 0 {
			t.Fatalf("%+v", res)
		}
		mustDiverge(t, one, 2, f.n, f.old[6:]...)
		mustMark(t, one, 2, f.n, f.again[len(f.again)-1].Head)
		mustRead(t, one, 2, append(append([]record.Event{}, f.old[:6]...), f.again...))
	})
}

func TestFreezeRefusesWhatCannotBe(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		ctx, j := context.Background(), open(t, url)
		j.Applier(ApplyConfig{Own: 1})
		if _, err := j.Freeze(ctx, 1, []Frozen{{3, 101}}); !errors.Is(err, ErrOwnChain) {
			t.Fatal(err)
		}
		for _, f := range []Frozen{{-1, 102}, {slot.Count, 102}, {3, 101}} {
			if _, err := j.Freeze(ctx, 2, []Frozen{f}); err == nil {
				t.Fatalf("%+v was frozen", f)
			}
		}
		for _, e := range []uint64{302, 102, 302} { // never lowered
			if m, err := j.Freeze(ctx, 2, []Frozen{{3, e}}); err != nil || m[0].Frozen != 302 {
				t.Fatal(m, err)
			}
		}
	})
}

// TestNothingIsAppliedAfterAFreezeAnswered: several processes apply while one freezes. What Freeze said is all there is.
func TestNothingIsAppliedAfterAFreezeAnswered(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		ctx := context.Background()
		j := open(t, url)
		j.Applier(ApplyConfig{Own: 1})
		others := []*Journal{open(t, url), open(t, url)}
		for round := range 25 {
			rows := inSlot(&sample.Maker{Epoch: 102}, fmt.Sprint("r", round), 0, 20)
			events, n := chainOfRows(rows), rows[0].Slot
			var all sync.WaitGroup
			begun := make(chan bool, 100)
			for _, other := range others {
				a := other.Applier(ApplyConfig{Own: 1, Seals: (&seals{}).of})
				all.Go(func() {
					for i := range events {
						if _, err := a.Apply(ctx, Batch{Origin: 2, Offset: -1, Events: events[:i+1]}); err != nil {
							t.Error(err)
						}
						begun <- true
					}
				})
			}
			for range round % 7 {
				<-begun
			}
			marks, err := j.Freeze(ctx, 2, []Frozen{{n, 102}})
			if err != nil {
				t.Fatal(err)
			}
			all.Wait()
			mustMark(t, j, 2, n, marks[0].Head)
			if got, err := j.EventsAfter(ctx, 2, n, 0, 100); err != nil || len(got) != int(marks[0].Head.Seq) {
				t.Fatalf("round %d: %d events are there, Freeze said %d, %v", round, len(got), marks[0].Head.Seq, err)
			}
		}
	})
}

// TestAChainPastAForcedSealIsCutWhenItIsHeardOf: a region that did not answer the freeze hears of the seal by the next event
// of the same region, or of the new owner.
func TestAChainPastAForcedSealIsCutWhenItIsHeardOf(t *testing.T) {
	for _, at := range []int{0, 5, 6} {
		t.Run(fmt.Sprint("seal ", at), func(t *testing.T) {
			onEach(t, func(t *testing.T, url string) {
				ctx := context.Background()
				f, table := forcedAt(at), &seals{}
				j := open(t, url)
				a := j.Applier(ApplyConfig{Own: 1, Seals: table.of})
				apply(t, a, Batch{Origin: 2, Offset: -1, Events: f.old[:9]})
				if err := j.SetApplied(ctx, map[[2]int]uint64{{2, f.n}: 9}); err != nil {
					t.Fatal(err)
				}
				table.add(f.seal)
				// the new owner aborts what was decided past the seal: the same transaction, decided there
				other := inSlot(&sample.Maker{Epoch: 203}, "a", 4, 1)
				taken := numbered(record.Head{}, 203, chainOfRows(other))
				res := apply(t, a, Batch{Origin: 3, Offset: -1, Events: taken})
				if res.Applied != len(taken) || len(res.Stopped) != 0 || len(res.Cuts) != 1 || len(res.Cuts[0].Events) != 9-at || res.Cuts[0].Origin != 2 {
					t.Fatalf("%+v", res)
				}
				m := mustMark(t, j, 2, f.n, record.Head{Seq: f.seal.Seq, Chain: headAt(f, at)})
				if m.Bounded != 102 || m.Frozen != 102 {
					t.Fatalf("%+v", m)
				}
				if seqs, err := j.Applied(ctx); err != nil || seqs[[2]int{2, f.n}] != uint64(at) {
					t.Fatal(seqs, err)
				}
				mustDiverge(t, j, 2, f.n, f.old[at:9]...)
				mustRead(t, j, 3, taken)
				if reached, err := j.Reached(ctx, f.n, &f.seal); err != nil || !reached {
					t.Fatal(reached, err)
				}
				// another process has asked for the seals before there were any: the last late event diverges all the same
				if res := applied(t, a, Batch{Origin: 2, Offset: -1, Events: append(append([]record.Event{}, f.old...), f.again...)}); res.Applied != len(f.again) || len(res.Stopped) != 0 {
					t.Fatalf("%+v", res)
				}
				mustDiverge(t, j, 2, f.n, f.old[at:]...)
				mustRead(t, j, 2, append(append([]record.Event{}, f.old[:at]...), f.again...))
			})
		})
	}
}

func headAt(f *forced, at int) (c record.Chain) {
	if at > 0 {
		c = f.old[at-1].Head.Chain
	}
	return c
}

// TestAProcessThatHasNotHeardOfTheSealDoesNotStopTheChain: another one has bound and continued it.
func TestAProcessThatHasNotHeardOfTheSealDoesNotStopTheChain(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		f, table, blind := forcedAt(6), &seals{}, &seals{}
		one, two := open(t, url), open(t, url)
		a, b := one.Applier(ApplyConfig{Own: 1, Seals: table.of}), two.Applier(ApplyConfig{Own: 1, Seals: blind.of})
		apply(t, b, Batch{Origin: 2, Offset: -1, Events: f.old[:6]})
		table.add(f.seal)
		apply(t, a, Batch{Origin: 2, Offset: -1, Events: f.again[:2]})
		res := apply(t, b, Batch{Origin: 2, Offset: -1, Events: f.old[6:9]}) // 7 and 8 are the next epoch's now
		if res.Applied != 0 || len(res.Stopped) != 0 || len(res.Again) != 2 || len(res.Waiting) != 1 {
			t.Fatalf("%+v", res)
		}
		blind.add(f.seal)
		b.frozenAsked()
		if res := apply(t, b, Batch{Origin: 2, Offset: -1, Events: f.old[6:9]}); len(res.Diverged) != 3 || len(res.Again) != 0 {
			t.Fatalf("%+v", res)
		}
		mustMark(t, one, 2, f.n, f.again[1].Head)
	})
}

// TestTheLostRegionCutsItsJournal: rows, positions and fingerprints are those of a journal that never had what is past the
// seal; what was there can be read back, however often it is cut.
func TestTheLostRegionCutsItsJournal(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		ctx := context.Background()
		f, table := forcedAt(5), &seals{} // past it: the finish of the third, the fourth and fifth whole
		j, clean := open(t, url), open(t, databases["sqlite"](t))
		a := j.Applier(ApplyConfig{Own: 2, Seals: table.of})
		last := f.old[9].Head
		carry := numbered(last, 102, []record.Event{{Slot: f.n, Kind: record.KindCarry, Gid: "{a}:live", Body: []byte{}}})
		mustAppend(t, j, f.rows...)
		if err := j.AppendEvents(ctx, carry); err != nil {
			t.Fatal(err)
		}
		kept := append(append([]engine.Row{}, f.rows[:2]...), sample.Decision(f.rows[2]))
		mustAppend(t, clean, kept...)
		head := carry[0].Head
		position := []Mark{{Origin: 2, Slot: f.n, Head: head}}
		if err := errors.Join(j.SetPublished(ctx, position), j.Acknowledge(ctx, 2, 1, map[int]uint64{f.n: 9}), j.Acknowledge(ctx, 2, 3, map[int]uint64{f.n: 4}),
			j.SetApplied(ctx, map[[2]int]uint64{{2, f.n}: 10})); err != nil {
			t.Fatal(err)
		}
		// what the new owner did waits until the own journal was cut
		table.add(f.seal)
		taken := numbered(record.Head{}, 203, chainOfRows(f.rows[3:]))
		if res := apply(t, a, Batch{Origin: 3, Offset: -1, Events: taken}); res.Applied != 0 || len(res.Waiting) != 1 {
			t.Fatalf("%+v", res)
		}
		want := append(append([]record.Event{}, f.old[5:]...), carry...)
		for range 3 {
			got, err := j.Cut(ctx, f.n, f.seal)
			if err != nil || len(got) != len(want) {
				t.Fatalf("%d events, %v", len(got), err)
			}
			for i := range got {
				if got[i].Head != want[i].Head || got[i].Gid != want[i].Gid || string(got[i].Body) != string(want[i].Body) {
					t.Fatalf("%+v", got[i])
				}
			}
			// another process did not know of it, and notes where it was
			if err := errors.Join(j.SetPublished(ctx, position), j.SetApplied(ctx, map[[2]int]uint64{{2, f.n}: 10})); err != nil {
				t.Fatal(err)
			}
		}
		mustHave(t, j, kept...)
		mustRead(t, j, 2, f.old[:5])
		sums, err := j.Sums(ctx, 0, begin*2)
		if err != nil {
			t.Fatal(err)
		}
		if other, err := clean.Sums(ctx, 0, begin*2); err != nil || *other != *sums {
			t.Fatal("the fingerprints are others", err)
		}
		published, err := j.Published(ctx, 2)
		if err != nil || len(published) != 1 || published[0].Head != f.old[4].Head {
			t.Fatal(published, err)
		}
		if acks, err := j.Acknowledged(ctx, 2); err != nil || acks[1][f.n] != 5 || acks[3][f.n] != 4 {
			t.Fatal(acks, err)
		}
		if seqs, err := j.Applied(ctx); err != nil || seqs[[2]int{2, f.n}] != 5 {
			t.Fatal(seqs, err)
		}
		if res := apply(t, a, Batch{Origin: 3, Offset: -1, Events: taken}); res.Applied != len(taken) {
			t.Fatalf("%+v", res)
		}
		// the next own epoch begins with the same numbers, and a late repeat of the cut leaves it alone
		again := inSlot(&sample.Maker{Epoch: 302}, "a", 100, 4)
		mustAppend(t, j, rowsOf(t, again, f.again)...)
		if err := j.SetPublished(ctx, []Mark{{Origin: 2, Slot: f.n, Head: f.again[6].Head}}); err != nil {
			t.Fatal(err)
		}
		if got, err := j.Cut(ctx, f.n, f.seal); err != nil || len(got) != len(want) {
			t.Fatal(len(got), err)
		}
		mustRead(t, j, 2, append(append([]record.Event{}, f.old[:5]...), f.again...))
		if published, err = j.Published(ctx, 2); err != nil || published[0].Head != f.again[6].Head {
			t.Fatal(published, err)
		}
		wrong := f.seal
		wrong.Chain = slot.SealOf(0, 0, make([]byte, 32)).Chain
		if _, err := j.Cut(ctx, f.n, wrong); !errors.Is(err, ErrContradicts) {
			t.Fatal(err)
		}
	})
}
