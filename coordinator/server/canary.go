package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/lockstep-tx/lockstep/coordinator/api/admin"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// mountMoves serves what the tool that moves slots asks a region.
func (s *Server) mountMoves(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/region/reached", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		n, err := strconv.Atoi(q.Get("slot"))
		epoch, err2 := strconv.ParseUint(q.Get("epoch"), 10, 64)
		seq, err3 := strconv.ParseUint(q.Get("seq"), 10, 64)
		if err := errors.Join(err, err2, err3); err != nil || n < 0 || n >= slot.Count {
			http.Error(w, "slot, epoch and seq are numbers, chain is the seal's", http.StatusBadRequest)
			return
		}
		reached, err := s.journal.Reached(r.Context(), n, &slot.Seal{Epoch: slot.Epoch(epoch), Seq: seq, Chain: q.Get("chain"), Forced: q.Get("forced") == "true"})
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]bool{"reached": reached}) // the caller has left, then
	})
	mux.HandleFunc("POST /v1/region/canary", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.URL.Query().Get("slot"))
		if err != nil || n < 0 || n >= slot.Count {
			http.Error(w, fmt.Sprintf("slot: %q is not 0 to %d", r.URL.Query().Get("slot"), slot.Count-1), http.StatusBadRequest)
			return
		}
		start := time.Now()
		if err := s.canary(r.Context(), n); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		admin.AuditOf(r.Context(), s.log, "canary", nil, "slot", n)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]int64{"took_ms": time.Since(start).Milliseconds()}) // the caller has left, then
	})
}

// canary begins a transaction in the slot, in this region, and aborts it.
func (s *Server) canary(ctx context.Context, n int) error {
	gid := txn.Gid("{" + tagOf(n) + "}canary-" + uuid.NewString())
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	spec := txn.Spec{Mode: txn.ModeTCC, Opt: txn.Options{Timeout: time.Minute}}
	if _, err := s.runner.Do(ctx, engine.Request{Gid: gid, Event: txn.Prepare{Spec: spec}, Want: engine.WantAccepted, Border: true}); err != nil {
		return err
	}
	_, err := s.runner.Do(ctx, engine.Request{Gid: gid, Event: txn.Abort{Reason: "canary"}, Want: engine.WantDecided, Border: true})
	return err
}

// tagOf gives a hash tag of a slot.
func tagOf(n int) string {
	for i := 0; ; i++ {
		if tag := "c" + strconv.Itoa(i); slot.Of(tag) == n {
			return tag
		}
	}
}
