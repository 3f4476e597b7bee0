//go:build servers

package check

import (
	"context"
	crand "crypto/rand"
	"net/url"
	"os"
	"strings"
	"testing"

	barriers "github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// emptyDatabase makes a database of its own on a server, and gives its address.
func emptyDatabase(t *testing.T, server, name string) string {
	t.Helper()
	db, _, err := sqldb.Open(t.Context(), server)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := db.ExecContext(context.WithoutCancel(t.Context()), "DROP DATABASE "+name); err != nil {
			t.Error(err)
		}
		db.Close()
	})
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

// TestABookHasItsRegionsBarrierAlone: two regions' wallets on one server, the barrier of each in a schema of its own. On
// MariaDB a schema is the whole server's: one region's rows must not be taken for the other's.
func TestABookHasItsRegionsBarrierAlone(t *testing.T) {
	for _, variable := range []string{"LOCKSTEP_TEST_POSTGRES_URL", "LOCKSTEP_TEST_MYSQL_URL"} {
		server := os.Getenv(variable)
		if server == "" {
			t.Fatalf("%s is not set: run the tests with make test, which starts the servers", variable)
		}
		t.Run(variable, func(t *testing.T) {
			name := "check_" + strings.ToLower(crand.Text()[:10])
			address := emptyDatabase(t, server, name)
			ctx := t.Context()
			db, d, err := sqldb.Open(ctx, address)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if err := ledger.Migrate(ctx, db, d.Dialect, ledger.Options{}); err != nil {
				t.Fatal(err)
			}
			for _, region := range []string{"east", "west"} {
				schema := name + "_" + region
				if err := barriers.MigrateSchema(ctx, db, d.Dialect, schema); err != nil {
					t.Fatal(err)
				}
				if d.Dialect == barriers.MySQL {
					defer func() {
						if _, err := db.ExecContext(context.WithoutCancel(ctx), "DROP DATABASE "+schema); err != nil {
							t.Error(err)
						}
					}()
				}
				stmt := d.Q("INSERT INTO " + schema + ".barrier (trans_type, gid, branch_id, op, barrier_id, reason) VALUES ('tcc', ?, 'pay', 'confirm', '01', 'confirm')")
				if _, err := db.ExecContext(ctx, stmt, region); err != nil {
					t.Fatal(err)
				}
			}
			for _, region := range []string{"east", "west"} {
				b, err := ReadBook(ctx, region, address, name+"_"+region)
				if err != nil || len(b.Rows) != 1 || b.Rows[0] != (Row{region, "pay", "confirm", "confirm"}) {
					t.Errorf("%s: %v, its barrier has %v", region, err, b.Rows)
				}
			}
			if _, err := ReadSnapshot(ctx, "east", address, func() int64 { return 0 }); err != nil {
				t.Error(err)
			}
		})
	}
}
