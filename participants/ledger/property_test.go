package ledger_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
)

var errCrash = errors.New("the process died")

var worlds atomic.Int64

// world is one run: accounts of its own in every mode, their model, and the real ledger beside it.
type world struct {
	*book
	rt     *rapid.T
	m      *model
	name   string
	ids    []string
	ops    int
	legs   map[string][]ledger.Leg
	opened time.Time
	marks  map[string]int // what took effect, by kind
}

func (b *book) world(rt *rapid.T) *world {
	w := &world{book: b, rt: rt, name: fmt.Sprintf("w%d/", worlds.Add(1)), legs: map[string][]ledger.Leg{}}
	w.marks = map[string]int{}
	w.m = &model{accounts: map[string]*modelAccount{}, transfers: map[string]*modelTransfer{}}
	for _, a := range []ledger.Account{
		{ID: "outside", Overdraft: true}, {ID: "alice"}, {ID: "bob", MaxDebit: 150, MaxCredit: 400}, {ID: "hot", Mode: ledger.Serial}, {ID: "buffered", Mode: ledger.Buffered},
		{ID: "suspense", Mode: ledger.Buffered, Overdraft: true}, {ID: "daily", Mode: ledger.Aggregated}, {ID: "fees", Mode: ledger.Aggregated, Overdraft: true},
		{ID: "split", Mode: ledger.Split, Shards: 3}, {ID: "usd", Currency: "USD", Overdraft: true}, {ID: "usd2", Currency: "USD", Mode: ledger.Buffered},
	} {
		a.ID = w.name + a.ID
		if a.Currency == "" {
			a.Currency = "CNY"
		}
		if err := b.OpenAccount(ctx, b.db, a); err != nil {
			rt.Fatal(err)
		}
		if a.Mode == "" {
			a.Mode = ledger.Direct
		}
		a.State = ledger.Open
		w.m.accounts[a.ID] = &modelAccount{def: a}
		w.ids = append(w.ids, a.ID)
	}
	w.opened = b.clock()
	return w
}

// body draws legs that have one account in common, on one side.
func (w *world) body() []ledger.Leg {
	currency := "CNY"
	ids := w.ids[:9]
	if rapid.IntRange(0, 9).Draw(w.rt, "usd") == 0 {
		currency, ids = "USD", w.ids[9:]
	}
	one := rapid.SampledFrom(ids).Draw(w.rt, "account")
	reversed := rapid.Bool().Draw(w.rt, "side")
	var legs []ledger.Leg
	for range rapid.SampledFrom([]int{1, 1, 1, 2, 3}).Draw(w.rt, "legs") {
		other := rapid.SampledFrom(ids).Filter(func(s string) bool { return s != one }).Draw(w.rt, "other")
		g := ledger.Leg{Debit: one, Credit: other, Minor: rapid.Int64Range(1, 60).Draw(w.rt, "amount"), Currency: currency}
		if reversed {
			g.Debit, g.Credit = other, one
		}
		legs = append(legs, g)
	}
	return legs
}

// bodyOf is the body of an id: mostly the one it had before.
func (w *world) bodyOf(id string) []ledger.Leg {
	if legs, there := w.legs[id]; there && rapid.IntRange(0, 9).Draw(w.rt, "another body") > 0 {
		return legs
	}
	legs := w.body()
	if w.legs[id] == nil {
		w.legs[id] = legs
	}
	return legs
}

func (w *world) id(kind string) string {
	return fmt.Sprintf("%s%s%d", w.name, kind, rapid.IntRange(0, 15).Draw(w.rt, "id"))
}

// do runs f in a transaction that dies at times, and compares what came of it with the model.
func (w *world) do(what string, f func(tx *sql.Tx) error, model func(do bool) string) {
	w.ops++
	crash := rapid.IntRange(0, 7).Draw(w.rt, "crash") == 0
	want := model(false)
	var got error
	err := w.InTx(ctx, w.db, func(tx *sql.Tx) error {
		if got = f(tx); crash && got == nil {
			return errCrash
		}
		return got
	})
	if class := classOf(got); class != want {
		w.rt.Fatalf("%s: got %q, want %q (%v)", what, class, want, got)
	}
	if err == nil {
		model(true)
		w.marks[strings.Fields(what)[0]]++
	}
}

