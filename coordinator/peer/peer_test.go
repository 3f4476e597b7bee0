package peer

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/peer/peerpb"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

var spec = txn.Spec{
	Mode: txn.ModeTCC, QueryURL: "http://q", Custom: "c", Digest: "\xff\x00d", Tenant: "t",
	Opt:      txn.Options{Protocol: txn.ProtocolGRPC, WaitResult: true, Concurrent: true, Timeout: time.Second, RequestTimeout: 2 * time.Second, RetryInterval: 3 * time.Second, RetryLimit: 4, Delay: 5 * time.Second, Headers: map[string]string{"a": "b"}},
	Branches: []txn.Branch{{ID: "a", Try: "http://t", Confirm: "http://c", Cancel: "http://x", Payload: []byte{0, 255}}, {ID: "b", Try: "http://t", Confirm: "http://c", Cancel: "http://x", After: []int{0}, UseResults: true}, {ID: "m", Confirm: "http://m", Message: true}},
}

// TestEveryRequestSurvivesTheHop and the errors below: what a holder sees is what the client asked, and what the
// client is told is what the holder said.
func TestEveryRequestSurvivesTheHop(t *testing.T) {
	adopted := engine.Adopt{Tx: record.Tx{State: txn.State{Gid: "g", Mode: txn.ModeTCC, Phase: txn.PhasePrepared, Epoch: 1, BegunAt: 5, UpdatedAt: 6}}}
	for _, ev := range []txn.Event{
		nil, txn.Prepare{Spec: spec}, txn.Submit{Spec: spec}, txn.Execute{Spec: spec},
		txn.Register{Mode: txn.ModeXA, Branch: spec.Branches[0]}, txn.RegisterStep{Step: txn.WorkflowStep{Branch: "01", Op: "action", Failed: true, Data: []byte("d"), At: 7}},
		txn.EndWorkflow{Commit: true, Result: "cmVz"}, txn.EndWorkflow{Reason: "why"}, txn.Abort{Mode: txn.ModeTCC, Reason: "why"}, txn.Stop{}, txn.Retry{}, txn.Resolve{Commit: true, Reason: "why"}, adopted, engine.Returned{Tx: adopted.Tx},
	} {
		for want := engine.WantAccepted; want <= engine.WantOption; want++ {
			in, err := encode(engine.Request{Gid: "g", Event: ev, Want: want})
			if err != nil {
				t.Fatalf("%T: %v", ev, err)
			}
			got, err := decode(in)
			if err != nil {
				t.Fatalf("%T: %v", ev, err)
			}
			if d := cmp.Diff(engine.Request{Gid: "g", Event: ev, Want: want, Hops: 1}, got); d != "" {
				t.Errorf("%T (-sent +seen):\n%s", ev, d)
			}
		}
	}
	if _, err := encode(engine.Request{Gid: "g", Event: txn.Tick{}, Want: engine.WantAccepted}); err == nil {
		t.Error("a tick is forwarded")
	}
	for _, want := range []uint32{0, uint32(engine.WantOption) + 1} {
		if _, err := decode(&peerpb.DoRequest{Gid: "g", Want: want}); err == nil {
			t.Errorf("milestone %d is taken", want)
		}
	}
}

func TestEveryErrorSurvivesTheHop(t *testing.T) {
	for c := txn.CodeInvalid; c <= txn.CodeIncomplete; c++ {
		want := &txn.Error{Code: c, Gid: "g", Mode: txn.ModeXA, Phase: txn.PhaseAborting, Stopped: true, Text: "why"}
		var got *txn.Error
		if !errors.As(decodeError(encodeError(fmt.Errorf("wrapped: %w", want)), "g"), &got) || *got != *want {
			t.Errorf("%s: got %+v, want %+v", c, got, want)
		}
	}
	over := &engine.OverloadedError{Why: "full", RetryAfter: 1500 * time.Millisecond}
	var got *engine.OverloadedError
	if !errors.As(decodeError(encodeError(over), "g"), &got) || *got != *over {
		t.Errorf("overloaded: got %+v, want %+v", got, over)
	}
	for sent, want := range map[error]error{engine.ErrNotHolder: engine.ErrNotHolder, engine.ErrStopping: engine.ErrNotHolder, engine.ErrUnavailable: engine.ErrUnavailable} {
		if err := decodeError(encodeError(fmt.Errorf("x: %w", sent)), "g"); !errors.Is(err, want) {
			t.Errorf("%v: got %v, want %v", sent, err, want)
		}
	}
	if err := decodeError(encodeError(nil), "g"); err != nil {
		t.Errorf("no error became %v", err)
	}
	err := decodeError(encodeError(errors.New("disk on fire")), "g")
	var te *txn.Error
	if err == nil || errors.As(err, &te) || errors.Is(err, engine.ErrNotHolder) {
		t.Errorf("an unknown outcome became %v", err)
	}
}

// answering is an engine that answers every request alike.
type answering struct {
	Engine
	rep engine.Reply
}

// Do is Engine's.
func (a answering) Do(context.Context, engine.Request) (engine.Reply, error) { return a.rep, nil }

// That only the outcome is still kept is seen behind the hop as well.
func TestATrimmedAnswerSurvivesTheHop(t *testing.T) {
	for _, trimmed := range []bool{true, false} {
		rep := engine.Reply{State: txn.State{Gid: "g", Mode: txn.ModeTCC, Phase: txn.PhaseCommitted, BegunAt: 5, DecidedAt: 6, FinishedAt: 7}, Trimmed: trimmed}
		in, err := encode(engine.Request{Gid: "g", Want: engine.WantAccepted})
		if err != nil {
			t.Fatal(err)
		}
		out, err := server{e: answering{rep: rep}}.Do(context.Background(), in)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeReply(out, "g")
		if err != nil || got.Trimmed != trimmed || got.State.Phase != txn.PhaseCommitted {
			t.Errorf("trimmed %v: %+v, %v", trimmed, got, err)
		}
	}
}
