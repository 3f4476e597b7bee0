package recovery

import (
	"errors"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// begun is a TCC transaction with one registered branch, in epoch 201.
func begun(t *testing.T, gid txn.Gid, d txn.Durability) txn.State {
	t.Helper()
	s := txn.State{Gid: gid}
	for _, ev := range []txn.Event{
		txn.Prepare{At: 1, Epoch: 201, Spec: txn.Spec{Mode: txn.ModeTCC, Opt: txn.Options{Durability: d}}},
		txn.Register{At: 2, Epoch: 201, Mode: txn.ModeTCC, Branch: txn.Branch{ID: "01", Confirm: "http://p/confirm", Cancel: "http://p/cancel"}},
	} {
		var err error
		if s, _, err = txn.Step(s, ev); err != nil {
			t.Fatal(err)
		}
	}
	return txn.Reloaded(s)
}

func committed(t *testing.T, s txn.State) txn.State {
	t.Helper()
	next, _, err := txn.Step(s, txn.Submit{At: 3, Epoch: 201, Spec: txn.Spec{Mode: txn.ModeTCC}})
	if err != nil {
		t.Fatal(err)
	}
	return txn.Reloaded(next)
}

func encoded(t *testing.T, s txn.State) []byte {
	t.Helper()
	raw, err := (&record.Tx{State: s}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func closed(t *testing.T, s txn.State) []byte {
	t.Helper()
	tx := &record.Tx{State: s}
	if err := tx.Close(); err != nil {
		t.Fatal(err)
	}
	return tx.Closed
}

// TestWhatIsDrivenAfterALoss is the table of what becomes of a transaction by what survives of it.
func TestWhatIsDrivenAfterALoss(t *testing.T) {
	never := func(txn.Gid) (bool, error) { return false, nil }
	for name, c := range map[string]struct {
		known   Known
		phase   txn.Phase
		inDoubt bool
		nothing bool
	}{
		"decided, as the journal has it":                    {known: Known{Records: [][]byte{encoded(t, committed(t, begun(t, "g", txn.Regional)))}}, phase: txn.PhaseCommitting},
		"regional, its record came with an earlier move":    {known: Known{Records: [][]byte{encoded(t, begun(t, "g", txn.Regional))}}, phase: txn.PhasePrepared, inDoubt: true},
		"regional, carried when its owner ended the epoch":  {known: Known{Records: [][]byte{encoded(t, begun(t, "g", txn.Regional))}, Ended: true}, phase: txn.PhasePrepared},
		"global, and the arbiter knows no decision":         {known: Known{Records: [][]byte{encoded(t, begun(t, "g", txn.Global))}}, phase: txn.PhaseAborting},
		"global, begun before the arbiter was restored":     {known: Known{Records: [][]byte{encoded(t, begun(t, "g", txn.Global))}, RestoredEpoch: 301}, phase: txn.PhasePrepared, inDoubt: true},
		"global, decided, its event never left":             {known: Known{Decisions: map[txn.Gid][]byte{"g": closed(t, committed(t, begun(t, "g", txn.Global)))}}, phase: txn.PhaseCommitting},
		"global, decided, and an earlier record of it":      {known: Known{Records: [][]byte{encoded(t, begun(t, "g", txn.Global))}, Decisions: map[txn.Gid][]byte{"g": closed(t, committed(t, begun(t, "g", txn.Global)))}}, phase: txn.PhaseCommitting},
		"global, finished, its decision not yet taken away": {known: Known{Decisions: map[txn.Gid][]byte{"g": closed(t, committed(t, begun(t, "g", txn.Global)))}, Finished: func(txn.Gid) (bool, error) { return true, nil }}, nothing: true},
	} {
		t.Run(name, func(t *testing.T) {
			if c.known.AtMillis = 9; c.known.Finished == nil {
				c.known.Finished = never
			}
			out, err := Drive(c.known)
			if err != nil {
				t.Fatal(err)
			}
			if c.nothing {
				if len(out) != 0 {
					t.Fatalf("%d are driven", len(out))
				}
				return
			}
			if len(out) != 1 {
				t.Fatalf("%d are driven", len(out))
			}
			tx, err := record.Decode(out[0])
			if err != nil {
				t.Fatal(err)
			}
			if s := &tx.State; s.Phase != c.phase || s.InDoubt != c.inDoubt || len(s.Branches) != 1 || s.Branches[0].Two.Status != txn.OpPending {
				t.Fatalf("%+v", s)
			}
			if tx.State.Phase.Decided() && tx.Decision.Seq != 0 {
				t.Fatal("its event was numbered by nobody")
			}
		})
	}
}

func TestWhatCannotBeReadIsAnErrorAndNotDropped(t *testing.T) {
	never := func(txn.Gid) (bool, error) { return false, nil }
	other := closed(t, committed(t, begun(t, "other", txn.Global)))
	for name, k := range map[string]Known{
		"a record that is none":             {Records: [][]byte{{1, 2, 3}}, Finished: never},
		"a decision of another transaction": {Decisions: map[txn.Gid][]byte{"g": other}, Finished: never},
		"a journal that does not answer":    {Decisions: map[txn.Gid][]byte{"other": other}, Finished: func(txn.Gid) (bool, error) { return false, errors.New("no answer") }},
		"a decision that is none":           {Decisions: map[txn.Gid][]byte{"g": closedUndecided(t)}, Finished: never},
	} {
		if out, err := Drive(k); err == nil {
			t.Errorf("%s: %d are driven", name, len(out))
		}
	}
}

func closedUndecided(t *testing.T) []byte {
	t.Helper()
	return []byte{}
}

// TestOnlyPositiveEvidenceSettles: tried proves nothing, however often.
func TestOnlyPositiveEvidenceSettles(t *testing.T) {
	try := func(id, state string, global bool) Try {
		return Try{Participant: "wallet", Gid: "g", Branch: txn.BranchID(id), Mode: txn.ModeTCC, State: state, Global: global, Account: "a" + id}
	}
	yes, no := true, false
	for name, c := range map[string]struct {
		tries  []Try
		proven *bool
		fails  bool
	}{
		"all tried":                      {tries: []Try{try("01", Tried, false), try("02", Tried, false)}},
		"one confirmed":                  {tries: []Try{try("01", Tried, false), try("02", Confirmed, false)}, proven: &yes},
		"one cancelled":                  {tries: []Try{try("01", Cancelled, false), try("02", Tried, false)}, proven: &no},
		"one of each":                    {tries: []Try{try("01", Cancelled, false), try("02", Confirmed, false)}, fails: true},
		"the same branch told of by two": {tries: []Try{try("01", Tried, false), try("01", Confirmed, false)}, proven: &yes},
	} {
		tx, proven, err := Doubt("g", c.tries, 5, 302)
		if (err != nil) != c.fails || (proven == nil) != (c.proven == nil) || proven != nil && *proven != *c.proven {
			t.Errorf("%s: %v, %v", name, proven, err)
		}
		if !tx.State.InDoubt || tx.State.Branches[0].Confirm != "lockstep://wallet/lockstep/settle" || tx.State.Branches[0].Account != "a01" {
			t.Errorf("%s: %+v", name, tx.State)
		}
		if err := txn.Check(&tx.State); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	tx, _, err := Doubt("g", []Try{try("01", Tried, true)}, 5, 302)
	if err != nil || tx.State.Opt.Durability != txn.Global {
		t.Fatalf("%+v, %v", tx, err)
	}
	for _, mixed := range [][]Try{{try("01", Tried, true), try("02", Tried, false)}, {try("01", Tried, false), try("02", Tried, true)}, {try("01", Tried, true), try("01", Tried, false)}} {
		if tx, _, err := Doubt("g", mixed, 5, 302); err != nil || tx.State.Opt.Durability != txn.Regional || !tx.State.InDoubt {
			t.Errorf("not all say that it is global: %+v, %v", tx.State, err)
		}
	}
	gone, err := Aborted(tx, 7)
	if err != nil || gone.State.Phase != txn.PhaseAborting || gone.State.Reason != Lost || gone.State.Branches[0].Two.Status != txn.OpPending {
		t.Fatalf("%+v, %v", gone, err)
	}
}
