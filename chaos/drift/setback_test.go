package drift

import (
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/chaos/seed"
	"github.com/lockstep-tx/lockstep/region/arbiter/arbitertest"
	"github.com/lockstep-tx/lockstep/region/reconcile"
)

// payMore makes committed transactions after those of newWorld.
func (w *world) payMore(n int) {
	w.t.Helper()
	from := len(w.rows)
	for i := range n {
		w.transact(accounts[i%6], accounts[(i+1)%6], int64(1+i%9)*100, true)
	}
	if err := w.j.Append(w.t.Context(), w.rows[from:]); err != nil {
		w.t.Fatal(err)
	}
	applied := map[[2]int]uint64{}
	for i := range w.rows {
		applied[[2]int{1, w.rows[i].Slot}] = w.rows[i].Finish.Seq
	}
	if err := w.j.SetApplied(w.t.Context(), applied); err != nil {
		w.t.Fatal(err)
	}
}

// counters are the accounts' balances.
func (w *world) counters() string {
	w.t.Helper()
	var all strings.Builder
	for _, id := range accounts {
		image, err := seed.Image(w.t.Context(), w.db, w.d, seed.Target{Schema: w.schema, Gid: "none", Account: id})
		if err != nil {
			w.t.Fatal(err)
		}
		all.WriteString(image)
	}
	return all.String()
}

// TestABookThatWasSetBackIsNamed (D21): all that was done since the backup is missing. Of accounts with their home elsewhere it is
// had again from the records; of the own ones it is a person's, who may have it done again. What was there at the backup is left.
func TestABookThatWasSetBackIsNamed(t *testing.T) {
	a, _ := arbitertest.Start(t)
	for kind := range databases {
		for _, home := range []string{"east", "west"} {
			t.Run(kind+"/home "+home, func(t *testing.T) {
				w := newWorld(t, kind, a)
				for n := range w.rec.Owners {
					w.rec.Owners[n].Region = home
				}
				backup, err := seed.BackUp(t.Context(), w.db, w.d, w.schema)
				if err != nil {
					t.Fatal(err)
				}
				w.payMore(10)
				if found := w.look(); len(found) != 0 {
					t.Fatalf("before: %s", text(found))
				}
				before := w.counters()
				gids, err := seed.Rewind(t.Context(), w.db, w.d, w.schema, backup)
				if err != nil || len(gids) != 10 {
					t.Fatalf("%v, %v", gids, err)
				}
				found := w.look()
				if len(found) != 20 {
					t.Fatalf("%d findings: %s", len(found), text(found))
				}
				for i := range found {
					f := &found[i]
					own := home == "east"
					if f.Class != reconcile.SetBack || !gids[f.Gid] || f.Branch == "" || f.Account == "" || len(f.Evidence) == 0 || !strings.Contains(f.Text, "set back") ||
						(f.Repair == "") != own || (f.Status == reconcile.Quarantined) != own {
						t.Fatalf("%s", text(f))
					}
					if own {
						d := reconcile.Decision{What: reconcile.Confirm, Reason: "the money is there", Who: "ann", At: begin}
						for range 2 { // it may be repeated after an error
							f.Status = reconcile.Quarantined
							if err := w.rec.Decide(t.Context(), a, f, d); err != nil {
								t.Fatalf("%s: %v", text(f), err)
							}
						}
					}
				}
				w.apply(found)
				if again := w.look(); len(again) != 0 || w.counters() != before {
					t.Fatalf("afterwards: %s\n%s\nwas\n%s", text(again), w.counters(), before)
				}
				w.sound()
			})
		}
	}
}

// TestAFewThatWereNeverTriedAreNoBackup: single effects that are missing keep their own names.
func TestAFewThatWereNeverTriedAreNoBackup(t *testing.T) {
	a, _ := arbitertest.Start(t)
	w := newWorld(t, "sqlite", a)
	for i := range 3 {
		w.plant(seed.D13, w.committed[i*4], nil)
	}
	found := w.look()
	if len(found) != 3 {
		t.Fatalf("%s", text(found))
	}
	for _, f := range found {
		if f.Class != reconcile.NeverTried {
			t.Errorf("%s", text(f))
		}
	}
}
