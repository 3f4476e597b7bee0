package ledger_test

import (
	"database/sql"
	"errors"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
)

// An id that a database would take for another one (MariaDB compares without the last spaces) is refused on all of them,
// with the field's name.
func TestIDsThatADatabaseTakesForOthersAreRefused(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "alice"})
		b.deposit(t, "alice", 100)
		for _, bad := range []string{"x ", " x", "x\t", "x\x00", "\xff"} {
			refused := func(field string, err error) {
				t.Helper()
				if !errors.Is(err, barrier.ErrInvalid) || !strings.Contains(err.Error(), field) {
					t.Errorf("%s %q: %v", field, bad, err)
				}
			}
			refused("account id", b.OpenAccount(ctx, b.db, ledger.Account{ID: bad, Currency: "CNY"}))
			for field, tr := range map[string]ledger.Transfer{
				"transfer id": {ID: bad, Legs: []ledger.Leg{leg("alice", "world", 1)}},
				"gid":         {ID: "t", Gid: bad, Legs: []ledger.Leg{leg("alice", "world", 1)}},
				"refund_of":   {ID: "t", RefundOf: bad, Legs: []ledger.Leg{leg("alice", "world", 1)}},
				"account":     {ID: "t", Legs: []ledger.Leg{leg(bad, "world", 1)}},
				"credit":      {ID: "t", Legs: []ledger.Leg{leg("alice", bad, 1)}},
			} {
				refused(field, b.InTx(ctx, b.db, func(tx *sql.Tx) error { return b.Hold(ctx, tx, tr) }))
			}
		}
	})
}

// The entries of a gid are all of them, whatever ids their holds have.
func TestEntriesOfHoldsWithIDsOfTheirOwn(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "alice"}, ledger.Account{ID: "shop"})
		b.deposit(t, "alice", 100)
		b.must(t, b.hold("g1", leg("alice", "shop", 1)), b.postHold("g1"))
		for _, id := range []string{"own", "zz:own"} {
			own := ledger.Transfer{ID: id, Gid: "g1", Branch: "02", Legs: []ledger.Leg{leg("alice", "shop", 2)}}
			other := ledger.Transfer{ID: "other " + id, Gid: "g2", Branch: "02", Legs: own.Legs}
			b.must(t, b.InTx(ctx, b.db, func(tx *sql.Tx) error {
				return errors.Join(b.Hold(ctx, tx, own), b.Post(ctx, tx, own), b.Hold(ctx, tx, other), b.Post(ctx, tx, other))
			}))
		}
		e, err := b.EntriesByGid(ctx, b.db, "g1")
		if err != nil || len(e) != 6 {
			t.Errorf("%d entries, %v: %+v; want two of each of three holds", len(e), err, e)
		}
	})
}

// Nobody but the ledger writes under the ids that it gives itself, which begin with these; and a day cut that finds another
// transfer under its id, from before such ids were refused, says so.
func TestTheLedgersOwnIDs(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "day", Mode: ledger.Aggregated})
		b.deposit(t, "day", 7)
		day := b.clock()
		cut := "cut:day:" + day.Format("20060102")
		for _, id := range []string{cut, "deposit:day", "cut:"} {
			own := ledger.Transfer{ID: id, Legs: []ledger.Leg{leg("world", "day", 1)}}
			for name, f := range map[string]func(tx *sql.Tx) error{
				"hold":     func(tx *sql.Tx) error { return b.Hold(ctx, tx, own) },
				"transfer": func(tx *sql.Tx) error { return b.Transfer(ctx, tx, own) },
				"together": func(tx *sql.Tx) error { return b.HoldAll(ctx, tx, []ledger.Transfer{own}) },
				"by gid": func(tx *sql.Tx) error {
					return b.Hold(ctx, tx, ledger.Transfer{Gid: "deposit", Branch: "01", Legs: own.Legs})
				},
				"reversal": func(tx *sql.Tx) error { return b.Reverse(ctx, tx, id, "first:day", "", "") },
			} {
				if err := b.InTx(ctx, b.db, f); !errors.Is(err, barrier.ErrInvalid) {
					t.Errorf("%s under %s: %v", name, id, err)
				}
			}
		}
		b.must(t, b.transfer("a caller's", leg("world", "day", 1)))
		if _, err := b.db.Exec("UPDATE " + b.prefix + "transfer SET id = '" + cut + "' WHERE id = 'a caller''s'"); err != nil {
			t.Fatal(err)
		}
		_, err := b.CutDay(ctx, b.db, "day", day)
		mismatched(t, err)
		if now, err := b.Balance(ctx, b.db, "day"); err != nil || now.BufferedCredits != 8 {
			t.Errorf("after the cut that failed: %+v, %v", now, err)
		}
	})
}
