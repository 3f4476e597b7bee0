// Package journaltest is the conformance suite of engine.Journal, but for Trim, which an implementation in memory need
// not do: the SQL journals and the memory store's pass the same cases.
package journaltest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/journal/sample"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Run runs every case on a journal of its own. fresh makes an empty journal; what it returns opens it, as often as it is
// called: several coordinators share it.
func Run(t *testing.T, fresh func(t *testing.T) (open func() engine.Journal)) {
	for _, tc := range []struct {
		name string
		run  func(*testing.T, func() engine.Journal)
	}{
		{"WhatWasAppendedIsReadBack", readBack},
		{"AppendMayBeRepeated", repeated},
		{"AFinishCompletesADecision", finishCompletes},
		{"ALateDecisionNeverErasesAFinish", lateDecision},
		{"ABatchMayNameAGidTwice", namedTwice},
		{"OddGidsStayApart", oddGids},
		{"CoordinatorsAppendTheSameRowsAtOnce", concurrentAppenders},
		{"ACancelledAppendLeavesAllOrNothing", cancelled},
		{"PagesHaveNoGapAndNoDouble", pages},
		{"EveryFilterListsWhatItNames", filters},
		{"WhatIsOlderThanVisibleIsNotListed", visible},
		{"OnlyFinishedOnesAreListed", unfinished},
		{"AnInventedCursorIsRefused", badCursor},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, fresh(t)) })
	}
}

const begin = int64(1_760_000_000_000)

