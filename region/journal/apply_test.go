package journal

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/journal/sample"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// chainOfRows gives the events of rows in the order of their numbers, slot by slot.
func chainOfRows(rows []engine.Row) []record.Event {
	var out []record.Event
	for i := range rows {
		r := &rows[i]
		out = append(out, record.Event{Slot: r.Slot, Kind: record.KindDecision, Gid: r.Gid, Epoch: r.DecisionEpoch, Head: r.Decision, Body: r.Closed})
		if r.Finish.Seq != 0 {
			out = append(out, record.Event{Slot: r.Slot, Kind: record.KindFinish, Gid: r.Gid, Epoch: r.FinishEpoch, Head: r.Finish, Body: r.Progress})
		}
	}
	return out
}

// inSlot makes payments of one slot, that of the tag.
func inSlot(m *sample.Maker, tag string, from, n int) []engine.Row {
	rows := make([]engine.Row, n)
	for i := range rows {
		rows[i] = m.Row(sample.Payment{Gid: txn.Gid(fmt.Sprintf("{%s}:%05d", tag, from+i)), BegunAt: begin + int64(i), Abort: i%3 == 0})
	}
	return rows
}

func apply(t testing.TB, a *Applier, b Batch) Result {
	t.Helper()
	res, err := a.Apply(context.Background(), b)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func mustHave(t *testing.T, j *Journal, rows ...engine.Row) {
	t.Helper()
	for _, r := range rows {
		tx, err := j.Get(context.Background(), r.Gid)
		if err != nil || tx == nil || tx.Decision != r.Decision || tx.Finish != r.Finish || string(tx.Closed) != string(r.Closed) || string(tx.Progress) != string(r.Progress) {
			t.Fatalf("%s: %+v, %v", r.Gid, tx, err)
		}
	}
}

// mustRead checks that a chain read back is what was applied.
func mustRead(t *testing.T, j *Journal, origin int, events []record.Event) {
	t.Helper()
	bySlot := map[int][]record.Event{}
	for _, e := range events {
		bySlot[e.Slot] = append(bySlot[e.Slot], e)
	}
	for n, want := range bySlot {
		got, err := j.EventsAfter(context.Background(), origin, n, 0, len(want)+10)
		if err != nil || len(got) != len(want) {
			t.Fatalf("slot %d: %d events of %d, %v", n, len(got), len(want), err)
		}
		head := record.Head{}
		for i := range got {
			if !got[i].Follows(head) || got[i].Gid != want[i].Gid || got[i].Kind != want[i].Kind {
				t.Fatalf("slot %d: event %d is %+v", n, i, got[i])
			}
			head = got[i].Head
		}
	}
}

func TestAChainIsAppliedOnceAndReadsBackAsItWas(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		j := open(t, url)
		a := j.Applier(ApplyConfig{Own: 1})
		m := &sample.Maker{Epoch: 102}
		var rows []engine.Row
		for i := range 300 {
			rows = append(rows, m.Row(sample.Payment{Gid: txn.Gid(fmt.Sprintf("p%04d", i)), BegunAt: begin, Abort: i%4 == 0}))
		}
		events := chainOfRows(rows)
		first := apply(t, a, Batch{Origin: 2, Part: 3, Offset: 77, Events: events[:201]})
		if first.Applied != 201 || len(first.Gaps)+len(first.Stopped)+len(first.Waiting) != 0 {
			t.Fatalf("%+v", first)
		}
		rand.Shuffle(len(events), func(x, y int) { events[x], events[y] = events[y], events[x] })
		again := apply(t, a, Batch{Origin: 2, Offset: -1, Events: append(events, events[:50]...)})
		if again.Applied != len(events)-201 || again.Duplicates != 201+50 || len(again.Stopped) != 0 {
			t.Fatalf("applied %d, duplicates %d, stopped %v", again.Applied, again.Duplicates, again.Stopped)
		}
		mustHave(t, j, rows...)
		mustRead(t, j, 2, chainOfRows(rows))
		if at, err := j.Offsets(context.Background(), 2); err != nil || at[3] != 77 {
			t.Fatalf("offsets %v, %v", at, err)
		}
	})
}

