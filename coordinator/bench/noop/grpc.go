package noop

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Service is the gRPC service of the participants; its methods are Try, Confirm and Cancel.
const Service = "busi.Noop"

// RawCodec passes messages as they are: *[]byte in both directions. It calls itself "proto", which is what the bytes
// are and what every gRPC server accepts.
type RawCodec struct{}

// Name implements encoding.CodecV2.
func (RawCodec) Name() string { return "proto" }

// Marshal implements encoding.CodecV2.
func (RawCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, status.Errorf(codes.Internal, "the raw codec takes *[]byte, not %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(*b)}, nil
}

// Unmarshal implements encoding.CodecV2.
func (RawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return status.Errorf(codes.Internal, "the raw codec takes *[]byte, not %T", v)
	}
	*b = data.Materialize()
	return nil
}

// GRPCServer returns a server with the participants' service. It takes any message and any codec name (DTM sends its
// own) and answers an empty message.
func (p *Participants) GRPCServer() *grpc.Server {
	s := grpc.NewServer(grpc.ForceServerCodecV2(RawCodec{}))
	desc := grpc.ServiceDesc{ServiceName: Service, HandlerType: (*any)(nil)}
	for op, name := range map[Op]string{Try: "Try", Confirm: "Confirm", Cancel: "Cancel"} {
		desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: name, Handler: p.grpcHandler(op)})
	}
	s.RegisterService(&desc, p)
	return s
}

var empty []byte

func (p *Participants) grpcHandler(op Op) grpc.MethodHandler {
	return func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var msg []byte
		if err := decode(&msg); err != nil {
			return nil, err
		}
		m := p.call(op, func() string {
			if v := metadata.ValueFromIncomingContext(ctx, "dtm-gid"); len(v) > 0 {
				return v[0]
			}
			return ""
		})
		if m == ModeHold {
			select {
			case <-p.held():
			case <-ctx.Done():
			}
			m = Mode(p.mode.Load())
		}
		if m != ModeOK {
			return nil, status.Error(codes.Unavailable, "told to fail")
		}
		return &empty, nil
	}
}
