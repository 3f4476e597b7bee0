package engine_test

import (
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// A transaction that was decided elsewhere is numbered by its new holder: the decision's event says under which epoch
// (G4), and the bytes that are chained are those that are stored.
func TestAnAdoptedDecisionCarriesTheEpochOfItsNewHolder(t *testing.T) {
	const gid = txn.Gid("adopted")
	foreign := &record.Tx{State: txn.State{Gid: gid, Mode: txn.ModeTCC, Phase: txn.PhaseCommitting, BegunAt: 1, UpdatedAt: 2, DecidedAt: 2,
		Branches: []txn.Branch{{ID: "01", Confirm: "http://p/confirm", Cancel: "http://p/cancel", One: txn.OpState{Status: txn.OpDone}}}}}
	raw, err := foreign.Encode() // as it travels: the decision's bytes are fixed by it
	if err != nil {
		t.Fatal(err)
	}
	arrived, err := record.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	known := engine.NewKnown()
	c := engine.NewCore("me", engine.Limits{}, known)
	c.Hold(1, engine.Claim{Slot: slot.Of(string(gid)), Term: 1, Epoch: 7}, nil)
	c.ApplyForTest(1, engine.Request{Gid: gid, Event: engine.Adopt{Tx: *arrived}, Want: engine.WantAccepted})
	for _, p := range c.Drain().Lookups {
		c.Found(1, p, nil)
	}
	w := c.NextBatch()
	if w == nil || len(w.Batch.Puts) != 1 {
		t.Fatalf("batch %+v", w)
	}
	stored, err := record.Decode(w.Batch.Puts[0].Value)
	if err != nil {
		t.Fatal(err)
	}
	if stored.State.Epoch != 7 || stored.DecisionEpoch != 7 || stored.Decision.Seq != 1 {
		t.Errorf("stored with epoch %d, its decision as number %d under epoch %d", stored.State.Epoch, stored.Decision.Seq, stored.DecisionEpoch)
	}
}

// G8: a holder whose clock was ahead by an hour, and was lost, leaves transactions that began in its successor's future. What is
// undecided times out when its timeout is over, by the clock of who holds it; what is decided is driven at once, and what began before
// keeps its time.
func TestWhatABeginnerAheadOfTimeLeftTimesOutAllTheSame(t *testing.T) {
	const now, ahead, limit = int64(1_000_000), int64(3_600_000), 3 * time.Second
	branch := []txn.Branch{{ID: "01", Confirm: "http://p/confirm", Cancel: "http://p/cancel", One: txn.OpState{Status: txn.OpDone}}}
	for _, c := range []struct {
		name  string
		state txn.State
		wake  int64
	}{
		{"undecided, begun in the future", txn.State{Mode: txn.ModeTCC, Phase: txn.PhasePrepared, BegunAt: now + ahead, UpdatedAt: now + ahead + 5, Branches: branch}, now + limit.Milliseconds()},
		{"undecided, begun in the past", txn.State{Mode: txn.ModeTCC, Phase: txn.PhasePrepared, BegunAt: now - 1000, UpdatedAt: now - 900, Branches: branch}, now - 1000 + limit.Milliseconds()},
		{"a message, prepared in the future", txn.State{Mode: txn.ModeMsg, Phase: txn.PhasePrepared, BegunAt: now + ahead, UpdatedAt: now + ahead,
			Query: txn.OpState{Status: txn.OpPending, NextAt: now + ahead + limit.Milliseconds()}}, now + limit.Milliseconds()},
		{"decided in the future", txn.State{Mode: txn.ModeTCC, Phase: txn.PhaseCommitting, BegunAt: now + ahead, UpdatedAt: now + ahead, DecidedAt: now + ahead, Branches: branch}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.state.Gid, c.state.Opt.Timeout = "ahead", limit
			tx := &record.Tx{State: c.state}
			if c.state.Phase.Decided() {
				tx.Decision.Seq = 1
			}
			core := engine.NewCore("me", engine.Limits{}, engine.NewKnown())
			core.Hold(now, engine.Claim{Slot: slot.Of("ahead"), Term: 1, Epoch: 7}, []*record.Tx{tx})
			if got := core.NextWake(); got != c.wake {
				t.Errorf("it wakes %d ms from now, want %d", got-now, c.wake-now)
			}
		})
	}
}
