package record

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// drawTx draws a record that txn.Check takes.
func drawTx(t *rapid.T) *Tx {
	text := rapid.StringMatching(`[a-zäß{}/ ]{0,12}`)
	data := rapid.SliceOfN(rapid.Byte(), 1, 20)
	phase := rapid.SampledFrom(txn.Phases[1:]).Draw(t, "phase")
	s := txn.State{
		Gid: txn.Gid("g" + text.Draw(t, "gid")), Mode: rapid.SampledFrom(txn.Modes).Draw(t, "mode"), Phase: phase, Stopped: rapid.Bool().Draw(t, "stopped"), InDoubt: !phase.Decided() && rapid.Bool().Draw(t, "in doubt"),
		Epoch: rapid.Uint64().Draw(t, "epoch"), BegunAt: rapid.Int64Range(1, 1<<50).Draw(t, "begun"), UpdatedAt: rapid.Int64Range(1, 1<<50).Draw(t, "updated"),
		QueryURL: text.Draw(t, "query"), Custom: text.Draw(t, "custom"), Reason: text.Draw(t, "reason"), Result: text.Draw(t, "result"),
		Digest: string(data.Draw(t, "digest")), Tenant: text.Draw(t, "tenant"), Retries: rapid.IntRange(0, 9).Draw(t, "retries"),
		Opt: txn.Options{WaitResult: rapid.Bool().Draw(t, "wait"), Timeout: time.Duration(rapid.Int64Range(0, 1e6).Draw(t, "timeout")) * time.Millisecond, RetryLimit: rapid.IntRange(0, 9).Draw(t, "limit")},
	}
	if phase.Decided() {
		s.DecidedAt = rapid.Int64Range(1, 1<<50).Draw(t, "decided")
	}
	if phase.Finished() {
		s.FinishedAt = rapid.Int64Range(1, 1<<50).Draw(t, "finished")
	}
	for i := range rapid.IntRange(0, 4).Draw(t, "branches") {
		b := txn.Branch{ID: txn.BranchID(fmt.Sprintf("%02d", i)), Try: text.Draw(t, "try"), Confirm: text.Draw(t, "confirm"), Cancel: text.Draw(t, "cancel"), Payload: data.Draw(t, "payload"), Result: data.Draw(t, "kept"), UseResults: rapid.Bool().Draw(t, "uses")}
		if i > 0 {
			b.After = []int{rapid.IntRange(0, i-1).Draw(t, "after")}
		}
		b.One = txn.OpState{Status: txn.OpDone, Attempts: rapid.IntRange(0, 99).Draw(t, "one"), Fails: 1, DoneAt: 7, LastError: text.Draw(t, "error")}
		if phase.Decided() {
			b.Two = txn.OpState{Status: rapid.SampledFrom([]txn.OpStatus{txn.OpDone, txn.OpSkipped}).Draw(t, "two"), Attempts: 1}
		}
		s.Branches = append(s.Branches, b)
	}
	tx := &Tx{State: s}
	for i := range rapid.IntRange(0, AttemptsMax+3).Draw(t, "attempts") {
		tx.Timeline.Add(Attempt{Branch: "00", Op: txn.OpConfirm, Number: i + 1, StartedAt: int64(i), Took: time.Duration(i) * time.Microsecond, Outcome: txn.Unknown, Text: "x"})
	}
	if rapid.Bool().Draw(t, "takeover") {
		tx.Timeline.Takeovers = []Takeover{{At: 3, Holder: "c"}}
	}
	if phase.Decided() {
		tx.Decision, tx.DecisionEpoch = Head{Seq: 4, Chain: Chain{1, 2}}, 2
	}
	return tx
}

func TestARecordIsReadAsItWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tx := drawTx(t)
		raw, err := tx.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(raw)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tx, got, cmpopts.EquateEmpty()); d != "" {
			t.Fatalf("(-written +read):\n%s", d)
		}
		again, err := got.Encode()
		if err != nil || !bytes.Equal(raw, again) {
			t.Fatalf("written again it differs: %v", err)
		}
	})
}

// FuzzDecode: bytes are a record that can be written again, or corrupt; nothing panics.
func FuzzDecode(f *testing.F) {
	tx := &Tx{State: txn.State{Gid: "g", Mode: txn.ModeTCC, Phase: txn.PhaseCommitting, Epoch: 1, BegunAt: 5, DecidedAt: 6, Branches: []txn.Branch{{ID: "a", Confirm: "http://c", Cancel: "http://x"}}}}
	raw, err := tx.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte{})
	f.Add([]byte("\x0a\x03\x0a\x01g"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := DecodeHead(b); err == nil && len(b) > 0 && !bytes.Equal(h.Encode(), b) {
			t.Errorf("head %x was read as %v", b, h)
		}
		tx, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("the error is not ErrCorrupt: %v", err)
			}
			return
		}
		raw, err := tx.Encode()
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if _, err := Decode(raw); err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
	})
}

// FuzzDecodeHead: a head is read to the letter or corrupt; no bytes are the head before the first event.
func FuzzDecodeHead(f *testing.F) {
	f.Add([]byte{})
	f.Add(Head{}.Encode())
	f.Add(Head{Seq: 1<<64 - 1, Chain: Chain{1, 2}}.Encode())
	f.Add(Head{Seq: 1}.Encode()[:39])
	f.Add(append(Head{Seq: 1}.Encode(), 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := DecodeHead(b)
		switch {
		case err != nil:
			if !errors.Is(err, ErrCorrupt) || h != (Head{}) || len(b) == 40 || len(b) == 0 {
				t.Errorf("%x: %v, %v", b, h, err)
			}
		case len(b) == 0:
			if h != (Head{}) {
				t.Errorf("nothing was read as %v", h)
			}
		case !bytes.Equal(h.Encode(), b):
			t.Errorf("%x was read as %v", b, h)
		}
	})
}