func (w *world) step() {
	switch rapid.SampledFrom([]string{"hold", "hold", "hold", "post", "post", "post", "void", "transfer", "transfer", "deposit", "refund", "hold a refund", "reverse", "poster", "cut", "rebalance", "freeze", "look"}).Draw(w.rt, "op") {
	case "hold":
		w.enter("hold", w.id("g"), "", false)
	case "post":
		w.settle(true)
	case "void":
		w.settle(false)
	case "transfer":
		w.enter("transfer", w.id("t"), "", true)
	case "deposit":
		id := fmt.Sprintf("%sd%d", w.name, w.ops)
		w.legs[id] = []ledger.Leg{{Debit: w.ids[0], Credit: rapid.SampledFrom(w.ids[1:9]).Draw(w.rt, "to"), Minor: 100, Currency: "CNY"}}
		w.enter("transfer", id, "", true)
	case "refund":
		w.enter("transfer", w.id("r"), w.payment(), true)
	case "hold a refund":
		w.enter("hold", w.id("h"), w.payment(), false)
	case "reverse":
		id, of := w.id("v"), w.payment()
		w.do("reverse "+of+" by "+id, func(tx *sql.Tx) error { return w.Reverse(ctx, tx, id, of, "", "") }, func(do bool) string { return w.m.reverse(id, of, do) })
	case "poster":
		w.poster()
	case "cut":
		w.advance(24 * time.Hour)
		if err := w.CutDays(ctx, w.db, w.clock()); err != nil {
			w.rt.Fatal(err)
		}
		w.m.cut()
		w.advance(24 * time.Hour)
	case "rebalance":
		if err := w.Rebalance(ctx, w.db, w.ids[8]); err != nil {
			w.rt.Fatal(err)
		}
	case "freeze":
		id := rapid.SampledFrom(w.ids).Draw(w.rt, "whom")
		a := w.m.accounts[id]
		a.frozen = !a.frozen && rapid.Bool().Draw(w.rt, "frozen")
		if err := w.SetState(ctx, w.db, id, map[bool]ledger.State{true: ledger.Frozen, false: ledger.Open}[a.frozen]); err != nil {
			w.rt.Fatal(err)
		}
	case "look":
		w.look(rapid.SampledFrom(w.ids).Draw(w.rt, "at"))
	}
}

// one draws, mostly, the id of a transfer that is as wanted; "" at times, and where there is none.
func (w *world) one(want func(t *modelTransfer) bool) string {
	var ids []string
	for id, t := range w.m.transfers {
		if want(t) {
			ids = append(ids, id)
		}
	}
	if slices.Sort(ids); len(ids) == 0 || rapid.IntRange(0, 3).Draw(w.rt, "any") == 0 {
		return ""
	}
	return rapid.SampledFrom(ids).Draw(w.rt, "one")
}

// payment draws an id that may be a payment, mostly one that can be refunded.
func (w *world) payment() string {
	if id := w.one(func(t *modelTransfer) bool { return t.state == "posted" && t.of == "" && t.refunded < t.total }); id != "" {
		return id
	}
	return w.id(rapid.SampledFrom([]string{"t", "t", "g", "r"}).Draw(w.rt, "of"))
}

// enter is by the id as it is: the hold of gid g has the id g too.
func (w *world) enter(kind, id, of string, post bool) {
	legs := w.bodyOf(id)
	if p := w.m.transfers[of]; p != nil && p.legs != nil && w.m.transfers[id] == nil {
		g := p.legs[0]
		legs = []ledger.Leg{{Debit: g.Credit, Credit: g.Debit, Minor: (g.Minor + 1) / 2, Currency: g.Currency}}
		w.legs[id] = legs
	}
	t := ledger.Transfer{ID: id, Gid: "gid-" + id, RefundOf: of, Legs: legs}
	what := kind
	if of != "" {
		what += "-refund"
	}
	w.do(fmt.Sprintf("%s %+v", what, t), func(tx *sql.Tx) error {
		if post {
			return w.Transfer(ctx, tx, t)
		}
		return w.Hold(ctx, tx, t)
	}, func(do bool) string { return w.m.enter(id, kind, of, legs, post, do) })
}

