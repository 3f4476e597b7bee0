package dtmwire

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	"github.com/dtm-labs/dtm/client/dtmgrpc/dtmgpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// RegisterGRPC adds DTM's service to a gRPC server.
func (s *Server) RegisterGRPC(g grpc.ServiceRegistrar) { dtmgpb.RegisterDtmServer(g, grpcServer{s: s}) }

// grpcServer is DTM's generated service on the Server.
type grpcServer struct {
	dtmgpb.UnimplementedDtmServer
	s *Server
}

var empty = &emptypb.Empty{}

// grpcFault puts an error into DTM's gRPC form.
func grpcFault(ctx context.Context, err error) error {
	f := faultOf(err)
	_, code, _ := f.Kind.Codes()
	if f.RetryAfter > 0 {
		_ = grpc.SetTrailer(ctx, metadata.Pairs("retry-after", strconv.Itoa(max(1, int(f.RetryAfter/time.Second)))))
	}
	return status.Error(code, f.message())
}

func reply[T any](ctx context.Context, out T, err error) (T, error) {
	if err != nil {
		var none T
		return none, grpcFault(ctx, err)
	}
	return out, nil
}

// globalOf reads a DtmRequest. Everything that comes by gRPC has gRPC branches, as in DTM.
func globalOf(r *dtmgpb.DtmRequest) (*global, error) {
	o := r.GetTransOptions()
	g := &global{
		Gid: r.GetGid(), TransType: r.GetTransType(), BinPayloads: r.GetBinPayloads(), QueryPrepared: r.GetQueryPrepared(), Protocol: "grpc",
		CustomData: r.GetCustomedData(), WaitResult: o.GetWaitResult(), TimeoutToFail: o.GetTimeoutToFail(), RequestTimeout: o.GetRequestTimeout(),
		RetryInterval: o.GetRetryInterval(), RetryLimit: o.GetRetryLimit(), BranchHeaders: o.GetBranchHeaders(),
		RollbackReason: r.GetRollbackReason(), ReqExtra: r.GetReqExtra(),
	}
	if st := r.GetSteps(); st != "" {
		if err := json.Unmarshal([]byte(st), &g.Steps); err != nil {
			return nil, invalid("Steps", "it is not a JSON array of steps: %v", err)
		}
	}
	return g, nil
}

// fits bounds a request as HTTP's body is bounded.
func (g grpcServer) fits(m proto.Message) error {
	if n := int64(proto.Size(m)); n > g.s.lim.BodyBytes {
		return invalid("request", "it has %d bytes; at most %d are taken", n, g.s.lim.BodyBytes)
	}
	return nil
}

// read bounds and reads a DtmRequest.
func (g grpcServer) read(r *dtmgpb.DtmRequest) (*global, error) {
	if err := g.fits(r); err != nil {
		return nil, err
	}
	return globalOf(r)
}

func (g grpcServer) onGlobal(ctx context.Context, r *dtmgpb.DtmRequest, f func(context.Context, *global) error) (*emptypb.Empty, error) {
	gl, err := g.read(r)
	if err == nil {
		err = f(ctx, gl)
	}
	return reply(ctx, empty, err)
}

// NewGid, Submit and the others are dtmgpb.DtmServer's.
func (g grpcServer) NewGid(context.Context, *emptypb.Empty) (*dtmgpb.DtmGidReply, error) {
	return &dtmgpb.DtmGidReply{Gid: g.s.NewGid()}, nil
}

func (g grpcServer) Submit(ctx context.Context, r *dtmgpb.DtmRequest) (*emptypb.Empty, error) {
	return g.onGlobal(ctx, r, g.s.submit)
}

func (g grpcServer) Prepare(ctx context.Context, r *dtmgpb.DtmRequest) (*emptypb.Empty, error) {
	return g.onGlobal(ctx, r, g.s.prepare)
}

func (g grpcServer) Abort(ctx context.Context, r *dtmgpb.DtmRequest) (*emptypb.Empty, error) {
	return g.onGlobal(ctx, r, g.s.abort)
}

func (g grpcServer) RegisterBranch(ctx context.Context, r *dtmgpb.DtmBranchRequest) (*emptypb.Empty, error) {
	if err := g.fits(r); err != nil {
		return nil, grpcFault(ctx, err)
	}
	d := r.GetData()
	return reply(ctx, empty, g.s.register(ctx, &branch{
		Gid: r.GetGid(), TransType: r.GetTransType(), BranchID: r.GetBranchID(), Data: r.GetBusiPayload(),
		Confirm: d["confirm"], Cancel: d["cancel"], URL: d["url"], Op: d["op"], Status: d["status"],
	}))
}

func (g grpcServer) PrepareWorkflow(ctx context.Context, r *dtmgpb.DtmRequest) (*dtmgpb.DtmProgressesReply, error) {
	gl, err := g.read(r)
	if err != nil {
		return nil, grpcFault(ctx, err)
	}
	rep, err := g.s.prepareWorkflow(ctx, gl)
	if err != nil {
		return nil, grpcFault(ctx, err)
	}
	st := &rep.State
	out := &dtmgpb.DtmProgressesReply{Transaction: &dtmgpb.DtmTransaction{
		Gid: string(st.Gid), Status: statusOf(st.Phase, st.Mode, st.Stopped), RollbackReason: st.Reason, Result: st.Result,
	}}
	for _, row := range branchesOf(st) {
		out.Progresses = append(out.Progresses, &dtmgpb.DtmProgress{Status: row.Status, BinData: row.BinData, BranchID: row.BranchID, Op: row.Op})
	}
	return out, nil
}

func (g grpcServer) Subscribe(ctx context.Context, r *dtmgpb.DtmTopicRequest) (*emptypb.Empty, error) {
	return reply(ctx, empty, g.s.subscribe(ctx, r.GetTopic(), r.GetURL(), r.GetRemark()))
}

func (g grpcServer) Unsubscribe(ctx context.Context, r *dtmgpb.DtmTopicRequest) (*emptypb.Empty, error) {
	return reply(ctx, empty, g.s.unsubscribe(ctx, r.GetTopic(), r.GetURL()))
}

func (g grpcServer) DeleteTopic(ctx context.Context, r *dtmgpb.DtmTopicRequest) (*emptypb.Empty, error) {
	return reply(ctx, empty, g.s.deleteTopic(ctx, r.GetTopic()))
}
