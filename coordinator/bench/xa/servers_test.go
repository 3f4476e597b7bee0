//go:build servers

package xa

import (
	"errors"
	"os"
	"testing"

	"github.com/dtm-labs/dtm/client/dtmcli/dtmimp"
)

func bed(t *testing.T, env string) *Bed {
	t.Helper()
	url := os.Getenv(env)
	if url == "" {
		t.Fatalf("%s names no server: run `bin/devctl run -- go test -tags servers ./coordinator/bench/xa`", env)
	}
	b, err := NewBed(t.Context(), url, 2, 2)
	t.Cleanup(func() {
		if err := b.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var servers = []string{"LOCKSTEP_TEST_POSTGRES_URL", "LOCKSTEP_TEST_MYSQL_URL"}

// prepare leaves a branch of the merchants' prepared, as a participant does whose coordinator has gone.
func prepare(t *testing.T, b *Bed) (id string) {
	t.Helper()
	id = b.prefix + "1-02"
	db, err := dtmimp.XaDB(b.merchants.conf)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	session := 0
	special := dtmimp.GetDBSpecial(b.driver)
	exec := func(stmt string, args ...any) {
		t.Helper()
		if _, err := dtmimp.DBExec(b.driver, db, stmt, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec(special.GetXaSQL("start", id))
	if b.driver == "mysql" {
		if err := db.QueryRow(`SELECT connection_id()`).Scan(&session); err != nil {
			t.Fatal(err)
		}
	}
	exec(`UPDATE account SET balance = balance + 7 WHERE id = ?`, b.merchants.account(0))
	exec(special.GetXaSQL("end", id))
	exec(special.GetXaSQL("prepare", id))
	db.Close()
	if session != 0 {
		if err := b.merchants.left(t.Context(), session); err != nil {
			t.Fatal(err)
		}
	}
	return id
}

// What a branch that is left prepared does is seen, and Close (in the clean-up) ends it: with it the databases could not be dropped.
func TestAPreparedBranchIsSeenAndDoesNotOutliveTheBed(t *testing.T) {
	for _, env := range servers {
		t.Run(env, func(t *testing.T) {
			b := bed(t, env)
			id := prepare(t, b)
			held, err := b.Held(t.Context(), XA)
			if err != nil || len(held) != 1 || held[0] != id {
				t.Errorf("held are %v (%v), want %s", held, err, id)
			}
			if n, err := b.Locked(t.Context()); err != nil || n != 1 {
				t.Errorf("%d accounts are locked (%v), want 1", n, err)
			}
			if n, err := b.left(t.Context(), XA, 0); err != nil || n != 1 {
				t.Errorf("%d are left (%v), want 1", n, err)
			}
		})
	}
}

func TestCountSeesMoneyThatIsWrong(t *testing.T) {
	for _, env := range servers {
		t.Run(env, func(t *testing.T) {
			b := bed(t, env)
			if err := b.Count(t.Context(), 0, 0); err != nil {
				t.Fatal(err)
			}
			if err := b.Count(t.Context(), 1, 1); !errors.Is(err, ErrMoney) {
				t.Errorf("a payment that left no entry: %v", err)
			}
			id := prepare(t, b) // half a payment
			if err := b.end(t.Context(), "commit", id); err != nil {
				t.Fatal(err)
			}
			if err := b.Count(t.Context(), 0, 0); !errors.Is(err, ErrMoney) {
				t.Errorf("half a payment: %v", err)
			}
		})
	}
}
