package branch

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch/rawgrpc"
)

// GRPCServer returns a server that serves the branches, the batch protocol at BatchMethod and messages' check-back at
// QueryMethod; opts are added to it. The caller serves and stops it. A branch's answer is an empty message: google.protobuf.Empty and everything alike.
func (p *Participant) GRPCServer(opts ...grpc.ServerOption) *grpc.Server { return grpcServer(p, opts) }

func grpcServer(h host, opts []grpc.ServerOption) *grpc.Server {
	s := grpc.NewServer(append([]grpc.ServerOption{grpc.ForceServerCodecV2(rawgrpc.Codec{}), grpc.MaxRecvMsgSize(BatchBytesMax)}, opts...)...)
	services := map[string]*grpc.ServiceDesc{}
	add := func(method string, h func(ctx context.Context, raw []byte) ([]byte, error)) {
		service, name, _ := strings.Cut(method[1:], "/")
		if services[service] == nil {
			services[service] = &grpc.ServiceDesc{ServiceName: service, HandlerType: (*any)(nil)}
		}
		services[service].Methods = append(services[service].Methods, grpc.MethodDesc{MethodName: name, Handler: rawMethod(method, h)})
	}
	for address, o := range h.addresses() {
		if address == strings.ToLower(address) {
			continue // the HTTP path of the same function
		}
		add(address, func(ctx context.Context, raw []byte) ([]byte, error) {
			return nil, serveGRPC(ctx, h, o.op, raw, func(call *barrier.Call) error { return doOne(ctx, h, o, call, raw, true) })
		})
	}
	add(QueryMethod, func(ctx context.Context, raw []byte) ([]byte, error) {
		return nil, serveGRPC(ctx, h, "", raw, func(call *barrier.Call) error { return h.checkBack(ctx, call) })
	})
	add(BatchMethod, func(ctx context.Context, raw []byte) ([]byte, error) {
		reply, err := runBatch(ctx, []host{h}, raw, true)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		return reply, nil
	})
	for _, d := range services {
		s.RegisterService(d, h)
	}
	return s
}

func rawMethod(method string, h func(context.Context, []byte) ([]byte, error)) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		var raw []byte
		if err := decode(&raw); err != nil {
			return nil, err
		}
		run := func(ctx context.Context, req any) (any, error) {
			out, err := h(ctx, *req.(*[]byte))
			if err != nil {
				return nil, err
			}
			return &out, nil
		}
		if interceptor == nil {
			return run(ctx, &raw)
		}
		return interceptor(ctx, &raw, &grpc.UnaryServerInfo{Server: srv, FullMethod: method}, run)
	}
}

// serveGRPC answers one call by f. op "" stands for any: a check-back's caller need not know it.
func serveGRPC(ctx context.Context, h host, op string, raw []byte, f func(*barrier.Call) error) error {
	_ = grpc.SetHeader(ctx, metadata.Pairs(strings.ToLower(OfferHeader), BatchMethod)) // an offer that is lost is made again
	md, _ := metadata.FromIncomingContext(ctx)
	call, err := barrier.FromMetadata(md)
	if err == nil && op != "" {
		err = isFor(op, call)
	}
	if err == nil && len(raw) > PayloadBytesMax {
		err = fmt.Errorf("%w: the payload is over %d bytes", barrier.ErrInvalid, PayloadBytesMax)
	}
	if err == nil {
		err = f(call)
	}
	if err == nil {
		return nil
	}
	code := Code(err)
	if code == codes.Unknown {
		h.log().Error("branch call", "gid", call.Gid, "branch", call.BranchID, "op", call.Op, "err", err)
	}
	text := err.Error()
	if code == codes.Aborted {
		text = "FAILURE: " + text
	}
	return status.Error(code, text)
}

// Code returns the gRPC status code that answers err.
func Code(err error) codes.Code {
	switch {
	case err == nil:
		return codes.OK
	case errors.Is(err, barrier.ErrStale):
		return codes.OutOfRange
	case errors.Is(err, barrier.ErrMoved):
		return codes.Code(http.StatusMisdirectedRequest) // gRPC has no word for it; DTM's clients send 409 and 425 as they are too
	case errors.Is(err, barrier.ErrOngoing):
		return codes.FailedPrecondition
	case errors.Is(err, barrier.ErrRefused), errors.Is(err, barrier.ErrDuplicate):
		return codes.Aborted
	case errors.Is(err, barrier.ErrInvalid):
		return codes.InvalidArgument
	case errors.Is(err, errBusy), errors.Is(err, errClosed):
		return codes.Unavailable
	}
	return codes.Unknown
}
