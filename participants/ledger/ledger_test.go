package ledger_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/participants/money"
)

var operations = map[string]func(context.Context, *sql.Tx, *barrier.Call, money.Transfer) error{
	barrier.OpTry: ledger.Freeze, barrier.OpConfirm: ledger.Confirm, barrier.OpCancel: ledger.Cancel,
}

func newLedger(t *testing.T) *barrier.Barrier {
	t.Helper()
	ctx := context.Background()
	db, err := barrier.OpenSQLite(ctx, filepath.Join(t.TempDir(), "buyer.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if err := errors.Join(barrier.Migrate(ctx, db, barrier.SQLite), ledger.Migrate(ctx, db), ledger.Migrate(ctx, db)); err != nil {
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
	call := &barrier.Call{TransType: "tcc", Gid: gid, BranchID: "01", Op: op, Fence: barrier.Fence{Slot: barrier.SlotOf(gid), Epoch: 1}}
	return b.Do(ctx, call, func(tx *sql.Tx) error { return operations[op](ctx, tx, call, p) })
}

func must(t *testing.T, b *barrier.Barrier, gid, op string, p money.Transfer, want barrier.Outcome) {
	t.Helper()
	if got, err := do(b, gid, op, p); err != nil || got != want {
		t.Fatalf("%s %s: %s, %v; want %s", gid, op, got, err, want)
	}
}

// check compares the one account with want (deposited, balance, frozen, spent) and recounts every sum.
func check(t *testing.T, b *barrier.Barrier, want ledger.Account) {
	t.Helper()
	s, err := ledger.Read(context.Background(), b.DB())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]ledger.Account{want}, s.Accounts); diff != "" {
		t.Errorf("accounts (-want +got):\n%s", diff)
	}
	if faults := s.Faults(); faults != nil {
		t.Error(faults)
	}
}

func alice(balance, frozen, spent int64) ledger.Account {
	return ledger.Account{ID: "alice", Currency: "CNY", Deposited: balance + frozen + spent, Balance: balance, Frozen: frozen, Spent: spent}
}

func pay(n int64) money.Transfer { return money.Transfer{Account: "alice", Minor: n} }

func TestFreezeConfirmCancel(t *testing.T) {
	b := newLedger(t)
	if err := ledger.Create(context.Background(), b.DB(), "alice", "CNY", 10000); err != nil {
		t.Fatal(err)
	}
	must(t, b, "g1", "try", pay(4000), barrier.Done)
	check(t, b, alice(6000, 4000, 0))
	must(t, b, "g1", "try", pay(4000), barrier.Repeated)
	check(t, b, alice(6000, 4000, 0))
	must(t, b, "g1", "confirm", pay(4000), barrier.Done)
	must(t, b, "g1", "confirm", pay(4000), barrier.Repeated)
	check(t, b, alice(6000, 0, 4000))
	must(t, b, "g2", "try", pay(6000), barrier.Done) // the whole of it
	check(t, b, alice(0, 6000, 4000))
	must(t, b, "g2", "cancel", pay(6000), barrier.Done)
	must(t, b, "g2", "cancel", pay(6000), barrier.Repeated)
	must(t, b, "g3", "cancel", pay(6000), barrier.Empty)
	check(t, b, alice(6000, 0, 4000))
}

