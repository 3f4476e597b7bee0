//go:build servers

package replica

import (
	"crypto/rand"
	"database/sql"
	"net/url"
	"os"
	"strings"
	"testing"

	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
)

func init() {
	brokersOf["kafka"] = func(t testing.TB) []string {
		addr := os.Getenv("LOCKSTEP_TEST_KAFKA_URL")
		if addr == "" {
			t.Fatal("LOCKSTEP_TEST_KAFKA_URL is not set: run the tests with make test, which starts the servers")
		}
		return strings.Split(addr, ",")
	}
	databaseOf["postgres"] = func(t testing.TB) string { return newDatabase(t, "LOCKSTEP_TEST_POSTGRES_URL") }
	databaseOf["mariadb"] = func(t testing.TB) string { return newDatabase(t, "LOCKSTEP_TEST_MYSQL_URL") }
}

// newDatabase makes a database on the server that the environment names, and drops it after the test.
func newDatabase(t testing.TB, variable string) string {
	t.Helper()
	raw := os.Getenv(variable)
	u, err := url.Parse(raw)
	if raw == "" || err != nil {
		t.Fatalf("%s is not set: run the tests with make test, which starts the servers", variable)
	}
	driver, dsn := "pgx", raw
	if !strings.HasPrefix(raw, "postgres") {
		password, _ := u.User.Password()
		driver, dsn = "mysql", u.User.Username()+":"+password+"@tcp("+u.Host+")"+u.Path
		if u.Path == "" {
			dsn += "/"
		}
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	name := "replica_test_" + strings.ToLower(rand.Text()[:12])
	if _, err := db.Exec("CREATE DATABASE " + name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer db.Close()
		force := ""
		if driver == "pgx" {
			force = " WITH (FORCE)"
		}
		if _, err := db.Exec("DROP DATABASE " + name + force); err != nil {
			t.Error(err)
		}
	})
	u.Path = "/" + name
	return u.String()
}
