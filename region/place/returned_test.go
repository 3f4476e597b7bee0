package place

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
	"github.com/lockstep-tx/lockstep/region/topology"
)

// TestWhatIsNotWorkedOffIsNamedAndHoldsNothingUp: of a returned region's transactions one that the owner refuses, or whose
// effects no account takes yet, is named with the reason and left for later; an owner that is away stops the round.
func TestWhatIsNotWorkedOffIsNamedAndHoldsNothingUp(t *testing.T) {
	poor := errors.New("account ann lacks 5 CNY")
	refusal := func(code txn.Code) error { return &txn.Error{Code: code, Gid: "g", Text: "it says no"} }
	branches := []txn.Branch{{ID: "01", Confirm: "lockstep://wallet/pay/confirm"}}
	for _, c := range []struct {
		name    string
		answer  error     // of the owner
		here    txn.State // at the owner
		post    error
		noted   bool
		is      error
		why     string // "" where it is worked off
		cancels bool
	}{
		{name: "the owner takes it", here: txn.State{Phase: txn.PhaseCommitted, Branches: branches}},
		{name: "the owner is away", answer: engine.ErrUnavailable, is: engine.ErrUnavailable},
		{name: "the owner says otherwise", answer: refusal(txn.CodePhase), is: engine.ErrDiverged, why: "it says no"},
		{name: "and a person has settled it", answer: refusal(txn.CodePhase), noted: true},
		{name: "only this record knows the branches", answer: refusal(txn.CodeIncomplete)},
		{name: "and an account lacks the money", answer: refusal(txn.CodeIncomplete), post: poor, is: engine.ErrDiverged, why: "ann lacks 5"},
		{name: "committed by name alone, and an account lacks the money", here: txn.State{Phase: txn.PhaseCommitted}, post: poor, is: engine.ErrDiverged, why: "ann lacks 5"},
		{name: "aborted without a branch that this record has", here: txn.State{Phase: txn.PhaseAborted}, cancels: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			cancelled := false
			p := &Place{diverged: map[txn.Gid]Diverged{}, cfg: Config{Self: "east",
				Topology: &topology.File{Regions: map[string]topology.Region{"west": {Grpc: []string{"127.0.0.1:1"}}}},
				Forward:  answers{engine.Reply{State: c.here}, c.answer},
				Post:     func(context.Context, *record.Tx) error { return c.post },
				Cancel:   func(context.Context, engine.Move, *record.Tx) error { cancelled = true; return nil },
				Noted:    func(context.Context, int, txn.Gid) (bool, error) { return c.noted, nil },
			}}
			m := engine.Move{Slot: slot.Of("g"), Owner: slot.Owner{Region: "west", Epoch: 202, Status: slot.Active}}
			tx := &record.Tx{State: txn.State{Gid: "g", Phase: txn.PhaseCommitting, Branches: branches}}
			err := p.Returned(t.Context(), m, tx)
			if !errors.Is(err, c.is) || c.is == nil && err != nil {
				t.Errorf("%v, want %v", err, c.is)
			}
			list := p.Diverged()
			if named := len(list) == 1 && strings.Contains(list[0].Why, c.why); named != (c.why != "") || len(list) > 1 {
				t.Errorf("named: %+v, want %q", list, c.why)
			}
			if cancelled != c.cancels {
				t.Errorf("cancelled: %v", cancelled)
			}
		})
	}
}

// answers is a forwarder that gives one answer.
type answers struct {
	reply engine.Reply
	err   error
}

func (a answers) Forward(context.Context, engine.Member, engine.Request) (engine.Reply, error) {
	return a.reply, a.err
}

// TestAnOlderStoreDoesNotUndoADecision: a returned region's store that was restored from a backup has as undecided what the region had
// decided; its journal knows better.
func TestAnOlderStoreDoesNotUndoADecision(t *testing.T) {
	broken := errors.New("the journal does not answer")
	decided := &record.Tx{State: txn.State{Gid: "g", Phase: txn.PhaseCommitting}}
	for _, c := range []struct {
		name  string
		store txn.Phase
		known *record.Tx
		err   error
		sent  txn.Phase // 0: nothing
	}{
		{name: "undecided everywhere", store: txn.PhasePrepared, sent: txn.PhasePrepared},
		{name: "the journal has a decision", store: txn.PhasePrepared, known: decided, sent: txn.PhaseCommitting},
		{name: "the store has one itself", store: txn.PhaseAborting, known: decided, sent: txn.PhaseAborting},
		{name: "nobody can say", store: txn.PhasePrepared, err: broken},
	} {
		t.Run(c.name, func(t *testing.T) {
			var sent txn.Phase
			p := &Place{diverged: map[txn.Gid]Diverged{}, cfg: Config{Self: "east", Log: slog.New(slog.DiscardHandler),
				Topology: &topology.File{Regions: map[string]topology.Region{"west": {Grpc: []string{"127.0.0.1:1"}}}},
				Forward: forwards(func(req engine.Request) (engine.Reply, error) {
					sent = req.Event.(engine.Returned).Tx.State.Phase
					return engine.Reply{}, nil
				}),
				Decided: func(context.Context, int, txn.Gid) (*record.Tx, error) { return c.known, c.err },
			}}
			m := engine.Move{Slot: slot.Of("g"), Owner: slot.Owner{Region: "west", Epoch: 202, Status: slot.Active}}
			err := p.Returned(t.Context(), m, &record.Tx{State: txn.State{Gid: "g", Phase: c.store}})
			if !errors.Is(err, c.err) || c.err == nil && err != nil || sent != c.sent {
				t.Errorf("handed back as %s, %v; want %s", sent, err, c.sent)
			}
		})
	}
}

// forwards is a forwarder that is a function.
type forwards func(engine.Request) (engine.Reply, error)

func (f forwards) Forward(_ context.Context, _ engine.Member, req engine.Request) (engine.Reply, error) {
	return f(req)
}