func TestTwoProcessesApplyTheSameEvents(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		m := &sample.Maker{Epoch: 102}
		var rows []engine.Row
		for i := range 400 {
			rows = append(rows, m.Row(sample.Payment{Gid: txn.Gid(fmt.Sprintf("p%04d", i)), BegunAt: begin}))
		}
		events := chainOfRows(rows)
		var all sync.WaitGroup
		j := open(t, url)
		for _, other := range []*Journal{j, open(t, url), open(t, url)} {
			a := other.Applier(ApplyConfig{Own: 1})
			all.Go(func() {
				for from := 0; from < len(events); from += 100 {
					if res, err := a.Apply(context.Background(), Batch{Origin: 2, Offset: int64(from), Events: events[from : from+100]}); err != nil || len(res.Stopped)+len(res.Gaps) > 0 {
						t.Errorf("%+v, %v", res, err)
						return
					}
				}
			})
		}
		all.Wait()
		mustHave(t, j, rows...)
		mustRead(t, j, 2, events)
	})
}

// spoiled are events that may not be applied after three sound ones, each with a word of the reason.
func spoiled(m *sample.Maker, rows []engine.Row) map[string]struct {
	word string
	make func() []record.Event
} {
	sound := chainOfRows(rows)
	last := sound[2]
	chained := func(kind record.Kind, epoch uint64, gid txn.Gid, body []byte) record.Event {
		return record.Event{Slot: last.Slot, Kind: kind, Gid: gid, Epoch: epoch, Body: body, Head: last.Head.Next(last.Slot, epoch, kind, gid, body)}
	}
	type c = struct {
		word string
		make func() []record.Event
	}
	return map[string]c{
		"an altered body": {"does not continue the chain", func() []record.Event {
			e := sound[3]
			e.Body = append([]byte{}, e.Body...)
			e.Body[len(e.Body)/2] ^= 1
			return []record.Event{e}
		}},
		"a body that is none": {"is no decision", func() []record.Event {
			return []record.Event{chained(record.KindDecision, 102, "{a}:x", []byte("rubbish"))}
		}},
		"another's body": {"is a decision of", func() []record.Event {
			return []record.Event{chained(record.KindDecision, 102, "{a}:x", rows[3].Closed)}
		}},
		"a finish without its decision": {"whose decision is not here", func() []record.Event {
			return []record.Event{chained(record.KindFinish, 102, "{a}:x", rows[3].Progress)}
		}},
		"a second decision": {"decided twice", func() []record.Event {
			return []record.Event{chained(record.KindDecision, 102, rows[0].Gid, rows[0].Closed)}
		}},
		"a second finish": {"is finished here by", func() []record.Event {
			return []record.Event{chained(record.KindFinish, 102, rows[0].Gid, rows[0].Progress)}
		}},
		"a carry that is no record": {"carries no record", func() []record.Event {
			return []record.Event{chained(record.KindCarry, 102, "{a}:x", []byte("rubbish"))}
		}},
		"an earlier epoch": {"after one of epoch", func() []record.Event {
			return []record.Event{chained(record.KindDecision, 2, rows[3].Gid, rows[3].Closed)}
		}},
		"after the seal": {"after the seal", func() []record.Event {
			seal := chained(record.KindSeal, 102, "", nil)
			late := record.Event{Slot: last.Slot, Kind: record.KindDecision, Gid: rows[3].Gid, Epoch: 102, Body: rows[3].Closed}
			late.Head = seal.Head.Next(late.Slot, late.Epoch, late.Kind, late.Gid, late.Body)
			return []record.Event{seal, late}
		}},
		"the history replaced": {"came again with another chain", func() []record.Event {
			e := sound[1]
			e.Head.Chain[0] ^= 1
			return []record.Event{e}
		}},
	}
}

