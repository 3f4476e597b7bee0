package ledger_test

import (
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/participants/ledger"
)

// An account whose side of a hold is insert only, so that the hold changes none of its counters, is closed or frozen before
// the hold or after it: never while it is on its way, when a look at the account cannot see it yet.
func TestClosingWaitsForInsertOnlyHolds(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "world", Mode: ledger.Buffered, Overdraft: true})
		for _, mode := range []ledger.Mode{ledger.Buffered, ledger.Aggregated} {
			shop := "shop-" + string(mode)
			b.open(t, ledger.Account{ID: shop, Mode: mode})
			tx, err := b.db.BeginTx(ctx, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback() }()
			if err := b.Hold(ctx, tx, ledger.Transfer{Gid: "g-" + shop, Branch: "01", Legs: []ledger.Leg{leg("world", shop, 5)}}); err != nil {
				t.Fatal(err)
			}
			closed := make(chan error, 1)
			go func() { closed <- b.SetState(ctx, b.db, shop, ledger.Closed) }()
			select {
			case err := <-closed:
				t.Fatalf("%s was closed (%v) while a hold was on its way", shop, err)
			case <-time.After(300 * time.Millisecond): // it waits; should it not have begun yet, it finds the hold
			}
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			refused(t, <-closed, ledger.AccountInUse, "state")
			b.must(t, b.postHold("g-"+shop))
			b.audit(t)
		}
	})
}

// A refund is in its payment's currency, though its own accounts are in another one and have the money.
func TestARefundIsInItsPaymentsCurrency(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "alice"}, ledger.Account{ID: "shop"}, ledger.Account{ID: "world-usd", Currency: "USD", Overdraft: true},
			ledger.Account{ID: "alice-usd", Currency: "USD"}, ledger.Account{ID: "shop-usd", Currency: "USD"}, ledger.Account{ID: "split-usd", Currency: "USD", Mode: ledger.Split, Shards: 2})
		b.deposit(t, "alice", 100)
		usd := func(debit, credit string, n int64) ledger.Leg {
			return ledger.Leg{Debit: debit, Credit: credit, Minor: n, Currency: "USD"}
		}
		b.must(t, b.hold("g1", leg("alice", "shop", 60)), b.postHold("g1"),
			b.transfer("usd", usd("world-usd", "shop-usd", 60), usd("world-usd", "split-usd", 60)))
		for _, from := range []string{"shop-usd", "split-usd"} {
			refused(t, b.refund("r-"+from, "g1:01", usd(from, "alice-usd", 10)), ledger.NoPayment, "refund_of")
		}
		if _, _, refunded, err := b.TransferState(ctx, b.db, "g1:01"); err != nil || refunded != 0 {
			t.Errorf("%d are refunded, %v", refunded, err)
		}
		b.audit(t)
	})
}
