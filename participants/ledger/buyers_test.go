package ledger_test

import (
	"database/sql"
	"errors"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/participants/money"
)

// Buyers pay and are paid back in every mode that their accounts can have; the state agrees with itself while money is held,
// while it waits for the Poster, and after. The house's accounts take every payment without a counter that is locked.
func TestBuyersInEveryMode(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		buyers := ledger.Buyers{Ledger: b.Ledger}
		modes := []ledger.Account{{Mode: ledger.Direct}, {Mode: ledger.Serial}, {Mode: ledger.Buffered}, {Mode: ledger.Split, Shards: 4}}
		for _, a := range modes {
			a.ID, a.Currency = string(a.Mode), "CNY"
			for range 2 {
				b.must(t, buyers.CreateIn(ctx, b.db, a, 1000))
			}
		}
		n := int64(len(modes))
		is := func(when string, frozen, spent, refunded int64) {
			t.Helper()
			s, err := buyers.Read(ctx, b.db)
			if err != nil || len(s.Faults()) > 0 || len(s.Accounts) != len(modes) || s.Frozen != frozen || s.Spent != spent || s.Refunded != refunded ||
				s.Deposited != 1000*n+refunded || s.Balance != s.Deposited-frozen-spent || s.House != spent-refunded {
				t.Errorf("%s: %+v, %v, %v", when, s, s.Faults(), err)
			}
			b.audit(t)
		}
		each := func(f func(tx *sql.Tx, id string, call *barrier.Call) error) {
			t.Helper()
			for _, a := range modes {
				id := string(a.Mode)
				b.must(t, b.InTx(ctx, b.db, func(tx *sql.Tx) error { return f(tx, id, &barrier.Call{Gid: "g-" + id, BranchID: "01"}) }))
			}
		}
		is("before", 0, 0, 0)
		each(func(tx *sql.Tx, id string, c *barrier.Call) error {
			return buyers.Freeze(ctx, tx, c, money.Transfer{Account: id, Minor: 100})
		})
		is("frozen", 100*n, 0, 0)
		each(func(tx *sql.Tx, id string, c *barrier.Call) error {
			return buyers.Confirm(ctx, tx, c, money.Transfer{Account: id, Minor: 100})
		})
		is("paid", 0, 100*n, 0)
		each(func(tx *sql.Tx, id string, c *barrier.Call) error {
			return b.Transfer(ctx, tx, ledger.Transfer{ID: "refund-" + id, RefundOf: ledger.HoldID(c.Gid, c.BranchID), Legs: []ledger.Leg{leg(ledger.PaidTo("CNY"), id, 30)}})
		})
		is("refunded", 0, 100*n, 30*n)
		house, err := b.Balance(ctx, b.db, ledger.PaidTo("CNY"))
		if err != nil || house.Mode != ledger.Buffered || house.Posted() != 0 || house.Total() != 70*n {
			t.Errorf("the house before the Poster: %+v, %v", house, err)
		}
		if _, err := b.PostBuffered(ctx, b.db); err != nil {
			t.Fatal(err)
		}
		is("posted", 0, 100*n, 30*n)
		if house, err := b.Balance(ctx, b.db, ledger.PaidTo("CNY")); err != nil || house.Posted() != 70*n || house.BufferedCredits != 0 {
			t.Errorf("the house after the Poster: %+v, %v", house, err)
		}
		for _, a := range []ledger.Account{{ID: "a", Mode: ledger.Aggregated}, {ID: "a", Overdraft: true}, {ID: "house:paid:CNY"}} {
			a.Currency = "CNY"
			if err := buyers.CreateIn(ctx, b.db, a, 0); !errors.Is(err, barrier.ErrInvalid) {
				t.Errorf("%+v: %v", a, err)
			}
		}
	})
}

// A house account from before stays in its mode, and takes payments as it did.
func TestAHouseFromBeforeStays(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		buyers := ledger.Buyers{Ledger: b.Ledger}
		b.open(t, ledger.Account{ID: ledger.PaidTo("CNY"), Overdraft: true})
		b.must(t, buyers.Create(ctx, b.db, "alice", "CNY", 100))
		call := &barrier.Call{Gid: "g", BranchID: "01"}
		b.must(t, b.InTx(ctx, b.db, func(tx *sql.Tx) error {
			pay := money.Transfer{Account: "alice", Minor: 60}
			return errors.Join(buyers.Freeze(ctx, tx, call, pay), buyers.Confirm(ctx, tx, call, pay))
		}))
		if s, err := buyers.Read(ctx, b.db); err != nil || len(s.Faults()) > 0 || s.House != 60 || s.Spent != 60 {
			t.Errorf("%+v, %v", s, err)
		}
		b.audit(t)
	})
}
