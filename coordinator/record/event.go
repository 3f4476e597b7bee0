package record

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/lockstep-tx/lockstep/coordinator/record/recordpb"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// EncodeEvent gives the bytes of an event as they travel and are stored.
func EncodeEvent(e *Event) ([]byte, error) {
	return proto.Marshal(&recordpb.Event{
		Slot: uint32(e.Slot), Kind: uint32(e.Kind), Gid: string(e.Gid), Epoch: e.Epoch, Seq: e.Head.Seq, Chain: e.Head.Chain[:], Body: e.Body,
	})
}

// DecodeEvent reads what EncodeEvent wrote; anything else is ErrCorrupt. It does not check the chain: see Follows.
func DecodeEvent(b []byte) (*Event, error) {
	pb := &recordpb.Event{}
	if err := proto.Unmarshal(b, pb); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	e := &Event{Slot: int(pb.Slot), Kind: Kind(pb.Kind), Gid: txn.Gid(pb.Gid), Epoch: pb.Epoch, Body: pb.Body}
	e.Head.Seq = pb.Seq
	switch {
	case pb.Slot >= slot.Count:
		return nil, fmt.Errorf("%w: an event of slot %d of %d", ErrCorrupt, pb.Slot, slot.Count)
	case pb.Kind < uint32(KindDecision) || pb.Kind > uint32(KindSeal):
		return nil, fmt.Errorf("%w: an event of kind %d", ErrCorrupt, pb.Kind)
	case len(pb.Chain) != len(e.Head.Chain):
		return nil, fmt.Errorf("%w: an event's chain has %d bytes", ErrCorrupt, len(pb.Chain))
	case pb.Seq == 0 || pb.Epoch == 0:
		return nil, fmt.Errorf("%w: an event with number %d of epoch %d", ErrCorrupt, pb.Seq, pb.Epoch)
	case (pb.Gid == "") != (e.Kind == KindSeal), e.Kind != KindSeal && slot.Of(pb.Gid) != e.Slot:
		return nil, fmt.Errorf("%w: an event of %q in slot %d", ErrCorrupt, pb.Gid, e.Slot)
	}
	copy(e.Head.Chain[:], pb.Chain)
	return e, nil
}
