package engine_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/store/memstore"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// A record that cannot be read stays as it is: nothing begins under its gid, nothing is said of it, and its neighbours
// on the slot go on. What it holds may be a decision.
func TestARecordThatCannotBeReadKeepsItsGidClosed(t *testing.T) {
	ctx := context.Background()
	r := newRegion(t)
	const bad, good = txn.Gid("{tag}bad"), txn.Gid("{tag}good")
	n := slot.Of(string(bad))
	claims, err := r.store.Claim(ctx, "earlier", []int{n}, nil)
	if err != nil {
		t.Fatal(err)
	}
	unreadable := []byte("\xffof a later version")
	if err := r.store.Commit(ctx, &engine.Batch{Guards: []engine.Guard{{Slot: n, Term: claims[0].Term}}, Puts: []engine.Put{{Slot: n, Gid: bad, Value: unreadable}}}); err != nil {
		t.Fatal(err)
	}
	d := newDesk()
	a, _ := r.join("a", d)
	for what, ev := range map[string]txn.Event{
		"a begin": txn.Execute{Spec: oneBranch()}, "a prepare": txn.Prepare{Spec: txn.Spec{Mode: txn.ModeTCC}}, "a submit": txn.Submit{Spec: txn.Spec{Mode: txn.ModeSaga}},
		"an abort": txn.Abort{Mode: txn.ModeTCC}, "a read": nil,
	} {
		got := <-ask(a, engine.Request{Gid: bad, Event: ev, Want: engine.WantAccepted})
		if !errors.Is(got.err, engine.ErrUnavailable) || !strings.Contains(got.err.Error(), "cannot be read") {
			t.Errorf("%s under the gid of a record that cannot be read: %v, %v", what, got.rep.State.Phase, got.err)
		}
	}
	waiter := ask(a, engine.Request{Gid: good, Event: txn.Execute{Spec: oneBranch()}, Want: engine.WantFinished})
	d.next(t, good, txn.OpTry).answer(txn.Done)
	d.next(t, good, txn.OpConfirm).answer(txn.Done)
	if got := <-waiter; got.err != nil || got.rep.State.Phase != txn.PhaseCommitted {
		t.Errorf("its neighbour on the slot: %v, %v", got.rep.State.Phase, got.err)
	}
	if got, err := r.store.Get(ctx, bad); err != nil || string(got) != string(unreadable) {
		t.Errorf("the record is %q now, %v", got, err)
	}
}

// asking is a core with one slot, which does not know what the journal has.
func asking(t *testing.T, gid txn.Gid) (*engine.Core, *engine.Known) {
	t.Helper()
	known := engine.NewKnown()
	c := engine.NewCore("me", engine.Limits{}, known)
	c.Hold(1, engine.Claim{Slot: slot.Of(string(gid)), Term: 1, Epoch: 1}, nil)
	return c, known
}

// While the journal is asked for a gid, the transaction of that gid ends and leaves the store: "not there" was true when
// it was read and is wrong when it arrives. The journal is asked once more, and nothing begins a second time (G1).
func TestALookupThatRacedWithAFinishIsRepeated(t *testing.T) {
	const gid = txn.Gid("raced")
	c, known := asking(t, gid)
	begin := engine.Request{Gid: gid, Event: txn.Execute{Spec: oneBranch()}, Want: engine.WantFinished}
	done := c.ApplyForTest(1, begin)
	first := c.Drain().Lookups
	if len(first) != 1 || engine.GidForTest(first[0]) != gid {
		t.Fatalf("the journal was asked %d times", len(first))
	}
	known.Add(gid)
	c.Found(2, first[0], nil)
	second := c.Drain().Lookups
	if rep, err, ok := done(); len(second) != 1 || ok || c.Live() != 0 {
		t.Fatalf("the journal was asked %d more times, %d transactions live, answered %v: %v, %v", len(second), c.Live(), ok, rep.State.Phase, err)
	}
	ended := &record.Tx{State: txn.State{Gid: gid, Mode: txn.ModeTCC, Digest: oneBranch().Digest, Phase: txn.PhaseCommitted}}
	c.Found(3, second[0], ended)
	if rep, err, ok := done(); !ok || err != nil || rep.State.Phase != txn.PhaseCommitted || c.Live() != 0 {
		t.Errorf("answered %v: %v, %v; %d live", ok, rep.State.Phase, err, c.Live())
	}
}

