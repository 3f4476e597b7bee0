package engine_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/clock"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/store/memstore"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// appends counts the tries to write to the journal, by how they ended.
type appends struct {
	engine.Observer
	failed, worked atomic.Int64
}

func (*appends) Changed(engine.Change)                         {}
func (*appends) Called(engine.CallResult, int)                 {}
func (*appends) Wrote(int, int, time.Duration, engine.Verdict) {}
func (*appends) Sampled(engine.Gauges)                         {}
func (a *appends) Journaled(_ int, _ time.Duration, err error) {
	if err != nil {
		a.failed.Add(1)
	} else {
		a.worked.Add(1)
	}
}

// A finished transaction stays in the store while the journal takes nothing, however often it is tried, and leaves it
// once the journal has the row: nothing that was acknowledged is ever in neither (G10).
func TestARecordLeavesTheStoreOnlyAfterTheJournalHasIt(t *testing.T) {
	ctx := context.Background()
	store, journal, d, seen := memstore.New(), memstore.NewJournal(), newDesk(), &appends{}
	run := engine.NewRunner(engine.Config{
		Self: engine.Member{ID: "a"}, JournalDelay: time.Millisecond, Observer: seen, Limits: engine.Limits{DeleteDelayMillis: 1},
	}, store, journal, d, nil, clock.New())
	runCtx, cancel := context.WithCancel(ctx)
	go func() { _ = run.Run(runCtx) }()
	defer func() { cancel(); <-run.Done() }()
	until(t, "it is ready", run.Ready)

	const gid = txn.Gid("kept")
	journal.Break(errors.New("the disk is full"))
	waiter := ask(run, engine.Request{Gid: gid, Event: txn.Execute{Spec: oneBranch()}, Want: engine.WantFinished})
	d.next(t, gid, txn.OpTry).answer(txn.Done)
	d.next(t, gid, txn.OpConfirm).answer(txn.Done)
	if got := <-waiter; got.err != nil || got.rep.State.Phase != txn.PhaseCommitted {
		t.Fatalf("%v, %v", got.rep.State.Phase, got.err)
	}
	until(t, "the journal refused twice since it ended", func() bool { return seen.failed.Load() >= 2 })
	// What a mistaken delete would need besides: a turn of the loop that saves something else.
	if got := <-ask(run, engine.Request{Gid: "other", Event: txn.Execute{Spec: oneBranch()}, Want: engine.WantAccepted}); got.err != nil {
		t.Fatal(got.err)
	}
	if n := len(journal.Rows()); n != 0 {
		t.Fatalf("the journal has %d rows: nothing was tested", n)
	}
	live := 0
	if err := run.Ask(ctx, func(c *engine.Core, _ int64) {
		c.Each(func(rep engine.Reply) {
			if rep.State.Gid == gid {
				live++
			}
		})
	}); err != nil {
		t.Fatal(err)
	}
	value, err := store.Get(ctx, gid)
	if err != nil || value == nil || live != 1 {
		t.Errorf("while the journal has nothing: in memory %d times, %d bytes in the store, %v", live, len(value), err)
	}

	journal.Break(nil)
	until(t, "the record has left the store", func() bool {
		value, err := store.Get(ctx, gid)
		return err == nil && value == nil
	})
	if !slices.ContainsFunc(journal.Rows(), func(r engine.Row) bool { return r.Gid == gid && r.Finish.Seq != 0 }) {
		t.Errorf("the record is gone and the journal has %+v", journal.Rows())
	}
}

// slowFail is a journal whose first Append of a row waits for word and then fails.
type slowFail struct {
	engine.Journal
	once          atomic.Bool
	entered, fail chan struct{}
}

func (j *slowFail) Append(ctx context.Context, rows []engine.Row) error {
	if j.once.CompareAndSwap(false, true) {
		close(j.entered)
		<-j.fail
		return errors.New("the connection broke")
	}
	return j.Journal.Append(ctx, rows)
}

