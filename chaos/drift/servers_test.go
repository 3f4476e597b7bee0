//go:build servers

package drift

import (
	"crypto/rand"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

func init() {
	databases["postgres"] = func(t *testing.T) string { return newDatabase(t, "LOCKSTEP_TEST_POSTGRES_URL") }
	databases["mysql"] = func(t *testing.T) string { return newDatabase(t, "LOCKSTEP_TEST_MYSQL_URL") }
}

// newDatabase makes a database on the server that the environment names, and drops it after the test.
func newDatabase(t *testing.T, variable string) string {
	t.Helper()
	raw := os.Getenv(variable)
	if raw == "" {
		t.Fatalf("%s is not set: `make test` sets it, or `make up` and then the file .dev/env", variable)
	}
	db, _, err := sqldb.Open(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	name := "drift_" + strings.ToLower(rand.Text()[:12])
	if _, err := db.Exec("CREATE DATABASE " + name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := db.Exec("DROP DATABASE " + name); err != nil {
			t.Error(err)
		}
		db.Close()
	})
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}
