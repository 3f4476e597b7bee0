//go:build servers

package sqldb_test

import (
	"os"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// What another transaction commits meanwhile is not seen: a sum that is read first agrees with what it is compared with.
func TestAReadSeesOneState(t *testing.T) {
	for _, variable := range []string{"LOCKSTEP_TEST_POSTGRES_URL", "LOCKSTEP_TEST_MYSQL_URL"} {
		address := os.Getenv(variable)
		if address == "" {
			t.Fatalf("%s is not set: run the tests with make test, which starts the servers", variable)
		}
		ctx := t.Context()
		db, d, err := sqldb.Open(ctx, address)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		exec := func(stmt string) {
			t.Helper()
			if _, err := db.ExecContext(ctx, stmt); err != nil {
				t.Fatalf("%s: %v", stmt, err)
			}
		}
		exec("DROP TABLE IF EXISTS sqldb_read")
		exec(d.Create("CREATE TABLE sqldb_read (n int NOT NULL)"))
		defer exec("DROP TABLE sqldb_read")
		tx, err := d.BeginRead(ctx, db)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback() }()
		for range 2 {
			var n int
			if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM sqldb_read").Scan(&n); err != nil || n != 0 {
				t.Errorf("%s: %d rows, %v; there were none when the transaction began to read", d.Dialect, n, err)
			}
			exec("INSERT INTO sqldb_read VALUES (1)")
		}
		_ = tx.Rollback() // before the table goes
	}
}
