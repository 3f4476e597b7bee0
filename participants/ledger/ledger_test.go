package ledger_test

import (
	"database/sql"
	"errors"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
)

func TestHoldPostVoid(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "alice"}, ledger.Account{ID: "shop", Mode: ledger.Serial})
		b.deposit(t, "alice", 10000)
		for range 2 {
			b.must(t, b.hold("g1", leg("alice", "shop", 4000)))
			b.has(t, "alice", 4000, 0, 0, 10000, 0)
			b.has(t, "shop", 0, 0, 4000, 0, 0)
		}
		for range 2 {
			b.must(t, b.postHold("g1", leg("alice", "shop", 4000)))
			b.has(t, "alice", 0, 4000, 0, 10000, 0)
			b.has(t, "shop", 0, 0, 0, 4000, 0)
		}
		b.must(t, b.hold("g1", leg("alice", "shop", 4000))) // a late repeat
		b.has(t, "alice", 0, 4000, 0, 10000, 0)
		b.must(t, b.hold("g2", leg("alice", "shop", 6000))) // the whole of it
		for range 2 {
			b.must(t, b.void("g2"))
			b.has(t, "alice", 0, 4000, 0, 10000, 0)
			b.has(t, "shop", 0, 0, 0, 4000, 0)
		}
		refused(t, b.hold("g2", leg("alice", "shop", 6000)), ledger.Voided, "id")
		for _, err := range []error{b.void("g1"), b.postHold("g2")} {
			if !errors.Is(err, barrier.ErrContradiction) {
				t.Error(err)
			}
		}
		for _, err := range []error{b.void("g3"), b.postHold("g3")} {
			if !errors.Is(err, ledger.ErrNoHold) || errors.Is(err, barrier.ErrRefused) {
				t.Error(err)
			}
		}
		b.has(t, "world", 0, 10000, 0, 0, 0)
	})
}

// All legs or none, also where one account has several and where they go round.
func TestSeveralLegs(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "alice"}, ledger.Account{ID: "shop"}, ledger.Account{ID: "fee"}, ledger.Account{ID: "usd", Currency: "USD"}, ledger.Account{ID: "usd2", Currency: "USD", Overdraft: true})
		b.deposit(t, "alice", 100)
		b.must(t, b.hold("g1", leg("alice", "shop", 97), leg("alice", "fee", 3), ledger.Leg{Debit: "usd2", Credit: "usd", Minor: 7, Currency: "USD"}))
		b.has(t, "alice", 100, 0, 0, 100, 0)
		b.must(t, b.postHold("g1"))
		b.has(t, "shop", 0, 0, 0, 97, 0)
		b.has(t, "fee", 0, 0, 0, 3, 0)
		b.has(t, "usd", 0, 0, 0, 7, 0)
		refused(t, b.hold("g2", leg("shop", "alice", 97), leg("fee", "alice", 4)), ledger.InsufficientFunds, "amount")
		refused(t, b.hold("g3", leg("shop", "alice", 97), leg("alice", "fee", 1)), ledger.InsufficientFunds, "amount") // what is pending is not there yet
		b.must(t, b.transfer("t1", leg("shop", "alice", 97), leg("alice", "fee", 96)))
		b.has(t, "shop", 0, 97, 0, 97, 0)
		b.has(t, "alice", 0, 196, 0, 197, 0)
		entries, err := b.EntriesByGid(ctx, b.db, "g1")
		if err != nil || len(entries) != 6 {
			t.Fatalf("%d entries, %v", len(entries), err)
		}
	})
}

