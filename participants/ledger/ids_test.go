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
