package api

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-tx/lockstep/coordinator/api/apipb"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/mutant"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

func transactionOf(st *txn.State) *apipb.Transaction {
	out := &apipb.Transaction{
		Gid: string(st.Gid), Mode: st.Mode.String(), Phase: apipb.Phase(st.Phase), Stopped: st.Stopped, Reason: st.Reason,
		BegunAt: st.BegunAt, DecidedAt: st.DecidedAt, FinishedAt: st.FinishedAt,
	}
	for i := range st.Branches {
		b := &st.Branches[i]
		bs := &apipb.BranchState{
			Id: string(b.ID), TryStatus: b.One.Status.String(), SecondStatus: b.Two.Status.String(),
			Attempts: uint32(b.One.Attempts + b.Two.Attempts), LastError: b.One.LastError, Result: b.Result, Message: b.Message,
		}
		if b.Two.LastError != "" {
			bs.LastError = b.Two.LastError
		}
		out.Branches = append(out.Branches, bs)
	}
	return out
}

// Get is apipb.CoordinatorServer's.
func (s *Server) Get(ctx context.Context, in *apipb.GetRequest) (*apipb.Transaction, error) {
	if err := s.cfg.CheckGid(in.GetGid()); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	rep, err := s.cfg.Engine.Do(ctx, engine.Request{Gid: txn.Gid(in.GetGid()), Want: engine.WantAccepted})
	if err != nil {
		return nil, Status(ctx, err)
	}
	if rep.State.Phase == txn.PhaseNone {
		return nil, status.Errorf(codes.NotFound, "transaction %q is unknown: it was never begun here, or it ended longer ago than outcomes are kept", in.GetGid())
	}
	out := transactionOf(&rep.State)
	if mutant.On(mutant.StaleRead) && time.Since(time.UnixMilli(out.DecidedAt)) < mutant.ReadDelay {
		out.Phase = apipb.Phase_PHASE_RUNNING
	}
	return out, nil
}

// Watch looks at the transaction again and again, at first soon, later seldom: it may live at another coordinator, and
// move while it is watched.
const (
	watchSoon   = 10 * time.Millisecond
	watchSeldom = 250 * time.Millisecond
)

// Watch is apipb.CoordinatorServer's.
func (s *Server) Watch(in *apipb.GetRequest, stream apipb.Coordinator_WatchServer) error {
	ctx := stream.Context()
	var last *apipb.Transaction
	for pause := watchSoon; ; pause = min(2*pause, watchSeldom) {
		now, err := s.Get(ctx, in)
		if err != nil && (last == nil || status.Code(err) != codes.Unavailable) {
			return err
		}
		if err == nil && !proto.Equal(now, last) {
			if err := stream.Send(now); err != nil {
				return err
			}
			if p := txn.Phase(now.Phase); p.Finished() {
				return nil
			}
			last, pause = now, watchSoon
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// pageSizeMax bounds a page.
const pageSizeMax = 1000

// List is apipb.CoordinatorServer's.
func (s *Server) List(ctx context.Context, in *apipb.ListRequest) (*apipb.ListReply, error) {
	f := engine.Filter{Slot: -1, GidPrefix: in.GetGidPrefix(), BegunAfter: in.GetBegunAfter(), BegunBefore: in.GetBegunBefore()}
	if m := in.GetMode(); m != "" {
		mode, ok := txn.ParseMode(m)
		if !ok {
			return nil, invalid("mode", "%q is none of tcc, saga, msg, xa, workflow", m)
		}
		f.Mode = mode
	}
	for _, p := range in.GetPhases() {
		if p <= apipb.Phase_PHASE_UNSPECIFIED || p > apipb.Phase_PHASE_ABORTED {
			return nil, invalid("phases", "unknown phase %d", p)
		}
		f.Phases = append(f.Phases, txn.Phase(p))
	}
	size := int(in.GetPageSize())
	if size == 0 {
		size = 100
	}
	list, next, err := s.cfg.Engine.List(ctx, f, in.GetPageToken(), min(size, pageSizeMax))
	if err != nil {
		return nil, Status(ctx, err)
	}
	out := &apipb.ListReply{NextPageToken: next}
	for i := range list {
		out.Transactions = append(out.Transactions, transactionOf(&list[i].State))
	}
	return out, nil
}
