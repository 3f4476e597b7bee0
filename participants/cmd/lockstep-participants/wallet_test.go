package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/participants/participanttest"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// place is one region's wallets behind their handler.
type place struct {
	*wallets
	t    *testing.T
	http http.Handler
}

func newPlace(t *testing.T, name string) *place {
	t.Helper()
	w, err := openWallets(t.Context(), "sqlite:"+t.TempDir()+"/"+name+".db", "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return &place{w, t, w.handler()}
}

func (p *place) do(method, path string, body []byte) (int, []byte) {
	p.t.Helper()
	rec := httptest.NewRecorder()
	p.http.ServeHTTP(rec, httptest.NewRequest(method, path, bytes.NewReader(body)))
	out, err := io.ReadAll(rec.Result().Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return rec.Code, out
}

func (p *place) must(method, path string, body any) []byte {
	p.t.Helper()
	raw, ok := body.([]byte)
	if !ok && body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			p.t.Fatal(err)
		}
	}
	status, out := p.do(method, path, raw)
	if status != http.StatusOK {
		p.t.Fatalf("%s %s: %d %s", method, path, status, out)
	}
	return out
}

func (p *place) state() ledger.WalletsState {
	p.t.Helper()
	var s ledger.WalletsState
	if err := json.Unmarshal(p.must("GET", "/state", nil), &s); err != nil {
		p.t.Fatal(err)
	}
	return s
}

// transfer is one transaction over two wallets, with whatever has been heard of it where.
type transfer struct {
	gid      string
	from, to string
	amount   int64
	commit   bool
	tried    [2]bool
	ended    [2]bool
	applied  [2][2]bool // by place and branch
}

// regions is two places, the homes of all slots, and what a coordinator and a journal would do.
type regions struct {
	t     *testing.T
	p     [2]*place
	home  map[int]int // by slot: which place
	epoch map[int]slot.Epoch
	all   []*transfer
}

func (r *regions) call(x *transfer, b int, op string, at int) error {
	account, name := x.from, "wallet/pay"
	if b == 1 {
		account, name = x.to, "wallet/receive"
	}
	payload, _ := json.Marshal(map[string]any{"account": account, "amount": x.amount})
	n := slot.Of(account)
	c := &barrier.Call{TransType: "tcc", Gid: x.gid, BranchID: fmt.Sprintf("0%d", b+1), Op: op,
		Fence: barrier.Fence{Slot: slot.Of(x.gid), Epoch: int64(r.epoch[slot.Of(x.gid)])}, Account: barrier.Fence{Slot: n, Epoch: int64(r.epoch[n])}}
	if op == barrier.OpTry && x.amount%2 == 0 {
		c.Fence, c.Account = barrier.Fence{}, barrier.Fence{} // a DTM client's own try: it knows no epochs
	}
	return r.p[at].kit.Call(context.Background(), "/"+name+"/"+op, c, payload)
}

func (r *regions) homeOf(account string) int { return r.home[slot.Of(account)] }

// move hands a slot over, with repeats of every step.
func (r *regions) move(n int) {
	r.t.Helper()
	from := r.home[n]
	to := 1 - from
	release := []barrier.Home{{Slot: n, Epoch: int64(r.epoch[n].Released())}}
	for range 2 {
		r.p[from].must("POST", "/lockstep/release", release)
	}
	next := r.epoch[n].Next(to + 1)
	raw := r.p[from].must("GET", fmt.Sprintf("/lockstep/released?slot=%d&epoch=%d", n, release[0].Epoch), nil)
	for i, x := range r.all { // after a forced seal apply comes in confirm's place, also between release and adoption
		for b, account := range []string{x.from, x.to} {
			if x.commit && x.tried[0] && x.tried[1] && !x.ended[b] && slot.Of(account) == n && i%2 == 0 && r.call(x, b, branch.OpApply, to) == nil {
				x.applied[to][b] = true
			}
		}
	}
	for range 2 {
		r.p[to].must("POST", fmt.Sprintf("/lockstep/adopt?slot=%d&epoch=%d", n, next), raw)
	}
	r.home[n], r.epoch[n] = to, next
}

