package ledger_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
)

// book is a ledger in a database of its own, with a clock that the test moves.
type book struct {
	*ledger.Ledger
	db      *sql.DB
	dialect barrier.Dialect
	prefix  string // of its tables
	options ledger.Options

	mu  sync.Mutex
	now time.Time
}

func (b *book) clock() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now = b.now.Add(time.Microsecond)
	return b.now
}

func (b *book) advance(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now = b.now.Add(d)
}

// openers make a book per kind of database; servers_test.go adds those that need a server.
var openers = map[string]func(t *testing.T) *book{"SQLite": openSQLite}

func openSQLite(t *testing.T) *book {
	db, err := barrier.OpenSQLite(context.Background(), filepath.Join(t.TempDir(), "book.db"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("PRAGMA synchronous = OFF"); err != nil { // crashes of the machine are not what is tested
		t.Fatal(err)
	}
	return newBook(t, db, barrier.SQLite, "", "ledger_")
}

func newBook(t testing.TB, db *sql.DB, d barrier.Dialect, schema, prefix string) *book {
	t.Helper()
	b := &book{db: db, dialect: d, prefix: prefix, now: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)}
	b.options = ledger.Options{Schema: schema, Now: b.clock}
	if err := ledger.Migrate(context.Background(), db, d, b.options); err != nil {
		t.Fatal(err)
	}
	l, err := ledger.New(d, b.options)
	if err != nil {
		t.Fatal(err)
	}
	b.Ledger = l
	t.Cleanup(func() { db.Close() })
	return b
}

// onEach runs a test on each kind of database.
func onEach(t *testing.T, f func(t *testing.T, b *book)) {
	for name, open := range openers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, open(t))
		})
	}
}

var ctx = context.Background()

func (b *book) open(t testing.TB, accounts ...ledger.Account) {
	t.Helper()
	for _, a := range accounts {
		if a.Currency == "" {
			a.Currency = "CNY"
		}
		if err := b.OpenAccount(ctx, b.db, a); err != nil {
			t.Fatal(err)
		}
	}
}

// world opens the outside world, and gives id n from it.
func (b *book) deposit(t *testing.T, id string, n int64) {
	t.Helper()
	b.open(t, ledger.Account{ID: "world", Overdraft: true})
	b.must(t, b.transfer("first:"+id, leg("world", id, n)))
}

func leg(debit, credit string, n int64) ledger.Leg {
	return ledger.Leg{Debit: debit, Credit: credit, Minor: n, Currency: "CNY"}
}

func (b *book) hold(gid string, legs ...ledger.Leg) error {
	return b.InTx(ctx, b.db, func(tx *sql.Tx) error {
		return b.Hold(ctx, tx, ledger.Transfer{Gid: gid, Branch: "01", Legs: legs})
	})
}

func (b *book) postHold(gid string, legs ...ledger.Leg) error {
	return b.InTx(ctx, b.db, func(tx *sql.Tx) error {
		return b.Post(ctx, tx, ledger.Transfer{Gid: gid, Branch: "01", Legs: legs})
	})
}

func (b *book) void(gid string, legs ...ledger.Leg) error {
	return b.InTx(ctx, b.db, func(tx *sql.Tx) error {
		return b.Void(ctx, tx, ledger.Transfer{Gid: gid, Branch: "01", Legs: legs})
	})
}

func (b *book) transfer(id string, legs ...ledger.Leg) error {
	return b.InTx(ctx, b.db, func(tx *sql.Tx) error { return b.Transfer(ctx, tx, ledger.Transfer{ID: id, Legs: legs}) })
}

func (b *book) refund(id, of string, legs ...ledger.Leg) error {
	return b.InTx(ctx, b.db, func(tx *sql.Tx) error {
		return b.Transfer(ctx, tx, ledger.Transfer{ID: id, RefundOf: of, Legs: legs})
	})
}

func (b *book) reverse(id, of string) error {
	return b.InTx(ctx, b.db, func(tx *sql.Tx) error { return b.Reverse(ctx, tx, id, of, "", "") })
}

func (b *book) must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// refused wants a Refusal with the reason and field, and that it is barrier.ErrRefused.
func refused(t *testing.T, err error, reason ledger.Reason, field string) {
	t.Helper()
	var no *ledger.Refusal
	if !errors.As(err, &no) || no.Reason != reason || no.Field != field || !errors.Is(err, barrier.ErrRefused) {
		t.Errorf("got %v; want a refusal: %s in field %s", err, reason, field)
	}
}

func mismatched(t *testing.T, err error) {
	t.Helper()
	var other *ledger.MismatchError
	if !errors.As(err, &other) || errors.Is(err, barrier.ErrRefused) {
		t.Errorf("got %v; want a mismatch", err)
	}
}

// has compares an account's counters: pending and posted debits, pending and posted credits, buffered net.
func (b *book) has(t *testing.T, id string, dp, dq, cp, cq, buffered int64) {
	t.Helper()
	a, err := b.Balance(ctx, b.db, id)
	if err != nil {
		t.Fatal(err)
	}
	got := [5]int64{a.DebitsPending, a.DebitsPosted, a.CreditsPending, a.CreditsPosted, a.BufferedCredits - a.BufferedDebits}
	if want := [5]int64{dp, dq, cp, cq, buffered}; got != want {
		t.Errorf("%s has %v, want %v", id, got, want)
	}
	b.audit(t)
}

func (b *book) audit(t interface {
	Helper()
	Fatal(...any)
}) {
	t.Helper()
	faults, err := b.Audit(ctx, b.db)
	if err != nil {
		t.Fatal(err)
	}
	if faults != nil {
		t.Fatal(fmt.Sprint(faults))
	}
}
