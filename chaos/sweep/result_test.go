package sweep

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/seed"
)

// of makes a result of two seeds of one class, as they are after a good run, and breaks it.
func of(id seed.Class, breaks func(res *Result)) []check.Verdict {
	at := time.Unix(1_790_000_000, 0)
	res := &Result{Each: 2, began: time.Now(), Control: &Control{Wanted: 10, Reconciled: 10, Cuts: 1, Lagging: 1}}
	for _, n := range []string{"1", "2"} {
		s := &Seed{ID: string(id) + "-" + n, Class: id, class: find(id), SeenBy: []string{"I5"}, Injected: at, Found: at.Add(time.Second), FoundAs: string(id), applied: true}
		if !s.class.person {
			s.Clean = at.Add(3 * time.Second)
		}
		res.seeds = append(res.seeds, s)
	}
	breaks(res)
	res.settle([]string{string(id)})
	var out []check.Verdict
	for _, s := range res.Scenarios() {
		out = append(out, s.Verdict)
	}
	return out
}

// TestWhatASweepProves: of a class first, then of what is of no class and the quiet control.
func TestWhatASweepProves(t *testing.T) {
	for name, tc := range map[string]struct {
		class  seed.Class
		breaks func(res *Result)
		want   []check.Verdict
	}{
		"all found and repaired":          {seed.D01, func(*Result) {}, []check.Verdict{check.Passed, check.Passed}},
		"all found and left":              {seed.D10, func(*Result) {}, []check.Verdict{check.Passed, check.Passed}},
		"found under another name":        {seed.D01, func(r *Result) { r.seeds[0].FoundAs = "D13" }, []check.Verdict{check.Passed, check.Passed}},
		"one is missed":                   {seed.D01, func(r *Result) { r.seeds[0].Found, r.seeds[0].Clean = time.Time{}, time.Time{} }, []check.Verdict{check.Failed, check.Passed}},
		"one is not repaired":             {seed.D01, func(r *Result) { r.seeds[0].Clean = time.Time{} }, []check.Verdict{check.Failed, check.Passed}},
		"one is repaired wrongly":         {seed.D10, func(r *Result) { r.seeds[0].Wrong = "it is a person's, and it was changed" }, []check.Verdict{check.Failed, check.Passed}},
		"no checker saw one":              {seed.D01, func(r *Result) { r.seeds[0].SeenBy = nil }, []check.Verdict{check.Inconclusive, check.Passed}},
		"one was never planted":           {seed.D01, func(r *Result) { r.seeds = r.seeds[:1] }, []check.Verdict{check.Inconclusive, check.Passed}},
		"found where nothing was planted": {seed.D01, func(r *Result) { r.False = []string{"{}"} }, []check.Verdict{check.Passed, check.Failed}},
		"a row beside the seeds changed":  {seed.D01, func(r *Result) { r.Collateral = []string{"g of east"} }, []check.Verdict{check.Passed, check.Failed}},
		"a finding in the control":        {seed.D01, func(r *Result) { r.Control.Findings = []string{"{}"} }, []check.Verdict{check.Passed, check.Failed}},
		"the control was too short":       {seed.D01, func(r *Result) { r.Control.Reconciled = 9 }, []check.Verdict{check.Passed, check.Inconclusive}},
		"nothing lagged in the control":   {seed.D01, func(r *Result) { r.Control.Lagging = 0 }, []check.Verdict{check.Passed, check.Inconclusive}},
		"the suite itself failed":         {seed.D01, func(r *Result) { r.Harness = "no disk" }, []check.Verdict{check.Passed, check.Inconclusive}},
	} {
		if got := of(tc.class, tc.breaks); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, not %v", name, got, tc.want)
		}
	}
}

