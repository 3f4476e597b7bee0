package seed

import (
	"context"
	"database/sql"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// wallets makes a database in which ann has paid bob 700 in transaction g, each side as a branch of its own.
func wallets(t *testing.T, address string) (*sql.DB, sqldb.Dialect, ledger.Wallets) {
	t.Helper()
	ctx := context.Background()
	db, d, err := sqldb.Open(ctx, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if err := barrier.Migrate(ctx, db, d.Dialect); err != nil {
		t.Fatal(err)
	}
	if err := ledger.Migrate(ctx, db, d.Dialect, ledger.Options{}); err != nil {
		t.Fatal(err)
	}
	book, err := ledger.New(d.Dialect, ledger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := ledger.Wallets{Ledger: book}
	for _, id := range []string{"ann", "bob"} {
		if err := w.OpenWallet(ctx, db, id, "CNY", 10_000); err != nil {
			t.Fatal(err)
		}
	}
	b, err := barrier.New(db, d.Dialect, barrier.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, side := range []struct{ branch, debit, credit string }{{"pay", "ann", ledger.Passage("CNY")}, {"receive", ledger.Passage("CNY"), "bob"}} {
		leg := ledger.Leg{Debit: side.debit, Credit: side.credit, Minor: 700, Currency: "CNY"}
		for _, op := range []string{barrier.OpTry, barrier.OpConfirm} {
			call := &barrier.Call{TransType: "tcc", Gid: "g", BranchID: side.branch, Op: op, Fence: barrier.Fence{Slot: barrier.SlotOf("g"), Epoch: 1}}
			if _, err := b.Do(ctx, call, func(tx *sql.Tx) error {
				if op == barrier.OpTry {
					return w.Hold(ctx, tx, ledger.Of(call, leg))
				}
				return w.Post(ctx, tx, ledger.Of(call, leg))
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return db, d, w
}

// count reads a number over a connection of its own.
func count(t *testing.T, address, query string) (n int64) {
	t.Helper()
	db, _, err := sqldb.Open(context.Background(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow(query).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

func TestALostConfirmIsThere(t *testing.T) {
	ctx, address := context.Background(), "sqlite:"+filepath.Join(t.TempDir(), "w.db")
	db, d, w := wallets(t, address)
	p, err := Confirm(ctx, db, d, "g", "pay")
	if err != nil || p.Account != "ann" || p.Before != 9_300 || p.After != 10_000 {
		t.Fatalf("%+v, %v", p, err)
	}
	for query, want := range map[string]int64{
		"SELECT debits_posted FROM ledger_account WHERE id = 'ann'":                                               0,
		"SELECT debits_pending FROM ledger_account WHERE id = 'ann'":                                              700,
		"SELECT credits_pending FROM ledger_account WHERE id = 'house:passage:CNY'":                               700,
		"SELECT count(*) FROM ledger_transfer WHERE id = 'g:pay' AND state = 'pending' AND settled_us IS NULL":    1,
		"SELECT count(*) FROM ledger_transfer WHERE id = 'g:receive' AND state = 'posted'":                        1,
		"SELECT count(*) FROM ledger_entry WHERE transfer_id = 'g:pay'":                                           0,
		"SELECT count(*) FROM ledger_entry WHERE transfer_id = 'g:receive'":                                       2,
		"SELECT count(*) FROM dtm_barrier_barrier WHERE gid = 'g' AND branch_id = 'pay' AND op = 'confirm'":       0,
		"SELECT count(*) FROM dtm_barrier_barrier WHERE gid = 'g' AND branch_id = 'pay' AND op = 'try'":           1,
		"SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND name = 'ledger_entry_delete'":              1,
		"SELECT count(*) FROM ledger_account WHERE id = 'bob' AND credits_posted = 10700 AND credits_pending = 0": 1,
	} {
		if n := count(t, address, query); n != want {
			t.Errorf("%s: %d, not %d", query, n, want)
		}
	}
	// The book is whole in itself: only who knows the decision sees that something is missing.
	if faults, err := w.Audit(ctx, db); err != nil || len(faults) > 0 {
		t.Errorf("%v, %v", faults, err)
	}
	if _, err := Confirm(ctx, db, d, "g", "pay"); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("a confirm that is lost already: %v", err)
	}
	if _, err := Confirm(ctx, db, d, "nobody", "pay"); err == nil {
		t.Error("a transaction that is not there lost a confirm")
	}
}

func TestAnAlteredAmountIsThere(t *testing.T) {
	ctx, address := context.Background(), "sqlite:"+filepath.Join(t.TempDir(), "w.db")
	db, d, w := wallets(t, address)
	p, err := Counter(ctx, db, d, "bob", 12_345)
	if err != nil || p.Before != 10_700 || p.After != 23_045 {
		t.Fatalf("%+v, %v", p, err)
	}
	if n := count(t, address, "SELECT credits_posted FROM ledger_account WHERE id = 'bob'"); n != 23_045 {
		t.Errorf("%d", n)
	}
	if faults, err := w.Audit(ctx, db); err != nil || len(faults) != 1 {
		t.Errorf("the book's own audit says %v, %v", faults, err)
	}
	if _, err := Counter(ctx, db, d, "carl", 1); err == nil {
		t.Error("an account that is not there was altered")
	}
	if _, err := Counter(ctx, db, d, "bob", 0); err == nil {
		t.Error("nothing was altered, and it counts")
	}
}

func TestPokeSaysHowManyRows(t *testing.T) {
	ctx, address := context.Background(), "sqlite:"+filepath.Join(t.TempDir(), "w.db")
	db, _, _ := wallets(t, address)
	if n, err := Poke(ctx, db, "UPDATE ledger_account SET credits_posted = credits_posted + 1 WHERE overdraft = 'none'"); err != nil || n != 2 {
		t.Errorf("%d, %v", n, err)
	}
	if n := count(t, address, "SELECT sum(credits_posted - debits_posted) FROM ledger_account WHERE overdraft = 'none'"); n != 20_002 {
		t.Errorf("%d", n)
	}
}
