package drift

import (
	"math/rand/v2"
	"testing"

	"github.com/lockstep-tx/lockstep/chaos/seed"
	"github.com/lockstep-tx/lockstep/region/arbiter/arbitertest"
	"github.com/lockstep-tx/lockstep/region/reconcile"
)

// TestAlteredBranchesTogetherAreNothingElse: several branches whose amounts were altered, some with the counters and some without,
// share the account that money passes over: it is explained by them, whichever of them moved its counters.
func TestAlteredBranchesTogetherAreNothingElse(t *testing.T) {
	a, _ := arbitertest.Start(t)
	for n := range uint64(6) {
		w := newWorld(t, "sqlite", a)
		rnd := rand.New(rand.NewPCG(n, 5))
		before := w.whole()
		for i := range 6 {
			w.plant(seed.D07, w.committed[i*4], rnd)
		}
		found := w.look()
		for _, f := range found {
			if f.Branch == "" || f.Class != reconcile.LegAltered && f.Class != reconcile.UnitSwapped {
				t.Fatalf("found beside them: %s", text(f))
			}
		}
		if len(found) != 6 {
			t.Fatalf("%d found: %s", len(found), text(found))
		}
		// Of two on one account it may not be known which moved the counters: they are judged by themselves when the rows are right.
		for range 2 {
			w.apply(found)
			found = w.look()
		}
		if len(found) != 0 || w.whole() != before {
			t.Fatalf("after the repair: %s", text(found))
		}
	}
}
