package noop

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/lockstep-tx/lockstep/participants/branch/rawgrpc"
)

// Service is the gRPC service of the participants; its methods are Try, Confirm and Cancel.
const Service = "busi.Noop"

// GRPCServer returns a server with the participants' service. It takes any message and any codec name (DTM sends its
// own) and answers an empty message.
func (p *Participants) GRPCServer() *grpc.Server {
	s := grpc.NewServer(grpc.ForceServerCodecV2(rawgrpc.Codec{}))
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
