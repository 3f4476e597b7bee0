package scenario

import (
	"time"

	"github.com/lockstep-tx/lockstep/chaos/fault"
	"github.com/lockstep-tx/lockstep/chaos/proc"
)

// Nightly are the scenarios that take too long for each pull request, in the order in which they run.
func Nightly() []Scenario {
	return []Scenario{
		{ID: "M2", Title: "cancel before a try that never comes", Fault: fault.CancelFirst(false), Hold: 2 * time.Second, Arms: armed("I3"), TryLimit: 500 * time.Millisecond},
		{ID: "P3", Title: "everything of a region killed at once", Fault: fault.Region(), Hold: time.Second, Arms: armed("I3", "I8"), Crash: true},
		{ID: "P5", Title: "a participant killed between its commit and its reply", Fault: fault.Participant(), Hold: time.Second, Arms: armed("I3", "I8"), Crash: true},
		{ID: "P6", Title: "the wallets' PostgreSQL server killed", Fault: fault.DatabaseKilled{}, Hold: time.Second, Arms: armed("I3", "I8"), Own: OnPostgreSQL, Crash: true},
		{ID: "P7", Title: "the wallets' MariaDB server killed", Fault: fault.DatabaseKilled{}, Hold: time.Second, Arms: armed("I3", "I8"), Own: OnMariaDB, Crash: true},
		{ID: "P8", Title: "the broker killed", Fault: fault.Broker(false), Hold: 3 * time.Second, Arms: armed("I3", "I9", "I10")},
		{ID: "P8-pause", Title: "the broker paused", Fault: fault.Broker(true), Hold: 3 * time.Second, Arms: armed("I3", "I9", "I10")},
		{ID: "P11", Title: "both coordinators of a region restarted in good order, one after the other", Fault: fault.Rolling{}, Arms: armed("I3"), Pair: true},
		{ID: "P11-mixed", Title: "a region's coordinators upgraded from the version before, one after the other, and taken back", Fault: fault.Mixed{}, Hold: time.Second, Arms: armed("I3"), Pair: true, Previous: true},
		{ID: "S1", Title: "no majority of a region's etcd", Fault: fault.NoQuorum(false), Hold: 2 * time.Second, Arms: armed("I3", "I8", "I12"), Pair: true, Three: true, Crash: true},
		{ID: "S2", Title: "no majority of the arbiter: owners go on", Fault: fault.NoQuorum(true), Hold: 2 * time.Second, Arms: armed("I3", "I12"), Three: true},
		{ID: "N4", Title: "an arbiter of five in halves, its leader in the smaller one", Fault: fault.Halves(), Hold: time.Second, Arms: armed("I3", "I12"), Five: true},
		{ID: "N5", Title: "an arbiter of five in two halves, and one member that hears both", Fault: fault.Bridge(), Hold: time.Second, Arms: armed("I3"), Five: true},
		{ID: "N6", Title: "an arbiter of five in a ring: each hears a majority, and each another one", Fault: fault.Ring(), Hold: time.Second, Arms: armed("I3"), Five: true},
		{ID: "N9", Title: "one region does not hear the other", Fault: fault.Weather{Title: "one-way-between-regions", OneWay: true}, Hold: 4 * time.Second, Arms: armed("I3", "I9", "I10")},
		{ID: "N10", Title: "the link between the regions flaps", Fault: fault.Weather{Title: "flapping-between-regions", Flap: true}, Hold: 2 * time.Second, Arms: armed("I3")},
		{ID: "N11", Title: "80 to 250 ms between the regions", Fault: fault.WAN(), Hold: 3 * time.Second, Arms: armed("I3")},
		{ID: "N12", Title: "256 kbit/s between the regions", Fault: fault.Thin(), Hold: 3 * time.Second, Arms: armed("I3", "I9", "I10")},
		{ID: "N13", Title: "connections between the regions reset again and again", Fault: fault.Weather{Title: "reset-storm", Flap: true, Refuse: true}, Hold: 3 * time.Second, Arms: armed("I3")},
		{ID: "N15", Title: "connections torn in mid-frame, and half open", Fault: fault.Torn{}, Hold: 2 * time.Second, Arms: armed("I3")},
		{ID: "N16", Title: "a participant that answers late, by up to 5 s", Fault: fault.Gray{}, Hold: 2 * time.Second, Arms: armed("I3"), TryLimit: 2 * time.Second},
		{ID: "N17", Title: "the broker's answers to what is published lost", Fault: fault.Unacknowledged{}, Hold: time.Second, Arms: armed("I3", "I9", "I10"), Brokers: true},
		{ID: "N18", Title: "liveness: one coordinator hears nothing, for good; the others must go on", Fault: fault.Outside{}, Arms: armed("I3"), Pair: true},
		{ID: "N19", Title: "links clogged one by one, and unclogged in another order", Fault: fault.Swizzle{}, Hold: 2 * time.Second, Arms: armed("I3", "I9", "I10"), Brokers: true},
		{ID: "N20", Title: "a fifth of the packets between the regions lost", Fault: fault.Weather{Title: "packet-loss", Loss: 20}, Hold: 4 * time.Second, Arms: armed("I3")},
		{ID: "S3", Title: "etcd's history compacted under a coordinator's watch", Fault: fault.Compacted{}, Hold: time.Second, Arms: armed("I3", "I12"), Pair: true},
		{ID: "N3", Title: "nothing of one coordinator goes out", Fault: fault.IsolateOneWay{Slots: proc.Moving, Outbound: true}, Hold: time.Second, Arms: armed("I3", "I11"), Pair: true},
		{ID: "K2", Title: "the power of a region's volumes cut, all at once", Fault: fault.PowerCut{}, Hold: 500 * time.Millisecond, Arms: armed("I3", "I8"), Crash: true,
			Volumes: [][]string{{proc.Wallet, proc.Coordinator, proc.Broker}}},
		{ID: "K3", Title: "a participant's or the coordinator's disk full", Fault: fault.DiskFull{}, Hold: 2 * time.Second, Arms: armed("I3"), Volumes: [][]string{{proc.Wallet}, {proc.Coordinator}}},
		{ID: "K4", Title: "syncs of a participant's or the coordinator's disk fail, and what was not synced is lost", Fault: fault.SyncFails{}, Hold: time.Second, Arms: armed("I3", "I8"), Crash: true,
			Volumes: [][]string{{proc.Wallet}, {proc.Coordinator}}, Syncs: true},
		{ID: "K7", Title: "each sync of a participant's or the coordinator's disk takes 500 ms more", Fault: fault.SyncSlow{}, Hold: 3 * time.Second, Arms: armed("I3"),
			Volumes: [][]string{{proc.Wallet}, {proc.Coordinator}}, Syncs: true},
		{ID: "C1", Title: "a region's clock forward by 11 ms to 288 s, and back", Fault: fault.Clock{Title: "clock-bump"}, Hold: 3 * time.Second, Arms: armed("I3"), Clocks: true},
		{ID: "C3", Title: "a region's clock an hour ahead, and back", Fault: fault.Clock{Title: "clock-an-hour-ahead", By: time.Hour}, Hold: 3 * time.Second, Arms: armed("I3"), Pair: true, Clocks: true},
		{ID: "C2", Title: "the clock of the wallets' PostgreSQL server seconds before and behind, to and fro", Fault: fault.Strobed{}, Hold: 2 * time.Second, Arms: armed("I3"), Own: OnPostgreSQL, Skew: true},
		{ID: "C2-mariadb", Title: "the clock of the wallets' MariaDB server seconds before and behind, to and fro", Fault: fault.Strobed{}, Hold: 2 * time.Second, Arms: armed("I3"), Own: OnMariaDB, Skew: true},
		{ID: "C4", Title: "the clock of the wallets' PostgreSQL server minutes off, one way and the other", Fault: fault.Skewed{}, Hold: 2 * time.Second, Arms: armed("I3"), Own: OnPostgreSQL, Skew: true},
		{ID: "C4-mariadb", Title: "the clock of the wallets' MariaDB server minutes off, one way and the other", Fault: fault.Skewed{}, Hold: 2 * time.Second, Arms: armed("I3"), Own: OnMariaDB, Skew: true},
		{ID: "K5", Title: "a bit of an etcd member's log turned round: it does not serve, and is replaced", Fault: fault.Replaced{Flip: true}, Hold: time.Second, Arms: armed("I3"), Pair: true, Three: true},
		{ID: "K6", Title: "the end of an etcd member's log or database cut off: it gets it from the others, or is replaced", Fault: fault.Truncated{}, Hold: time.Second, Arms: armed("I3", "I8"), Pair: true, Three: true, Crash: true},
		{ID: "O1", Title: "a member of a region's etcd lost with its disk, and replaced", Fault: fault.Replaced{}, Hold: time.Second, Arms: armed("I3"), Pair: true, Three: true},
		{ID: "O2", Title: "a member of a region's etcd that lags, and gets a snapshot", Fault: fault.Lagging{}, Hold: 500 * time.Millisecond, Arms: armed("I3"), Pair: true, Three: true},
		{ID: "O4", Title: "a region lost with its disks, failed over by force, rebuilt from nothing, and failed back", Fault: fault.Rebuilt{}, Hold: 2 * time.Second, Arms: armed("I3", "I8"), Crash: true, Lost: true, Files: true},
		{ID: "K9-head", Title: "a topic truncated before it was read", Fault: fault.HeadLost(), Hold: time.Second, Arms: armed("I3", "I9", "I10")},
		{ID: "K9-tail", Title: "a broker on the data of a while ago", Fault: fault.TailLost(), Hold: time.Second, Arms: armed("I3", "I9", "I10")},
		{ID: "K9-new", Title: "a topic deleted, and made anew", Fault: fault.Recreated(), Hold: time.Second, Arms: armed("I3", "I9", "I10")},
		{ID: "M5", Title: "a topic read from its beginning once more", Fault: fault.Replayed{}, Hold: time.Second, Arms: armed("I3")},
		{ID: "M7", Title: "a poisoned event: one slot stops, the others go on", Fault: fault.Poisoned{}, Hold: time.Second, Arms: armed("I3", "I9", "I10")},
		{ID: "S4", Title: "a region's etcd refuses writes for want of space", Fault: fault.NoSpace{}, Hold: 4 * time.Second, Arms: armed("I3"), Pair: true},
		{ID: "S5", Title: "a coordinator's lease revoked while it lives", Fault: fault.LeaseLost{}, Hold: time.Second, Arms: armed("I3"), Pair: true},
		{ID: "M4", Title: "events out of order, and twice", Fault: fault.Disordered(), Hold: time.Second, Arms: armed("I3", "I9", "I10")},
		{ID: "R26", Title: "drift planted while a look for it is under way", Fault: fault.Repaired{Accounts: 3, During: true}, Arms: armed("I3", "I13"), Drift: true},
		{ID: "R27", Title: "canary drift, named by the continuous watch", Fault: fault.Canary{}, Arms: armed("I3"), Drift: true},
		{ID: "X1", Title: "one to four faults over each other, as the seed draws them", Fault: fault.Sink{Draw: 1}, Arms: armed("I3"), Pair: true, Three: true, Brokers: true, TryLimit: 2 * time.Second},
		{ID: "X1-2", Title: "others of them", Fault: fault.Sink{Draw: 2}, Arms: armed("I3"), Pair: true, Three: true, Brokers: true, TryLimit: 2 * time.Second},
		{ID: "X1-3", Title: "and others", Fault: fault.Sink{Draw: 3}, Arms: armed("I3"), Pair: true, Three: true, Brokers: true, TryLimit: 2 * time.Second},
	}
}
