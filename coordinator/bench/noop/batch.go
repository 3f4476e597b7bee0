package noop

import (
	"io"
	"net/http"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/lockstep-tx/lockstep/participants/branch"
	"github.com/lockstep-tx/lockstep/participants/branch/batchpb"
)

var (
	batchOffer = http.CanonicalHeaderKey(branch.OfferHeader)
	batchPath  = []string{"/batched/batch"}
	batchedOps = map[string]Op{"/batched/try": Try, "/batched/confirm": Confirm, "/batched/cancel": Cancel}
)

// batch answers a native batch: each member as a single call would be, but that none is held.
func (p *Participants) batch(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, branch.BatchBytesMax))
	req := &batchpb.BatchRequest{}
	if err == nil {
		err = proto.Unmarshal(raw, req)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	reply := &batchpb.BatchReply{Answers: make([]*batchpb.BranchAnswer, len(req.Calls))}
	for i, c := range req.Calls {
		reply.Answers[i] = &batchpb.BranchAnswer{Status: http.StatusOK}
		path, _, _ := strings.Cut(c.GetTarget(), "?")
		op, ok := batchedOps[path]
		if !ok {
			reply.Answers[i].Status = http.StatusNotFound
			continue
		}
		if p.call(op, c.GetGid) != ModeOK {
			reply.Answers[i].Status = http.StatusInternalServerError
		}
	}
	if raw, err = proto.Marshal(reply); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", branch.BatchContentType)
	_, _ = w.Write(raw)
}
