package points_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/points"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

var (
	sqlite = sqldb.Dialect{Dialect: barrier.SQLite}
	grants = points.New(sqlite)
)

func newPoints(t *testing.T) *barrier.Barrier {
	t.Helper()
	ctx := context.Background()
	db, err := barrier.OpenSQLite(ctx, filepath.Join(t.TempDir(), "points.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if err := errors.Join(barrier.Migrate(ctx, db, barrier.SQLite), points.Migrate(ctx, db, sqlite), points.Migrate(ctx, db, sqlite)); err != nil {
		t.Fatal(err)
	}
	b, err := barrier.New(db, barrier.SQLite, barrier.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func add(b *barrier.Barrier, gid string, g points.Grant) error {
	ctx := context.Background()
	call := &barrier.Call{TransType: "msg", Gid: gid, BranchID: "01", Op: "action", Fence: barrier.Fence{Slot: barrier.SlotOf(gid), Epoch: 1}}
	_, err := b.Do(ctx, call, func(tx *sql.Tx) error { return grants.Add(ctx, tx, call, g) })
	return err
}

// Each of 20 messages comes three times at once, and counts once.
func TestMessageCountsOnce(t *testing.T) {
	b := newPoints(t)
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			if err := add(b, fmt.Sprintf("m%d", i%20), points.Grant{Account: fmt.Sprintf("a%d", i%2), Points: 7}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s, err := grants.Read(context.Background(), b.DB())
	if err != nil {
		t.Fatal(err)
	}
	if s.Points != 140 || s.Entries != 20 || len(s.Accounts) != 2 || s.Accounts[0].Points != 70 || s.Faults() != nil {
		t.Errorf("%+v %v", s, s.Faults())
	}
}

func TestImpossibleGrantIsInvalidAndLeavesNothing(t *testing.T) {
	b := newPoints(t)
	for _, g := range []points.Grant{{"", 1}, {"a", 0}, {"a", -1}, {"a", 1 << 60}} {
		if err := add(b, "m1", g); !errors.Is(err, barrier.ErrInvalid) {
			t.Errorf("%+v: %v", g, err)
		}
	}
	if err := add(b, "m1", points.Grant{Account: "a", Points: 1}); err != nil {
		t.Fatal(err)
	}
}
