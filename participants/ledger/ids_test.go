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
