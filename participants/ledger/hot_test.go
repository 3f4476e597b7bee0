package ledger_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
)

func (b *book) post(t *testing.T) int {
	t.Helper()
	n, err := b.PostBuffered(ctx, b.db)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Buffered credits are on the balance at once and in the counters later; a debit sees them all.
func TestBufferedCredits(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "shop", Mode: ledger.Buffered}, ledger.Account{ID: "suspense", Mode: ledger.Buffered, Overdraft: true})
		b.must(t, b.hold("g1", leg("suspense", "shop", 10)))
		b.has(t, "shop", 0, 0, 10, 0, 0)
		b.has(t, "suspense", 10, 0, 0, 0, 0)
		b.must(t, b.postHold("g1"), b.transfer("t1", leg("suspense", "shop", 5)), b.hold("g2", leg("suspense", "shop", 7)), b.void("g2"))
		b.has(t, "shop", 0, 0, 0, 0, 15)
		b.has(t, "suspense", 0, 0, 0, 0, -15)
		if a, err := b.Balance(ctx, b.db, "shop"); err != nil || a.Total() != 15 || a.Posted() != 0 || a.Available() != 15 {
			t.Errorf("%+v, %v", a, err)
		}
		if n := b.post(t); n != 2 {
			t.Errorf("%d accounts", n)
		}
		b.has(t, "shop", 0, 0, 0, 15, 0)
		b.has(t, "suspense", 0, 15, 0, 0, 0)
		if n := b.post(t); n != 0 {
			t.Errorf("posted twice: %d accounts", n)
		}
		b.must(t, b.transfer("t2", leg("suspense", "shop", 5)), b.transfer("t3", leg("suspense", "shop", 5)))
		b.must(t, b.hold("g3", leg("shop", "suspense", 18), leg("shop", "suspense", 6)))
		refused(t, b.hold("g4", leg("shop", "suspense", 2)), ledger.InsufficientFunds, "amount")
		b.has(t, "shop", 24, 0, 0, 25, 0)
		b.must(t, b.postHold("g3"), b.transfer("t4", leg("shop", "suspense", 1)))
		b.has(t, "shop", 0, 25, 0, 25, 0)
		refused(t, b.SetState(ctx, b.db, "suspense", ledger.Closed), ledger.AccountInUse, "state")
		b.must(t, b.SetState(ctx, b.db, "shop", ledger.Closed))
		refused(t, b.hold("g5", leg("suspense", "shop", 1)), ledger.AccountClosed, "credit")
	})
}

// The poster is killed between its delete and its commit: nothing is lost, and the next one posts it once.
func TestAKilledPosterPostsOnce(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "shop", Mode: ledger.Buffered}, ledger.Account{ID: "world", Overdraft: true})
		for i := range 20 {
			b.must(t, b.transfer(fmt.Sprint("t", i), leg("world", "shop", 1)))
		}
		// A debit posts the buffer in its own transaction, which dies.
		tx, err := b.db.BeginTx(ctx, nil)
		b.must(t, err)
		b.must(t, b.Hold(ctx, tx, ledger.Transfer{Gid: "g1", Branch: "01", Legs: []ledger.Leg{leg("shop", "world", 20)}}))
		b.must(t, tx.Rollback())
		b.has(t, "shop", 0, 0, 0, 0, 20)
		kill, cancel := context.WithCancel(ctx)
		done := make(chan error)
		go func() { done <- ledger.Poster{Ledger: b.Ledger, DB: b.db, Rate: 1000}.Run(kill) }()
		for i := range 30 {
			b.must(t, b.transfer(fmt.Sprint("u", i), leg("world", "shop", 1)))
			if i == 15 {
				cancel()
				b.must(t, <-done)
				kill, cancel = context.WithCancel(ctx)
				go func() { done <- ledger.Poster{Ledger: b.Ledger, DB: b.db, Rate: 1000}.Run(kill) }()
			}
		}
		cancel()
		b.must(t, <-done)
		b.post(t)
		b.has(t, "shop", 0, 0, 0, 50, 0)
	})
}

