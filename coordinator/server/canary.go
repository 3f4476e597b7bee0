package server

import (
	"context"
	"encoding/json"
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
	mux.HandleFunc("POST /v1/region/reached", func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Seals map[int]*slot.Seal `json:"seals"`
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			http.Error(w, fmt.Sprintf("seals, by slot, are wanted: %v", err), http.StatusBadRequest)
			return
		}
		reached := []int{}
		for n, seal := range in.Seals {
			if n < 0 || n >= slot.Count || seal == nil {
				http.Error(w, fmt.Sprintf("seals: slot %d is not 0 to %d, or has none", n, slot.Count-1), http.StatusBadRequest)
				return
			}
			there, err := s.journal.Reached(r.Context(), n, seal)
			if err != nil {
				s.log.Warn("whether the journal has everything up to a seal is not known", "slot", n, "err", err)
			} else if there {
				reached = append(reached, n)
			}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string][]int{"reached": reached}) // the caller has left, then
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
	// One whose abort is lost on the way ends soon by itself.
	spec := txn.Spec{Mode: txn.ModeTCC, Opt: txn.Options{Timeout: 10 * time.Second}}
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
