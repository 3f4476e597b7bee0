// Package rawgrpc is the codec for those who carry gRPC messages without knowing their types: the coordinator, which passes
// payloads on, and the participant's kit, whose branches decode their own.
package rawgrpc

import (
	"fmt"

	"google.golang.org/grpc/mem"
)

// Codec passes messages as they are: *[]byte in both directions. It is encoding.CodecV2, and calls itself "proto", which is
// what the bytes are and what every gRPC server accepts (DTM's own name for it makes newer servers complain).
type Codec struct{}

// Name is encoding.CodecV2's.
func (Codec) Name() string { return "proto" }

// Marshal is encoding.CodecV2's.
func (Codec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("the raw codec takes *[]byte, not %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(*b)}, nil
}

// Unmarshal is encoding.CodecV2's.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("the raw codec takes *[]byte, not %T", v)
	}
	*b = data.Materialize()
	return nil
}
