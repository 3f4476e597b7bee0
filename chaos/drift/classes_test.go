package drift

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/chaos/seed"
	"github.com/lockstep-tx/lockstep/region/arbiter/arbitertest"
	"github.com/lockstep-tx/lockstep/region/reconcile"
)

// expected is what the suite's table says of a class.
type expected struct {
	class seed.Class
	// as are the names under which it may be found.
	as []reconcile.Class
	// person: it is left as it is, for somebody to decide.
	person bool
	// on says which branches it can be planted in.
	commits, aborts bool
	// says are words that the finding's text has: of both facts.
	says []string
	// adds: the repair adds rows (a reversal, a voided row that stays), and the books are not as they were.
	adds bool
	// home: the accounts' home, where that is not this region.
	home string
}

var table = []expected{
	{class: seed.D01, as: []reconcile.Class{reconcile.LostConfirm}, commits: true, says: []string{"commit", "pending"}},
	{class: seed.D02, as: []reconcile.Class{reconcile.LostCancel}, aborts: true, says: []string{"abort", "holds"}},
	{class: seed.D03, as: []reconcile.Class{reconcile.ConfirmTwice}, commits: true, says: []string{"the payload", "once more"}, adds: true},
	{class: seed.D03, as: []reconcile.Class{reconcile.AppliedTwice}, commits: true, says: []string{"the payload", "once more"}, adds: true, home: "west"}, // D17
	{class: seed.D04, as: []reconcile.Class{reconcile.CancelTwice}, aborts: true, says: []string{"by its holds", "by its counters"}, adds: true},
	{class: seed.D05, as: []reconcile.Class{reconcile.BothApplied}, person: true, aborts: true, says: []string{"abort", "posted"}},
	{class: seed.D06, as: []reconcile.Class{reconcile.AmountAltered}, commits: true, says: []string{"entries and holds"}},
	{class: seed.D07, as: []reconcile.Class{reconcile.LegAltered}, commits: true, says: []string{"the payload", "the books have"}},
	{class: seed.D08, as: []reconcile.Class{reconcile.WrongAccount}, commits: true, says: []string{"the payload", "the books have"}},
	{class: seed.D09, as: []reconcile.Class{reconcile.PhantomEntry}, person: true, commits: true, says: []string{"phantom-", "no such transfer"}},
	{class: seed.D10, as: []reconcile.Class{reconcile.PhantomHold, reconcile.TxMissing}, person: true, commits: true, says: []string{"ghost-", "no region has ever heard of"}},
	{class: seed.D11, as: []reconcile.Class{reconcile.RowMissing}, commits: true, aborts: true, says: []string{"the decision", "the books", "the barrier"}},
	{class: seed.D12, as: []reconcile.Class{reconcile.EffectMissing}, commits: true, aborts: true, says: []string{"the decision", "the barrier has it"}},
	{class: seed.D13, as: []reconcile.Class{reconcile.NeverTried}, person: true, commits: true, says: []string{"commit", "neither a barrier row nor a hold"}},
	{class: seed.D23, as: []reconcile.Class{reconcile.Compensating}, commits: true, says: []string{"entries and holds"}},
	{class: seed.D24, as: []reconcile.Class{reconcile.UnitSwapped}, commits: true, says: []string{"the payload", "the books have"}},
}

// seeds of each class, drawn at random; another run draws others.
const seeds = 5

// TestEveryClassInABookIsFoundNamedAndRepairedOrLeft: one drift after the other is planted in a sound region, and the
// reconciler must find it and nothing else, say of it what the table says, and repair it to what was there before or leave it
// untouched.
func TestEveryClassInABookIsFoundNamedAndRepairedOrLeft(t *testing.T) {
	a, _ := arbitertest.Start(t)
	for kind := range databases {
		for _, want := range table {
			name := fmt.Sprintf("%s/%s", kind, want.as[0])
			t.Run(name, func(t *testing.T) {
				w := newWorld(t, kind, a)
				if want.home != "" {
					for n := range w.rec.Owners {
						w.rec.Owners[n].Region = want.home
					}
				}
				n := rand.Uint64()
				t.Logf("seed %d", n)
				w.try(want, rand.New(rand.NewPCG(n, 1)))
			})
		}
	}
}

func (w *world) try(want expected, rnd *rand.Rand) {
	w.t.Helper()
	var at []seed.Target
	if want.commits {
		at = append(at, w.committed...)
	}
	if want.aborts {
		at = append(at, w.aborted...)
	}
	rnd.Shuffle(len(at), func(i, k int) { at[i], at[k] = at[k], at[i] })
	if found := w.look(); len(found) != 0 {
		w.t.Fatalf("before anything was planted: %s", text(found))
	}
	var left []seed.Planted
	for _, target := range at[:seeds] {
		before := w.whole()
		p := w.plant(want.class, target, rnd)
		spoiled := w.whole()
		found := w.look()
		w.named(want, p, left, found)
		if want.person {
			left = append(left, p)
			if plan := reconcile.Plan(found); len(plan) != 0 {
				w.t.Fatalf("it would guess: %s", text(plan))
			}
			for i := range found {
				if err := w.rec.Apply(w.t.Context(), w.arbiter, &found[i], w.now()); err == nil || w.whole() != spoiled {
					w.t.Fatalf("a finding for a person was repaired: %s", text(found[i]))
				}
			}
			continue
		}
		if w.whole() != spoiled {
			w.t.Fatal("to look or to plan changed something")
		}
		w.apply(found)
		if again := w.look(); len(again) != 0 {
			w.t.Fatalf("%s: after the repair: %s", text(p), text(again))
		}
		if after := w.whole(); after != before && !want.adds {
			w.t.Fatalf("%s: the repair left\n%s\ninstead of\n%s", text(p), after, before)
		}
		w.sound()
	}
}

// named holds what was found against what was planted: each finding is of a drift that was planted, and each has one.
func (w *world) named(want expected, p seed.Planted, left []seed.Planted, found []reconcile.Finding) {
	w.t.Helper()
	hit := func(f *reconcile.Finding, p seed.Planted) bool {
		ours := f.Account == p.Account || f.Account == p.Other && p.Other != "" || f.Account == "house:passage:CNY" && want.class == seed.D04
		return ours && (f.Gid == p.Gid && f.Branch == p.Branch || f.Gid == "" && (want.class == seed.D06 || want.class == seed.D09 || want.class == seed.D23))
	}
	ours := false
	for i := range found {
		f := &found[i]
		ours = ours || hit(f, p)
		if !hit(f, p) && !slices.ContainsFunc(left, func(q seed.Planted) bool { return hit(f, q) }) {
			w.t.Fatalf("found what nobody planted: %s\nplanted %s", text(f), text(p))
		}
		if !slices.Contains(want.as, f.Class) {
			w.t.Fatalf("found under another name, %s: %s\nplanted %s", f.Class, text(f), text(p))
		}
		for _, word := range want.says {
			if !strings.Contains(f.Text, word) {
				w.t.Errorf("the finding does not say %q: %s", word, f.Text)
			}
		}
		if (f.Repair == "") != want.person || len(f.Evidence) == 0 || f.Region != "east" || f.Participant != "wallets" ||
			(f.Status == reconcile.Quarantined) != want.person {
			w.t.Fatalf("%s", text(f))
		}
	}
	if !ours {
		w.t.Fatalf("not found: %s\nfound %s", text(p), text(found))
	}
}
