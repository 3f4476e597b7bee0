package books_test

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
	"github.com/lockstep-tx/lockstep/region/reconcile/dayend"
	"github.com/lockstep-tx/lockstep/region/reconcile/dayend/books"
)

// book is a ledger with two accounts in SQLite; transfers go from a to b at the time that now says.
func book(t *testing.T, now *time.Time) (*ledger.Ledger, *sql.DB, func(id, gid string, minor int64) error) {
	t.Helper()
	db, err := barrier.OpenSQLite(t.Context(), filepath.Join(t.TempDir(), "buyer.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	l, err := ledger.New(barrier.SQLite, ledger.Options{Now: func() time.Time { return *now }})
	if err = errors.Join(err, ledger.Migrate(t.Context(), db, barrier.SQLite, ledger.Options{})); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "b"} {
		if err := l.OpenAccount(t.Context(), db, ledger.Account{ID: id, Currency: "CNY", Overdraft: true}); err != nil {
			t.Fatal(err)
		}
	}
	return l, db, func(id, gid string, minor int64) error {
		return l.InTx(t.Context(), db, func(tx *sql.Tx) error {
			return l.Transfer(t.Context(), tx, ledger.Transfer{ID: id, Gid: gid, Branch: gid, Legs: []ledger.Leg{{Debit: "a", Credit: "b", Minor: minor, Currency: "CNY"}}})
		})
	}
}

// A statement is compared entry by entry; what only we have is reversed by the ledger, whose late original is refused, unless a
// transaction has made it.
func TestAStatementIsComparedWithTheEntries(t *testing.T) {
	w := onSQLite(t)
	l, db, transfer := book(t, &w.now)
	w.now = noon
	for id, gid := range map[string]string{"t1": "", "t2": "", "t3": "", "g:buyer": "g"} {
		if err := transfer(id, gid, 500); err != nil {
			t.Fatal(err)
		}
	}
	m, err := channelfile.LoadMapping("../../../../deploy/example/recon-bill.yaml")
	if err != nil {
		t.Fatal(err)
	}
	m.Parts, m.Signature.Type, m.Accounts = 1, "none", []string{"b"}
	entry := func(id string, minor int) string {
		return fmt.Sprintf("%-20s%-40s%s%015d20261120120000\n", "b", id, "C", minor)
	}
	path := filepath.Join(w.dir, "statement_20261120_1.txt")
	text := fmt.Sprintf("H%015d\n", 0) + entry("t1", 500) + entry("t2", 501) + entry("t9", 900) + fmt.Sprintf("T%08d%015d%015d\n", 3, 1901, 1901)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w.now = on(20, "22:02:00")
	if _, err := w.b.Load(t.Context(), m, path); err != nil {
		t.Fatal(err)
	}
	r, _, err := w.b.Run(t.Context(), m, &books.Entries{DB: db, Ledger: l, Accounts: m.Accounts}, "20261120", dayend.Options{})
	if err != nil || r.Matched != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	got := map[string]string{}
	if err := w.b.Each(t.Context(), dayend.Filter{}, func(f dayend.Finding) error {
		got[dayend.ShownKey(f.Key)] = string(f.Class) + "/" + string(f.Status)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"b t2 credit": "amount/open", "b t3 credit": "long/ended", "b g:buyer credit": "long/open", "b t9 credit": "short/open"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("found %v, want %v", got, want)
	}
	b, err := l.Balance(t.Context(), db, "b")
	if err != nil || b.Posted() != 1500 {
		t.Errorf("%+v, %v: one of four was to go back", b, err)
	}
}

// Sums are compared by currency; what the suspense pool holds explains a difference, and nothing else does.
func TestFundsDifferByWhatStraddlesAlone(t *testing.T) { theFunds(onSQLite(t)) }

func theFunds(w *world) {
	t := w.t
	l, db, transfer := book(t, &w.now)
	w.pay(on(20, "21:50:00"), "1", 300)
	w.day(20)
	w.now = noon
	if err := transfer("t1", "", 1000); err != nil {
		t.Fatal(err)
	}
	m, err := channelfile.LoadMapping("../../../../deploy/example/recon-funds.yaml")
	if err != nil {
		t.Fatal(err)
	}
	m.Accounts = []string{"b"}
	ours := &books.Sums{DB: db, Ledger: l, Accounts: m.Accounts}
	day := func(n int, amount string) *dayend.Run {
		t.Helper()
		path := filepath.Join(w.dir, fmt.Sprintf("settled-202611%02d.csv", n))
		if err := os.WriteFile(path, []byte("CNY;"+amount+"\nTOTAL;1;"+amount+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		w.now = on(n, "22:02:00")
		if _, err := w.b.Load(t.Context(), m, path); err != nil {
			t.Fatal(err)
		}
		r, _, err := w.b.Run(t.Context(), m, ours, fmt.Sprintf("202611%02d", n), dayend.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := day(20, "7.00"); r.Differences() != 0 || r.Matched != 1 { // 3.00 are in the channel's next day
		t.Errorf("%+v", r)
	}
	if r := day(21, "0.01"); r.Standing[dayend.AmountDiffers] != 1 {
		t.Errorf("%+v", r)
	}
}
