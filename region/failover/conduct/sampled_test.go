package conduct

import (
	"slices"
	"testing"

	"github.com/lockstep-tx/lockstep/region/failover"
)

// TestAForcedFailoverWritesToASampleOfItsSlots, spread over all of them, and waits for each of the sample; a batch of another
// move is written to whole.
func TestAForcedFailoverWritesToASampleOfItsSlots(t *testing.T) {
	for _, c := range []struct {
		kind        failover.Kind
		slots, want int
	}{{failover.Forced, 512, 64}, {failover.Forced, 100, 50}, {failover.Forced, 64, 64}, {failover.Forced, 1, 1}, {failover.Handover, 512, 512}} {
		r := failover.Run{Plan: failover.Plan{Kind: c.kind, Batch: c.slots}}
		for n := range c.slots {
			r.Plan.Slots = append(r.Plan.Slots, 2*n)
		}
		asked := make(chan int, c.slots)
		deaf := -1
		serves := sampled(r, func(n int) bool { asked <- n; return n != deaf })
		for _, n := range r.Plan.Slots {
			if !serves(n) {
				t.Fatalf("%s of %d: slot %d was served, and it says no", c.kind, c.slots, n)
			}
		}
		close(asked)
		var list []int
		for n := range asked {
			list = append(list, n)
		}
		slices.Sort(list)
		if len(list) != c.want || list[0] != 0 || list[len(list)-1] < 2*(c.slots-c.slots/c.want) {
			t.Errorf("%s of %d: it asks %d slots, %v", c.kind, c.slots, len(list), list)
		}
		deaf = list[len(list)-1]
		serves = sampled(r, func(n int) bool { return n != deaf })
		if serves(deaf) {
			t.Errorf("%s of %d: slot %d is not served, and it says yes", c.kind, c.slots, deaf)
		}
	}
}
