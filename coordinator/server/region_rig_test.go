package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/arbiter/arbitertest"
	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// survivor is west's coordinator in the test's process; east is named in the regions file, and nobody answers there.
type survivor struct {
	*process
	arbiter *arbiter.Arbiter
	wallet  *purse
}

// purse is a participant that notes which slots it was told to adopt, and refuses posts while it is told to.
type purse struct {
	mu      sync.Mutex
	adopted map[int]bool
	posts   int
	refuse  bool
}

func (w *purse) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case req.URL.Path == "/lockstep/adopt":
		var told struct {
			Slots []struct {
				Slot int `json:"slot"`
			} `json:"slots"`
		}
		if err := json.Unmarshal(body, &told); err != nil || len(told.Slots) == 0 {
			http.Error(rw, fmt.Sprintf("%s: %v", body, err), http.StatusBadRequest)
			return
		}
		for _, s := range told.Slots {
			w.adopted[s.Slot] = true
		}
	case req.URL.Path == "/lockstep/tries":
		fmt.Fprint(rw, `{"tries":[]}`)
	case strings.HasPrefix(req.URL.Path, "/pay/"):
		w.posts++
		if w.refuse {
			rw.WriteHeader(http.StatusConflict)
		}
	}
}

func (w *purse) has(n int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.adopted[n]
}

func (w *purse) posted() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.posts
}

func (w *purse) refuses(yes bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refuse = yes
}

// survive starts west in a deployment whose slots are as owner says.
func survive(t *testing.T, owner func(n int) string) *survivor {
	t.Helper()
	arb, at := arbitertest.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := arb.Init(ctx, []string{"east", "west"}, time.Now(), owner); err != nil {
		t.Fatal(err)
	}
	w := &purse{adopted: map[int]bool{}}
	srv := httptest.NewServer(w)
	t.Cleanup(srv.Close)
	can := &registry.Capabilities{Fenced: true, Apply: true, Movable: true, Tries: true, Settle: true}
	if err := registry.Set(ctx, arb, registry.Participant{Name: "wallet", Endpoints: map[string]string{"east": "http://127.0.0.1:1", "west": srv.URL}, Can: can}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "regions.yaml")
	put(t, file, fmt.Sprintf("arbiter: [%q]\nregions:\n  east: {grpc: [\"127.0.0.1:1\"], admin: [\"http://127.0.0.1:1\"], kafka: [\"127.0.0.1:1\"]}\n  west: {grpc: [\"127.0.0.1:1\"], admin: [\"http://127.0.0.1:1\"], kafka: [\"127.0.0.1:1\"]}\n", at))
	return &survivor{process: serve(t, "--region=west", "--regions-file="+file), arbiter: arb, wallet: w}
}

// eastEpoch is east's first, westEpoch what west has after it.
var (
	eastEpoch = slot.Initial(1)
	westEpoch = eastEpoch.Next(2)
)

// take takes slots from east by force, which end at heads.
func (s *survivor) take(heads map[int]record.Head) {
	s.t.Helper()
	owners, err := s.arbiter.Owners(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	var changes []arbiter.Change
	for n, h := range heads {
		seal := slot.SealOf(eastEpoch, h.Seq, h.Chain[:])
		seal.Forced = true
		to := slot.Owner{Region: "west", Epoch: westEpoch, Status: slot.Active, Lost: eastEpoch, Seal: seal, Risk: slot.Risk{Policy: slot.Allow}}
		changes = append(changes, arbiter.Change{Slot: n, From: owners[n], To: to})
	}
	if err := s.arbiter.Change(s.t.Context(), changes...); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "the slots were taken", func() bool {
		m := s.regions.place.Owners()
		for n := range heads {
			if m == nil || m[n].Epoch != westEpoch {
				return false
			}
		}
		return true
	})
}

// heard brings events of east into west's journal.
func (s *survivor) heard(events ...record.Event) {
	s.t.Helper()
	a := s.journal.Applier(journal.ApplyConfig{Own: 2, Seals: s.arbiter.Seals})
	res, err := a.Apply(s.t.Context(), journal.Batch{Origin: 1, Offset: -1, Part: events[0].Slot % s.regions.file.Partitions, Events: events})
	if err != nil || res.Applied != len(events) {
		s.t.Fatal(res, err)
	}
}

// move is what caughtUp is asked for a slot.
func (s *survivor) move(n int) engine.Move {
	return engine.Move{Slot: n, Owner: s.regions.place.Owners()[n]}
}
