//go:build servers

package barrier_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

var schemas atomic.Int64

// freshSchema gives a name that no other test of this machine uses at the moment.
func freshSchema() string { return fmt.Sprintf("lsb_%d_%d", os.Getpid(), schemas.Add(1)) }

func env(t *testing.T, name string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		t.Fatalf("%s is not set: run the tests with make test, which starts the servers", name)
	}
	return v
}

func openServer(t *testing.T, d barrier.Dialect) *sql.DB {
	t.Helper()
	var db *sql.DB
	var err error
	switch d {
	case barrier.PostgreSQL:
		db, err = barrier.OpenPostgres(context.Background(), env(t, "LOCKSTEP_TEST_POSTGRES_URL"))
	case barrier.MySQL:
		db, err = barrier.OpenMySQL(context.Background(), dsnOf(env(t, "LOCKSTEP_TEST_MYSQL_URL")))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func TestSmoke(t *testing.T) {
	for _, d := range []barrier.Dialect{barrier.PostgreSQL, barrier.MySQL} {
		t.Run(d.String(), func(t *testing.T) {
			ctx := context.Background()
			db, schema := openServer(t, d), freshSchema()
			for range 2 {
				if err := barrier.MigrateSchema(ctx, db, d, schema); err != nil {
					t.Fatal(err)
				}
			}
			b, err := barrier.New(db, d, barrier.Options{Schema: schema})
			if err != nil {
				t.Fatal(err)
			}
			none := func(*sql.Tx) error { return nil }
			for _, s := range []struct {
				op    string
				epoch int64
			}{{"try", 1}, {"try", 1}, {"confirm", 2}, {"confirm", 1}, {"cancel", 2}, {"confirm", 2}} {
				o, err := b.Do(ctx, call("tcc", "g1", s.op, s.epoch), none)
				t.Log(s, o, err)
			}
			o, err := b.Do(ctx, call("tcc", "g2", "cancel", 2), none)
			t.Log(o, err)
			o, err = b.Do(ctx, call("tcc", "g2", "try", 2), none)
			t.Log(o, err)
			rs := b.DoAll(ctx, 0, []*barrier.Call{call("tcc", "g3", "try", 1), call("tcc", "g2", "try", 2), call("tcc", "g1", "cancel", 2), call("tcc", "g4", "try", 7)}, func(i int, tx *sql.Tx) error {
				if i == 3 {
					_, err := tx.Exec("nonsense")
					return err
				}
				return nil
			})
			for _, r := range rs {
				t.Log(r)
			}
			t.Log(b.QueryPrepared(ctx, call("msg", "m1", "msg", 1)))
			o, err = b.Do(ctx, &barrier.Call{TransType: "msg", Gid: "m1", BranchID: "00", Op: "msg"}, none)
			t.Log(o, err)
		})
	}
}

func dsnOf(u string) string {
	u = strings.TrimPrefix(u, "mysql://")
	user, rest, _ := strings.Cut(u, "@")
	host, db, _ := strings.Cut(rest, "/")
	return user + "@tcp(" + host + ")/" + db
}