func (w *world) settle(post bool) {
	t := ledger.Transfer{ID: w.one(func(t *modelTransfer) bool { return t.state == "pending" })}
	if t.ID == "" {
		t.ID = w.id(rapid.SampledFrom([]string{"g", "g", "g", "h", "t"}).Draw(w.rt, "which"))
	}
	w.do(fmt.Sprintf("settle %s, post %t", t.ID, post), func(tx *sql.Tx) error {
		if post {
			return w.Post(ctx, tx, t)
		}
		return w.Void(ctx, tx, t)
	}, func(do bool) string { return w.m.settle(t.ID, post, do) })
}

// poster posts, or dies over it.
func (w *world) poster() {
	kill, cancel := context.WithCancel(ctx)
	defer cancel()
	if rapid.Bool().Draw(w.rt, "kill") {
		timer := time.AfterFunc(time.Duration(rapid.IntRange(0, 2000).Draw(w.rt, "after µs"))*time.Microsecond, cancel)
		defer timer.Stop()
	}
	if _, err := w.PostBuffered(kill, w.db); err != nil && kill.Err() == nil {
		w.rt.Fatal(err)
	}
}

// look compares one account with the model, and with its entries.
func (w *world) look(id string) {
	b, err := w.Balance(ctx, w.db, id)
	if err != nil {
		w.rt.Fatal(err)
	}
	a := w.m.accounts[id]
	got := [3]int64{b.DebitsPending, b.CreditsPending, b.Total()}
	if want := [3]int64{a.dp, a.cp, a.cq - a.dq + a.today}; got != want {
		w.rt.Fatalf("%s has %v, want %v", id, got, want)
	}
	if !a.def.Overdraft && b.Available() != a.cq-a.dq-a.dp {
		w.rt.Fatalf("%s has %d available, want %d", id, b.Available(), a.cq-a.dq-a.dp)
	}
	for at, want := range map[time.Time]int64{w.opened: 0, w.clock(): b.Total()} {
		if now, err := w.BalanceAt(ctx, w.db, id, at); err != nil || now != want {
			w.rt.Fatalf("%s at %s has %d, want %d (%v)", id, at, now, want, err)
		}
	}
}

// Random interleavings over accounts of every mode: each outcome and each balance is the model's, and the book agrees with
// itself at the end of each run. Guarantee G7.
func TestEveryInterleavingKeepsTheMoney(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		total, runs, steps := 0, 0, 100
		marks := map[string]int{}
		if b.dialect != barrier.SQLite {
			steps = 50 // each is a commit or more on a server's disk
		}
		rapid.Check(t, func(rt *rapid.T) {
			w := b.world(rt)
			for range rapid.IntRange(30, steps).Draw(rt, "steps") {
				w.step()
			}
			for _, id := range w.ids {
				w.look(id)
			}
			sums := map[string]int64{}
			for _, a := range w.m.accounts {
				sums[a.def.Currency] += a.cq - a.dq + a.today
			}
			if sums["CNY"] != 0 || sums["USD"] != 0 {
				rt.Fatalf("the model is wrong: %v", sums)
			}
			if b.dialect == barrier.SQLite || runs%10 == 0 {
				b.audit(rt)
			}
			total, runs = total+w.ops, runs+1
			for k, n := range w.marks {
				marks[k] += n
			}
		})
		b.audit(t)
		t.Logf("%d operations in %d runs, took effect: %v", total, runs, marks)
		for _, k := range []string{"hold", "transfer", "settle", "hold-refund", "transfer-refund", "reverse"} {
			if runs >= 50 && marks[k] == 0 {
				t.Errorf("no %s took effect", k)
			}
		}
	})
}