// Once is enough: the filter errs at times, and a gid that it wrongly knows must begin all the same.
func TestALookupIsRepeatedOnce(t *testing.T) {
	const gid = txn.Gid("mistaken")
	c, known := asking(t, gid)
	known.Add(gid)
	c.ApplyForTest(1, engine.Request{Gid: gid, Event: txn.Execute{Spec: oneBranch()}, Want: engine.WantFinished})
	for asked := 1; ; asked++ {
		out := c.Drain()
		if len(out.Lookups) == 0 {
			if asked != 3 || c.Live() != 1 {
				t.Errorf("the journal was asked %d times, and %d transactions live; want 2 and 1", asked-1, c.Live())
			}
			return
		}
		if asked > 10 {
			t.Fatal("the journal is asked for ever")
		}
		c.Found(2, out.Lookups[0], nil)
	}
}

// A coordinator that is to stop saves what is to be saved and gives every slot up, though a participant hangs: the next
// one need not wait for its announcement to lapse.
func TestADrainDoesNotWaitForCallsThatHang(t *testing.T) {
	r := newRegion(t)
	d := newDesk()
	a, stop := r.join("a", d)
	const gid = txn.Gid("hangs")
	waiter := ask(a, engine.Request{Gid: gid, Event: txn.Execute{Spec: oneBranch()}, Want: engine.WantFinished})
	d.next(t, gid, txn.OpTry).answer(txn.Done)
	d.next(t, gid, txn.OpConfirm) // never answered
	stop()
	if got := <-waiter; !errors.Is(got.err, engine.ErrStopping) {
		t.Errorf("the waiter heard %v, %v", got.rep.State.Phase, got.err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	views, err := r.store.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	held := 0
	for _, h := range (<-views).Holders {
		if h != "" {
			held++
		}
	}
	if held > 0 {
		t.Errorf("%d slots were not given up", held)
	}
	if tx, err := a.Record(ctx, gid); err != nil || tx == nil || tx.State.Phase != txn.PhaseCommitting {
		t.Errorf("its record: %v, %v", tx, err)
	}
}

// A store that is 60 % full takes no begin, what was begun is finished, and begins are taken again once there is room.
func TestAStoreThatFillsUpRefusesBeginsAndFinishesWhatWasBegun(t *testing.T) {
	r := newRegion(t)
	store := r.store.(*memstore.Store)
	d := newDesk()
	a, _ := r.join("a", d)
	prepare := func(gid txn.Gid) error {
		got := <-ask(a, engine.Request{Gid: gid, Event: txn.Prepare{Spec: txn.Spec{Mode: txn.ModeTCC}}, Want: engine.WantAccepted})
		return got.err
	}
	if err := prepare("begun"); err != nil {
		t.Fatal(err)
	}
	store.Fill(engine.Usage{UsedBytes: 61, QuotaBytes: 100})
	n := 0
	until(t, "begins are refused", func() bool { n++; return prepare(txn.Gid(fmt.Sprint("try", n))) != nil })
	var over *engine.OverloadedError
	for what, req := range map[string]engine.Request{
		"a prepare":          {Gid: "new", Event: txn.Prepare{Spec: txn.Spec{Mode: txn.ModeTCC}}},
		"an execute":         {Gid: "new", Event: txn.Execute{Spec: oneBranch()}},
		"a submit of a saga": {Gid: "new", Event: txn.Submit{Spec: txn.Spec{Mode: txn.ModeSaga}}},
		"an adoption":        {Gid: "new", Event: engine.Adopt{}},
	} {
		req.Want = engine.WantAccepted
		if ad, ok := req.Event.(engine.Adopt); ok {
			ad.Tx.State.Mode = txn.ModeTCC
			req.Event = ad
		}
		if got := <-ask(a, req); !errors.As(got.err, &over) || over.RetryAfter <= 0 || !strings.Contains(over.Why, "61% full") {
			t.Errorf("%s: %v, %v", what, got.rep.State.Phase, got.err)
		}
	}
	if got := <-ask(a, engine.Request{Gid: "begun", Event: txn.Register{Mode: txn.ModeTCC, Branch: oneBranch().Branches[0]}, Want: engine.WantAccepted}); got.err != nil {
		t.Errorf("a branch of what was begun: %v", got.err)
	}
	end := ask(a, engine.Request{Gid: "begun", Event: txn.Submit{Spec: txn.Spec{Mode: txn.ModeTCC}}, Want: engine.WantFinished})
	d.next(t, "begun", txn.OpConfirm).answer(txn.Done)
	if got := <-end; got.err != nil || got.rep.State.Phase != txn.PhaseCommitted {
		t.Errorf("the submit of what was begun: %v, %v", got.rep.State.Phase, got.err)
	}
	store.Fill(engine.Usage{UsedBytes: 59, QuotaBytes: 100})
	until(t, "begins are taken again", func() bool { return prepare("later") == nil })
}