// TestWhatContradictsStopsItsSlotAndNoOther: rule 5 and 8 of the recipe in reference/multi-region.md 3.4.
func TestWhatContradictsStopsItsSlotAndNoOther(t *testing.T) {
	m := &sample.Maker{Epoch: 102}
	rows := inSlot(m, "a", 0, 4)
	other := inSlot(m, "b", 0, 5)
	for name, c := range spoiled(m, rows) {
		t.Run(name, func(t *testing.T) {
			onEach(t, func(t *testing.T, url string) {
				j := open(t, url)
				a := j.Applier(ApplyConfig{Own: 1})
				apply(t, a, Batch{Origin: 2, Offset: -1, Events: chainOfRows(rows)[:3]})
				bad := c.make()
				res := apply(t, a, Batch{Origin: 2, Offset: 9, Events: append(bad, chainOfRows(other)...)})
				if len(res.Stopped) != 1 || res.Stopped[0].Slot != rows[0].Slot || !strings.Contains(res.Stopped[0].Reason, c.word) {
					t.Fatalf("stopped %+v", res.Stopped)
				}
				mustHave(t, j, other...)
				list, err := j.Divergences(context.Background(), 10)
				if err != nil || len(list) != 1 || list[0].Seq != bad[len(bad)-1].Head.Seq || list[0].Reason != res.Stopped[0].Reason {
					t.Fatalf("divergences %+v, %v", list, err)
				}
				if e, err := record.DecodeEvent(list[0].Event); err != nil || e.Head != bad[len(bad)-1].Head {
					t.Fatalf("the event kept is %+v, %v", e, err)
				}
				// Stopped means stopped: the sound event is not taken before somebody lets the slot go on.
				if strings.HasPrefix(name, "after the seal") {
					return
				}
				if res := apply(t, a, Batch{Origin: 2, Offset: -1, Events: chainOfRows(rows)}); res.Applied != 0 || res.Dropped == 0 {
					t.Fatalf("%+v", res)
				}
				if was, err := j.Unstop(context.Background(), 2, rows[0].Slot); !was || err != nil {
					t.Fatal(was, err)
				}
				apply(t, a, Batch{Origin: 2, Offset: -1, Events: chainOfRows(rows)})
				mustHave(t, j, rows...)
			})
		})
	}
}

func TestPoisonStopsItsSlotAndAGapWaits(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		j := open(t, url)
		a := j.Applier(ApplyConfig{Own: 1})
		m := &sample.Maker{Epoch: 102}
		x, y := inSlot(m, "a", 0, 3), inSlot(m, "b", 0, 3)
		n := x[0].Slot
		res := apply(t, a, Batch{Origin: 2, Offset: -1, Events: append(chainOfRows(x)[:2], chainOfRows(y)[1:]...), Poison: []Poison{{Slot: n, Seq: 3, Reason: "rubbish", Bytes: []byte{1, 2}}}})
		if res.Applied != 2 || len(res.Stopped) != 1 || res.Stopped[0].Seq != 3 || len(res.Gaps) != 1 || res.Gaps[0] != (Gap{y[0].Slot, 0, 2}) {
			t.Fatalf("%+v", res)
		}
	})
}

// moved is slot "a" that went from region 2 to region 3, with a transaction decided there and finished here.
func moved(t testing.TB) (before []record.Event, seal slot.Seal, after []record.Event, row engine.Row) {
	two, three := &sample.Maker{Epoch: 102}, &sample.Maker{Epoch: 203}
	rows := inSlot(two, "a", 0, 3)
	row = inSlot(two, "a", 3, 1)[0]
	before = append(chainOfRows(rows), chainOfRows([]engine.Row{row})[0])
	n, head := row.Slot, row.Decision
	tx, err := record.FromParts(row.Closed, nil, row.Decision, record.Head{}, 102, 0)
	if err != nil {
		t.Fatal(err)
	}
	body, err := tx.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []record.Event{{Slot: n, Kind: record.KindCarry, Gid: row.Gid, Epoch: 102, Body: body}, {Slot: n, Kind: record.KindSeal, Epoch: 102}} {
		head = head.Next(n, 102, e.Kind, e.Gid, e.Body)
		e.Head = head
		before = append(before, e)
	}
	seal = *slot.SealOf(102, head.Seq, head.Chain[:])
	row.FinishEpoch = 203
	row.Finish = record.Head{}.Next(n, 203, record.KindFinish, row.Gid, row.Progress)
	after = []record.Event{{Slot: n, Kind: record.KindFinish, Gid: row.Gid, Epoch: 203, Head: row.Finish, Body: row.Progress}}
	head = row.Finish
	for _, r := range inSlot(three, "a", 10, 2) {
		for _, e := range chainOfRows([]engine.Row{r}) {
			head = head.Next(n, 203, e.Kind, e.Gid, e.Body)
			e.Head = head
			after = append(after, e)
		}
	}
	return before, seal, after, row
}

