//go:build servers

package e2e

import (
	"context"
	"crypto/rand"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// freshDatabase makes a database of its own on the server that the variable names, and drops it afterwards.
func freshDatabase(t *testing.T, variable string) string {
	t.Helper()
	server := os.Getenv(variable)
	u, err := url.Parse(server)
	if err != nil || server == "" {
		t.Fatalf("%s is not set: run the tests with make test, which starts the servers", variable)
	}
	ctx := context.Background()
	name := "payments_" + strings.ToLower(rand.Text()[:12])
	run := func(stmt string) {
		db, _, err := sqldb.Open(ctx, server)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.ExecContext(ctx, stmt); err != nil {
			t.Fatal(err)
		}
	}
	run("CREATE DATABASE " + name)
	t.Cleanup(func() {
		force := ""
		if u.Scheme == "postgres" {
			force = " WITH (FORCE)"
		}
		run("DROP DATABASE " + name + force)
	})
	u.Path = "/" + name
	return u.String()
}

func TestPaymentsOnPostgreSQL(t *testing.T) {
	payments(t, freshDatabase(t, "LOCKSTEP_TEST_POSTGRES_URL"))
}

func TestPaymentsOnMariaDB(t *testing.T) { payments(t, freshDatabase(t, "LOCKSTEP_TEST_MYSQL_URL")) }

func TestPaymentsFromFrozenAndClosedAccountsOnPostgreSQL(t *testing.T) {
	paymentsByState(t, freshDatabase(t, "LOCKSTEP_TEST_POSTGRES_URL"))
}

func TestPaymentsFromFrozenAndClosedAccountsOnMariaDB(t *testing.T) {
	paymentsByState(t, freshDatabase(t, "LOCKSTEP_TEST_MYSQL_URL"))
}

func TestPaymentsSurviveKillsOnPostgreSQL(t *testing.T) {
	paymentsUnderKills(t, freshDatabase(t, "LOCKSTEP_TEST_POSTGRES_URL"))
}

func TestPaymentsSurviveKillsOnMariaDB(t *testing.T) {
	paymentsUnderKills(t, freshDatabase(t, "LOCKSTEP_TEST_MYSQL_URL"))
}
