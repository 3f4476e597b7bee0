package peer

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/peer/peerpb"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/record/recordpb"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

func marshal(f *testing.F, m proto.Message) []byte {
	f.Helper()
	raw, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return raw
}

// FuzzDecode: whatever a peer sends, nothing panics; what is taken leads the core from the absent transaction to a sound
// state, and forwarded again it would be the same request.
func FuzzDecode(f *testing.F) {
	for _, ev := range []txn.Event{
		nil, txn.Prepare{Spec: spec}, txn.Execute{Spec: spec}, txn.Register{Mode: txn.ModeTCC, Branch: spec.Branches[1]}, txn.Abort{Mode: txn.ModeTCC, Reason: "why"}, txn.EndWorkflow{Commit: true},
		engine.Adopt{Tx: record.Tx{State: txn.State{Gid: "g", Mode: txn.ModeTCC, Phase: txn.PhasePrepared, BegunAt: 5}}},
	} {
		in, err := encode(engine.Request{Gid: "g", Event: ev, Want: engine.WantAccepted})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(marshal(f, in))
	}
	bad := func(sp *peerpb.Spec) {
		f.Add(marshal(f, &peerpb.DoRequest{Gid: "g", Want: 1, Event: &peerpb.DoRequest_Execute{Execute: sp}}))
	}
	bad(&peerpb.Spec{Mode: 257})
	bad(&peerpb.Spec{Mode: 1, Branches: []*recordpb.Branch{{Id: "a", After: []uint32{7}}}})
	bad(&peerpb.Spec{Mode: 1, Branches: []*recordpb.Branch{{Id: "a"}, {Id: "a"}}})
	bad(&peerpb.Spec{Mode: 1, Branches: []*recordpb.Branch{{Id: "a", After: []uint32{1}}, {Id: "b", After: []uint32{0}}}})
	bad(&peerpb.Spec{Mode: 1, Options: &recordpb.Options{Protocol: 258, TimeoutMs: 1 << 62}})
	f.Add(marshal(f, &peerpb.DoRequest{Gid: "g", Want: 257}))
	f.Add(marshal(f, &peerpb.DoRequest{Want: 1, Event: &peerpb.DoRequest_Retry{Retry: &peerpb.Empty{}}}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		in := &peerpb.DoRequest{}
		if proto.Unmarshal(raw, in) != nil {
			return
		}
		req, err := decode(in)
		if err != nil {
			return
		}
		if req.Gid == "" || req.Hops != 1 {
			t.Errorf("%+v was taken", req)
		}
		if ad, ok := req.Event.(engine.Adopt); ok {
			if ad.Tx.State.Gid != req.Gid {
				t.Errorf("the record of %q came for %q", ad.Tx.State.Gid, req.Gid)
			}
		} else if req.Event != nil {
			next, _, err := txn.Step(txn.State{Gid: req.Gid}, stamped(req.Event))
			if bad := txn.Check(&next); err == nil && bad != nil {
				t.Errorf("%+v leads to a bad state: %v", req.Event, bad)
			}
			if err == nil && txn.Cycle(next.Branches) >= 0 {
				t.Errorf("%+v waits for itself", next.Branches)
			}
			if err == nil && next.Phase != txn.PhaseNone {
				_ = txn.Owed(next)
			}
		}
		out, err := encode(req)
		if err != nil {
			t.Fatalf("what was read cannot be sent: %v", err)
		}
		again, err := decode(out)
		if err != nil {
			t.Fatalf("what was sent cannot be read: %v", err)
		}
		if d := cmp.Diff(req, again, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("(-read +read again):\n%s", d)
		}
	})
}

// stamped gives an event that begins a transaction the time that the holder would.
func stamped(ev txn.Event) txn.Event {
	switch e := ev.(type) {
	case txn.Prepare:
		e.At = 1
		return e
	case txn.Execute:
		e.At = 1
		return e
	case txn.Submit:
		e.At = 1
		return e
	}
	return ev
}

// FuzzDecodeReply: an answer is that of the transaction that was asked for, or an error; a refusal that this version does
// not know is never taken for one that it knows.
func FuzzDecodeReply(f *testing.F) {
	raw, err := encodeState(engine.Reply{State: txn.State{Gid: "g", Mode: txn.ModeTCC, Phase: txn.PhaseCommitting, DecidedAt: 5, Branches: spec.Branches}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(marshal(f, &peerpb.DoReply{Record: raw}), "g")
	f.Add(marshal(f, &peerpb.DoReply{Record: raw}), "h")
	f.Add(marshal(f, &peerpb.DoReply{Record: []byte("x")}), "g")
	f.Add(marshal(f, &peerpb.DoReply{Error: &peerpb.Error{Kind: errRefused, Code: 257, Mode: 1, Phase: 3, Text: "why"}}), "g")
	f.Add(marshal(f, &peerpb.DoReply{Error: &peerpb.Error{Kind: errOverloaded, RetryAfterMs: -1 << 62}}), "g")
	f.Add(marshal(f, &peerpb.DoReply{Error: &peerpb.Error{Kind: 99}}), "g")
	f.Fuzz(func(t *testing.T, raw []byte, gid string) {
		out := &peerpb.DoReply{}
		if proto.Unmarshal(raw, out) != nil {
			return
		}
		rep, err := decodeReply(out, txn.Gid(gid))
		if rep.State.Phase != txn.PhaseNone && (string(rep.State.Gid) != gid || txn.Check(&rep.State) != nil) {
			t.Errorf("%q was asked for, %+v came", gid, rep.State)
		}
		if out.Error != nil && err == nil {
			t.Errorf("the error %v was lost", out.Error)
		}
		var te *txn.Error
		if errors.As(err, &te) && (out.Error.Kind != errRefused || uint32(te.Code) != out.Error.Code || uint32(te.Phase) != out.Error.Phase || uint32(te.Mode) != out.Error.Mode) {
			t.Errorf("%v was read as %+v", out.Error, te)
		}
		var oe *engine.OverloadedError
		if errors.As(err, &oe) && oe.RetryAfter < 0 {
			t.Errorf("retry after %v", oe.RetryAfter)
		}
	})
}
