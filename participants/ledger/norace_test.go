//go:build !race

package ledger_test

// rounds is how often each goroutine of TestEverythingAtOnce does something.
const rounds = 40
