//go:build servers

package inventory_test

import (
	"fmt"
	"net/url"
	"os"
	"sync/atomic"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

func init() {
	addresses["PostgreSQL"] = func(t *testing.T) string {
		return freshDatabase(t, "LOCKSTEP_TEST_POSTGRES_URL", "CREATE SCHEMA %s", "DROP SCHEMA %s CASCADE", func(u *url.URL, name string) {
			q := u.Query()
			q.Set("search_path", name)
			u.RawQuery = q.Encode()
		})
	}
	addresses["MySQL"] = func(t *testing.T) string {
		return freshDatabase(t, "LOCKSTEP_TEST_MYSQL_URL", "CREATE DATABASE %s", "DROP DATABASE %s", func(u *url.URL, name string) { u.Path = "/" + name })
	}
}

var schemas atomic.Int64

// freshDatabase makes a place of its own on a server, and gives its address.
func freshDatabase(t *testing.T, env, create, drop string, into func(u *url.URL, name string)) string {
	t.Helper()
	address := os.Getenv(env)
	u, err := url.Parse(address)
	if address == "" || err != nil {
		t.Fatalf("%s is not set: run the tests with make test, which starts the servers (%v)", env, err)
	}
	db, _, err := sqldb.Open(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("lsi_%d_%d", os.Getpid(), schemas.Add(1))
	if _, err := db.Exec(fmt.Sprintf(create, name)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := db.Exec(fmt.Sprintf(drop, name)); err != nil {
			t.Error(err)
		}
		db.Close()
	})
	into(u, name)
	return u.String()
}