func ctxOf(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func mustAppend(t *testing.T, j engine.Journal, rows ...engine.Row) {
	t.Helper()
	if err := j.Append(ctxOf(t), rows); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, j engine.Journal, gid txn.Gid) *record.Tx {
	t.Helper()
	tx, err := j.Get(ctxOf(t), gid)
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

func want(t *testing.T, row engine.Row) *record.Tx {
	t.Helper()
	tx, err := record.FromParts(row.Closed, row.Progress, row.Decision, row.Finish, row.DecisionEpoch, row.FinishEpoch)
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

func same(t *testing.T, j engine.Journal, row engine.Row) {
	t.Helper()
	if diff := cmp.Diff(get(t, j, row.Gid), want(t, row)); diff != "" {
		t.Fatalf("Get(%q), got/want:\n%s", row.Gid, diff)
	}
}

func gids(t *testing.T, j engine.Journal) []string {
	t.Helper()
	var got []string
	if err := j.Gids(ctxOf(t), func(gid txn.Gid) { got = append(got, string(gid)) }); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	return got
}

// all reads a whole listing, page by page.
func all(t *testing.T, j engine.Journal, f engine.Filter, limit int, visibleSince int64) []string {
	t.Helper()
	var got []string
	for cursor, page := "", 0; ; page++ {
		txs, next, err := j.List(ctxOf(t), f, cursor, limit, visibleSince)
		if err != nil {
			t.Fatal(err)
		}
		if len(txs) > limit || page > 20_000 {
			t.Fatalf("page %d has %d transactions, limit %d", page, len(txs), limit)
		}
		for _, tx := range txs {
			got = append(got, string(tx.State.Gid))
		}
		if next == "" {
			return got
		}
		cursor = next
	}
}

func readBack(t *testing.T, open func() engine.Journal) {
	j, other := open(), open()
	var m sample.Maker
	a, b := m.Row(sample.Payment{Gid: "a", BegunAt: begin}), m.Row(sample.Payment{Gid: "b", BegunAt: begin, Mode: txn.ModeSaga, Abort: true})
	// Numbers above the signed range and a head of nothing.
	b.DecisionEpoch, b.Decision.Seq = 1<<64-1, 1<<63
	mustAppend(t, j, a, b)
	mustAppend(t, j)
	for _, j := range []engine.Journal{j, other} {
		same(t, j, a)
		same(t, j, b)
		if tx := get(t, j, "c"); tx != nil {
			t.Fatalf("a gid that nobody appended: %+v", tx)
		}
	}
	if got := gids(t, other); !slices.Equal(got, []string{"a", "b"}) {
		t.Fatalf("gids: %q", got)
	}
}

func repeated(t *testing.T, open func() engine.Journal) {
	j := open()
	var m sample.Maker
	var rows []engine.Row
	for i := range 20 {
		rows = append(rows, m.Row(sample.Payment{Gid: txn.Gid(fmt.Sprintf("r%02d", i)), BegunAt: begin, Decided: i%2 == 0}))
	}
	for range 3 {
		mustAppend(t, j, rows...)
		mustAppend(t, j, rows[5:10]...)
	}
	if got := gids(t, j); len(got) != len(rows) {
		t.Fatalf("%d gids, want %d", len(got), len(rows))
	}
	for _, row := range rows {
		same(t, j, row)
	}
}

func finishCompletes(t *testing.T, open func() engine.Journal) {
	j := open()
	var m sample.Maker
	for i, abort := range []bool{false, true} {
		row := m.Row(sample.Payment{Gid: txn.Gid(fmt.Sprint(i)), BegunAt: begin, Abort: abort})
		mustAppend(t, j, sample.Decision(row))
		same(t, j, sample.Decision(row))
		if tx := get(t, j, row.Gid); tx.State.Phase.Finished() || !tx.State.Phase.Decided() || tx.State.Phase.Commit() == abort {
			t.Fatalf("phase %s of a decision alone", tx.State.Phase)
		}
		mustAppend(t, j, row)
		same(t, j, row)
	}
}

func lateDecision(t *testing.T, open func() engine.Journal) {
	j := open()
	var m sample.Maker
	row := m.Row(sample.Payment{Gid: "late", BegunAt: begin})
	mustAppend(t, j, row)
	mustAppend(t, j, sample.Decision(row))
	mustAppend(t, j, m.Row(sample.Payment{Gid: "x", BegunAt: begin}), sample.Decision(row))
	same(t, j, row)
}

func namedTwice(t *testing.T, open func() engine.Journal) {
	j := open()
	var m sample.Maker
	row, other := m.Row(sample.Payment{Gid: "twice", BegunAt: begin}), m.Row(sample.Payment{Gid: "b", BegunAt: begin})
	d := sample.Decision(row)
	for i, order := range [][]engine.Row{{d, d}, {d, other, row}, {row, d}, {row, row, d, row, other}} {
		j := j
		if i > 0 {
			j = open()
		}
		mustAppend(t, j, order...)
		last := row
		if i == 0 {
			last = d
		}
		same(t, j, last)
	}
	// The same in a journal that did not have it.
	row = m.Row(sample.Payment{Gid: "new", BegunAt: begin})
	mustAppend(t, j, row, sample.Decision(row), other, row)
	same(t, j, row)
	if got := gids(t, j); !slices.Equal(got, []string{"b", "new", "twice"}) {
		t.Fatalf("gids: %q", got)
	}
}

// odd gids: pairs that a collation, a pattern, an escape or a C string would take for one another.
var odd = []string{
	"abc", "ABC", "Abc", "abc ", "abc  ", " abc", "abc\t", "abc\x00", "a%c", "a_c", `a\c`, `a\%c`, "a'c", `a"c`, "a`c", "a;--c", "a*c", "a?c",
	"ä", "Ä", "a\u0308", "ß", "ss", "é", "e", "日本語", "日本", "ﬁ", "fi", "😀", "😁", "\u200b", "İ", "i", "I", "ı", "{user42}:1", "{user42}:10",
	"'); DROP TABLE lockstep_journal; --", "$1", "?", ":gid", "NULL", "0", "00", "\xff\xfe", "\xff",
	strings.Repeat("x", 127), strings.Repeat("x", 128), strings.Repeat("é", 64),
}

func oddGids(t *testing.T, open func() engine.Journal) {
	j := open()
	var m sample.Maker
	var rows []engine.Row
	for i, gid := range odd {
		if !strings.Contains(gid, "\xff") { // protobuf refuses what is no UTF-8, so that no record has it
			rows = append(rows, m.Row(sample.Payment{Gid: txn.Gid(gid), BegunAt: begin + int64(i)}))
		}
	}
	mustAppend(t, j, rows...)
	mustAppend(t, j, rows...)
	var names []string
	for _, row := range rows {
		same(t, j, row)
		names = append(names, string(row.Gid))
	}
	sorted := slices.Sorted(slices.Values(names))
	if diff := cmp.Diff(gids(t, j), sorted); diff != "" {
		t.Fatalf("gids, got/want:\n%s", diff)
	}
	for _, prefix := range append([]string{"a", "ab", "%", "_", "a%", "a_", `\`, "x", "\xc3", "\xf0\x9f\x98", "\xff", "{user42}:1", "日", "abc ", "zzz"}, odd...) {
		var wanted []string
		for _, name := range slices.Backward(names) {
			if strings.HasPrefix(name, prefix) {
				wanted = append(wanted, name)
			}
		}
		if diff := cmp.Diff(all(t, j, engine.Filter{Slot: -1, GidPrefix: prefix}, 3, 0), wanted); diff != "" {
			t.Errorf("gids that begin with %q, got/want:\n%s", prefix, diff)
		}
	}
}

func concurrentAppenders(t *testing.T, open func() engine.Journal) {
	const writers, total, batch = 4, 1000, 100
	var m sample.Maker
	rows := make([]engine.Row, total)
	for i := range rows {
		rows[i] = m.Row(sample.Payment{Gid: txn.Gid(fmt.Sprintf("c%05d", i*7919%total)), BegunAt: begin})
	}
	var wg sync.WaitGroup
	errs := make([]error, writers)
	for w := range writers {
		j := open()
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for round := range 2 {
				order := rng.Perm(total)
				for part := range slices.Chunk(order, batch) {
					var b []engine.Row
					for _, i := range part {
						// Every row's finish is written by one writer only, every decision by all.
						if round == 1 && i%writers == w {
							b = append(b, rows[i])
						} else {
							b = append(b, sample.Decision(rows[i]))
						}
					}
					if err := j.Append(context.Background(), b); err != nil {
						errs[w] = errors.Join(errs[w], err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	j := open()
	if got := gids(t, j); len(got) != total {
		t.Fatalf("%d gids, want %d", len(got), total)
	}
	for _, row := range rows {
		same(t, j, row)
	}
	if got := all(t, j, engine.Filter{Slot: -1}, 500, 0); len(got) != total {
		t.Fatalf("%d are listed, want %d", len(got), total)
	}
}

func cancelled(t *testing.T, open func() engine.Journal) {
	j, other := open(), open()
	const size, rounds = 1000, 15
	took := 20 * time.Millisecond
	stopped := 0
	for round := range rounds {
		var m sample.Maker
		prefix := fmt.Sprintf("k%02d-", round)
		rows := make([]engine.Row, size)
		for i := range rows {
			rows[i] = m.Row(sample.Payment{Gid: txn.Gid(fmt.Sprintf("%s%04d", prefix, i)), BegunAt: begin})
		}
		ctx, cancel := context.WithCancel(context.Background())
		if round > 0 {
			timer := time.AfterFunc(time.Duration(float64(took)*1.2*float64(round)/rounds), cancel)
			defer timer.Stop()
		}
		start := time.Now()
		err := j.Append(ctx, rows)
		if round == 0 {
			took = time.Since(start)
		}
		cancel()
		n := len(all(t, other, engine.Filter{Slot: -1, GidPrefix: prefix}, size, 0))
		if n != size && (n != 0 || err == nil) {
			t.Fatalf("round %d: %d of %d rows are there after %v", round, n, size, err)
		}
		if err != nil {
			stopped++
			if !errors.Is(err, context.Canceled) {
				t.Errorf("round %d: not the context's error: %v", round, err)
			}
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var m sample.Maker
	if err := j.Append(ctx, []engine.Row{m.Row(sample.Payment{Gid: "never", BegunAt: begin})}); !errors.Is(err, context.Canceled) {
		t.Fatalf("append with a context that has ended: %v", err)
	}
	if get(t, other, "never") != nil {
		t.Fatal("written with a context that had ended")
	}
	t.Logf("%d of %d appends were stopped", stopped, rounds)
}

// book is a journal with total finished transactions of every kind, and what it was filled with, the newest first.
func book(t *testing.T, j engine.Journal, total int) []engine.Row {
	t.Helper()
	var m sample.Maker
	rows := make([]engine.Row, total)
	for i := range rows {
		p := sample.Payment{Mode: txn.Modes[i%len(txn.Modes)], Abort: i%7 == 0, BegunAt: begin + int64(i)*1000}
		p.Gid = txn.Gid(fmt.Sprintf("%s-%05d", []string{"order", "refund", "or%er", "or_er"}[i%4], i))
		rows[i] = m.Row(p)
	}
	for part := range slices.Chunk(rows, 700) {
		mustAppend(t, j, part...)
	}
	slices.Reverse(rows)
	return rows
}

func pick(rows []engine.Row, ok func(*engine.Row) bool) []string {
	var out []string
	for i := range rows {
		if ok(&rows[i]) {
			out = append(out, string(rows[i].Gid))
		}
	}
	return out
}

func pages(t *testing.T, open func() engine.Journal) {
	j := open()
	rows := book(t, j, 5000)
	wanted := pick(rows, func(*engine.Row) bool { return true })
	for _, limit := range []int{7, 100, 2500, 5000, 9999} {
		if diff := cmp.Diff(all(t, j, engine.Filter{Slot: -1}, limit, 0), wanted); diff != "" {
			t.Fatalf("pages of %d, got/want:\n%s", limit, diff)
		}
	}
	// What comes while somebody pages changes nothing on the pages below.
	first, cursor, err := j.List(ctxOf(t), engine.Filter{Slot: -1}, "", 10, 0)
	if err != nil || len(first) != 10 {
		t.Fatalf("%d, %v", len(first), err)
	}
	var m sample.Maker
	mustAppend(t, j, m.Row(sample.Payment{Gid: "newer", BegunAt: begin}))
	second, _, err := j.List(ctxOf(t), engine.Filter{Slot: -1}, cursor, 1, 0)
	if err != nil || len(second) != 1 || string(second[0].State.Gid) != wanted[10] {
		t.Fatalf("after the first page: %v, %v, want %q", second, err, wanted[10])
	}
	if diff := cmp.Diff(second[0], want(t, rows[10])); diff != "" {
		t.Fatalf("a listed transaction, got/want:\n%s", diff)
	}
}

func filters(t *testing.T, open func() engine.Journal) {
	j := open()
	rows := book(t, j, 5000)
	some := slot.Of(string(rows[77].Gid))
	mid := begin + 2_500_000
	for _, tc := range []struct {
		name string
		f    engine.Filter
		ok   func(*engine.Row) bool
	}{
		{"committed", engine.Filter{Slot: -1, Phases: []txn.Phase{txn.PhaseCommitted}}, func(r *engine.Row) bool { return r.Phase == txn.PhaseCommitted }},
		{"aborted or still committing", engine.Filter{Slot: -1, Phases: []txn.Phase{txn.PhaseCommitting, txn.PhaseAborted}}, func(r *engine.Row) bool { return r.Phase == txn.PhaseAborted }},
		{"all phases", engine.Filter{Slot: -1, Phases: txn.Phases}, func(*engine.Row) bool { return true }},
		{"only live phases", engine.Filter{Slot: -1, Phases: []txn.Phase{txn.PhasePrepared, txn.PhaseCommitting}}, func(*engine.Row) bool { return false }},
		{"mode", engine.Filter{Slot: -1, Mode: txn.ModeXA}, func(r *engine.Row) bool { return r.Mode == txn.ModeXA }},
		{"slot", engine.Filter{Slot: some}, func(r *engine.Row) bool { return r.Slot == some }},
		{"slot 0", engine.Filter{Slot: 0}, func(r *engine.Row) bool { return r.Slot == 0 }},
		{"prefix", engine.Filter{Slot: -1, GidPrefix: "or%er-"}, func(r *engine.Row) bool { return strings.HasPrefix(string(r.Gid), "or%er-") }},
		{"prefix of one", engine.Filter{Slot: -1, GidPrefix: "refund-00001"}, func(r *engine.Row) bool { return r.Gid == "refund-00001" }},
		{"begun after", engine.Filter{Slot: -1, BegunAfter: mid}, func(r *engine.Row) bool { return r.BegunAt >= mid }},
		{"begun before", engine.Filter{Slot: -1, BegunBefore: mid}, func(r *engine.Row) bool { return r.BegunAt <= mid }},
		{"begun between", engine.Filter{Slot: -1, BegunAfter: mid, BegunBefore: mid + 10_000}, func(r *engine.Row) bool { return r.BegunAt >= mid && r.BegunAt <= mid+10_000 }},
		{"stuck", engine.Filter{Slot: -1, StuckFails: 1}, func(*engine.Row) bool { return false }},
		{"stopped", engine.Filter{Slot: -1, Stopped: true}, func(*engine.Row) bool { return false }},
		{"together", engine.Filter{Slot: -1, Mode: txn.ModeMsg, Phases: []txn.Phase{txn.PhaseAborted}, GidPrefix: "order", BegunBefore: mid},
			func(r *engine.Row) bool {
				return r.Mode == txn.ModeMsg && r.Phase == txn.PhaseAborted && strings.HasPrefix(string(r.Gid), "order") && r.BegunAt <= mid
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wanted := pick(rows, tc.ok)
			for _, limit := range []int{37, 1000} {
				if diff := cmp.Diff(all(t, j, tc.f, limit, 0), wanted); diff != "" {
					t.Errorf("pages of %d, got/want:\n%s", limit, diff)
				}
			}
			since := begin + 4_000_000
			seen := pick(rows, func(r *engine.Row) bool { return tc.ok(r) && r.FinishedAt >= since })
			if diff := cmp.Diff(all(t, j, tc.f, 11, since), seen); diff != "" {
				t.Errorf("of those visible, got/want:\n%s", diff)
			}
		})
	}
}

func visible(t *testing.T, open func() engine.Journal) {
	j := open()
	var m sample.Maker
	// The oldest row finishes last: it waited long between decision and finish.
	slow := m.Row(sample.Payment{Gid: "slow", BegunAt: begin})
	mustAppend(t, j, sample.Decision(slow))
	for i := range 30 {
		mustAppend(t, j, m.Row(sample.Payment{Gid: txn.Gid(fmt.Sprintf("v%02d", i)), BegunAt: begin + int64(i)*1000}))
	}
	late := m.Row(sample.Payment{Gid: "slow", BegunAt: begin + 100_000})
	late.BegunAt = slow.BegunAt
	mustAppend(t, j, late)
	for _, limit := range []int{1, 2, 100} {
		if diff := cmp.Diff(all(t, j, engine.Filter{Slot: -1}, limit, begin+28_000), []string{"v29", "v28", "slow"}); diff != "" {
			t.Fatalf("got/want:\n%s", diff)
		}
		if got := all(t, j, engine.Filter{Slot: -1}, limit, begin+1_000_000); len(got) != 0 {
			t.Fatalf("all are too old: %q", got)
		}
	}
	if got := all(t, j, engine.Filter{Slot: -1}, 100, 0); len(got) != 31 {
		t.Fatalf("%d are listed, want 31", len(got))
	}
}

func unfinished(t *testing.T, open func() engine.Journal) {
	j := open()
	if got := all(t, j, engine.Filter{Slot: -1}, 10, 0); len(got) != 0 {
		t.Fatalf("an empty journal lists %q", got)
	}
	var m sample.Maker
	mustAppend(t, j, m.Row(sample.Payment{Gid: "a", BegunAt: begin, Decided: true}))
	if got := all(t, j, engine.Filter{Slot: -1}, 10, 0); len(got) != 0 {
		t.Fatalf("a decision alone is listed: %q", got)
	}
	mustAppend(t, j, m.Row(sample.Payment{Gid: "b", BegunAt: begin}), m.Row(sample.Payment{Gid: "c", BegunAt: begin, Decided: true}))
	if got := all(t, j, engine.Filter{Slot: -1}, 1, 0); !slices.Equal(got, []string{"b"}) {
		t.Fatalf("listed: %q", got)
	}
	if got := gids(t, j); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Fatalf("gids: %q", got)
	}
}

func badCursor(t *testing.T, open func() engine.Journal) {
	j := open()
	for _, cursor := range []string{"x", "1 OR 1=1", "99999999999999999999"} {
		if _, _, err := j.List(ctxOf(t), engine.Filter{Slot: -1}, cursor, 10, 0); err == nil {
			t.Errorf("cursor %q is taken", cursor)
		}
	}
}
