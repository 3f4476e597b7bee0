package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/arbiter/arbitertest"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// answers are what a region answers, by the path's beginning.
type answers map[string]any

// Get is Asker's.
func (a answers) Get(_ context.Context, _, path string) ([]byte, error) {
	for begin, v := range a {
		if strings.HasPrefix(path, begin) {
			return json.Marshal(v)
		}
	}
	return nil, errors.New("it does not answer " + path)
}

// Post is Asker's.
func (a answers) Post(ctx context.Context, region, path string, _ []byte) ([]byte, error) {
	return a.Get(ctx, region, path)
}

func ledgerAt(endpoint string) *registry.Table {
	return registry.NewTable([]registry.Participant{{Name: "ledger", Endpoints: map[string]string{"east": endpoint}, Can: &registry.Capabilities{Apply: true}}})
}

// What a participant refuses twice on the same facts waits for a person, who may accept it; other facts are tried anew. What did
// not answer is no refusal.
func TestARepairThatIsRefusedTwiceWaitsForAPerson(t *testing.T) {
	a, _ := arbitertest.Start(t)
	status := http.StatusServiceUnavailable
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "its legs are others", status) }))
	t.Cleanup(srv.Close)
	r := &Reconciler{Ask: answers{}, Regions: []string{"east"}, Table: ledgerAt(srv.URL), Owners: &slot.Map{}}
	found := func(text string) *Finding {
		t.Helper()
		f := Finding{Class: LegAltered, Region: "east", Gid: "g", Branch: "b", Participant: "ledger", Text: text}
		f.proposes("set the legs right", map[string]string{"do": "legs", "text": "<1>"})
		list, err := Save(t.Context(), a, []Finding{f}, time.UnixMilli(base))
		if err != nil || len(list) != 1 {
			t.Fatalf("%+v, %v", list, err)
		}
		return &list[0]
	}
	try := func(f *Finding, refused bool, want Status) {
		t.Helper()
		if err := r.Apply(t.Context(), a, f, time.UnixMilli(base)); errors.Is(err, ErrRefused) != refused || err == nil {
			t.Fatalf("%v", err)
		}
		all, err := List(t.Context(), a)
		if err != nil || len(all) != 1 || all[0].Status != want || len(Plan(all)) != map[Status]int{Open: 1, Quarantined: 0}[want] {
			t.Fatalf("%+v, %v; want it %s", all, err, want)
		}
	}
	try(found("500, not 400"), false, Open)
	try(found("500, not 400"), false, Open)
	status = http.StatusConflict
	try(found("500, not 400"), true, Open)
	f := found("600, not 400")
	if f.Refused != 0 {
		t.Fatalf("other facts: %+v", f)
	}
	try(f, true, Open)
	f = found("600, not 400")
	try(f, true, Quarantined)
	if f = found("600, not 400"); f.Status != Quarantined || !slices.Contains(f.Options(), Accept) || !strings.Contains(f.Outcome, "its legs are others") {
		t.Fatalf("found again: %+v", f)
	}
	if f = found("700, not 400"); f.Status != Open {
		t.Fatalf("other facts: %+v", f)
	}
}

