package ledger_test

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
)

// behind changes the book behind the ledger's back, the triggers that keep entries as they are taken away.
func (b *book) behind(t *testing.T, stmt string, args ...any) {
	t.Helper()
	schema, bare, ok := strings.Cut(b.prefix, ".")
	if !ok {
		schema, bare = "", b.prefix
	} else {
		schema += "."
	}
	drops := []string{"DROP TRIGGER IF EXISTS " + schema + bare + "entry_update", "DROP TRIGGER IF EXISTS " + schema + bare + "entry_delete"}
	if b.dialect == barrier.PostgreSQL {
		drops = []string{"DROP TRIGGER IF EXISTS entry_is_immutable ON " + b.prefix + "entry"}
		for i := range args {
			stmt = strings.Replace(stmt, "?", fmt.Sprintf("$%d", i+1), 1)
		}
	}
	for _, drop := range drops {
		if _, err := b.db.Exec(drop); err != nil {
			t.Fatal(err)
		}
	}
	res, err := b.db.Exec(strings.ReplaceAll(stmt, "{p}", b.prefix), args...)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		t.Fatalf("%s changed %d rows, %v", stmt, n, err)
	}
}

func (b *book) check(t *testing.T) (out []ledger.AccountFault) {
	t.Helper()
	raw, err := ledger.Slots{Ledger: b.Ledger}.Check(ctx, b.db)
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (b *book) mend(f ledger.AccountFault) error {
	raw, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return b.InTx(ctx, b.db, func(tx *sql.Tx) error {
		_, err := ledger.Slots{Ledger: b.Ledger}.Mend(ctx, tx, raw)
		return err
	})
}

// busy makes accounts with payments in all states; the book is sound.
func busy(t *testing.T, b *book) {
	t.Helper()
	b.open(t, ledger.Account{ID: "alice"}, ledger.Account{ID: "bob"}, ledger.Account{ID: "shop", Mode: ledger.Buffered})
	b.deposit(t, "alice", 1000)
	b.must(t, b.hold("g1", leg("alice", "bob", 100), leg("alice", "shop", 20)), b.postHold("g1"), b.hold("g2", leg("alice", "bob", 50)),
		b.hold("g3", leg("alice", "shop", 70)), b.void("g3"), b.transfer("t1", leg("alice", "bob", 30)), b.reverse("r1", "t1"), b.reverse("r2", "nothing"))
	if found := b.check(t); len(found) != 0 {
		t.Fatalf("a sound book: %+v", found)
	}
}

func TestCountersAreMendedFromSoundEntries(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		busy(t, b)
		b.behind(t, "UPDATE {p}account SET credits_posted = credits_posted + 7 WHERE id = ? AND shard = 0", "alice")
		found := b.check(t)
		if len(found) != 1 || found[0].Account != "alice" || found[0].EntriesDiffer != nil || found[0].Have[3] != found[0].Fold[3]+7 || found[0].Transfers != found[0].Fold {
			t.Fatalf("%+v", found)
		}
		b.must(t, b.mend(found[0]), b.mend(found[0]))
		b.audit(t)
		if found := b.check(t); len(found) != 0 {
			t.Fatalf("after the repair: %+v", found)
		}
	})
}

// TestEntriesThatTheirTransfersContradictProveNoCounter: whoever alters an entry is found, also where the counters fit it, and
// no repair moves a sound account to it.
func TestEntriesThatTheirTransfersContradictProveNoCounter(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		busy(t, b)
		g1 := ledger.HoldID("g1", "01")
		for _, tc := range []struct {
			name, there, back string
			accounts          string
			over              int64 // what the entries of the first have too much in debits
		}{
			{"an amount", "UPDATE {p}entry SET amount = 109 WHERE transfer_id = ? AND leg = 0 AND direction = 'debit'",
				"UPDATE {p}entry SET amount = 100 WHERE transfer_id = ? AND leg = 0 AND direction = 'debit'", "alice", 9},
			{"an account", "UPDATE {p}entry SET account = 'bob' WHERE transfer_id = ? AND leg = 0 AND direction = 'debit'",
				"UPDATE {p}entry SET account = 'alice' WHERE transfer_id = ? AND leg = 0 AND direction = 'debit'", "alice bob", -100},
			{"a leg of the transfer", "UPDATE {p}transfer SET amount = 99 WHERE id = ? AND leg = 0",
				"UPDATE {p}transfer SET amount = 100 WHERE id = ? AND leg = 0", "alice bob", 1},
		} {
			b.behind(t, tc.there, g1)
			found := b.check(t)
			var names []string
			for _, f := range found {
				names = append(names, f.Account)
				if len(f.EntriesDiffer) != 1 || f.EntriesDiffer[0] != g1 {
					t.Errorf("%s: %+v", tc.name, f)
				}
				if err := b.mend(f); !errors.Is(err, barrier.ErrRefused) || !strings.Contains(err.Error(), g1) {
					t.Errorf("%s: mended by forged entries: %v", tc.name, err)
				}
			}
			if strings.Join(names, " ") != tc.accounts || found[0].Fold[1]-found[0].Transfers[1] != tc.over {
				t.Errorf("%s: %+v", tc.name, found)
			}
			b.behind(t, tc.back, g1)
			b.audit(t) // nothing was moved
		}
		// The counters are made to fit.
		b.behind(t, "UPDATE {p}entry SET amount = amount - 9 WHERE transfer_id = ? AND leg = 0 AND direction = 'debit'", g1)
		b.behind(t, "UPDATE {p}account SET debits_posted = debits_posted - 9 WHERE id = ? AND shard = 0", "alice")
		found := b.check(t)
		if len(found) != 1 || found[0].Have != found[0].Fold || found[0].Transfers[1] != found[0].Fold[1]+9 || len(found[0].EntriesDiffer) != 1 {
			t.Fatalf("forged entries with counters that fit: %+v", found)
		}
		b.behind(t, "DELETE FROM {p}entry WHERE transfer_id = ? AND leg = 1 AND direction = 'credit'", g1)
		if found := b.check(t); len(found) != 2 || found[1].Account != "shop" || len(found[1].EntriesDiffer) != 1 {
			t.Fatalf("an entry was deleted: %+v", found)
		}
	})
}
