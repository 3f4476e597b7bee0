// Package record is the stored form of a transaction: it turns a txn.State into the bytes of tx/<slot>/<gid>, of the
// two outbox events and of the journal's row, and back.
//
// The law it keeps: the bytes of an event never change once they are numbered. The closed part of a record is encoded
// when the transaction is decided and the progress part when it is finished; each is kept as it was written, so that
// the chain over them can be checked for ever. Like txn it is pure.
//
// It is tested by round trips over random states and by fuzzing the decoder.
package record

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lockstep-tx/lockstep/coordinator/record/recordpb"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// ErrCorrupt says that stored bytes are no record. The text names what is wrong.
var ErrCorrupt = errors.New("corrupt record")

// Chain is the hash over all events of a slot up to one of them.
type Chain [sha256.Size]byte

// Head is the number and chain of a slot's last event. The zero Head stands before the first event.
type Head struct {
	Seq   uint64
	Chain Chain
}

// Kind of an event.
type Kind uint8

const (
	KindDecision Kind = 1
	KindFinish   Kind = 2
	// KindCarry is a live record that moves to another region with its slot (ADR 8).
	KindCarry Kind = 3
	// KindSeal is the last event of an epoch of a slot. It has no gid.
	KindSeal Kind = 4
)

func (k Kind) String() string {
	switch k {
	case KindDecision:
		return "decision"
	case KindFinish:
		return "finish"
	case KindCarry:
		return "carry"
	case KindSeal:
		return "seal"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Event is one numbered event of the chain of (origin, slot). Body is the closed part of the record for a decision, the
// progress part for a finish, the whole record for a carry, and empty for a seal.
type Event struct {
	Slot  int
	Kind  Kind
	Gid   txn.Gid
	Epoch uint64
	Head  Head
	Body  []byte
}

// Origin is the index of the region whose chain the event is in (ADR 8).
func (e *Event) Origin() int { return int(e.Epoch % 100) }

// Follows says whether e is the event after prev: its number and its chain.
func (e *Event) Follows(prev Head) bool {
	return e.Head.Seq == prev.Seq+1 && e.Head == prev.Next(e.Slot, e.Epoch, e.Kind, e.Gid, e.Body)
}

// Next numbers an event that follows h: Seq + 1 and the chain over h's chain, the event's header and its body.
func (h Head) Next(slot int, epoch uint64, kind Kind, gid txn.Gid, body []byte) Head {
	sum := sha256.New()
	sum.Write(h.Chain[:])
	var fixed [8 + 8 + 4 + 1 + 4]byte
	binary.BigEndian.PutUint64(fixed[0:], h.Seq+1)
	binary.BigEndian.PutUint64(fixed[8:], epoch)
	binary.BigEndian.PutUint32(fixed[16:], uint32(slot))
	fixed[20] = byte(kind)
	binary.BigEndian.PutUint32(fixed[21:], uint32(len(gid)))
	sum.Write(fixed[:])
	sum.Write([]byte(gid))
	sum.Write(body)
	next := Head{Seq: h.Seq + 1}
	sum.Sum(next.Chain[:0])
	return next
}

// Encode gives the fixed 40 bytes of a head.
func (h Head) Encode() []byte {
	b := make([]byte, 8, 8+len(h.Chain))
	binary.BigEndian.PutUint64(b, h.Seq)
	return append(b, h.Chain[:]...)
}

// DecodeHead reads what Encode wrote; no bytes are the zero Head. Any other length is ErrCorrupt.
func DecodeHead(b []byte) (Head, error) {
	var h Head
	if len(b) == 0 {
		return h, nil
	}
	if len(b) != 8+len(h.Chain) {
		return h, fmt.Errorf("%w: a head has %d bytes, not %d", ErrCorrupt, 8+len(h.Chain), len(b))
	}
	h.Seq = binary.BigEndian.Uint64(b)
	copy(h.Chain[:], b[8:])
	return h, nil
}

// Attempt is one branch call that was answered, for people who look at a transaction.
type Attempt struct {
	Branch    txn.BranchID
	Op        txn.Op
	Number    int
	StartedAt int64 // unix milliseconds
	Took      time.Duration
	Outcome   txn.Outcome
	Text      string
}

// Takeover says that a coordinator read the transaction back at At (unix milliseconds): calls made before it and
// after the last write are forgotten, and shown as missing.
type Takeover struct {
	At     int64
	Holder string
}

// Timeline is the story of a transaction's calls, bounded to AttemptsMax.
type Timeline struct {
	Attempts  []Attempt
	Dropped   int
	Takeovers []Takeover
}

// AttemptsMax bounds the attempts kept per transaction: the first half and the latest.
const AttemptsMax = 64

// Add appends an attempt. When the timeline is full the oldest of its later half goes, so that the beginning of the
// story stays. The receiver's slices are not shared with copies made before.
func (t *Timeline) Add(a Attempt) {
	if len(t.Attempts) < AttemptsMax {
		t.Attempts = append(t.Attempts, a)
		return
	}
	kept := make([]Attempt, 0, AttemptsMax)
	kept = append(kept, t.Attempts[:AttemptsMax/2]...)
	kept = append(kept, t.Attempts[AttemptsMax/2+1:]...)
	t.Attempts = append(kept, a)
	t.Dropped++
}

// Tx is a transaction with its story and the numbers of its events: what a record holds.
type Tx struct {
	State    txn.State
	Timeline Timeline
	// Closed are the exact bytes of the decision's event; nil while undecided.
	Closed []byte
	// Progress are the exact bytes of the finish's event; nil while unfinished.
	Progress []byte
	// Decision and Finish are the events' numbers; zero while there is none.
	Decision, Finish Head
	// DecisionEpoch and FinishEpoch are the epochs in which the events were numbered.
	DecisionEpoch, FinishEpoch uint64
	// Trimmed: the journal keeps the outcome alone, and of State only what its row says. No record is stored so.
	Trimmed bool
}

// Encode gives the record's bytes. It fills Closed where the state is decided and Progress where it is finished, if
// they are not filled yet, and never changes them after that.
func (t *Tx) Encode() ([]byte, error) {
	if err := t.Close(); err != nil {
		return nil, err
	}
	closed, progress := t.Closed, t.Progress
	var err error
	if closed == nil {
		if closed, err = encodeClosed(&t.State); err != nil {
			return nil, err
		}
	}
	if progress == nil {
		if progress, err = encodeProgress(&t.State, &t.Timeline); err != nil {
			return nil, err
		}
	}
	e := encoder{b: make([]byte, 0, len(closed)+len(progress)+128)}
	e.data(1, closed)
	e.data(2, progress)
	e.header(3, t.Decision, t.DecisionEpoch)
	e.header(4, t.Finish, t.FinishEpoch)
	return e.b, e.err
}

// Close fills Closed and Progress as Encode would: the bodies of the events, before they are numbered.
func (t *Tx) Close() error {
	var err error
	if t.State.Phase.Decided() && t.Closed == nil {
		if t.Closed, err = encodeClosed(&t.State); err != nil {
			return err
		}
	}
	if t.State.Phase.Finished() && t.Progress == nil {
		t.Progress, err = encodeProgress(&t.State, &t.Timeline)
	}
	return err
}

// Decode reads what Encode wrote. Bytes that are no record, or whose state breaks a rule of txn, are ErrCorrupt.
func Decode(b []byte) (*Tx, error) {
	rec := &recordpb.Record{}
	if err := proto.Unmarshal(b, rec); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return FromParts(rec.Closed, rec.Progress, headOf(rec.Decision), headOf(rec.Finish), rec.Decision.GetEpoch(), rec.Finish.GetEpoch())
}

// FromParts puts a transaction together from its two parts, as the journal keeps them. progress may be nil for a
// transaction that was decided and whose finish is not known.
func FromParts(closed, progress []byte, decision, finish Head, decisionEpoch, finishEpoch uint64) (*Tx, error) {
	c, p := &recordpb.Closed{}, &recordpb.Progress{}
	if err := proto.Unmarshal(closed, c); err != nil {
		return nil, fmt.Errorf("%w: closed part: %w", ErrCorrupt, err)
	}
	if err := proto.Unmarshal(progress, p); err != nil {
		return nil, fmt.Errorf("%w: progress part: %w", ErrCorrupt, err)
	}
	t := &Tx{Decision: decision, Finish: finish, DecisionEpoch: decisionEpoch, FinishEpoch: finishEpoch}
	if err := decodeState(c, p, &t.State); err != nil {
		return nil, err
	}
	t.Timeline = timelineOf(p)
	if t.State.Phase.Decided() {
		t.Closed = closed
	}
	if t.State.Phase.Finished() {
		t.Progress = progress
	}
	if err := txn.Check(&t.State); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return t, nil
}

func headOf(h *recordpb.EventHeader) Head {
	if h == nil {
		return Head{}
	}
	out := Head{Seq: h.Seq}
	copy(out.Chain[:], h.Chain)
	return out
}