// A day's credits wait in the clearing account, and become one entry.
func TestAggregatedPosting(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "shop", Mode: ledger.Aggregated}, ledger.Account{ID: "fees", Mode: ledger.Aggregated, Overdraft: true}, ledger.Account{ID: "world", Overdraft: true})
		day := b.clock()
		b.must(t, b.hold("g1", leg("world", "shop", 10)), b.postHold("g1"), b.transfer("t1", leg("world", "shop", 5)), b.hold("g2", leg("world", "shop", 3)))
		b.must(t, b.transfer("f1", leg("world", "fees", 5)), b.transfer("f2", leg("fees", "world", 7)))
		b.has(t, "shop", 0, 0, 3, 0, 15)
		b.has(t, "fees", 0, 0, 0, 0, -2)
		refused(t, b.hold("g3", leg("shop", "world", 1)), ledger.InsufficientFunds, "amount") // T+1
		noon := b.clock()
		if b.post(t) != 0 {
			t.Error("a poster has posted what the day cut does")
		}
		b.advance(24 * time.Hour)
		b.must(t, b.postHold("g2"))
		b.has(t, "shop", 0, 0, 0, 0, 18)
		for range 2 {
			if n, err := b.CutDay(ctx, b.db, "shop", day); n != 15 || err != nil {
				t.Errorf("cut %d, %v", n, err)
			}
			b.has(t, "shop", 0, 0, 0, 15, 3)
		}
		b.must(t, b.CutDays(ctx, b.db, day))
		b.has(t, "fees", 0, 2, 0, 0, 0)
		entries, _, err := b.Statement(ctx, b.db, "shop", time.Time{}, b.clock(), ledger.Cursor{}, 10)
		if err != nil || len(entries) != 1 || entries[0].Minor != 15 || entries[0].Transfer != "cut:shop:20261120" {
			t.Errorf("%+v, %v", entries, err)
		}
		details, _, err := b.Statement(ctx, b.db, ledger.Clearing("shop"), time.Time{}, b.clock(), ledger.Cursor{}, 10)
		if err != nil || len(details) != 4 {
			t.Errorf("%+v, %v", details, err)
		}
		for at, want := range map[time.Time]int64{day: 0, noon: 15, b.clock(): 18} {
			if got, err := b.BalanceAt(ctx, b.db, "shop", at); got != want || err != nil {
				t.Errorf("balance at %s is %d, %v; want %d", at, got, err, want)
			}
		}
		b.must(t, b.hold("g4", leg("shop", "world", 15)), b.postHold("g4"))
		if _, err := b.CutDay(ctx, b.db, "world", day); !errors.Is(err, barrier.ErrInvalid) {
			t.Error(err)
		}
		refused(t, b.SetState(ctx, b.db, "shop", ledger.Closed), ledger.AccountInUse, "state")
		b.must(t, b.CutDays(ctx, b.db, b.clock()))
		b.has(t, "shop", 0, 15, 0, 18, 0)
	})
}

// Credits fall on shards by their id, a debit gathers from all, and Rebalance changes no sum.
func TestSplitAccounts(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "shop", Mode: ledger.Split, Shards: 4}, ledger.Account{ID: "world", Mode: ledger.Split, Shards: 2, Overdraft: true})
		for i := range 40 {
			b.must(t, b.transfer(fmt.Sprint("t", i), leg("world", "shop", 10)))
		}
		b.has(t, "shop", 0, 0, 0, 400, 0)
		var used int
		b.must(t, b.db.QueryRow(fmt.Sprintf("SELECT count(*) FROM %saccount WHERE id = 'shop' AND credits_posted > 0", b.prefix)).Scan(&used))
		if used < 3 {
			t.Errorf("%d shards are used", used)
		}
		for range 2 {
			b.must(t, b.hold("g1", leg("shop", "world", 350)))
			b.has(t, "shop", 350, 0, 0, 400, 0)
		}
		refused(t, b.hold("g2", leg("shop", "world", 40), leg("shop", "world", 11)), ledger.InsufficientFunds, "amount")
		b.must(t, b.void("g1"), b.Rebalance(ctx, b.db, "shop"), b.Rebalance(ctx, b.db, "shop"))
		b.has(t, "shop", 0, 0, 0, 400, 0)
		var least, most int64
		b.must(t, b.db.QueryRow(fmt.Sprintf("SELECT min(credits_posted), max(credits_posted) FROM %saccount WHERE id = 'shop' AND shard > 0", b.prefix)).Scan(&least, &most))
		if least != 100 || most != 100 {
			t.Errorf("shards have %d to %d", least, most)
		}
		b.must(t, b.hold("g3", leg("shop", "world", 250), leg("shop", "world", 150)), b.postHold("g3"), b.postHold("g3"))
		b.has(t, "shop", 0, 400, 0, 400, 0)
		b.must(t, b.reverse("rev", "g3:01"))
		b.has(t, "shop", 0, 400, 0, 800, 0)
		b.must(t, b.hold("g4", leg("shop", "world", 400)), b.void("g4"))
	})
}

