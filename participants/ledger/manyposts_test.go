//go:build servers

package ledger_test

import (
	"database/sql"
	"fmt"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
)

// On MariaDB many at once lock the rows that they name and nothing between them: while some are under way, others with ids
// and accounts beside theirs go on, also where the tables are so small that reading them whole would be less work.
func TestManyAtOnceLockNothingElse(t *testing.T) {
	b := openServer(t, barrier.MySQL)
	b.open(t, ledger.Account{ID: "world", Mode: ledger.Buffered, Overdraft: true})
	hold := func(n int) ledger.Transfer {
		return ledger.Transfer{Gid: fmt.Sprintf("g%02d", n), Branch: "01", Legs: []ledger.Leg{leg("world", fmt.Sprintf("a%02d", n), 5)}}
	}
	var theirs, ours [2][]ledger.Transfer // to be posted, and to be held
	for n := range 16 {
		b.open(t, ledger.Account{ID: fmt.Sprintf("a%02d", n)})
		set := &theirs
		if n%2 == 1 {
			set = &ours
		}
		if n < 8 {
			b.must(t, b.InTx(ctx, b.db, func(tx *sql.Tx) error { return b.Hold(ctx, tx, hold(n)) }))
			set[0] = append(set[0], hold(n))
		} else {
			set[1] = append(set[1], hold(n))
		}
	}
	both := func(tx *sql.Tx, of [2][]ledger.Transfer) {
		t.Helper()
		b.must(t, b.PostAll(ctx, tx, of[0]))
		b.must(t, b.HoldAll(ctx, tx, of[1]))
	}
	first, err := b.db.BeginTx(ctx, nil)
	b.must(t, err)
	defer func() { _ = first.Rollback() }()
	both(first, theirs)
	conn, err := b.db.Conn(ctx)
	b.must(t, err)
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, "SET SESSION innodb_lock_wait_timeout = 1"); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = conn.ExecContext(ctx, "SET SESSION innodb_lock_wait_timeout = DEFAULT") }()
	second, err := conn.BeginTx(ctx, nil)
	b.must(t, err)
	defer func() { _ = second.Rollback() }()
	both(second, ours)
	b.must(t, second.Commit())
	b.must(t, first.Commit())
	b.audit(t)
}
