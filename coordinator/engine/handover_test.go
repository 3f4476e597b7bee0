package engine_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/clock"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/store/memstore"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// desk holds calls until the test answers them.
type desk struct{ calls chan heldCall }

type heldCall struct {
	*engine.Call
	done func(engine.CallResult)
}

func newDesk() *desk { return &desk{calls: make(chan heldCall, 1000)} }

// Start is engine.Invoker's.
func (d *desk) Start(c *engine.Call, done func(engine.CallResult)) { d.calls <- heldCall{c, done} }

func (c heldCall) answer(o txn.Outcome) { c.done(engine.CallResult{Call: c.Call, Outcome: o}) }

// next gives the next call that is made, and fails when it is not of the operation wanted.
func (d *desk) next(t *testing.T, gid txn.Gid, op txn.Op) heldCall {
	t.Helper()
	select {
	case c := <-d.calls:
		if c.Gid != gid || c.Op != op {
			t.Fatalf("called %s %s, want %s %s", c.Gid, c.Op, gid, op)
		}
		return c
	case <-time.After(20 * time.Second):
		t.Fatalf("no %s of %s was called", op, gid)
	}
	return heldCall{}
}

// region is coordinators on one memory store, who reach each other without a network.
type region struct {
	t       *testing.T
	store   engine.Store
	journal engine.Journal

	mu      sync.Mutex
	runners map[string]*engine.Runner
	asleep  map[string]bool // who takes requests and answers none
}

func newRegion(t *testing.T) *region {
	return &region{t: t, store: memstore.New(), journal: memstore.NewJournal(), runners: map[string]*engine.Runner{}}
}

// Forward is engine.Forwarder's.
func (r *region) Forward(ctx context.Context, to engine.Member, req engine.Request) (engine.Reply, error) {
	r.mu.Lock()
	other, asleep := r.runners[to.ID], r.asleep[to.ID]
	r.mu.Unlock()
	if asleep {
		<-ctx.Done()
		return engine.Reply{}, context.Cause(ctx)
	}
	return other.Do(ctx, req)
}

// join runs a coordinator until the test ends, or until stop.
func (r *region) join(id string, inv engine.Invoker) (run *engine.Runner, stop func()) {
	r.t.Helper()
	run = engine.NewRunner(engine.Config{Self: engine.Member{ID: id}, JournalDelay: time.Millisecond}, r.store, r.journal, inv, r, clock.New())
	r.mu.Lock()
	r.runners[id] = run
	r.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		if err := run.Run(ctx); err != nil {
			r.t.Errorf("%s: %v", id, err)
		}
	}()
	stop = func() { cancel(); <-run.Done() }
	r.t.Cleanup(stop)
	until(r.t, id+" is ready", run.Ready)
	return run, stop
}

// until asks again until ok.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 20 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// holds says that the coordinator holds the gid's slot.
func holds(t *testing.T, r *engine.Runner, gid txn.Gid) bool {
	t.Helper()
	return r.LocalSlots()(slot.Of(string(gid)))
}

// gidFor makes a gid whose slot falls to the member given.
func gidFor(member string, members ...string) txn.Gid {
	for i := 0; ; i++ {
		if g := fmt.Sprintf("tx%d", i); slot.Prefer(slot.Of(g), members) == member {
			return txn.Gid(g)
		}
	}
}

func oneBranch() txn.Spec {
	return txn.Spec{Mode: txn.ModeTCC, Digest: "one", Branches: []txn.Branch{{ID: "a", Try: "http://x/try", Confirm: "http://x/confirm", Cancel: "http://x/cancel"}}}
}

type told struct {
	rep engine.Reply
	err error
}

// ask puts a request without waiting for its answer.
func ask(r *engine.Runner, req engine.Request) <-chan told {
	out := make(chan told, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		rep, err := r.Do(ctx, req)
		out <- told{rep, err}
	}()
	return out
}

// A slot is given up to a coordinator that joins while somebody waits for the end of a transaction on it and a call is
// in flight: the waiter is neither refused nor forgotten, but gets the answer of the new holder; what the old holder's
// call brings home afterwards changes nothing (G1, G3).
func TestAWaiterFollowsItsSlotToTheNewHolder(t *testing.T) {
	r := newRegion(t)
	oldDesk, newDesk := newDesk(), newDesk()
	a, _ := r.join("a", oldDesk)
	gid := gidFor("b", "a", "b")
	waiter := ask(a, engine.Request{Gid: gid, Event: txn.Execute{Spec: oneBranch()}, Want: engine.WantFinished})
	oldDesk.next(t, gid, txn.OpTry).answer(txn.Done)
	late := oldDesk.next(t, gid, txn.OpConfirm)

	b, _ := r.join("b", newDesk)
	again := newDesk.next(t, gid, txn.OpConfirm)
	if holds(t, a, gid) || !holds(t, b, gid) {
		t.Fatal("the slot has not moved: nothing was tested")
	}
	late.answer(txn.Refused) // whatever it says, it is of an old term
	select {
	case got := <-waiter:
		t.Fatalf("the waiter was answered before the end: %v, %v", got.rep.State.Phase, got.err)
	default:
	}
	again.answer(txn.Done)
	if got := <-waiter; got.err != nil || got.rep.State.Phase != txn.PhaseCommitted {
		t.Errorf("the waiter heard %v, %v", got.rep.State.Phase, got.err)
	}
}

