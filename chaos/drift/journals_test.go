package drift

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/seed"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
	"github.com/lockstep-tx/lockstep/region/arbiter/arbitertest"
	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/journal/sample"
	"github.com/lockstep-tx/lockstep/region/reconcile"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// pair is two regions' journals; all transactions are east's, and west has applied what it was given.
type pair struct {
	t     *testing.T
	j     map[string]*journal.Journal
	db    map[string]*sql.DB
	d     sqldb.Dialect
	mux   map[string]*http.ServeMux
	maker sample.Maker
	rows  []engine.Row
	rec   *reconcile.Reconciler
}

func newPair(t *testing.T, kind string, n int) *pair {
	t.Helper()
	p := &pair{t: t, j: map[string]*journal.Journal{}, db: map[string]*sql.DB{}, mux: map[string]*http.ServeMux{}, maker: sample.Maker{Epoch: epoch}}
	for i, region := range []string{"east", "west"} {
		address := databases[kind](t)
		j, err := journal.Open(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { j.Close() })
		db, d, err := sqldb.Open(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		p.j[region], p.db[region], p.d, p.mux[region] = j, db, d, http.NewServeMux()
		(&reconcile.Served{Journal: j, Index: i + 1}).Mount(p.mux[region])
	}
	for i := range n {
		p.rows = append(p.rows, p.maker.Row(sample.Payment{Gid: txn.Gid(fmt.Sprintf("{t%d}%d", i%5, i)), BegunAt: begin + int64(i), Abort: i%7 == 3}))
	}
	p.rec = &reconcile.Reconciler{Ask: p, Regions: []string{"east", "west"}, Table: registry.NewTable(nil), Owners: &slot.Map{}, StaleAfter: time.Minute}
	p.must(p.j["east"].Append(t.Context(), p.rows))
	heads := map[int]journal.Mark{}
	for _, r := range p.rows {
		heads[r.Slot] = journal.Mark{Origin: 1, Slot: r.Slot, Head: r.Finish}
	}
	var marks []journal.Mark
	for _, m := range heads {
		marks = append(marks, m)
	}
	p.must(p.j["east"].SetPublished(t.Context(), marks))
	return p
}

func (p *pair) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// apply has west apply rows of east.
func (p *pair) apply(rows []engine.Row) {
	p.t.Helper()
	var events []record.Event
	for i := range rows {
		r := &rows[i]
		events = append(events, record.Event{Slot: r.Slot, Kind: record.KindDecision, Gid: r.Gid, Epoch: r.DecisionEpoch, Head: r.Decision, Body: r.Closed},
			record.Event{Slot: r.Slot, Kind: record.KindFinish, Gid: r.Gid, Epoch: r.FinishEpoch, Head: r.Finish, Body: r.Progress})
	}
	_, err := p.j["west"].Applier(journal.ApplyConfig{Own: 2}).Apply(p.t.Context(), journal.Batch{Origin: 1, Events: events, Offset: -1})
	p.must(err)
}

// Get is reconcile.Asker's.
func (p *pair) Get(ctx context.Context, region, path string) ([]byte, error) {
	return p.ask(ctx, region, http.MethodGet, path, "")
}

// Post is reconcile.Asker's.
func (p *pair) Post(ctx context.Context, region, path string, body []byte) ([]byte, error) {
	return p.ask(ctx, region, http.MethodPost, path, string(body))
}

func (p *pair) ask(ctx context.Context, region, method, path, body string) ([]byte, error) {
	rec := httptest.NewRecorder()
	p.mux[region].ServeHTTP(rec, httptest.NewRequest(method, path, strings.NewReader(body)).WithContext(ctx))
	raw, err := io.ReadAll(rec.Result().Body)
	if rec.Code != http.StatusOK {
		err = fmt.Errorf("%s %s in %s: %d %s", method, path, region, rec.Code, raw)
	}
	return raw, err
}

// look detects after a while in which everything should have arrived.
func (p *pair) look() []reconcile.Finding {
	p.t.Helper()
	rep, err := p.rec.Detect(p.t.Context(), begin-1000, begin+3_600_000)
	if err != nil || rep.Slots != slot.Count || len(rep.Skipped) > 0 || rep.Transactions == 0 {
		p.t.Fatalf("it has not looked: %+v, %v", rep, err)
	}
	return rep.Findings
}

// TestEveryClassInAJournalIsFoundNamedAndRestored: a record that is lost, flipped, overwritten or altered in one region's
// journal is restored from the region whose chain proves it.
func TestEveryClassInAJournalIsFoundNamedAndRestored(t *testing.T) {
	a, _ := arbitertest.Start(t)
	for kind := range databases {
		for _, want := range []struct {
			class  seed.Class
			as     reconcile.Class
			region string
		}{
			{seed.D14, reconcile.TxMissing, "east"}, {seed.D16, reconcile.EventMissing, "west"},
			{seed.D15, reconcile.StatusFlipped, "east"}, {seed.D15, reconcile.StatusFlipped, "west"},
			{seed.D18, reconcile.Overwritten, "west"},
			{seed.D20, reconcile.RecordAltered, "east"}, {seed.D20, reconcile.RecordAltered, "west"},
		} {
			t.Run(fmt.Sprintf("%s/%s in %s", kind, want.class, want.region), func(t *testing.T) {
				p := newPair(t, kind, 60)
				p.apply(p.rows)
				n := rand.Uint64()
				t.Logf("seed %d", n)
				rnd := rand.New(rand.NewPCG(n, 2))
				if found := p.look(); len(found) != 0 {
					t.Fatalf("before anything was planted: %s", text(found))
				}
				for range seeds {
					i := rnd.IntN(50)
					gid, other := string(p.rows[i].Gid), string(p.rows[i+5].Gid) // of the same slot
					planted, err := seed.Record(t.Context(), p.db[want.region], p.d, want.class, gid, other, rnd)
					p.must(err)
					found, err := reconcile.Save(t.Context(), a, p.look(), time.UnixMilli(begin))
					p.must(err)
					var gids []string
					for _, f := range found {
						if gids = append(gids, f.Gid); f.Class != want.as || f.Region != want.region || f.Repair == "" || len(f.Evidence) == 0 || f.Text == "" {
							t.Fatalf("%s\nplanted %s", text(f), text(planted))
						}
					}
					wanted := []string{gid}
					if want.class == seed.D18 {
						wanted = append(wanted, other)
					}
					slices.Sort(gids)
					if slices.Sort(wanted); !slices.Equal(gids, wanted) {
						t.Fatalf("found %v, planted %s", gids, text(planted))
					}
					for _, f := range reconcile.Plan(found) {
						for range 2 {
							p.must(p.rec.Apply(t.Context(), a, &f, time.UnixMilli(begin)))
						}
					}
					if again := p.look(); len(again) != 0 {
						t.Fatalf("after the repair: %s\nplanted %s", text(again), text(planted))
					}
				}
			})
		}
	}
}

// TestARegionThatDoesNotGoOnIsFound (D19): what was published long ago and is not in a region's journal is an alarm; to let
// the slot go on is the repair. What was published a moment ago is on its way.
func TestARegionThatDoesNotGoOnIsFound(t *testing.T) {
	a, _ := arbitertest.Start(t)
	for kind := range databases {
		t.Run(kind, func(t *testing.T) {
			p := newPair(t, kind, 40)
			p.apply(p.rows[:30])
			resumed := map[string]bool{}
			p.mux["west"].HandleFunc("POST /v1/region/unstop", func(w http.ResponseWriter, r *http.Request) {
				resumed[r.URL.Query().Get("slot")] = true
				if r.URL.Query().Get("origin") != "east" {
					http.Error(w, "origin", http.StatusBadRequest)
				}
			})
			rep, err := p.rec.Detect(t.Context(), begin-1000, begin+30_000)
			if err != nil || len(rep.Findings) != 0 || rep.Open == 0 {
				t.Fatalf("half a minute of lag: %+v, %v", rep, err)
			}
			found, err := reconcile.Save(t.Context(), a, p.look(), time.UnixMilli(begin))
			p.must(err)
			slots := map[int]bool{}
			for _, r := range p.rows[30:] {
				slots[r.Slot] = true
			}
			if len(found) != len(slots) {
				t.Fatalf("%d findings for %d slots: %s", len(found), len(slots), text(found))
			}
			for _, f := range reconcile.Plan(found) {
				if f.Class != reconcile.Stale || f.Region != "west" || !slots[f.Slot] {
					t.Fatalf("%s", text(f))
				}
				p.must(p.rec.Apply(t.Context(), a, &f, time.UnixMilli(begin)))
			}
			if len(resumed) != len(slots) {
				t.Fatalf("resumed %v of %v", resumed, slots)
			}
			p.apply(p.rows[30:])
			if again := p.look(); len(again) != 0 {
				t.Fatalf("after it went on: %s", text(again))
			}
		})
	}
}