// TestAnEpochWaitsForTheSealsBeforeIt: ADR 8, "events of a later epoch are applied only by a journal that has reached all
// seals before it". A finish of one origin meets its decision of the other in one row.
func TestAnEpochWaitsForTheSealsBeforeIt(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		j := open(t, url)
		before, seal, after, row := moved(t)
		known := errors.New("the arbiter does not answer")
		a := j.Applier(ApplyConfig{Own: 1, Seals: func(context.Context, int) ([]slot.Seal, error) { return []slot.Seal{seal}, known }})
		// region 2's events need no seal but the arbiter's word that there is none: nobody answers, so they wait
		if res := apply(t, a, Batch{Origin: 2, Offset: -1, Events: before}); len(res.Waiting) != 1 || res.Applied != 0 {
			t.Fatalf("%+v", res)
		}
		known = nil
		ctx := context.Background()
		for cut := range before {
			if reached, err := j.Reached(ctx, row.Slot, &seal); reached || err != nil {
				t.Fatal(reached, err)
			}
			if res := apply(t, a, Batch{Origin: 3, Offset: -1, Events: after}); len(res.Waiting) != 1 || res.Applied != 0 || len(res.Stopped) != 0 {
				t.Fatalf("after %d events: %+v", cut, res)
			}
			if res := apply(t, a, Batch{Origin: 2, Offset: -1, Events: before[:cut+1]}); res.Applied != 1 {
				t.Fatalf("%+v", res)
			}
		}
		if reached, err := j.Reached(ctx, row.Slot, &seal); !reached || err != nil {
			t.Fatal(reached, err)
		}
		carried, err := j.Carried(ctx, row.Slot, 102)
		if err != nil || len(carried) != 1 {
			t.Fatalf("%d carried, %v", len(carried), err)
		}
		if tx, err := record.Decode(carried[0]); err != nil || tx.State.Gid != row.Gid {
			t.Fatalf("%+v, %v", tx, err)
		}
		if res := apply(t, a, Batch{Origin: 3, Offset: -1, Events: after}); res.Applied != len(after) {
			t.Fatalf("%+v", res)
		}
		mustHave(t, j, row)
		mustRead(t, j, 2, before)
		mustRead(t, j, 3, after)
		if carried, err := j.Carried(ctx, row.Slot, 102); err != nil || len(carried) != 0 {
			t.Fatalf("%d carried after the finish, %v", len(carried), err)
		}
		wrong := seal
		wrong.Chain = strings.Repeat("0", 64)
		if _, err := j.Reached(ctx, row.Slot, &wrong); err == nil {
			t.Fatal("a seal with another chain is taken for reached")
		}
	})
}

func TestTheArbitersSealIsTheLastEventOfItsEpoch(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		j := open(t, url)
		before, seal, _, row := moved(t)
		short := slot.SealOf(102, 3, before[2].Head.Chain[:])
		a := j.Applier(ApplyConfig{Own: 1, Seals: func(context.Context, int) ([]slot.Seal, error) { return []slot.Seal{*short}, nil }})
		res := apply(t, a, Batch{Origin: 2, Offset: -1, Events: before})
		if len(res.Stopped) != 1 || res.Applied != 2 || res.Stopped[0].Slot != row.Slot {
			t.Fatalf("%+v", res)
		}
		_ = seal
	})
}

func TestCarriesAndSealsAreAppendedOnce(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		j := open(t, url)
		before, seal, _, row := moved(t)
		told := 0
		j.OnAppend(func(rows []engine.Row, events []record.Event) { told += len(rows) + len(events) })
		for range 2 {
			if err := j.AppendEvents(context.Background(), before[len(before)-2:]); err != nil {
				t.Fatal(err)
			}
		}
		if reached, err := j.Reached(context.Background(), row.Slot, &seal); !reached || err != nil {
			t.Fatal(reached, err)
		}
		if told != 4 {
			t.Fatalf("told of %d", told)
		}
		if err := j.AppendEvents(context.Background(), before[:1]); err == nil {
			t.Fatal("a decision was taken for an event of its own")
		}
	})
}