// A client has been told that its TCC is prepared, which is in memory alone. Its holder gives the slot up, to one that
// joins or because it stops: the client registers its branches at the new holder as if nothing had happened.
func TestAPrepareSurvivesAnOrderlyHandover(t *testing.T) {
	for _, how := range []string{"another joins", "it stops"} {
		t.Run(how, func(t *testing.T) {
			r := newRegion(t)
			a, stop := r.join("a", newDesk())
			gid := gidFor("b", "a", "b")
			if got := <-ask(a, engine.Request{Gid: gid, Event: txn.Prepare{Spec: txn.Spec{Mode: txn.ModeTCC}}, Want: engine.WantAccepted}); got.err != nil {
				t.Fatal(got.err)
			}
			if how == "it stops" {
				stop()
			}
			b, _ := r.join("b", newDesk())
			until(t, "the slot has moved", func() bool { return holds(t, b, gid) })
			got := <-ask(b, engine.Request{Gid: gid, Event: txn.Register{Mode: txn.ModeTCC, Branch: oneBranch().Branches[0]}, Want: engine.WantAccepted})
			if got.err != nil {
				t.Errorf("the branch of a transaction that was prepared: %v", got.err)
			}
		})
	}
}

// A request that was forwarded to a holder that sleeps follows its slot as soon as that has another one.
func TestARequestDoesNotWaitForAHolderThatSleeps(t *testing.T) {
	r := newRegion(t)
	d := newDesk()
	a, _ := r.join("a", d)
	b, stopB := r.join("b", newDesk())
	gid := gidFor("b", "a", "b")
	until(t, "b holds the slot and a knows", func() bool {
		v := a.View()
		return holds(t, b, gid) && v != nil && v.Holders[slot.Of(string(gid))] == "b"
	})
	r.mu.Lock()
	r.asleep = map[string]bool{"b": true}
	r.mu.Unlock()
	answer := ask(a, engine.Request{Gid: gid, Event: txn.Execute{Spec: oneBranch()}, Want: engine.WantFinished})
	stopB()
	d.next(t, gid, txn.OpTry).answer(txn.Done)
	d.next(t, gid, txn.OpConfirm).answer(txn.Done)
	if got := <-answer; got.err != nil || got.rep.State.Phase != txn.PhaseCommitted {
		t.Errorf("%v, %v", got.rep.State.Phase, got.err)
	}
}

// hops counts what one coordinator asks of others, and answers nothing useful.
type hops struct{ asked atomic.Int64 }

// Forward is engine.Forwarder's.
func (h *hops) Forward(context.Context, engine.Member, engine.Request) (engine.Reply, error) {
	h.asked.Add(1)
	return engine.Reply{}, engine.ErrUnavailable
}

// A coordinator's view may be old, and two old views may point at each other. A request that was forwarded once is
// never forwarded again: it is refused, whatever the view says, and at once.
func TestAForwardedRequestIsNeverForwardedAgain(t *testing.T) {
	r := newRegion(t)
	h := &hops{}
	a := engine.NewRunner(engine.Config{Self: engine.Member{ID: "a"}}, r.store, r.journal, newDesk(), h, clock.New())
	ctx, cancel := context.WithCancel(context.Background())
	go func() { _ = a.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-a.Done() })
	until(t, "a is ready", a.Ready)
	b, _ := r.join("b", newDesk())
	gid := gidFor("b", "a", "b")
	until(t, "a believes that b holds the slot", func() bool {
		v := a.View()
		return holds(t, b, gid) && v != nil && v.Holders[slot.Of(string(gid))] == "b"
	})
	req := engine.Request{Gid: gid, Event: txn.Prepare{Spec: txn.Spec{Mode: txn.ModeTCC}}, Want: engine.WantAccepted}
	if got := <-ask(a, req); !errors.Is(got.err, engine.ErrUnavailable) || h.asked.Load() != 1 {
		t.Fatalf("a client's request was forwarded %d times: %v", h.asked.Load(), got.err)
	}
	req.Hops = 1
	if got := <-ask(a, req); !errors.Is(got.err, engine.ErrNotHolder) || h.asked.Load() != 1 {
		t.Errorf("a forwarded request was forwarded %d times more: %v", h.asked.Load()-1, got.err)
	}
}
