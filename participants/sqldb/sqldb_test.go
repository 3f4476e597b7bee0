package sqldb_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

func TestStatementsAreWrittenOnce(t *testing.T) {
	pg, my, lite := sqldb.Dialect{Dialect: barrier.PostgreSQL}, sqldb.Dialect{Dialect: barrier.MySQL}, sqldb.Dialect{Dialect: barrier.SQLite}
	const q = "UPDATE t SET a = a + ? WHERE id = ?"
	for got, want := range map[string]string{
		pg.Q(q): "UPDATE t SET a = a + $1 WHERE id = $2", my.Q(q): q, lite.Q(q): q, pg.Q("SELECT 1"): "SELECT 1",
		pg.InsertNew("INTO t (a) VALUES (?)"):   "INSERT INTO t (a) VALUES ($1) ON CONFLICT DO NOTHING",
		my.InsertNew("INTO t (a) VALUES (?)"):   "INSERT IGNORE INTO t (a) VALUES (?)",
		lite.InsertNew("INTO t (a) VALUES (?)"): "INSERT INTO t (a) VALUES (?) ON CONFLICT DO NOTHING",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestAddresses(t *testing.T) {
	ctx := context.Background()
	db, d, err := sqldb.Open(ctx, "sqlite:"+filepath.Join(t.TempDir(), "x.db"))
	if err != nil || d.Dialect != barrier.SQLite {
		t.Fatal(d, err)
	}
	db.Close()
	for _, bad := range []string{"", "sqlite:", "x.db", "oracle://h/x", "mysql://us:secret@/x", "mysql:secret", "postgres://u:secret@127.0.0.1:1/x?connect_timeout=1"} {
		if db, _, err := sqldb.Open(ctx, bad); err == nil {
			db.Close()
			t.Errorf("%q was opened", bad)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error shows the password: %v", bad, err)
		}
	}
}
