//go:build servers

package books_test

import (
	"os"
	"testing"
)

// The same days on the servers.
func TestADayEndsAsTheChannelSaysOnServers(t *testing.T) {
	for _, variable := range []string{"LOCKSTEP_TEST_POSTGRES_URL", "LOCKSTEP_TEST_MYSQL_URL"} {
		t.Run(variable, func(t *testing.T) {
			address := os.Getenv(variable)
			if address == "" {
				t.Fatalf("%s is not set: run the tests with make test, which starts the servers", variable)
			}
			for _, days := range []func(*world){theDays, theFunds, theRace} {
				w := newWorld(t, address, address)
				w.empty()
				days(w)
			}
		})
	}
}

// empty takes away what the test before has left.
func (w *world) empty() {
	w.t.Helper()
	for _, table := range []string{"recon_file", "recon_run", "recon_finding", "recon_pool", "recon_reversal", "recon_audit",
		"payment", "payment_refund", "payment_refused", "payment_reversal", "payment_key", "payment_key_attempt"} {
		if _, err := w.b.DB.Exec("DELETE FROM " + table); err != nil {
			w.t.Fatal(err)
		}
	}
}