func BenchmarkApply(b *testing.B) {
	for name, fresh := range databases {
		b.Run(name, func(b *testing.B) {
			j := open(b, fresh(b))
			a := j.Applier(ApplyConfig{Own: 1})
			m := &sample.Maker{Epoch: 102}
			rows := make([]engine.Row, (b.N+1)/2)
			for i := range rows {
				rows[i] = m.Row(sample.Payment{Gid: txn.Gid(fmt.Sprintf("bench-%09d", i)), BegunAt: begin})
			}
			events := chainOfRows(rows)
			b.ResetTimer()
			for len(events) > 0 {
				n := min(1000, len(events))
				apply(b, a, Batch{Origin: 2, Offset: int64(n), Events: events[:n]})
				events = events[n:]
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// TestABatchIsAppliedAsAWholeOrNotAtAll: rows, watermark and offset are one SQL transaction.
func TestABatchIsAppliedAsAWholeOrNotAtAll(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		j := open(t, url)
		ctx := context.Background()
		a := j.Applier(ApplyConfig{Own: 1})
		rows := inSlot(&sample.Maker{Epoch: 102}, "a", 0, 3)
		if _, err := j.write.Exec("ALTER TABLE lockstep_offset RENAME TO elsewhere"); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Apply(ctx, Batch{Origin: 2, Offset: 6, Events: chainOfRows(rows)}); err == nil {
			t.Fatal("it was applied without its offset")
		}
		if marks, err := j.Marks(ctx); err != nil || len(marks) != 0 {
			t.Fatalf("watermarks of what was not applied: %+v, %v", marks, err)
		}
		if tx, err := j.Get(ctx, rows[0].Gid); err != nil || tx != nil {
			t.Fatalf("a row of what was not applied: %+v, %v", tx, err)
		}
		if _, err := j.write.Exec("ALTER TABLE elsewhere RENAME TO lockstep_offset"); err != nil {
			t.Fatal(err)
		}
		apply(t, a, Batch{Origin: 2, Offset: 6, Events: chainOfRows(rows)})
		mustHave(t, j, rows...)
	})
}

// TestBatchesThatComeAtOnceShareATransaction: those that wait are written together, each with its own result; one that
// cannot be written holds up no other, and one whose caller has left does no harm.
func TestBatchesThatComeAtOnceShareATransaction(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		j := open(t, url)
		ctx := context.Background()
		a := j.Applier(ApplyConfig{Own: 1})
		hold, err := j.write.BeginTx(ctx, nil) // everybody waits: on SQLite for the connection, elsewhere for the row
		if err != nil {
			t.Fatal(err)
		}
		if err := j.put(ctx, hold, "lockstep_offset (origin, part, next_offset)", "origin, part", "next_offset = new(next_offset)", [][]any{{2, 0, 1}}); err != nil {
			t.Fatal(err)
		}
		left, leave := context.WithCancel(ctx)
		var all sync.WaitGroup
		parts := make([][]engine.Row, 8)
		for part := range parts {
			parts[part] = inSlot(&sample.Maker{Epoch: 102}, fmt.Sprint("tag", part), 0, 5+part)
			events := chainOfRows(parts[part])
			all.Go(func() {
				actx, b := ctx, Batch{Origin: 2, Part: part, Offset: 7, Events: events}
				switch part {
				case 3:
					b.Events, b.Poison = nil, []Poison{{Slot: 5, Reason: "\x00"}} // a text that PostgreSQL does not take
				case 4:
					actx = left
				}
				res, err := a.Apply(actx, b)
				switch {
				case part == 4 && !errors.Is(err, context.Canceled):
					t.Errorf("the caller who left got %v", err)
				case part == 3 && (err != nil) != (j.d.name == "postgres"):
					t.Errorf("a text that PostgreSQL alone does not take: %v", err)
				case part != 3 && part != 4 && (err != nil || res.Applied != len(events) || len(res.Marks) != 1):
					t.Errorf("part %d: %+v, %v", part, res, err)
				}
			})
		}
		time.Sleep(100 * time.Millisecond) // they wait; nothing fails if they do not yet
		leave()
		time.Sleep(20 * time.Millisecond)
		if err := hold.Commit(); err != nil {
			t.Fatal(err)
		}
		all.Wait()
		for part, rows := range parts {
			if part == 3 || part == 4 {
				continue
			}
			mustHave(t, j, rows...)
			mustRead(t, j, 2, chainOfRows(rows))
		}
		apply(t, a, Batch{Origin: 2, Part: 4, Offset: 7, Events: chainOfRows(parts[4])}) // whoever left brings it again
		mustHave(t, j, parts[4]...)
		offsets, err := j.Offsets(ctx, 2)
		if err != nil || len(offsets) < 7 {
			t.Fatalf("%v, %v", offsets, err)
		}
	})
}