func TestRefusals(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "alice", MaxDebit: 80}, ledger.Account{ID: "shop", MaxCredit: 70}, ledger.Account{ID: "bank", Currency: "USD"},
			ledger.Account{ID: "ice"}, ledger.Account{ID: "gone"}, ledger.Account{ID: "hot", Mode: ledger.Buffered}, ledger.Account{ID: "agg", Mode: ledger.Aggregated})
		b.deposit(t, "alice", 100)
		b.must(t, b.SetState(ctx, b.db, "gone", ledger.Closed))
		for _, id := range []string{"ice", "hot", "agg"} {
			b.must(t, b.SetState(ctx, b.db, id, ledger.Frozen))
		}
		for _, tc := range []struct {
			leg    ledger.Leg
			reason ledger.Reason
			field  string
		}{
			{leg("nobody", "shop", 1), ledger.NoAccount, "debit"},
			{leg("alice", "nobody", 1), ledger.NoAccount, "credit"},
			{leg("alice", "ice", 1), ledger.AccountFrozen, "credit"},
			{leg("ice", "alice", 1), ledger.AccountFrozen, "debit"},
			{leg("alice", "gone", 1), ledger.AccountClosed, "credit"},
			{leg("alice", "hot", 1), ledger.AccountFrozen, "credit"},
			{leg("alice", "agg", 1), ledger.AccountFrozen, "credit"},
			{leg("alice", "agg:clearing", 1), ledger.AccountInternal, "credit"},
			{leg("alice", "bank", 1), ledger.WrongCurrency, "currency"},
			{ledger.Leg{Debit: "alice", Credit: "shop", Minor: 1, Currency: "USD"}, ledger.WrongCurrency, "currency"},
			{leg("alice", "shop", 101), ledger.InsufficientFunds, "amount"},
			{leg("alice", "world", 81), ledger.DebitCap, "amount"},
			{leg("world", "shop", 71), ledger.CreditCap, "amount"},
		} {
			refused(t, b.hold("g", tc.leg), tc.reason, tc.field)
			refused(t, b.transfer("t", tc.leg), tc.reason, tc.field)
		}
		for _, bad := range []ledger.Transfer{
			{Gid: "g", Legs: nil}, {Legs: []ledger.Leg{leg("alice", "shop", 1)}}, {Gid: "g", Legs: []ledger.Leg{leg("alice", "alice", 1)}},
			{Gid: "g", Legs: []ledger.Leg{leg("alice", "shop", 0)}}, {Gid: "g", Legs: []ledger.Leg{leg("alice", "shop", -1)}},
			{Gid: "g", Legs: []ledger.Leg{{Debit: "alice", Credit: "shop", Minor: 1, Currency: "yuan"}}}, {ID: strings.Repeat("x", 261), Legs: []ledger.Leg{leg("alice", "shop", 1)}},
		} {
			err := b.InTx(ctx, b.db, func(tx *sql.Tx) error { return b.Hold(ctx, tx, bad) })
			if !errors.Is(err, barrier.ErrInvalid) {
				t.Errorf("%+v: %v", bad, err)
			}
		}
		b.has(t, "alice", 0, 0, 0, 100, 0)
		// What was held before can be posted and voided on a frozen account.
		b.must(t, b.hold("g1", leg("alice", "shop", 30)), b.hold("g2", leg("alice", "shop", 30)), b.SetState(ctx, b.db, "alice", ledger.Frozen))
		refused(t, b.hold("g3", leg("alice", "shop", 1)), ledger.AccountFrozen, "debit")
		b.must(t, b.postHold("g1"), b.void("g2"), b.hold("g1", leg("alice", "shop", 30)))
		b.has(t, "alice", 0, 30, 0, 100, 0)
		refused(t, b.SetState(ctx, b.db, "alice", ledger.Closed), ledger.AccountInUse, "state")
		refused(t, b.SetState(ctx, b.db, "gone", ledger.Open), ledger.AccountClosed, "state")
		b.must(t, b.SetState(ctx, b.db, "alice", ledger.Open), b.hold("g3", leg("alice", "shop", 1)))
	})
}

