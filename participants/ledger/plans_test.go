//go:build servers

package ledger_test

import (
	"database/sql"
	"fmt"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
)

// What PostgreSQL plans while the tables are empty it keeps for as long as a connection lives, or until autovacuum has
// come by. No function of the ledger then looks at a whole table, however many rows have come since: not even where the
// tables were analysed when they were empty, after which they are taken for a page or less.
func TestPlansMadeOnEmptyTables(t *testing.T) {
	for _, analysed := range []bool{false, true} {
		t.Run(fmt.Sprint("analysed=", analysed), func(t *testing.T) {
			b := openServer(t, barrier.PostgreSQL)
			b.db.SetMaxOpenConns(1) // whose plans are kept
			exec := func(stmt string) {
				t.Helper()
				if _, err := b.db.Exec(stmt); err != nil {
					t.Fatalf("%s: %v", stmt, err)
				}
			}
			for _, table := range []string{"account", "transfer", "entry", "buffer"} {
				exec("ALTER TABLE " + b.prefix + table + " SET (autovacuum_enabled = off)")
				if analysed {
					exec("ANALYZE " + b.prefix + table)
				}
			}
			b.open(t, ledger.Account{ID: "world", Overdraft: true}, ledger.Account{ID: "shop", Mode: ledger.Buffered}, ledger.Account{ID: "alice"}, ledger.Account{ID: "bob"})
			scans := func() (n int64) {
				t.Helper()
				exec("SELECT pg_stat_force_next_flush()")
				if err := b.db.QueryRow("SELECT sum(seq_scan) FROM pg_stat_user_tables WHERE schemaname = $1 AND relname <> 'ledger_migration'", b.options.Schema).Scan(&n); err != nil {
					t.Fatal(err)
				}
				return n
			}
			b.must(t, b.transfer("in", leg("world", "alice", 1_000_000)))
			round := func(n int) {
				var some []ledger.Transfer
				for i := range 16 {
					some = append(some, ledger.Transfer{Gid: fmt.Sprintf("%d-%d", n, i), Branch: "01", Legs: []ledger.Leg{leg("alice", "shop", 1), leg("alice", "bob", 1)}})
				}
				for _, f := range []func(tx *sql.Tx) error{
					func(tx *sql.Tx) error { return b.HoldAll(ctx, tx, some) },
					func(tx *sql.Tx) error { return b.VoidAll(ctx, tx, some[:2]) },
					func(tx *sql.Tx) error { return b.PostAll(ctx, tx, some[2:]) },
					func(tx *sql.Tx) error {
						return b.Transfer(ctx, tx, ledger.Transfer{ID: fmt.Sprint("r", n), RefundOf: some[3].Gid + ":01", Legs: []ledger.Leg{leg("bob", "alice", 1)}})
					},
				} {
					b.must(t, b.InTx(ctx, b.db, f))
				}
			}
			for n := range 10 { // after five, a plan for all arguments may be kept
				round(n)
			}
			before := scans()
			for n := range 30 {
				round(10 + n)
			}
			if n := scans() - before; n > 0 {
				t.Errorf("%d scans of whole tables in 30 rounds", n)
			}
		})
	}
}