func TestStatement(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "alice"}, ledger.Account{ID: "shop"})
		b.deposit(t, "alice", 1000)
		start := b.clock()
		b.must(t, b.transfer("several", leg("alice", "shop", 1), leg("alice", "shop", 2), leg("alice", "shop", 3)))
		for i := range 7 {
			b.must(t, b.hold(fmt.Sprint("g", i), leg("alice", "shop", 10)), b.postHold(fmt.Sprint("g", i)))
		}
		var got []ledger.Entry
		var after ledger.Cursor
		for pages := 0; ; pages++ {
			page, next, err := b.Statement(ctx, b.db, "alice", start, b.clock(), after, 2)
			b.must(t, err)
			got = append(got, page...)
			if next == (ledger.Cursor{}) {
				break
			}
			if after = next; pages > 10 {
				t.Fatal("pages do not end")
			}
		}
		if len(got) != 10 || got[0].Transfer != "several" || got[2].Minor != 3 || got[9].Transfer != "g6:01" || got[9].Gid != "g6" || got[9].Branch != "01" {
			t.Fatalf("%d entries: %+v", len(got), got)
		}
		if got[2].BalanceAfter == nil || *got[2].BalanceAfter != 994 || *got[9].BalanceAfter != 924 {
			t.Errorf("balances after: %v %v", got[2].BalanceAfter, got[9].BalanceAfter)
		}
		for i, e := range got[3:] {
			if at, err := b.BalanceAt(ctx, b.db, "alice", e.PostedAt); err != nil || at != *e.BalanceAfter+10 {
				t.Errorf("before payment %d: %d, %v", i, at, err)
			}
		}
		b.must(t, b.InTx(ctx, b.db, func(tx *sql.Tx) error {
			return b.Transfer(ctx, tx, ledger.Transfer{ID: "msg-1", Gid: "g1", Branch: "02", Legs: []ledger.Leg{leg("shop", "alice", 1)}})
		}))
		if e, err := b.EntriesByGid(ctx, b.db, "g1"); err != nil || len(e) != 4 {
			t.Errorf("%+v, %v", e, err)
		}
		if e, err := b.EntriesOf(ctx, b.db, "several"); err != nil || len(e) != 6 {
			t.Errorf("%+v, %v", e, err)
		}
		if _, err := b.Balance(ctx, b.db, "nobody"); !errors.Is(err, sql.ErrNoRows) {
			t.Error(err)
		}
	})
}

// Migrations run twice and at once, and a newer database is refused.
func TestMigrateAgain(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "alice"})
		errs := make(chan error, 8)
		for i := range cap(errs) {
			go func() {
				o := b.options
				if i%2 == 0 && b.dialect == barrier.SQLite {
					o.Schema = "fresh"
				}
				errs <- ledger.Migrate(ctx, b.db, b.dialect, o)
			}()
		}
		for range cap(errs) {
			b.must(t, <-errs)
		}
		b.has(t, "alice", 0, 0, 0, 0, 0)
		_, err := b.db.Exec(fmt.Sprintf("INSERT INTO %smigration (version, name) VALUES (99, 'later')", b.prefix))
		b.must(t, err)
		if err := ledger.Migrate(ctx, b.db, b.dialect, b.options); err == nil {
			t.Error("a newer version is taken")
		}
		if err := ledger.Migrate(ctx, b.db, b.dialect, ledger.Options{Schema: "no;schema"}); !errors.Is(err, barrier.ErrInvalid) {
			t.Error(err)
		}
	})
}
