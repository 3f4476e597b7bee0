package scenario

import (
	"time"

	"github.com/lockstep-tx/lockstep/chaos/fault"
	"github.com/lockstep-tx/lockstep/chaos/proc"
)

// Nightly are the scenarios that take too long for each pull request, in the order in which they run.
func Nightly() []Scenario {
	return []Scenario{
		{ID: "S3", Title: "etcd's history compacted under a coordinator's watch", Fault: fault.Compacted{}, Hold: time.Second, Arms: armed("I3", "I12"), Pair: true},
		{ID: "N3", Title: "nothing of one coordinator goes out", Fault: fault.IsolateOneWay{Slots: proc.Moving, Outbound: true}, Hold: time.Second, Arms: armed("I3", "I11"), Pair: true},
		{ID: "K2", Title: "the power of a region's volumes cut, all at once", Fault: fault.PowerCut{}, Hold: 500 * time.Millisecond, Arms: armed("I3", "I8"), Crash: true,
			Volumes: [][]string{{proc.Wallet, proc.Coordinator, proc.Broker}}},
	}
}