// One id, one body, for ever.
func TestTheSameIDWithAnotherBodyIsLoud(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "alice"}, ledger.Account{ID: "shop"})
		b.deposit(t, "alice", 100)
		b.deposit(t, "alice", 100)
		mismatched(t, b.transfer("first:alice", leg("world", "alice", 101)))
		b.must(t, b.hold("g1", leg("alice", "shop", 60)))
		mismatched(t, b.hold("g1", leg("alice", "shop", 59)))
		mismatched(t, b.hold("g1", leg("alice", "nobody", 60)))
		mismatched(t, b.hold("g1", leg("alice", "shop", 30), leg("alice", "shop", 30)))
		mismatched(t, b.transfer("g1:01", leg("alice", "shop", 60)))
		mismatched(t, b.postHold("g1", leg("alice", "shop", 59)))
		mismatched(t, b.void("g1", leg("shop", "alice", 60)))
		mismatched(t, b.InTx(ctx, b.db, func(tx *sql.Tx) error { return b.Post(ctx, tx, ledger.Transfer{ID: "first:alice"}) }))
		b.has(t, "alice", 60, 0, 0, 100, 0)
		refused(t, b.OpenAccount(ctx, b.db, ledger.Account{ID: "alice", Currency: "CNY", Mode: ledger.Split, Shards: 3}), ledger.AccountExists, "id")
		b.must(t, b.OpenAccount(ctx, b.db, ledger.Account{ID: "alice", Currency: "CNY"}))
	})
}

func TestReversal(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "alice"}, ledger.Account{ID: "shop"})
		b.deposit(t, "alice", 100)
		b.must(t, b.transfer("pay", leg("alice", "shop", 60)))
		for range 2 {
			b.must(t, b.reverse("rev", "pay"))
			b.has(t, "alice", 0, 60, 0, 160, 0)
			b.has(t, "shop", 0, 60, 0, 60, 0)
		}
		b.must(t, b.transfer("pay", leg("alice", "shop", 60))) // a repeat of the original
		refused(t, b.reverse("rev2", "pay"), ledger.Refunded, "of")
		refused(t, b.refund("ref", "pay", leg("shop", "alice", 1)), ledger.RefundExceeds, "refund_of")
		mismatched(t, b.reverse("rev", "other"))
		// The reversal comes first: the late original is refused, for ever.
		b.must(t, b.reverse("rev3", "late"), b.reverse("rev3", "late"))
		refused(t, b.transfer("late", leg("alice", "shop", 1)), ledger.Reversed, "id")
		b.must(t, b.reverse("rev4", "late1:01"))
		refused(t, b.hold("late1", leg("alice", "shop", 1)), ledger.Reversed, "id")
		refused(t, b.reverse("rev5", "late"), ledger.Reversed, "of")
		// Holds.
		b.must(t, b.hold("g1", leg("alice", "shop", 10)), b.hold("g2", leg("alice", "shop", 10), leg("alice", "world", 5)), b.void("g1"))
		if err := b.reverse("rev6", "g2:01"); !errors.Is(err, barrier.ErrOngoing) {
			t.Error(err)
		}
		b.must(t, b.postHold("g2"), b.reverse("rev6", "g2:01"), b.reverse("rev7", "g1:01"))
		b.has(t, "alice", 0, 75, 0, 175, 0)
		// What is spent cannot be given back.
		b.must(t, b.transfer("pay2", leg("alice", "shop", 50)), b.transfer("out", leg("shop", "world", 45)))
		refused(t, b.reverse("rev8", "pay2"), ledger.InsufficientFunds, "amount")
		b.has(t, "shop", 0, 115, 0, 120, 0)
	})
}

