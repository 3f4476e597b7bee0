package branch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch/batchpb"
)

const (
	// QueryMethod answers messages' check-backs over gRPC, as /query-prepared does over HTTP.
	QueryMethod = batchpb.QueryMethod
	// BatchPath and BatchMethod take native batches over HTTP and gRPC, OfferHeader offers them: see package batchpb.
	BatchPath        = batchpb.Path
	BatchMethod      = batchpb.Method
	OfferHeader      = batchpb.OfferHeader
	BatchContentType = batchpb.ContentType
	// BatchBytesMax bounds a batch, BatchCallsMax its members.
	BatchBytesMax = 8 << 20
	BatchCallsMax = 1024
)

func serveBatch(all []host, w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, BatchBytesMax))
	if err != nil {
		status := http.StatusBadRequest
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			status = http.StatusRequestEntityTooLarge
		}
		http.Error(w, fmt.Sprintf("read the batch: %v", err), status)
		return
	}
	reply, err := runBatch(r.Context(), all, raw, false)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", BatchContentType)
	_, _ = w.Write(reply)
}

// runBatch carries out an encoded BatchRequest and gives the encoded reply. An error means that it is none, and that
// nothing was done.
func runBatch(ctx context.Context, all []host, raw []byte, overGRPC bool) ([]byte, error) {
	req := &batchpb.BatchRequest{}
	if err := proto.Unmarshal(raw, req); err != nil {
		return nil, fmt.Errorf("the batch is no BatchRequest: %w", err)
	}
	if n := len(req.Calls); n > BatchCallsMax {
		return nil, fmt.Errorf("the batch has %d calls; %d are possible", n, BatchCallsMax)
	}
	reply := &batchpb.BatchReply{Answers: make([]*batchpb.BranchAnswer, len(req.Calls))}
	var wg sync.WaitGroup
	jobs := make([][]*job, len(all))
	for i, c := range req.Calls {
		jctx, cancel := ctx, context.CancelFunc(func() {})
		if c.GetTimeoutMs() > 0 {
			jctx, cancel = context.WithTimeout(ctx, time.Duration(c.GetTimeoutMs())*time.Millisecond)
		}
		j, n, err := jobOf(jctx, all, c, overGRPC)
		if err != nil {
			cancel()
			reply.Answers[i] = answerOf(err)
			continue
		}
		wg.Add(1)
		j.done = func(err error) {
			cancel()
			reply.Answers[i] = answerOf(err)
			wg.Done()
		}
		jobs[n] = append(jobs[n], j)
	}
	for n, p := range all {
		p.hand(jobs[n])
	}
	wg.Wait()
	for i, a := range reply.Answers {
		if a.Status >= http.StatusInternalServerError {
			all[0].log().Error("branch call", "gid", req.Calls[i].GetGid(), "branch", req.Calls[i].GetBranchId(), "op", req.Calls[i].GetOp(), "err", a.Message)
		}
	}
	return proto.Marshal(reply)
}

// jobOf finds the function of a member, and whose it is.
func jobOf(ctx context.Context, all []host, c *batchpb.BranchCall, overGRPC bool) (*job, int, error) {
	path, _, _ := strings.Cut(c.GetTarget(), "?")
	n := slices.IndexFunc(all, func(h host) bool { _, ok := h.branchAt(path); return ok })
	if n < 0 {
		return nil, 0, fmt.Errorf("%w: no branch is served at %q", errNoBranch, path)
	}
	op, _ := all[n].branchAt(path)
	if len(c.GetPayload()) > PayloadBytesMax {
		return nil, 0, fmt.Errorf("%w: the payload is over %d bytes", barrier.ErrInvalid, PayloadBytesMax)
	}
	call := &barrier.Call{
		TransType: c.GetTransType(), Gid: c.GetGid(), BranchID: c.GetBranchId(), Op: c.GetOp(),
		Fence:   barrier.Fence{Slot: int(c.GetSlot()), Epoch: int64(c.GetEpoch())},
		Account: barrier.Fence{Slot: int(c.GetAccountSlot()), Epoch: int64(c.GetAccountEpoch())},
	}
	if err := isFor(op.op, call); err != nil {
		return nil, 0, err
	}
	if err := readHeaders(call, c.GetHeaders()); err != nil {
		return nil, 0, err
	}
	return &job{ctx: ctx, op: op, call: call, payload: c.GetPayload(), overGRPC: overGRPC}, n, nil
}

// readHeaders reads what a member's branch headers say to the barrier. Their names are written as the client wrote them.
func readHeaders(call *barrier.Call, headers map[string]string) error {
	var errs []error
	for name, value := range headers {
		switch http.CanonicalHeaderKey(name) {
		case barrier.HeaderDurability:
			errs = append(errs, call.ReadDurability(value))
		case barrier.HeaderSuspense:
			errs = append(errs, call.ReadSuspense(value))
		}
	}
	return errors.Join(errs...)
}

var errNoBranch = errors.New("not found")

func answerOf(err error) *batchpb.BranchAnswer {
	if err == nil {
		return &batchpb.BranchAnswer{Status: http.StatusOK}
	}
	a := &batchpb.BranchAnswer{Status: uint32(Status(err)), Message: strings.ToValidUTF8(err.Error(), "?")}
	if errors.Is(err, errNoBranch) {
		a.Status = http.StatusNotFound
	}
	return a
}