// TestTheTableHasTheBounds: of a class of five, and of the mix.
func TestTheTableHasTheBounds(t *testing.T) {
	res := &Result{Each: 5, began: time.Now()}
	for i := range classes {
		for range 5 {
			now := time.Now()
			res.seeds = append(res.seeds, &Seed{Class: classes[i].id, class: &classes[i], SeenBy: []string{"I6"}, Injected: now, Found: now.Add(2 * time.Second), FoundAs: classes[i].as[0], Unreachable: time.Second, Clean: now.Add(4 * time.Second)})
		}
	}
	res.settle(nil)
	if len(res.Rows) != 24 || res.All.Seeds != 120 || res.All.Missed != 0 {
		t.Fatalf("%d rows, %+v", len(res.Rows), res.All)
	}
	var out strings.Builder
	res.Table(&out)
	for _, want := range []string{"54.9%", "97.5%", "2.0 /   2.0", "1.0 /   1.0"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
	if ids := IDs(); len(ids) != 25 || ids[0] != "R01" || ids[23] != "R24" || ids[24] != Quiet {
		t.Errorf("%v", ids)
	}
}

// world2 is two regions that have one committed payment, as a look has them.
func world2() (*world, *reading) {
	w := &world{log: history.New(), ops: map[string]history.Op{"g": {Gid: "g", Kind: history.Execute, From: "a", To: "b", Amount: 5, Outcome: history.OK, Value: history.Committed}}}
	r := &reading{at: time.Now(), rows: map[string]*[2]*check.Decided{"g": {}}}
	for i, region := range []string{"east", "west"} {
		b := check.Book{Region: region}
		for _, x := range [][3]string{{"pay", "a", "house:passage:CNY"}, {"receive", "house:passage:CNY", "b"}} {
			id := "g:" + x[0]
			b.Transfers = append(b.Transfers, check.Transfer{Gid: "g", Branch: x[0], Kind: "hold", State: "posted", Debit: x[1], Credit: x[2], Amount: 5, Currency: "CNY", ID: id})
			b.Entries = append(b.Entries, check.Entry{Gid: "g", Branch: x[0], Direction: "debit", Account: x[1], Amount: 5, Currency: "CNY", Transfer: id}, check.Entry{Gid: "g", Branch: x[0], Direction: "credit", Account: x[2], Amount: 5, Currency: "CNY", Transfer: id})
			b.Rows = append(b.Rows, check.Row{Gid: "g", Branch: x[0], Op: "try", Reason: "try"}, check.Row{Gid: "g", Branch: x[0], Op: "confirm", Reason: "confirm"})
		}
		b.Accounts = []check.Account{{ID: "a", DebitsPosted: 5}, {ID: "b", CreditsPosted: 5}}
		r.books[i], r.rows["g"][i] = b, &check.Decided{Region: region, Gid: "g", Phase: committed, Finished: true, Slot: 7, Origin: 1, DecisionSeq: 1, FinishSeq: 2, At: r.at.Add(-time.Minute).UnixMilli(), Body: "11"}
	}
	return w, r
}

// TestAWitnessSeesItsPlaceAlone: nothing where nothing is wrong; a transaction's rows, an account's counters, a journal's row.
func TestAWitnessSeesItsPlaceAlone(t *testing.T) {
	for name, tc := range map[string]struct {
		class  seed.Class
		breaks func(r *reading)
		by     string
	}{
		"a lost confirm": {seed.D01, func(r *reading) {
			r.books[0].Transfers[0].State, r.books[0].Rows = "pending", slices.Delete(r.books[0].Rows, 1, 2)
		}, "I7"},
		"another amount": {seed.D07, func(r *reading) { r.books[0].Transfers[0].Amount = 6 }, "I6"},
		"a counter":      {seed.D06, func(r *reading) { r.books[0].Accounts[0].DebitsPosted = 6 }, "I6"},
		"a phantom entry": {seed.D09, func(r *reading) {
			r.books[0].Entries = append(r.books[0].Entries, check.Entry{Direction: "credit", Account: "a", Amount: 1, Transfer: "p"})
		}, "I6"},
		"a flipped status":  {seed.D15, func(r *reading) { r.rows["g"][0].Phase = aborted }, "I4"},
		"another body":      {seed.D20, func(r *reading) { r.rows["g"][0].Body = "22" }, "I10"},
		"exchanged numbers": {seed.D18, func(r *reading) { r.rows["g"][0].DecisionSeq = 9 }, "I10"},
	} {
		w, r := world2()
		w.d = deployment("east", "west")
		s := &Seed{Class: tc.class, class: find(tc.class), Region: "east", Gid: "g", Branch: "pay", Account: "a", Slot: 7, Origin: 1, Seqs: []int64{1, 2}}
		for i := range r.books {
			r.by[i] = indexOf(&r.books[i])
		}
		if by, said := w.witness(r, s); len(by) != 0 {
			t.Errorf("%s: before: %v %v", name, by, said)
		}
		tc.breaks(r)
		for i := range r.books {
			r.by[i] = indexOf(&r.books[i])
		}
		if by, said := w.witness(r, s); !slices.Contains(by, tc.by) {
			t.Errorf("%s: seen by %v %v, want %s", name, by, said, tc.by)
		}
	}
}

func deployment(names ...string) *proc.Deployment {
	d := &proc.Deployment{}
	for i, name := range names {
		d.Regions[i] = &proc.Region{Name: name}
	}
	return d
}

// TestEachDeploymentHasItsPartOfTheControl: all parts are the whole, none is without, and those with servers have less.
func TestEachDeploymentHasItsPartOfTheControl(t *testing.T) {
	alone, served := Bed{Name: "SQLite"}, Bed{Name: "PostgreSQL", Journal: "postgres://…"}
	for _, c := range []struct {
		all  int
		beds []Bed
		want []int
	}{
		{1000, []Bed{served}, []int{1000}},
		{100_000, []Bed{alone, served, served}, []int{83_333, 8_333, 8_334}},
		{10, []Bed{alone, alone, alone}, []int{3, 3, 4}},
	} {
		if got := shares(c.all, c.beds); !slices.Equal(got, c.want) {
			t.Errorf("the parts of %d are %v, %v is wanted", c.all, got, c.want)
		}
	}
}
