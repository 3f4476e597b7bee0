package check

import (
	"fmt"
	"slices"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/journal/sample"
)

// TestReachesAreThoseOfTheJournal: two transactions of the other region are two events each in one slot; those of the
// journal's own region have no watermark, and are left out.
func TestReachesAreThoseOfTheJournal(t *testing.T) {
	ctx := t.Context()
	address := "sqlite:" + t.TempDir() + "/journal.db"
	j, err := journal.Open(ctx, address)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	own, far := sample.Maker{Epoch: 101}, sample.Maker{Epoch: 102}
	if err := j.Append(ctx, []engine.Row{own.Row(sample.Payment{Gid: "{a}0", BegunAt: 1_790_000_000_000})}); err != nil {
		t.Fatal(err)
	}
	var events []record.Event
	for i := range 2 {
		r := far.Row(sample.Payment{Gid: txn.Gid(fmt.Sprintf("{a}%d", i+1)), BegunAt: 1_790_000_000_000})
		events = append(events, record.Event{Slot: r.Slot, Epoch: r.DecisionEpoch, Head: r.Decision, Kind: record.KindDecision, Gid: r.Gid, Body: r.Closed},
			record.Event{Slot: r.Slot, Epoch: r.FinishEpoch, Head: r.Finish, Kind: record.KindFinish, Gid: r.Gid, Body: r.Progress})
	}
	look := func() []Reach {
		t.Helper()
		got, err := ReadReaches(ctx, "east", address, func() int64 { return 7 })
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	applier := j.Applier(journal.ApplyConfig{Own: 1})
	for n := range events {
		res, err := applier.Apply(ctx, journal.Batch{Origin: 2, Offset: -1, Events: events[n : n+1]})
		if err != nil || res.Applied != 1 {
			t.Fatalf("%v, %+v", err, res)
		}
		seq := int64(n + 1)
		if got, want := look(), []Reach{{"east", 7, 2, events[0].Slot, seq, 1, seq, seq}}; !slices.Equal(got, want) {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	}
}

func TestOnlyReachesThatMovedAreKept(t *testing.T) {
	seen := map[[2]int64]Reach{}
	a, b := Reach{"east", 1, 2, 7, 1, 1, 1, 1}, Reach{"east", 1, 2, 8, 0, 0, 0, 0}
	if got := Moved(seen, []Reach{a, b}); len(got) != 2 {
		t.Errorf("%v", got)
	}
	a.At, b.At, b.Mark = 2, 2, 1
	if got := Moved(seen, []Reach{a, b}); !slices.Equal(got, []Reach{b}) {
		t.Errorf("got %v", got)
	}
}
