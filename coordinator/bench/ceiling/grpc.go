package ceiling

import (
	"context"

	"github.com/dtm-labs/dtm/client/dtmgrpc/dtmgpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// GRPCServer serves DTM's gRPC service.
func (c *Coordinator) GRPCServer() *grpc.Server {
	s := grpc.NewServer()
	dtmgpb.RegisterDtmServer(s, &service{c: c})
	return s
}

type service struct {
	dtmgpb.UnimplementedDtmServer
	c *Coordinator
}

var ok = &emptypb.Empty{}

func answer(err error) (*emptypb.Empty, error) {
	if err != nil {
		return nil, status.Error(codes.Aborted, err.Error())
	}
	return ok, nil
}

// NewGid implements dtmgpb.DtmServer, as do those below.
func (s *service) NewGid(context.Context, *emptypb.Empty) (*dtmgpb.DtmGidReply, error) {
	return &dtmgpb.DtmGidReply{Gid: newGid()}, nil
}

func (s *service) Prepare(_ context.Context, r *dtmgpb.DtmRequest) (*emptypb.Empty, error) {
	return answer(s.c.prepare(r.Gid))
}

func (s *service) RegisterBranch(_ context.Context, r *dtmgpb.DtmBranchRequest) (*emptypb.Empty, error) {
	return answer(s.c.register(r.Gid, branch{
		id: r.BranchID, confirm: r.Data["confirm"], cancel: r.Data["cancel"], payload: r.BusiPayload,
	}))
}

func (s *service) Submit(ctx context.Context, r *dtmgpb.DtmRequest) (*emptypb.Empty, error) {
	return answer(s.c.finish(ctx, r.Gid, "confirm"))
}

func (s *service) Abort(ctx context.Context, r *dtmgpb.DtmRequest) (*emptypb.Empty, error) {
	return answer(s.c.finish(ctx, r.Gid, "cancel"))
}