// step does something at random to a transfer: whatever may come from clients, coordinators and journals, also twice.
func (r *regions) step(x *transfer) {
	r.t.Helper()
	b := rand.IntN(2)
	at := r.homeOf([]string{x.from, x.to}[b])
	switch {
	case !x.tried[b]:
		err := r.call(x, b, barrier.OpTry, at)
		switch {
		case errors.Is(err, barrier.ErrRefused):
			x.commit = false
		case err != nil:
			r.t.Fatalf("%s try: %v", x.gid, err)
		}
		x.tried[b] = true
	case x.tried[0] && x.tried[1] && x.commit:
		if err := r.call(x, b, barrier.OpConfirm, at); err != nil {
			r.t.Fatalf("%s confirm %d: %v", x.gid, b, err)
		}
		x.ended[b] = true
		if x.ended[0] && x.ended[1] {
			r.apply(x, rand.IntN(2), rand.IntN(2))
		}
	case x.tried[0] && x.tried[1]:
		if err := r.call(x, b, barrier.OpCancel, at); err != nil {
			r.t.Fatalf("%s cancel %d: %v", x.gid, b, err)
		}
		x.ended[b] = true
	}
}

// apply is the journal's, at the finish, in each region, whatever the home. A copy may lack credits that come first.
func (r *regions) apply(x *transfer, at, b int) {
	if x.commit && x.ended[0] && x.ended[1] && r.call(x, b, branch.OpApply, at) == nil {
		x.applied[at][b] = true
	}
}

