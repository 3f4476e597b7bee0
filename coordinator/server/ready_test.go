package server

import (
	"net/http"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/arbiter"
)

// TestARegionIsReadyOnlyWhereBeginsAreAccepted: a load balancer sends traffic where GET /region/ready is 200.
func TestARegionIsReadyOnlyWhereBeginsAreAccepted(t *testing.T) {
	is := func(s *survivor, path string, want int) func() bool {
		return func() bool {
			code, _, _ := ask(t, web(t, nil), "GET", "http://"+s.addr.Admin+path, "", "")
			return code == want
		}
	}
	const yes, no = http.StatusOK, http.StatusServiceUnavailable
	t.Run("a region that owns nothing, and takes a slot", func(t *testing.T) {
		s := survive(t, func(int) string { return "east" })
		if !is(s, "/readyz", yes)() || !is(s, "/region/ready", no)() {
			t.Fatal("the process is to be ready, and the region is not: it owns nothing")
		}
		s.take(map[int]record.Head{3: {}})
		eventually(t, "it is ready with one slot", is(s, "/region/ready", yes))
		s.stopping.Store(true) // as Run does first when it is told to stop; the admin address answers until the end
		if !is(s, "/region/ready", no)() {
			t.Error("a coordinator that stops is ready")
		}
		s.stopping.Store(false)
		eventually(t, "it is ready again", is(s, "/region/ready", yes))
	})
	t.Run("a region whose only slot leaves", func(t *testing.T) {
		s := survive(t, func(n int) string {
			if n == 3 {
				return "west"
			}
			return "east"
		})
		eventually(t, "it is ready with one slot", is(s, "/region/ready", yes))
		owners, err := s.arbiter.Owners(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		to, err := owners[3].Drain("east", "op", time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.arbiter.Change(t.Context(), arbiter.Change{Slot: 3, From: owners[3], To: to}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is not ready while the slot is on its way", is(s, "/region/ready", no))
		if !is(s, "/readyz", yes)() {
			t.Error("the process is to be ready")
		}
	})
}
