package record

import (
	"bytes"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/lockstep-tx/lockstep/coordinator/record/recordpb"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

var deterministic = proto.MarshalOptions{Deterministic: true}

func generatedClosed(s *txn.State) ([]byte, error) {
	phase := s.Phase
	if phase.Finished() {
		// The closed part belongs to the decision: what followed is the progress part's business.
		phase = txn.PhaseAborting
		if s.Phase.Commit() {
			phase = txn.PhaseCommitting
		}
	}
	c := &recordpb.Closed{
		Gid: string(s.Gid), Mode: uint32(s.Mode), Phase: uint32(phase), Epoch: s.Epoch, BegunAt: s.BegunAt,
		DecidedAt: s.DecidedAt, QueryUrl: s.QueryURL, Custom: s.Custom, Reason: s.Reason, Result: s.Result,
		Digest: []byte(s.Digest), Tenant: s.Tenant, Options: OptionsToPB(&s.Opt),
	}
	if len(s.Branches) > 0 {
		store := make([]recordpb.Branch, len(s.Branches))
		c.Branches = make([]*recordpb.Branch, len(s.Branches))
		for i := range s.Branches {
			c.Branches[i] = &store[i]
			branchToPB(&s.Branches[i], &store[i])
		}
	}
	for i := range s.Steps {
		c.Steps = append(c.Steps, StepToPB(&s.Steps[i]))
	}
	return deterministic.Marshal(c)
}

func generatedProgress(s *txn.State, tl *Timeline) ([]byte, error) {
	p := &recordpb.Progress{
		Phase: uint32(s.Phase), Stopped: s.Stopped, InDoubt: s.InDoubt, UpdatedAt: s.UpdatedAt, FinishedAt: s.FinishedAt,
		Retries: uint32(s.Retries), Query: opToPB(&s.Query), AttemptsDropped: uint32(tl.Dropped),
	}
	if len(s.Branches) > 0 {
		store := make([]recordpb.BranchProgress, len(s.Branches))
		p.Branches = make([]*recordpb.BranchProgress, len(s.Branches))
		for i := range s.Branches {
			b := &s.Branches[i]
			p.Branches[i] = &store[i]
			store[i].One, store[i].Two, store[i].Result = opToPB(&b.One), opToPB(&b.Two), b.Result
		}
	}
	if len(tl.Attempts) > 0 {
		store := make([]recordpb.Attempt, len(tl.Attempts))
		p.Attempts = make([]*recordpb.Attempt, len(tl.Attempts))
		for i := range tl.Attempts {
			a := &tl.Attempts[i]
			p.Attempts[i] = &store[i]
			store[i].Branch, store[i].Op, store[i].Number = string(a.Branch), uint32(a.Op), uint32(a.Number)
			store[i].StartedAt, store[i].TookMicros = a.StartedAt, uint32(min(a.Took.Microseconds(), 1<<32-1))
			store[i].Outcome, store[i].Text = uint32(a.Outcome), a.Text
		}
	}
	for _, t := range tl.Takeovers {
		p.Takeovers = append(p.Takeovers, &recordpb.Takeover{At: t.At, Holder: t.Holder})
	}
	return deterministic.Marshal(p)
}

// opToPB gives nil for a call that was never made nor owed: most of them.
func opToPB(o *txn.OpState) *recordpb.OpState {
	if o.Status == txn.OpPending && o.Attempts == 0 && o.Fails == 0 && o.LastError == "" {
		return nil
	}
	return &recordpb.OpState{
		Status: uint32(o.Status), Attempts: uint32(o.Attempts), Fails: uint32(o.Fails), DoneAt: o.DoneAt, LastError: o.LastError,
	}
}
func TestTheBytesAreThoseOfTheGeneratedCode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tx := drawTx(t)
		if rapid.Bool().Draw(t, "headers") {
			tx.State.Opt.Headers = rapid.MapOf(rapid.StringMatching(`[a-z]{0,3}`), rapid.StringMatching(`[a-z]{0,3}`)).Draw(t, "header")
		}
		tx.State.Opt.RetryLimit -= rapid.IntRange(0, 20).Draw(t, "below")
		for i := range tx.State.Branches { // lengths on both sides of one, two and three bytes
			n := rapid.SampledFrom([]int{0, 1, 90, 127, 128, 129, 16_383, 16_384, 40_000}).Draw(t, "bytes")
			tx.State.Branches[i].Payload = bytes.Repeat([]byte{7}, n)
			tx.State.Branches[i].Message = rapid.Bool().Draw(t, "message")
		}
		for range rapid.IntRange(0, 3).Draw(t, "steps") {
			tx.State.Steps = append(tx.State.Steps, txn.WorkflowStep{Branch: "01", Op: "action", Failed: rapid.Bool().Draw(t, "failed"), Data: []byte(rapid.String().Draw(t, "data")), At: 9})
		}
		tx.Closed, tx.Progress = nil, nil
		tx.Finish, tx.FinishEpoch = Head{Seq: rapid.Uint64().Draw(t, "seq"), Chain: Chain{9}}, 1<<63
		got, err := tx.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if want := generated(t, tx); !bytes.Equal(got, want) {
			t.Fatalf("%x\ngenerated code:\n%x", got, want)
		}
	})
}

func generated(t *rapid.T, tx *Tx) []byte {
	closed, err := generatedClosed(&tx.State)
	if err != nil {
		t.Fatal(err)
	}
	progress, err := generatedProgress(&tx.State, &tx.Timeline)
	if err != nil {
		t.Fatal(err)
	}
	header := func(h Head, epoch uint64) *recordpb.EventHeader {
		if h.Seq == 0 {
			return nil
		}
		return &recordpb.EventHeader{Seq: h.Seq, Epoch: epoch, Chain: h.Chain[:]}
	}
	raw, err := deterministic.Marshal(&recordpb.Record{
		Closed: closed, Progress: progress, Decision: header(tx.Decision, tx.DecisionEpoch), Finish: header(tx.Finish, tx.FinishEpoch),
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestTextThatIsNoUTF8IsAnErrorThatNamesTheField(t *testing.T) {
	tx := &Tx{State: txn.State{Gid: "g", Mode: txn.ModeTCC, Phase: txn.PhasePrepared, Custom: "a\xff"}}
	if _, err := tx.Encode(); err == nil || !strings.Contains(err.Error(), "field 11") {
		t.Fatalf("got %v", err)
	}
}

func BenchmarkEncode(b *testing.B) {
	tx := &Tx{State: txn.State{Gid: "ls1-0123456789abcdef01234567", Mode: txn.ModeTCC, Phase: txn.PhasePrepared, BegunAt: 1 << 40, UpdatedAt: 1 << 40}}
	for _, id := range []txn.BranchID{"01", "02"} {
		tx.State.Branches = append(tx.State.Branches, txn.Branch{ID: id, Confirm: "http://127.0.0.1:8080/api/busi/TransInConfirm", Cancel: "http://127.0.0.1:8080/api/busi/TransInCancel", Payload: []byte(`{"amount":30}`)})
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tx.Encode(); err != nil {
			b.Fatal(err)
		}
	}
}