// TestWalletsStayEqualInTwoRegionsWhateverMoves lets payments run over accounts of both regions while slots move back and
// forth: at the end every account is equal in both, and every call of an old home is refused.
func TestWalletsStayEqualInTwoRegionsWhateverMoves(t *testing.T) {
	r := &regions{t: t, p: [2]*place{newPlace(t, "east"), newPlace(t, "west")}, home: map[int]int{}, epoch: map[int]slot.Epoch{}}
	accounts := []string{"ann", "bob", "cyd", "dan", "eve"}
	for i, p := range r.p {
		var homes []barrier.Home
		for n := range slot.Count {
			r.home[n], r.epoch[n] = n%2, slot.Initial(n%2+1)
			homes = append(homes, barrier.Home{Slot: n, Epoch: int64(r.epoch[n]), Here: n%2 == i})
		}
		p.must("POST", "/lockstep/homes", homes)
		p.must("POST", "/lockstep/homes", homes)
		for _, a := range accounts {
			p.must("POST", "/accounts", map[string]any{"id": a, "balance": 1000})
		}
	}
	steps := 2500
	if testing.Short() {
		steps = 800
	}
	for i := range steps {
		switch {
		case len(r.all) == 0 || rand.IntN(5) == 0:
			a, b := rand.IntN(len(accounts)), rand.IntN(len(accounts)-1)
			if b >= a {
				b++
			}
			r.all = append(r.all, &transfer{gid: fmt.Sprintf("gid-%d", i), from: accounts[a], to: accounts[b], amount: 1 + rand.Int64N(300), commit: rand.IntN(3) > 0})
		case rand.IntN(40) == 0:
			r.move(slot.Of(accounts[rand.IntN(len(accounts))]))
		case rand.IntN(8) == 0:
			r.apply(r.all[rand.IntN(len(r.all))], rand.IntN(2), rand.IntN(2))
		default:
			r.step(r.all[max(0, len(r.all)-1-rand.IntN(30))])
		}
	}
	committed := 0
	for _, x := range r.all {
		for !x.ended[0] || !x.ended[1] {
			r.step(x)
		}
		if x.commit {
			committed++
		}
	}
	for round, left := 0, 1; left > 0; round++ {
		left = 0
		for _, x := range r.all {
			for at := range 2 {
				for b := range 2 {
					if x.commit && !x.applied[at][b] {
						r.apply(x, at, b)
						if !x.applied[at][b] {
							left++
						}
					}
				}
			}
		}
		if round > 100 {
			t.Fatalf("%d effects cannot be applied", left)
		}
	}
	east, west := r.p[0].state(), r.p[1].state()
	if diff := cmp.Diff(east.Accounts, west.Accounts); diff != "" {
		t.Errorf("the regions differ (-east +west):\n%s", diff)
	}
	for name, s := range map[string]ledger.WalletsState{"east": east, "west": west} {
		if len(s.Faults) > 0 || s.Open != 0 || s.Balance["CNY"] != int64(1000*len(accounts)) || s.Passage["CNY"] != 0 {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if committed < steps/40 {
		t.Fatalf("only %d payments were committed", committed)
	}
	x := r.all[0]
	old := r.homeOf(x.from)
	r.move(slot.Of(x.from))
	r.epoch[slot.Of(x.from)]-- // a call of before
	if err := r.call(x, 0, barrier.OpConfirm, old); !errors.Is(err, barrier.ErrStale) && !errors.Is(err, barrier.ErrMoved) {
		t.Errorf("a call of an old epoch at the old home: %v", err)
	}
}

func TestAnAdoptionThatDoesNotAddUpIsRefusedAndSaysWhich(t *testing.T) {
	east, west := newPlace(t, "east"), newPlace(t, "west")
	n := slot.Of("ann")
	for i, p := range []*place{east, west} {
		p.must("POST", "/lockstep/homes", []barrier.Home{{Slot: n, Epoch: 101, Here: i == 0}})
		p.must("POST", "/accounts", map[string]any{"id": "ann", "balance": 1000})
	}
	if _, err := west.barrier.DB().ExecContext(t.Context(), "UPDATE ledger_account SET credits_posted = credits_posted + 5 WHERE id = 'ann'"); err != nil {
		t.Fatal(err)
	}
	east.must("POST", "/lockstep/release", []barrier.Home{{Slot: n, Epoch: 200}})
	raw := east.must("GET", fmt.Sprintf("/lockstep/released?slot=%d&epoch=200", n), nil)
	status, text := west.do("POST", fmt.Sprintf("/lockstep/adopt?slot=%d&epoch=202", n), raw)
	if status == http.StatusOK || !bytes.Contains(text, []byte("ann")) || !bytes.Contains(text, []byte("drift")) {
		t.Fatalf("%d %s", status, text)
	}
	if status, _ := west.do("GET", fmt.Sprintf("/lockstep/released?slot=%d&epoch=300", n), nil); status != http.StatusNotFound {
		t.Fatalf("%d", status)
	}
	// Without what was released a copy does not become a home.
	if status, _ := west.do("POST", fmt.Sprintf("/lockstep/adopt?slot=%d&epoch=202", n), nil); status == http.StatusOK {
		t.Log("west was marked as a copy before the regions' epochs; it may take the slot") // its fence row is below RegionsFrom
	}
}

func TestAnAccountThatWasAlteredIsFoundAndSetRightFromItsEntries(t *testing.T) {
	p := newPlace(t, "east")
	p.must("POST", "/accounts", map[string]any{"id": "ann", "balance": 1000})
	p.must("POST", "/accounts", map[string]any{"id": "bob", "balance": 1000})
	find := func() []ledger.AccountFault {
		var out []ledger.AccountFault
		if err := json.Unmarshal(p.must("GET", "/lockstep/check", nil), &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	if got := find(); len(got) != 0 {
		t.Fatalf("a sound book has %+v", got)
	}
	// A compensating pair: the total is as before.
	for id, by := range map[string]int{"ann": 5, "bob": -5} {
		if _, err := p.barrier.DB().ExecContext(t.Context(), "UPDATE ledger_account SET credits_posted = credits_posted + ? WHERE id = ?", by, id); err != nil {
			t.Fatal(err)
		}
	}
	faults := find()
	if len(faults) != 2 || faults[0].Account != "ann" || faults[0].Have[3] != 1005 || faults[0].Fold[3] != 1000 {
		t.Fatalf("%+v", faults)
	}
	other := faults[0]
	other.Have[3]++
	if status, text := p.do("POST", "/lockstep/mend", mustJSON(t, other)); status != http.StatusConflict {
		t.Fatalf("another fault than the one that is there: %d %s", status, text)
	}
	for range 2 { // a repeat finds it right
		for _, f := range faults {
			p.must("POST", "/lockstep/mend", f)
		}
	}
	if got := find(); len(got) != 0 {
		t.Fatalf("after the repair: %+v", got)
	}
}

// TestBranchesAreInspectedManyAtOnce: each answer is in its question's place, whatever stands beside it, and a branch of the
// same transaction that was not asked for is not in it.
func TestBranchesAreInspectedManyAtOnce(t *testing.T) {
	p := newPlace(t, "east")
	p.must("POST", "/accounts", map[string]any{"id": "ann", "balance": 100000})
	var ask []barrier.BranchKey
	var want []string
	for i := range 260 {
		gid := fmt.Sprintf("g%03d", i)
		ops := []string{barrier.OpTry, barrier.OpConfirm, barrier.OpCancel}[:i%4%3]
		state, rows := "", 0
		if i%4 == 3 {
			ops = []string{barrier.OpTry, barrier.OpCancel}
		}
		for _, branch := range []string{"01", "02"} {
			for _, op := range ops {
				c := &barrier.Call{TransType: "tcc", Gid: gid, BranchID: branch, Op: op, Fence: barrier.Fence{Slot: slot.Of(gid), Epoch: 1}}
				if err := p.kit.Call(t.Context(), "/wallet/pay/"+op, c, []byte(`{"account":"ann","amount":1}`)); err != nil {
					t.Fatal(err)
				}
			}
		}
		switch i % 4 {
		case 1:
			state, rows = "pending", 1
		case 2:
			state, rows = "posted", 2
		case 3:
			state, rows = "voided", 2
		}
		ask, want = append(ask, barrier.BranchKey{Gid: gid, Branch: "02"}), append(want, fmt.Sprint(state, rows))
	}
	ask, want = append(ask, ask[7]), append(want, want[7]) // asked twice
	var got []branch.Inspected
	if err := json.Unmarshal(p.must("POST", "/lockstep/inspect", ask), &got); err != nil || len(got) != len(ask) {
		t.Fatalf("%d answers, %v", len(got), err)
	}
	for i, g := range got {
		var books ledger.Branch
		if err := json.Unmarshal(g.Books, &books); err != nil {
			t.Fatal(err)
		}
		if g.BranchKey != ask[i] || fmt.Sprint(books.State, len(g.Ops)) != want[i] || (books.State != "") != (len(books.Legs) == 1) {
			t.Errorf("question %d, %+v: %+v with %s, want %s", i, ask[i], g, g.Books, want[i])
		}
	}
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// conformance checks the wallets of a region as anybody's participant is checked, through a handler that may be wrong.
func conformance(t *testing.T, wrong func(w http.ResponseWriter, r *http.Request, right http.Handler)) *participanttest.Report {
	t.Helper()
	p := newPlace(t, "east")
	p.must("POST", "/accounts", map[string]any{"id": "ann", "balance": 100000})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { wrong(w, r, p.http) }))
	t.Cleanup(srv.Close)
	report, err := participanttest.Check(t.Context(), participanttest.Target{
		Try: srv.URL + "/wallet/pay/try", Confirm: srv.URL + "/wallet/pay/confirm", Cancel: srv.URL + "/wallet/pay/cancel",
		Payload: []byte(`{"account":"ann","amount":1}`), Refused: []byte(`{"account":"ann","amount":99999999}`), StateURL: srv.URL + "/balances", RegionURL: srv.URL,
	})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

const heldAgain = "what a home that is lost held is held again at the copy, once, and ends as the try would"

func TestWalletsPassTheConformanceSuiteWithItsRegionCases(t *testing.T) {
	report := conformance(t, func(w http.ResponseWriter, r *http.Request, right http.Handler) { right.ServeHTTP(w, r) })
	forced := 0
	for _, f := range report.Findings {
		for _, check := range []string{"what was tried is listed until it has ended", "after a fence every call with a lower epoch is Stale", heldAgain,
			"a copy becomes the home by a forced adoption, field by field", "a try is ended by its name, and an ordinary end excludes the other one"} {
			if f.Check == check {
				forced++
			}
		}
	}
	if forced != 5 {
		t.Errorf("%d of the five checks of forced failover were made", forced)
	}
	if report.Count(participanttest.Fail) != 0 || report.Count(participanttest.NotChecked) != 0 {
		var text bytes.Buffer
		report.Write(&text)
		t.Fatal(text.String())
	}
}

// TestHoldsThatAreNotHeldAgainAreFound has wallets that answer a hold and do nothing, and ones that try anew instead.
func TestHoldsThatAreNotHeldAgainAreFound(t *testing.T) {
	for name, wrong := range map[string]func(w http.ResponseWriter, r *http.Request, right http.Handler){
		"nothing is done": func(w http.ResponseWriter, r *http.Request, right http.Handler) {
			if r.URL.Path != "/wallet/pay/hold" {
				right.ServeHTTP(w, r)
			}
		},
		"it is an ordinary try": func(w http.ResponseWriter, r *http.Request, right http.Handler) {
			if strings.HasSuffix(r.URL.Path, "/hold") {
				r.URL.Path = strings.TrimSuffix(r.URL.Path, "hold") + "try"
				q := r.URL.Query()
				q.Set("op", "try")
				r.URL.RawQuery = q.Encode()
			}
			right.ServeHTTP(w, r)
		},
	} {
		for _, f := range conformance(t, wrong).Findings {
			if f.Check == heldAgain && f.Verdict != participanttest.Fail {
				t.Errorf("%s: %s %s", name, f.Verdict, f.Why)
			}
		}
	}
}
