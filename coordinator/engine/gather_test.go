package engine

import (
	"slices"
	"testing"
)

// TestASlotThatIsToBeClaimedTwiceIsClaimedOnce: an etcd transaction with one key twice is refused for ever, and with it every
// slot of the claim (found by the chaos suite's O3: a coordinator was killed during a handover and never took two slots again).
func TestASlotThatIsToBeClaimedTwiceIsClaimedOnce(t *testing.T) {
	more := make(chan []int, 3)
	more <- []int{7}
	more <- []int{3, 7}
	if got := gather([]int{7, 9}, more); !slices.Equal(got, []int{3, 7, 9}) {
		t.Errorf("%v", got)
	}
}
