package inventory_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/inventory"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// shelf is an inventory behind its barrier, with a clock of the test's.
type shelf struct {
	*inventory.Inventory
	b   *barrier.Barrier
	now time.Time
}

func newShelf(t interface {
	Fatal(...any)
	TempDir() string
	Cleanup(func())
}) *shelf {
	ctx := context.Background()
	db, d, err := sqldb.Open(ctx, "sqlite:"+filepath.Join(t.TempDir(), "stock.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if err := errors.Join(barrier.Migrate(ctx, db, d.Dialect), inventory.Migrate(ctx, db, d), inventory.Migrate(ctx, db, d)); err != nil {
		t.Fatal(err)
	}
	b, err := barrier.New(db, d.Dialect, barrier.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := &shelf{b: b, now: time.UnixMilli(1_000_000)}
	s.Inventory = inventory.New(d, func() time.Time { return s.now })
	return s
}

func (s *shelf) do(gid, op string, r inventory.Request) (barrier.Outcome, error) {
	ctx := context.Background()
	call := &barrier.Call{TransType: "tcc", Gid: gid, BranchID: "01", Op: op, Fence: barrier.Fence{Slot: barrier.SlotOf(gid), Epoch: 1}}
	f := map[string]func(context.Context, *sql.Tx, *barrier.Call, inventory.Request) error{"try": s.Reserve, "confirm": s.Deduct, "cancel": s.Release}[op]
	return s.b.Do(ctx, call, func(tx *sql.Tx) error { return f(ctx, tx, call, r) })
}

func (s *shelf) article(t interface{ Fatal(...any) }) inventory.Article {
	st, err := s.Read(context.Background(), s.b.DB())
	if err != nil || len(st.Articles) != 1 {
		t.Fatal(st, err)
	}
	if f := st.Faults(); f != nil {
		t.Fatal(f)
	}
	return st.Articles[0]
}

func books(n int64) inventory.Request {
	return inventory.Request{Items: []inventory.Item{{SKU: "book", N: n}}}
}

func TestStockIsReservedDeductedAndReleased(t *testing.T) {
	s := newShelf(t)
	ctx := context.Background()
	for range 2 { // a delivery counts once
		if err := s.Stock(ctx, s.b.DB(), "d1", "book", 10); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		gid, op string
		n       int64
		want    inventory.Article
	}{
		{"g1", "try", 4, inventory.Article{Free: 6, Held: 4}}, {"g1", "try", 4, inventory.Article{Free: 6, Held: 4}},
		{"g2", "try", 6, inventory.Article{Free: 0, Held: 10}}, {"g1", "confirm", 4, inventory.Article{Free: 0, Held: 6, Sold: 4}},
		{"g1", "confirm", 4, inventory.Article{Free: 0, Held: 6, Sold: 4}}, {"g2", "cancel", 6, inventory.Article{Free: 6, Sold: 4}},
	} {
		if _, err := s.do(step.gid, step.op, books(step.n)); err != nil {
			t.Fatal(step, err)
		}
		step.want.SKU = "book"
		if got := s.article(t); got != step.want {
			t.Fatalf("%v: %+v", step, got)
		}
	}
	for name, tc := range map[string]struct {
		r      inventory.Request
		reason string
	}{"too much": {books(7), "stock_gone"}, "no such": {inventory.Request{Items: []inventory.Item{{SKU: "cd", N: 1}}}, "no_article"}, "no order": {inventory.Request{Order: "o"}, "order_gone"}} {
		var no *inventory.Refusal
		if _, err := s.do("g-"+name, "try", tc.r); !errors.As(err, &no) || no.Reason != tc.reason || !errors.Is(err, barrier.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, bad := range []inventory.Request{{}, books(0), books(-1), {Items: []inventory.Item{{SKU: "book", N: 1}, {SKU: "book", N: 1}}}, {Order: "o", Items: books(1).Items}} {
		if _, err := s.do("bad", "try", bad); !errors.Is(err, barrier.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestAnOrdersReservation(t *testing.T) {
	s := newShelf(t)
	ctx := context.Background()
	db := s.b.DB()
	if err := s.Stock(ctx, db, "d1", "book", 10); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.ReserveOrder(ctx, db, "o1", books(3).Items, s.now.Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	order := inventory.Request{Order: "o1"}
	state := func(want string) {
		t.Helper()
		if got, _, err := s.OrderState(ctx, db, "o1"); err != nil || got != want {
			t.Fatalf("%s, %v; want %s", got, err, want)
		}
	}
	if _, err := s.do("p1", "try", order); err != nil {
		t.Fatal(err)
	}
	state("paying")
	if _, err := s.do("p2", "try", order); !errors.Is(err, barrier.ErrRefused) {
		t.Errorf("a second payment: %v", err)
	}
	if err := s.CancelOrder(ctx, db, "o1"); !errors.Is(err, inventory.ErrOrderTaken) {
		t.Errorf("a cancel while it is being paid: %v", err)
	}
	s.now = s.now.Add(2 * time.Minute) // it lapses, but a payment has it
	if n, err := s.Expire(ctx, db, 10); n != 0 || err != nil {
		t.Errorf("%d expired, %v", n, err)
	}
	if _, err := s.do("p1", "cancel", order); err != nil {
		t.Fatal(err)
	}
	state("reserved")
	if _, err := s.do("p3", "try", order); !errors.Is(err, barrier.ErrRefused) {
		t.Errorf("a payment of an order that has lapsed: %v", err)
	}
	if n, err := s.Expire(ctx, db, 10); n != 1 || err != nil {
		t.Errorf("%d expired, %v", n, err)
	}
	state("released")
	if err := s.CancelOrder(ctx, db, "o1"); err != nil {
		t.Errorf("a cancel of what is released: %v", err)
	}
	if err := s.CancelOrder(ctx, db, "o9"); !errors.Is(err, sql.ErrNoRows) {
		t.Errorf("a cancel of nothing: %v", err)
	}
	if got := s.article(t); got != (inventory.Article{SKU: "book", Free: 10}) {
		t.Errorf("%+v", got)
	}
}

// Whatever comes in whatever order: nothing is sold twice or lost.
func TestRandomPaymentsAndOrdersKeepTheStock(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := newShelf(t)
		ctx := context.Background()
		db := s.b.DB()
		if err := s.Stock(ctx, db, "d1", "book", 20); err != nil {
			rt.Fatal(err)
		}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			n := rapid.IntRange(0, 3).Draw(rt, "which")
			order := fmt.Sprintf("o%d", n)
			switch rapid.IntRange(0, 5).Draw(rt, "what") {
			case 0:
				_ = s.ReserveOrder(ctx, db, order, books(int64(n+1)).Items, s.now.Add(time.Minute)) // refusals are part of the play
			case 1:
				_ = s.CancelOrder(ctx, db, order)
			case 2:
				s.now = s.now.Add(40 * time.Second)
				if _, err := s.Expire(ctx, db, 2); err != nil {
					rt.Fatal(err)
				}
			default:
				r := books(int64(n + 1))
				gid := fmt.Sprintf("p%d", n)
				if rapid.Bool().Draw(rt, "ordered") {
					r, gid = inventory.Request{Order: order}, "of"+order
				}
				_, _ = s.do(gid, rapid.SampledFrom([]string{"try", "confirm", "cancel"}).Draw(rt, "op"), r)
			}
			if a := s.article(rt); a.Free+a.Held+a.Sold != 20 || a.Free < 0 || a.Held < 0 {
				rt.Fatalf("%+v", a)
			}
		}
	})
}
