package engine_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

func payGlobally() txn.Spec {
	sp := pay()
	sp.Opt.Durability = txn.Global
	return sp
}

func decisionOf(t *testing.T, w *world, gid txn.Gid) txn.Phase {
	t.Helper()
	w.mu.Lock()
	body := w.decisions[gid]
	w.mu.Unlock()
	if body == nil {
		return txn.PhaseNone
	}
	tx, err := record.FromParts(body, nil, record.Head{}, record.Head{}, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return tx.State.Phase
}

// Rule (G2): no confirm leaves before the arbiter has the decision, however long it takes; and the answer waits for it too.
func TestAGlobalDecisionIsTheArbitersFirst(t *testing.T) {
	w := newWorld("east", "west")
	calls := newDesk()
	east, _ := w.places["east"].join(t, calls)
	const n = 4
	gid := gidIn(n, 1)
	var lost atomic.Int64
	w.eat = func(engine.GlobalDecision) bool { return lost.Add(1) <= 3 }
	answered := make(chan error, 1)
	go func() {
		_, err := east.Do(context.Background(), engine.Request{Gid: gid, Event: txn.Execute{Spec: payGlobally()}, Want: engine.WantDecided})
		answered <- err
	}()
	for range 2 {
		c := <-calls.calls
		c.answer(txn.Done)
	}
	until(t, "the decision was lost three times", func() bool { return lost.Load() >= 1 })
	select {
	case c := <-calls.calls:
		if decisionOf(t, w, gid) != txn.PhaseCommitting {
			t.Fatalf("%s left before the decision", c.Op)
		}
		c.answer(txn.Done)
	case err := <-answered:
		if err != nil || decisionOf(t, w, gid) != txn.PhaseCommitting {
			t.Fatalf("answered before the decision: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came of it")
	}
	until(t, "the decision is the arbiter's", func() bool { return decisionOf(t, w, gid) == txn.PhaseCommitting })
}

// Rule (G1, G2): where the arbiter has another decision, that one is carried out, and the client learns it.
func TestTheFirstDecisionInTheArbiterStands(t *testing.T) {
	const n = 4
	for _, tc := range []struct {
		name   string
		stands bool // commit
	}{{"an abort was first", false}, {"a commit was first", true}} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld("east", "west")
			calls := newDesk()
			east, stop := w.places["east"].join(t, calls)
			ctx := t.Context()
			gid := gidIn(n, 1)
			sp := txn.Spec{Mode: txn.ModeTCC, Opt: txn.Options{Durability: txn.Global}}
			do := func(r *engine.Runner, ev txn.Event) error {
				_, err := r.Do(ctx, engine.Request{Gid: gid, Event: ev, Want: engine.WantAccepted})
				return err
			}
			if err := do(east, txn.Prepare{Spec: sp}); err != nil {
				t.Fatal(err)
			}
			if err := do(east, txn.Register{Mode: txn.ModeTCC, Branch: txn.Branch{ID: "01", Confirm: "http://a/confirm", Cancel: "http://a/cancel"}}); err != nil {
				t.Fatal(err)
			}
			// The decision reaches the arbiter and its holder dies before the region hears of it: another one was there.
			w.eat = func(d engine.GlobalDecision) bool { w.decisions[d.Gid] = d.Body; return true }
			ev, other, want := txn.Event(txn.Abort{Reason: "first"}), txn.Event(txn.Submit{Spec: txn.Spec{Mode: txn.ModeTCC}}), txn.OpCancel
			if tc.stands {
				ev, other, want = other, ev, txn.OpConfirm
			}
			go func() { _ = do(east, ev) }()
			until(t, "the first decision stands", func() bool { return decisionOf(t, w, gid) != txn.PhaseNone })
			stop()
			w.eat = nil
			for len(calls.calls) > 0 {
				<-calls.calls
			}
			next, _ := w.places["east"].join(t, calls)
			err := do(next, other)
			if err == nil {
				t.Fatalf("the opposite of what stands was accepted")
			}
			calls.next(t, gid, want).answer(txn.Done)
			until(t, "it ends as the arbiter says", func() bool {
				rep, err := next.Do(ctx, engine.Request{Gid: gid, Want: engine.WantAccepted})
				return err == nil && rep.State.Phase.Finished() && rep.State.Phase.Commit() == tc.stands
			})
		})
	}
}