// What is found again as it was is not written again: who repairs or decides meanwhile is not in the way of a look.
func TestWhatIsFoundAgainIsNotWrittenAgain(t *testing.T) {
	a, _ := arbitertest.Start(t)
	look := func() Finding {
		t.Helper()
		list, err := Save(t.Context(), a, []Finding{{Class: BothApplied, Region: "east", Gid: "g", Text: "both"}}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return list[0]
	}
	first := look()
	if again := look(); again.rev != first.rev || again.FoundMillis != first.FoundMillis {
		t.Errorf("%+v, and then %+v", first, again)
	}
	r := &Reconciler{Ask: answers{}, Regions: []string{"east"}, Table: registry.NewTable(nil), Owners: &slot.Map{}}
	if err := r.Decide(t.Context(), a, &first, Decision{What: Accept, Reason: "x", Who: "ann"}); err != nil {
		t.Error(err)
	}
}

// A region that lagged long is a finding; when it has caught up, the finding is over, though no later window has what it was of.
func TestALagThatIsOverIsNoFindingAnyMore(t *testing.T) {
	a, _ := arbitertest.Start(t)
	r := &Reconciler{Regions: []string{"east", "west"}, Table: registry.NewTable(nil), Owners: &slot.Map{}, StaleAfter: time.Minute}
	rep := &Report{horizon: base + 100_000}
	tx := &Finished{Gid: "g", Slot: 7, At: base, Origin: 1, Seq: 3}
	r.notApplied(rep, "west", tx)
	p := newPair(t, 1, 1)
	f := r.onItsWay(rep, "west", 1, &p.rows[0], 0)
	if f == nil {
		t.Fatal("a lag of more than a minute is no finding")
	}
	if _, err := Save(t.Context(), a, append(rep.Findings, *f), time.UnixMilli(base)); err != nil {
		t.Fatal(err)
	}
	ended := func(ask Asker, want int, fails bool) {
		t.Helper()
		r.Ask = ask
		list, err := r.Ended(t.Context(), a, time.UnixMilli(base))
		if len(list) != want || (err != nil) != fails {
			t.Fatalf("%d ended, %v: %+v", len(list), err, list)
		}
	}
	page := func(applied bool) FinishedAnswer {
		return FinishedAnswer{List: []Finished{{Gid: "g", Applied: applied}}}
	}
	ended(answers{}, 0, true)
	ended(answers{"/v1/drift/finished": page(false), "/v1/drift/row": RowAnswer{}}, 0, false)
	ended(answers{"/v1/drift/finished": page(true), "/v1/drift/row": RowAnswer{}}, 1, false)
	p.apply(p.rows)
	p.east.mux.Handle("/", http.NotFoundHandler())
	ended(p, 1, false)
	all, err := List(t.Context(), a)
	if err != nil || len(all) != 2 || all[0].Status != Repaired || all[1].Status != Repaired {
		t.Fatalf("%+v, %v", all, err)
	}
}

// A page of which a row cannot be read is a full page all the same: what comes behind it is asked for.
func TestARowThatCannotBeReadHidesNothingBehindIt(t *testing.T) {
	p := newPair(t, 10, 0)
	p.east.behind("UPDATE lockstep_journal SET closed = ? WHERE gid = ?", []byte("?"), []byte(p.rows[2].Gid))
	given := 0
	read, last, err := p.east.j.FinishedBetween(t.Context(), base, base+1_000_000, 5, func(*record.Tx, int) { given++ })
	if err != nil || read != 5 || given != 4 || last != p.rows[4].FinishedAt {
		t.Fatalf("read %d, given %d, last %d, %v", read, given, last, err)
	}
}

// Every class that can be repaired has its place in the order; one without would never be.
func TestEveryClassThatIsRepairedIsPlanned(t *testing.T) {
	for _, c := range []Class{LostConfirm, LostCancel, ConfirmTwice, CancelTwice, AmountAltered, LegAltered, WrongAccount, RowMissing, EffectMissing, TxMissing, StatusFlipped,
		EventMissing, AppliedTwice, Overwritten, Stale, RecordAltered, SetBack, Unpublished, Compensating, UnitSwapped} {
		if len(Plan([]Finding{{Class: c, Status: Open, Repair: "x"}})) != 1 {
			t.Errorf("%s is repaired, and no plan has it", c)
		}
	}
}

// Whose books cannot be read is said: what no look judges is not sound.
func TestWhoseBooksCannotBeReadIsSaid(t *testing.T) {
	p := newPair(t, 3, 0)
	r := p.reconciler()
	r.Table = registry.NewTable([]registry.Participant{
		{Name: "bare", Endpoints: map[string]string{"east": "http://127.0.0.1:1"}, Can: &registry.Capabilities{}},
		{Name: "grpc", Endpoints: map[string]string{"east": "127.0.0.1:1"}, Can: &registry.Capabilities{Apply: true}},
		{Name: "new", Endpoints: map[string]string{"west": "http://127.0.0.1:1"}},
	})
	rep, err := r.Detect(t.Context(), base, base+1_000_000)
	if err != nil || len(rep.Unread) != 3 || len(rep.Skipped) != 0 {
		t.Fatalf("%q %q, %v", rep.Unread, rep.Skipped, err)
	}
}
