package eventlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Head is how far the chain of a slot is published.
type Head struct {
	Slot int
	Head record.Head
}

// Live is what a coordinator of an origin says of itself beside the heads: its part of the region.
type Live struct {
	// Member is its id; empty of one that does not say.
	Member string
	// Open transactions, and Unpublished events: decided or finished, and not in Kafka.
	Open, Unpublished int
}

// Beat is a partition's heartbeat: the heads of its slots, those that have changed or all of them, and the counts of the
// coordinator that publishes the partition.
type Beat struct {
	At int64 // unix milliseconds, by the origin's clock
	Live
	Heads []Head
}

const (
	beatVersion = 1
	headBytes   = 4 + 8 + len(record.Chain{})
)

var beatKey = []byte("beat")

// AppendHeads encodes heads, 44 bytes each.
func AppendHeads(b []byte, heads []Head) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(heads)))
	for _, h := range heads {
		b = binary.BigEndian.AppendUint32(b, uint32(h.Slot))
		b = binary.BigEndian.AppendUint64(b, h.Head.Seq)
		b = append(b, h.Head.Chain[:]...)
	}
	return b
}

// DecodeHeads reads what AppendHeads wrote and gives the rest.
func DecodeHeads(b []byte) ([]Head, []byte, error) {
	if len(b) < 4 {
		return nil, nil, errShort
	}
	n := int(binary.BigEndian.Uint32(b))
	b = b[4:]
	if n > slot.Count || len(b) < n*headBytes {
		return nil, nil, errShort
	}
	out := make([]Head, n)
	for i := range out {
		out[i].Slot = int(binary.BigEndian.Uint32(b))
		if out[i].Slot >= slot.Count {
			return nil, nil, fmt.Errorf("a head of slot %d of %d", out[i].Slot, slot.Count)
		}
		out[i].Head.Seq = binary.BigEndian.Uint64(b[4:])
		copy(out[i].Head.Chain[:], b[12:])
		b = b[headBytes:]
	}
	return out, b, nil
}

var errShort = errors.New("the bytes end too early")

// Encode gives the bytes of a heartbeat.
func (h *Beat) Encode() []byte {
	b := make([]byte, 0, 32+len(h.Heads)*headBytes)
	b = append(b, beatVersion)
	b = binary.BigEndian.AppendUint64(b, uint64(h.At))
	b = binary.BigEndian.AppendUint64(b, uint64(h.Open))
	b = binary.BigEndian.AppendUint64(b, uint64(h.Unpublished))
	return AppendMember(AppendHeads(b, h.Heads), h.Member)
}

// memberMax bounds a member's id, in bytes.
const memberMax = 255

// AppendMember encodes who says something: one byte of length, and the id. It comes last, where a reader that does not know of it
// does not look.
func AppendMember(b []byte, member string) []byte {
	if len(member) > memberMax {
		member = member[:memberMax]
	}
	return append(append(b, byte(len(member))), member...)
}

// DecodeMember reads what AppendMember wrote; nothing where there is nothing: who wrote it does not know of it.
func DecodeMember(b []byte) (string, error) {
	switch {
	case len(b) == 0:
		return "", nil
	case len(b) < 1+int(b[0]):
		return "", errShort
	}
	return string(b[1 : 1+int(b[0])]), nil
}

// DecodeBeat reads what Encode wrote.
func DecodeBeat(b []byte) (*Beat, error) {
	if len(b) < 25 {
		return nil, errShort
	}
	if b[0] != beatVersion {
		return nil, fmt.Errorf("a heartbeat of version %d", b[0])
	}
	h := &Beat{At: int64(binary.BigEndian.Uint64(b[1:]))}
	h.Open, h.Unpublished = int(int64(binary.BigEndian.Uint64(b[9:]))), int(int64(binary.BigEndian.Uint64(b[17:])))
	var err error
	if h.Heads, b, err = DecodeHeads(b[25:]); err != nil {
		return nil, err
	}
	h.Member, err = DecodeMember(b)
	return h, err
}

// eventKey is the key of an event's message: it names the slot also where the body cannot be read.
func eventKey(n int, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, uint32(n)), seq)
}

// Message is one message of a partition: exactly one of Event, Beat and Poison is set.
type Message struct {
	Offset int64
	Time   time.Time // when it was published, by the origin's clock
	Event  *record.Event
	Beat   *Beat
	Poison *Poison
}

// Poison is a message that should be an event and is none. Slot is -1 where not even the key says which slot it is of.
type Poison struct {
	Slot   int
	Seq    uint64
	Reason string
	Bytes  []byte
}

// decode tells what a message of a partition is.
func decode(key, value []byte, index, partition, partitions int) (m Message) {
	if string(key) == string(beatKey) {
		beat, err := DecodeBeat(value)
		if err != nil {
			m.Poison = &Poison{Slot: -1, Reason: fmt.Sprintf("a heartbeat that cannot be read: %v", err), Bytes: value}
		}
		m.Beat = beat
		if err != nil {
			m.Beat = nil
		}
		return m
	}
	p := &Poison{Slot: -1, Bytes: value}
	if len(key) == 12 {
		if n := int(binary.BigEndian.Uint32(key)); n < slot.Count && n%partitions == partition {
			p.Slot, p.Seq = n, binary.BigEndian.Uint64(key[4:])
		}
	}
	e, err := record.DecodeEvent(value)
	switch {
	case err != nil:
		p.Reason = fmt.Sprintf("a message that is no event: %v", err)
	case e.Slot != p.Slot || e.Head.Seq != p.Seq:
		p.Reason = fmt.Sprintf("event %d of slot %d under the key of event %d of slot %d", e.Head.Seq, e.Slot, p.Seq, p.Slot)
	case e.Origin() != index:
		p.Reason = fmt.Sprintf("event %d is of epoch %d, which belongs to region %d and not to %d", e.Head.Seq, e.Epoch, e.Origin(), index)
	default:
		m.Event = e
		return m
	}
	m.Poison = p
	return m
}