// A decision's row is on its way to the journal while its transaction ends, and comes back unwritten: the finish that
// came since is what the journal gets.
func TestARowThatIsPutBackDoesNotHideItsFinish(t *testing.T) {
	store, rows := memstore.New(), memstore.NewJournal()
	journal := &slowFail{Journal: rows, entered: make(chan struct{}), fail: make(chan struct{})}
	d := newDesk()
	run := engine.NewRunner(engine.Config{Self: engine.Member{ID: "a"}, JournalDelay: time.Millisecond}, store, journal, d, nil, clock.New())
	ctx, cancel := context.WithCancel(context.Background())
	go func() { _ = run.Run(ctx) }()
	defer func() { cancel(); <-run.Done() }()
	until(t, "it is ready", run.Ready)
	waiter := ask(run, engine.Request{Gid: "g", Event: txn.Execute{Spec: oneBranch()}, Want: engine.WantFinished})
	d.next(t, "g", txn.OpTry).answer(txn.Done)
	confirm := d.next(t, "g", txn.OpConfirm)
	<-journal.entered // with the decision
	confirm.answer(txn.Done)
	if got := <-waiter; got.err != nil {
		t.Fatal(got.err)
	}
	if err := run.Ask(ctx, func(*engine.Core, int64) {}); err != nil { // a turn of the loop: the finish is in the queue
		t.Fatal(err)
	}
	close(journal.fail)
	until(t, "the finish is in the journal", func() bool {
		got := rows.Rows()
		return len(got) == 1 && got[0].Finish.Seq != 0
	})
}

// The filter's "certainly not there" holds for a slot only while nobody else can have written to the journal.
func TestAForgottenSlotIsCertainOnlyAfterTheJournalWasReadAgain(t *testing.T) {
	ctx := context.Background()
	journal := memstore.NewJournal()
	k := engine.NewKnownForTest(1000)
	const gid = txn.Gid("late")
	n := slot.Of(string(gid))
	build := func() {
		t.Helper()
		if err := k.Build(ctx, journal); err != nil {
			t.Fatal(err)
		}
	}
	maybe := func(when string, want bool) {
		t.Helper()
		if got := k.MaybeKnown(gid); got != want {
			t.Errorf("%s: maybe known is %v, want %v", when, got, want)
		}
	}
	maybe("before anything was read", true)
	build()
	maybe("read, but the slot was never taken", true)
	k.Forget(n)
	maybe("taken, and not read since", true)
	build()
	maybe("taken and read", false)
	k.Forget(n)
	maybe("taken anew", true)
	if err := k.Build(ctx, gidsThen{journal, func() { k.Forget(n) }}); err != nil {
		t.Fatal(err)
	}
	maybe("taken anew while the journal was read", true)
	build()
	maybe("read again", false)
	k.Forget(n)
	if err := k.Build(ctx, brokenGids{journal}); err == nil {
		t.Error("a journal that cannot be read gave no error")
	}
	maybe("the reading failed", true)
	k.Add(gid)
	build()
	maybe("added", true)
}

type gidsThen struct {
	engine.Journal
	then func()
}

func (g gidsThen) Gids(ctx context.Context, each func(txn.Gid)) error {
	defer g.then()
	return g.Journal.Gids(ctx, each)
}

type brokenGids struct{ engine.Journal }

func (brokenGids) Gids(context.Context, func(txn.Gid)) error { return errors.New("no journal") }

// A slot goes from a to b, who finishes a transaction there, and back to a. A late repeat of its begin at a gets the old
// answer: nothing begins a second time, though a once knew for certain that the gid was new (G1).
func TestALateRepeatAfterTheSlotWentThereAndBackGetsTheOldAnswer(t *testing.T) {
	r := newRegion(t)
	deskA, deskB := newDesk(), newDesk()
	a, _ := r.join("a", deskA)
	gid := gidFor("b", "a", "b")
	certain := func() bool { return !a.KnownForTest().MaybeKnown(gid) }
	until(t, "a knows for certain that the gid is new", certain)

	b, stopB := r.join("b", deskB)
	until(t, "b has the slot", func() bool { return holds(t, b, gid) })
	begin := engine.Request{Gid: gid, Event: txn.Execute{Spec: oneBranch()}, Want: engine.WantFinished}
	first := ask(b, begin)
	deskB.next(t, gid, txn.OpTry).answer(txn.Done)
	deskB.next(t, gid, txn.OpConfirm).answer(txn.Done)
	if got := <-first; got.err != nil || got.rep.State.Phase != txn.PhaseCommitted {
		t.Fatalf("%v, %v", got.rep.State.Phase, got.err)
	}
	until(t, "its record has left the store", func() bool {
		value, err := r.store.Get(context.Background(), gid)
		return err == nil && value == nil
	})
	stopB()
	until(t, "a has the slot again", func() bool { return holds(t, a, gid) })
	got := <-ask(a, begin)
	if got.err != nil || got.rep.State.Phase != txn.PhaseCommitted {
		t.Errorf("the late repeat: %v, %v", got.rep.State.Phase, got.err)
	}
	select {
	case c := <-deskA.calls:
		t.Errorf("the transaction was begun again: %s %s", c.Gid, c.Op)
	default:
	}
}