// Rule (G4): an owner of before decides nothing: the arbiter compares the epoch.
func TestAnOwnerOfBeforeDecidesNothingGlobally(t *testing.T) {
	const n = 4
	w := newWorld("east", "west")
	calls := newDesk()
	east, _ := w.places["east"].join(t, calls)
	gid := gidIn(n, 1)
	if _, err := east.Do(t.Context(), engine.Request{Gid: gid, Event: txn.Execute{Spec: payGlobally()}, Want: engine.WantAccepted}); err != nil {
		t.Fatal(err)
	}
	// The slot was taken from it, and it has not heard.
	w.mu.Lock()
	m := *w.owners
	m[n].Epoch = m[n].Epoch.Next(2)
	held := w.owners
	w.mu.Unlock()
	w.eat = func(d engine.GlobalDecision) bool { return false }
	w.mu.Lock()
	w.owners = &m
	w.mu.Unlock()
	for range 2 {
		c := <-calls.calls
		c.answer(txn.Done)
	}
	select {
	case c := <-calls.calls:
		if c.Op == txn.OpConfirm || c.Op == txn.OpCancel {
			t.Fatalf("%s left though the arbiter refused the decision", c.Op)
		}
	case <-time.After(300 * time.Millisecond):
	}
	if d := decisionOf(t, w, gid); d != txn.PhaseNone {
		t.Fatalf("decided %s in an epoch that has ended", d)
	}
	_ = held
}

// TestAGlobalBeginFailsFastWhileTheArbiterIsAway: with the reason, and a regional one goes on.
func TestAGlobalBeginFailsFastWhileTheArbiterIsAway(t *testing.T) {
	w := newWorld("east")
	w.places["east"].away = errors.New("the arbiter was not heard")
	east, _ := w.places["east"].join(t, newDesk())
	n := 10
	until(t, "a global begin is refused", func() bool {
		n++
		_, err := east.Do(t.Context(), engine.Request{Gid: gidIn(4, n), Event: txn.Prepare{Spec: txn.Spec{Mode: txn.ModeTCC, Opt: txn.Options{Durability: txn.Global}}}, Want: engine.WantAccepted})
		return errors.Is(err, engine.ErrUnavailable) && strings.Contains(err.Error(), "the arbiter was not heard") && strings.Contains(err.Error(), "regional")
	})
	if _, err := east.Do(t.Context(), engine.Request{Gid: gidIn(4, 2), Event: txn.Prepare{Spec: txn.Spec{Mode: txn.ModeTCC}}, Want: engine.WantAccepted}); err != nil {
		t.Fatal(err)
	}
}

// TestAGlobalDecisionWaitsForNothingElse: a coordinator that has nothing else to do asks the arbiter at once, and not when the next
// event comes, which may be a timeout.
func TestAGlobalDecisionWaitsForNothingElse(t *testing.T) {
	w := newWorld("east", "west")
	calls := newDesk()
	east, _ := w.places["east"].join(t, calls)
	asked := make(chan struct{}, 1)
	w.eat = func(engine.GlobalDecision) bool { asked <- struct{}{}; return false }
	var sum time.Duration
	for k := range 10 {
		go func() {
			_, _ = east.Do(context.Background(), engine.Request{Gid: gidIn(4, k), Event: txn.Execute{Spec: payGlobally()}, Want: engine.WantAccepted})
		}()
		(<-calls.calls).answer(txn.Done)
		last := <-calls.calls
		time.Sleep(20 * time.Millisecond) // all is quiet
		began := time.Now()
		last.answer(txn.Done)
		select {
		case <-asked:
			sum += time.Since(began)
		case <-time.After(20 * time.Second):
			t.Fatal("the arbiter is never asked")
		}
		for range 2 {
			(<-calls.calls).answer(txn.Done)
		}
	}
	if sum > time.Second { // together they take some milliseconds
		t.Errorf("the arbiter was asked %v after the last try, in the mean", sum/10)
	}
}
