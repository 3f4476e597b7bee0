package engine_test

import (
	"testing"

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