func TestRefundsNeverExceedThePayment(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "alice"}, ledger.Account{ID: "shop"})
		b.deposit(t, "alice", 100)
		b.deposit(t, "shop", 100)
		b.must(t, b.hold("g1", leg("alice", "shop", 60)))
		if err := b.refund("r0", "g1:01", leg("shop", "alice", 1)); !errors.Is(err, barrier.ErrOngoing) || errors.Is(err, barrier.ErrRefused) {
			t.Errorf("a refund of a hold that is not posted yet: %v; it is to come again", err)
		}
		b.must(t, b.postHold("g1"))
		for range 2 {
			b.must(t, b.refund("r1", "g1:01", leg("shop", "alice", 20)))
		}
		mismatched(t, b.refund("r1", "g1:01", leg("shop", "alice", 21)))
		refused(t, b.refund("r2", "g1:01", leg("shop", "alice", 41)), ledger.RefundExceeds, "refund_of")
		held := ledger.Transfer{Gid: "g2", Branch: "01", RefundOf: "g1:01", Legs: []ledger.Leg{leg("shop", "alice", 30)}}
		b.must(t, b.InTx(ctx, b.db, func(tx *sql.Tx) error { return b.Hold(ctx, tx, held) }))
		refused(t, b.refund("r3", "g1:01", leg("shop", "alice", 11)), ledger.RefundExceeds, "refund_of") // what is held counts
		b.audit(t)
		b.must(t, b.void("g2"))
		b.audit(t)
		b.must(t, b.refund("r3", "g1:01", leg("shop", "alice", 40)))
		refused(t, b.refund("r4", "g1:01", leg("shop", "alice", 1)), ledger.RefundExceeds, "refund_of")
		refused(t, b.refund("r5", "r1", leg("alice", "shop", 1)), ledger.NoPayment, "refund_of")
		refused(t, b.refund("r6", "nothing", leg("shop", "alice", 1)), ledger.NoPayment, "refund_of")
		refused(t, b.reverse("rev", "g1:01"), ledger.Refunded, "of")
		state, total, refunded, err := b.TransferState(ctx, b.db, "g1:01")
		if err != nil || state != "posted" || total != 60 || refunded != 60 {
			t.Error(state, total, refunded, err)
		}
		b.has(t, "alice", 0, 60, 0, 160, 0)
	})
}

// The database itself refuses what the code must never try.
func TestTheSchemaRefuses(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "alice", MaxCredit: 100, MaxDebit: 50})
		b.deposit(t, "alice", 100)
		b.must(t, b.transfer("pay", leg("alice", "world", 10)))
		for _, stmt := range []string{
			`UPDATE {p}account SET debits_pending = 91 WHERE id = 'alice'`,
			`UPDATE {p}account SET debits_posted = 51 WHERE id = 'alice'`,
			`UPDATE {p}account SET credits_pending = 1 WHERE id = 'alice'`,
			`UPDATE {p}account SET credits_posted = 5 WHERE id = 'alice'`,
			`UPDATE {p}account SET debits_pending = -1 WHERE id = 'alice'`,
			`UPDATE {p}account SET debits_posted = -1 WHERE id = 'alice'`,
			`UPDATE {p}account SET credits_pending = -1 WHERE id = 'world'`,
			`UPDATE {p}account SET currency = 'yua' WHERE id = 'alice'`,
			`UPDATE {p}transfer SET refunded = 11 WHERE id = 'pay'`,
			`UPDATE {p}transfer SET refunded = -1 WHERE id = 'pay'`,
			`UPDATE {p}entry SET amount = 1`,
			`DELETE FROM {p}entry`,
			`INSERT INTO {p}entry (transfer_id, leg, direction, account, amount, currency, gid, branch, posted_us) VALUES ('pay', 0, 'debit', 'alice', 10, 'CNY', '', '', 1)`,
			`INSERT INTO {p}entry (transfer_id, leg, direction, account, amount, currency, gid, branch, posted_us) VALUES ('x', 0, 'debit', 'alice', 0, 'CNY', '', '', 1)`,
			`INSERT INTO {p}buffer (account, day, debit, credit) VALUES ('alice', 0, -1, 0)`,
		} {
			if _, err := b.db.Exec(strings.ReplaceAll(stmt, "{p}", b.prefix)); err == nil {
				t.Errorf("%s is taken", stmt)
			}
		}
		b.has(t, "alice", 0, 10, 0, 100, 0)
	})
}
