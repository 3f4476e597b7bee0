//go:build servers

package ledger_test

import (
	"database/sql"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

func init() {
	openers["PostgreSQL"] = func(t *testing.T) *book { return openServer(t, barrier.PostgreSQL) }
	openers["MySQL"] = func(t *testing.T) *book { return openServer(t, barrier.MySQL) }
}

var schemas atomic.Int64

func env(t testing.TB, name string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		t.Fatalf("%s is not set: run the tests with make test, which starts the servers", name)
	}
	return v
}

func openServer(t testing.TB, d barrier.Dialect) *book {
	t.Helper()
	var db *sql.DB
	var err error
	drop := "DROP SCHEMA %s CASCADE"
	if d == barrier.PostgreSQL {
		db, err = barrier.OpenPostgres(ctx, env(t, "LOCKSTEP_TEST_POSTGRES_URL"))
	} else {
		db, err = barrier.OpenMySQL(ctx, dsnOf(env(t, "LOCKSTEP_TEST_MYSQL_URL")))
		drop = "DROP DATABASE %s"
	}
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxIdleConns(32)
	schema := fmt.Sprintf("lsl_%d_%d", os.Getpid(), schemas.Add(1))
	b := newBook(t, db, d, schema, schema+".ledger_")
	t.Cleanup(func() {
		if _, err := db.Exec(fmt.Sprintf(drop, schema)); err != nil {
			t.Error(err)
		}
	})
	return b
}

func dsnOf(u string) string {
	user, rest, _ := strings.Cut(strings.TrimPrefix(u, "mysql://"), "@")
	host, db, _ := strings.Cut(rest, "/")
	return user + "@tcp(" + host + ")/" + db
}
