package merchant_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/merchant"
	"github.com/lockstep-tx/lockstep/participants/money"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

var (
	sqlite = sqldb.Dialect{Dialect: barrier.SQLite}
	shops  = merchant.New(sqlite, nil)
)

var operations = map[string]func(context.Context, *sql.Tx, *barrier.Call, money.Transfer) error{
	barrier.OpTry: shops.Book, barrier.OpConfirm: shops.Post, barrier.OpCancel: shops.Cancel,
}

func newShop(t *testing.T) *barrier.Barrier {
	t.Helper()
	ctx := context.Background()
	db, err := barrier.OpenSQLite(ctx, filepath.Join(t.TempDir(), "merchant.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if err := errors.Join(barrier.Migrate(ctx, db, barrier.SQLite), merchant.Migrate(ctx, db, sqlite), merchant.Migrate(ctx, db, sqlite),
		shops.Create(ctx, db, "shop", "CNY"), shops.Create(ctx, db, "shop", "CNY")); err != nil {
		t.Fatal(err)
	}
	b, err := barrier.New(db, barrier.SQLite, barrier.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func do(b *barrier.Barrier, gid, op string, p money.Transfer) (barrier.Outcome, error) {
	ctx := context.Background()
	call := &barrier.Call{TransType: "tcc", Gid: gid, BranchID: "02", Op: op, Fence: barrier.Fence{Slot: barrier.SlotOf(gid), Epoch: 1}}
	return b.Do(ctx, call, func(tx *sql.Tx) error { return operations[op](ctx, tx, call, p) })
}

func check(t *testing.T, b *barrier.Barrier, pending, posted int64) {
	t.Helper()
	s, err := shops.Read(context.Background(), b.DB())
	if err != nil {
		t.Fatal(err)
	}
	want := []merchant.Account{{ID: "shop", Currency: "CNY", Pending: pending, Posted: posted}}
	if diff := cmp.Diff(want, s.Accounts); diff != "" {
		t.Errorf("accounts (-want +got):\n%s", diff)
	}
	if faults := s.Faults(); faults != nil {
		t.Error(faults)
	}
}

func TestBookPostCancel(t *testing.T) {
	b := newShop(t)
	p := money.Transfer{Account: "shop", Minor: 700}
	for _, step := range []struct {
		gid, op         string
		want            barrier.Outcome
		pending, posted int64
	}{
		{"g1", "try", barrier.Done, 700, 0},
		{"g1", "try", barrier.Repeated, 700, 0},
		{"g2", "try", barrier.Done, 1400, 0},
		{"g1", "confirm", barrier.Done, 700, 700},
		{"g1", "confirm", barrier.Repeated, 700, 700},
		{"g2", "cancel", barrier.Done, 0, 700},
		{"g2", "cancel", barrier.Repeated, 0, 700},
		{"g3", "cancel", barrier.Empty, 0, 700},
	} {
		if got, err := do(b, step.gid, step.op, p); err != nil || got != step.want {
			t.Fatalf("%s %s: %s, %v", step.gid, step.op, got, err)
		}
		check(t, b, step.pending, step.posted)
	}
}

func TestBookIsRefused(t *testing.T) {
	b := newShop(t)
	for _, p := range []money.Transfer{{Account: "nobody", Minor: 1}, {Account: "shop", Minor: 1, Currency: "EUR"}} {
		if _, err := do(b, "g1", "try", p); !errors.Is(err, barrier.ErrRefused) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if _, err := do(b, "g1", "try", money.Transfer{Account: "shop", Minor: -5}); !errors.Is(err, barrier.ErrInvalid) {
		t.Error(err)
	}
	if err := shops.Create(context.Background(), b.DB(), "shop", "EUR"); !errors.Is(err, barrier.ErrRefused) {
		t.Error(err)
	}
	check(t, b, 0, 0)
}

// A confirm or cancel that names something else than its try moves nothing.
func TestSettlingSomethingElseIsAnError(t *testing.T) {
	b := newShop(t)
	if _, err := do(b, "g1", "try", money.Transfer{Account: "shop", Minor: 5}); err != nil {
		t.Fatal(err)
	}
	for _, op := range []string{"confirm", "cancel"} {
		for _, p := range []money.Transfer{{Account: "shop", Minor: 4}, {Account: "other", Minor: 5}} {
			if _, err := do(b, "g1", op, p); err == nil || errors.Is(err, barrier.ErrRefused) {
				t.Errorf("%s %+v: %v", op, p, err)
			}
		}
	}
	check(t, b, 5, 0)
}

func TestDatabaseRefusesNegativeIncome(t *testing.T) {
	b := newShop(t)
	for _, stmt := range []string{`UPDATE merchant_account SET pending = -1`, `UPDATE merchant_account SET posted = -1`} {
		if _, err := b.DB().Exec(stmt); err == nil {
			t.Errorf("%s passed", stmt)
		}
	}
}