func TestFreezeIsRefused(t *testing.T) {
	b := newLedger(t)
	if err := ledger.Create(context.Background(), b.DB(), "alice", "CNY", 100); err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]money.Transfer{
		"too little":       pay(101),
		"no account":       {Account: "nobody", Minor: 1},
		"another currency": {Account: "alice", Minor: 1, Currency: "EUR"},
	} {
		if _, err := do(b, "g-"+name, "try", p); !errors.Is(err, barrier.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, n := range []int64{0, -1, money.MinorMax + 1} {
		if _, err := do(b, "g-invalid", "try", pay(n)); !errors.Is(err, barrier.ErrInvalid) {
			t.Errorf("%d: %v", n, err)
		}
	}
	must(t, b, "g-too little", "cancel", pay(101), barrier.Empty) // the refused try left nothing to undo
	check(t, b, alice(100, 0, 0))
}

// A confirm or cancel that names something else than its try moves nothing.
func TestSettlingSomethingElseIsAnError(t *testing.T) {
	b := newLedger(t)
	if err := ledger.Create(context.Background(), b.DB(), "alice", "CNY", 100); err != nil {
		t.Fatal(err)
	}
	must(t, b, "g1", "try", pay(60), barrier.Done)
	for _, op := range []string{"confirm", "cancel"} {
		for _, p := range []money.Transfer{pay(59), {Account: "bob", Minor: 60}} {
			if _, err := do(b, "g1", op, p); err == nil || errors.Is(err, barrier.ErrRefused) {
				t.Errorf("%s %+v: %v", op, p, err)
			}
		}
	}
	check(t, b, alice(40, 60, 0))
	if _, err := do(b, "never tried", "confirm", pay(1)); err == nil || errors.Is(err, barrier.ErrRefused) {
		t.Errorf("confirm without a hold: %v", err)
	}
}

// The database itself refuses what the code must never try.
func TestDatabaseRefusesOverdraft(t *testing.T) {
	b := newLedger(t)
	if err := ledger.Create(context.Background(), b.DB(), "alice", "CNY", 100); err != nil {
		t.Fatal(err)
	}
	for _, stmt := range []string{
		`UPDATE ledger_account SET balance = -1, frozen = 101`,
		`UPDATE ledger_account SET frozen = -1, balance = 101`,
		`UPDATE ledger_account SET spent = -1, balance = 101`,
		`UPDATE ledger_account SET balance = 99`,
		`UPDATE ledger_account SET deposited = 101`,
		`INSERT INTO ledger_hold VALUES ('g', '01', 'nobody', 1, 'frozen')`,
		`INSERT INTO ledger_hold VALUES ('g', '01', 'alice', 0, 'frozen')`,
	} {
		if _, err := b.DB().Exec(stmt); err == nil || !strings.Contains(err.Error(), "constraint failed") {
			t.Errorf("%s: %v", stmt, err)
		}
	}
	check(t, b, alice(100, 0, 0))
}

func TestCreateTwice(t *testing.T) {
	b := newLedger(t)
	ctx := context.Background()
	for range 2 {
		if err := ledger.Create(ctx, b.DB(), "alice", "CNY", 100); err != nil {
			t.Fatal(err)
		}
	}
	if err := ledger.Create(ctx, b.DB(), "alice", "CNY", 200); !errors.Is(err, barrier.ErrRefused) {
		t.Error(err)
	}
	if err := ledger.Create(ctx, b.DB(), "bob", "CNY", -1); !errors.Is(err, barrier.ErrInvalid) {
		t.Error(err)
	}
	check(t, b, alice(100, 0, 0))
}

// Many buyers at one account: exactly as many payments pass as it has money for, and not a cent is off.
func TestConcurrentPaymentsNeverOverdraw(t *testing.T) {
	b := newLedger(t)
	if err := ledger.Create(context.Background(), b.DB(), "alice", "CNY", 1000); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	frozen := make([]bool, 48)
	for i := range frozen {
		wg.Go(func() {
			gid := fmt.Sprintf("g%d", i)
			_, err := do(b, gid, "try", pay(30))
			frozen[i] = err == nil
			op := "cancel"
			if err == nil {
				op = "confirm"
			}
			for range 2 {
				if _, err := do(b, gid, op, pay(30)); err != nil {
					t.Errorf("%s %s: %v", gid, op, err)
				}
			}
		})
	}
	wg.Wait()
	passed := int64(0)
	for _, ok := range frozen {
		if ok {
			passed++
		}
	}
	if passed != 33 {
		t.Errorf("%d payments of 30 passed on 1000", passed)
	}
	check(t, b, alice(1000-30*passed, 0, 30*passed))
}
