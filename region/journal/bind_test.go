package journal

import (
	"context"
	"maps"
	"slices"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/journal/sample"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// TestChainsThatEndAtTheirSealsAreBoundTogether: Bind leaves what Cut leaves, for those that end there; the others it does not touch.
func TestChainsThatEndAtTheirSealsAreBoundTogether(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		ctx := context.Background()
		f := forcedAt(6)
		// by tag: ends at its seal, is past it, lacks some of it, has another event there, has nothing and was sealed there
		seals, slots := map[int]slot.Seal{}, map[string]int{}
		var batches []Batch
		for _, tag := range []string{"a", "b", "c", "d", "e"} {
			events := chainOfRows(inSlot(&sample.Maker{Epoch: 102}, tag, 0, 5))
			n := events[0].Slot
			slots[tag] = n
			have, at := events[:6], events[5].Head
			switch tag {
			case "b":
				have = events[:8]
			case "c":
				have = events[:4]
			case "d":
				at.Chain[0]++
			case "e":
				have, at = nil, record.Head{}
			}
			if have != nil {
				batches = append(batches, Batch{Origin: 2, Offset: -1, Events: have})
			}
			seal := *slot.SealOf(102, at.Seq, at.Chain[:])
			seal.Forced = true
			seals[n] = seal
		}
		if slots["a"] != f.n || len(seals) != 5 {
			t.Fatalf("%v", slots)
		}
		j, one := open(t, url), open(t, databases["sqlite"](t))
		for _, j := range []*Journal{j, one} {
			a := j.Applier(ApplyConfig{Own: 1, Seals: func(context.Context, int) ([]slot.Seal, error) { return nil, nil }})
			for _, b := range batches {
				apply(t, a, b)
			}
		}
		want := []int{slots["a"], slots["e"]}
		slices.Sort(want)
		for range 2 { // it is repeated after a crash
			if bound, err := j.Bind(ctx, 2, seals); err != nil || !slices.Equal(bound, want) {
				t.Fatalf("%v, %v; want %v", bound, err, want)
			}
		}
		for _, n := range want {
			if _, err := one.Cut(ctx, n, seals[n]); err != nil {
				t.Fatal(err)
			}
		}
		if got, same := state(t, j), state(t, one); !maps.Equal(got, same) {
			t.Errorf("bound together: %v\ncut one by one: %v", got, same)
		}
		// what comes late of a chain that is bound is parked
		a := j.Applier(ApplyConfig{Own: 1, Seals: func(context.Context, int) ([]slot.Seal, error) { return []slot.Seal{f.seal}, nil }})
		if res := applied(t, a, Batch{Origin: 2, Offset: -1, Events: f.old}); res.Applied != 0 || len(res.Stopped) != 0 {
			t.Fatalf("%+v", res)
		}
		mustDiverge(t, j, 2, f.n, f.old[6:]...)
	})
}

// bond is what a journal says of a chain.
type bond struct {
	frozen, bounded uint64
	head            record.Head
	cut             slot.Seal
}

func state(t *testing.T, j *Journal) map[int]bond {
	t.Helper()
	marks, err := j.Marks(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	cuts, err := j.Cuts(context.Background(), 2)
	if err != nil {
		t.Fatal(err)
	}
	out := map[int]bond{}
	for _, m := range marks {
		if m.Bounded != 0 || cuts[m.Slot].Epoch != 0 {
			out[m.Slot] = bond{m.Frozen, m.Bounded, m.Head, cuts[m.Slot]}
		}
	}
	return out
}

func TestBindRefusesWhatCannotBe(t *testing.T) {
	ctx := context.Background()
	j := open(t, databases["sqlite"](t))
	f := forcedAt(3)
	planned := f.seal
	planned.Forced = false
	for what, seals := range map[string]map[int]slot.Seal{
		"a seal by plan": {f.n: planned}, "a slot that is none": {slot.Count: f.seal}, "a chain of no bytes": {f.n: {Epoch: 102, Seq: 3, Chain: "zz", Forced: true}},
	} {
		if bound, err := j.Bind(ctx, 2, seals); err == nil {
			t.Errorf("%s: bound %v", what, bound)
		}
	}
	if bound, err := j.Bind(ctx, 3, map[int]slot.Seal{f.n: f.seal}); err == nil {
		t.Errorf("a seal of another region: bound %v", bound)
	}
}
