package drift

import (
	"slices"
	"strings"
	"testing"
	"time"

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

// TestAJournalThatWasSetBackIsNamed (D21): another region has what the journal of the chain's own region does not have any more.
// That is said of each slot and is a person's; the records are had again from the other region, in the order of their chain.
func TestAJournalThatWasSetBackIsNamed(t *testing.T) {
	a, _ := arbitertest.Start(t)
	for kind := range databases {
		t.Run(kind, func(t *testing.T) {
			p := newPair(t, kind, 60)
			p.apply(p.rows)
			if found := p.look(); len(found) != 0 {
				t.Fatalf("before: %s", text(found))
			}
			lost, err := seed.RewindJournal(t.Context(), p.db["east"], p.d, 20)
			p.must(err)
			found, err := reconcile.Save(t.Context(), a, p.look(), time.UnixMilli(begin))
			p.must(err)
			slots, records := map[int]bool{}, 0
			for i := range found {
				f := &found[i]
				switch {
				case f.Region != "east" || len(f.Evidence) == 0:
					t.Fatalf("%s", text(f))
				case f.Class == reconcile.SetBack && f.Status == reconcile.Quarantined && strings.Contains(f.Text, "set back") && len(f.Options()) == 1:
					slots[f.Slot] = true
				case f.Class == reconcile.TxMissing && f.Repair != "" && slices.Contains(lost, f.Gid):
					records++
				default:
					t.Fatalf("%s", text(f))
				}
			}
			if len(slots) != 5 || records != len(lost) {
				t.Fatalf("%d slots, %d records: %s", len(slots), records, text(found))
			}
			for _, f := range reconcile.Plan(found) {
				for range 2 {
					p.must(p.rec.Apply(t.Context(), a, &f, time.UnixMilli(begin)))
				}
			}
			if again := p.look(); len(again) != 0 {
				t.Fatalf("after the records were had again: %s", text(again))
			}
		})
	}
}
