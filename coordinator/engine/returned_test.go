package engine_test

import (
	"errors"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// A transaction that a lost region alone knew, and had aborted and ended, stays aborted: begun anew under the same gid it would
// meet the cancels that stand at its participants, and be committed here and refused there (found by the simulator).
func TestAnAbortThatTheLostRegionAloneKnewIsKept(t *testing.T) {
	const gid = txn.Gid("{tag}aborted")
	there := newRegion(t)
	d := newDesk()
	a, _ := there.join("a", d)
	waiter := ask(a, engine.Request{Gid: gid, Event: txn.Execute{Spec: oneBranch()}, Want: engine.WantFinished})
	d.next(t, gid, txn.OpTry).answer(txn.Refused)
	d.next(t, gid, txn.OpCancel).answer(txn.Done)
	left := (<-waiter).rep
	if left.State.Phase != txn.PhaseAborted {
		t.Fatalf("the lost region has it %s", left.State.Phase)
	}
	tx := record.Tx{State: left.State}
	if err := tx.Close(); err != nil {
		t.Fatal(err)
	}

	here := newRegion(t)
	d = newDesk()
	b, _ := here.join("b", d)
	answer := ask(b, engine.Request{Gid: gid, Event: engine.Returned{Tx: tx}, Want: engine.WantAccepted})
	if got := <-answer; got.err != nil && !errors.Is(got.err, engine.ErrUnavailable) { // then it is handed over again
		t.Fatalf("it is not taken over: %v", got.err)
	}
	again := ask(b, engine.Request{Gid: gid, Event: txn.Execute{Spec: oneBranch()}, Want: engine.WantDecided})
	call := d.next(t, gid, txn.OpCancel) // and no try
	if got := <-again; got.rep.State.Phase.Commit() || !got.rep.State.Phase.Decided() {
		t.Errorf("begun anew it is %s: %v", got.rep.State.Phase, got.err)
	}
	call.answer(txn.Done)
}
