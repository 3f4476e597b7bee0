//go:build race

package ledger_test

import "flag"

// SQLite, which is Go here, is some forty times slower under the race detector: it sees less of the random runs.
const rounds = 4

func init() {
	if err := flag.Set("rapid.checks", "3"); err != nil {
		panic(err)
	}
}
