package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// applied is how far a region has the chains of another one, by slot.
func (d *deployment) applied(region, origin string) map[int]uint64 {
	d.t.Helper()
	resp, err := http.Get("http://" + d.coord[region].addr.Admin + "/v1/region/status")
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	var v struct {
		Origins []struct {
			Region string `json:"region"`
			Slots  []struct {
				Slot    int    `json:"slot"`
				Applied uint64 `json:"applied"`
			} `json:"slots"`
		} `json:"origins"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		d.t.Fatal(err)
	}
	out := map[int]uint64{}
	for _, o := range v.Origins {
		if o.Region != origin {
			continue
		}
		for _, s := range o.Slots {
			out[s.Slot] = s.Applied
		}
	}
	return out
}

// TestWhatAThirdRegionKnowsIsNotLost loses a region while the one that takes its slots has heard less of it than a third one. The
// seals are at what the third one has, and everything that it knew is finished.
func TestWhatAThirdRegionKnowsIsNotLost(t *testing.T) {
	d := deploy(t, []string{"east", "west", "north"}, nil)
	d.level(30 * time.Second)
	before := d.applied("west", "east")
	var open atomic.Bool
	gate := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("op") == "confirm" && !open.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(gate.Close)

	d.coord["west"].signal(syscall.SIGSTOP)
	c, at, w := d.coord["east"].client(), d.accounts.staying, d.accounts.west
	more := map[string]int64{}
	var told []string
	for i := range 20 {
		from, to := at[i%perKind], w[i%perKind]
		tx := d.payment(fmt.Sprintf("told-%d", i), from, from, to, 10+i)
		if i%4 == 0 { // decided and not finished when the region is lost
			tx.Branches = append(tx.Branches, client.Branch{ID: "gate", Try: gate.URL, Confirm: gate.URL, Cancel: gate.URL, Payload: []byte(`{}`)})
		}
		s := persist(t, 20*time.Second, func(ctx context.Context) (client.State, error) { return c.Execute(ctx, tx, client.Decided) })
		if !s.Committed() {
			t.Fatalf("%s: %v %s", tx.Gid, s.GetPhase(), s.GetReason())
		}
		told = append(told, tx.Gid)
		more[from] -= int64(10 + i)
		more[to] += int64(10 + i)
	}
	slots := map[int]bool{}
	for _, gid := range told {
		slots[slot.Of(gid)] = true
	}
	eventually(t, 30*time.Second, "the third region has heard every decision, and every finish but of those that wait", func() bool {
		events := -len(told) - len(told)*3/4
		for n, seq := range d.applied("north", "east") {
			events += int(seq - before[n])
		}
		return events >= 0
	})
	d.killRegion("east")
	known := d.applied("north", "east")
	d.coord["west"].signal(syscall.SIGCONT)
	eventually(t, 20*time.Second, "the target answers", func() bool {
		resp, err := http.Get("http://" + d.coord["west"].addr.Admin + "/readyz")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusOK
	})
	behind := d.applied("west", "east")
	tool := d.failover("east", "west", "--fenced-by", "power", "--at-risk", "block")
	if code := tool.ended(60 * time.Second); code != 0 {
		t.Fatalf("the failover ended with %d:\n%s", code, tool.text())
	}
	owners, ahead := d.epochs(), 0
	for n := range slots {
		if behind[n] < known[n] && behind[n] <= before[n]+2 {
			ahead++
		}
		if o := owners[n]; o.Seal == nil || !o.Seal.Forced || o.Seal.Seq != known[n] {
			t.Errorf("slot %d is sealed at %+v; the third region has it up to %d, the target had it up to %d", n, o.Seal, known[n], behind[n])
		}
	}
	if ahead == 0 {
		t.Fatalf("the third region was ahead nowhere: nothing was shown. It has %v, the target %v", known, behind)
	}
	open.Store(true)
	for _, gid := range told {
		var s client.State
		eventually(t, 30*time.Second, gid+" ends", func() bool {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			var err error
			s, err = d.coord["west"].client().Get(ctx, gid)
			return err == nil && s.Ended()
		})
		if !s.Committed() {
			t.Errorf("%s was told to be committed, and is %v", gid, s.GetPhase())
		}
	}
	if left := d.inDoubt("west"); len(left) > 0 {
		t.Errorf("in doubt: %v", left)
	}
	d.names = []string{"west", "north"}
	(&load{d: d, stop: func() {}}).end(30*time.Second, more)
	t.Logf("the third region was ahead in %d of %d slots", ahead, len(slots))
}
