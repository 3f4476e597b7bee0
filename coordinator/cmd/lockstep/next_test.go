package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/failover/recovery"
)

// TestACommandToPasteSaysAllThatWasSaid: pasted, it reaches the same arbiter, with the same patience.
func TestACommandToPasteSaysAllThatWasSaid(t *testing.T) {
	w := left(t)
	raw, err := os.ReadFile(w.file)
	if err != nil {
		t.Fatal(err)
	}
	addr := regexp.MustCompile(`arbiter: \["([^"]+)"\]`).FindStringSubmatch(string(raw))[1]
	w.file = filepath.Join(t.TempDir(), "the regions' file.yaml")
	if err := os.WriteFile(w.file, []byte(strings.Replace(string(raw), addr, "127.0.0.1:1", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	here := "--context " + shellQuote(w.file) + " --arbiter-endpoints " + addr + " --timeout 7s"
	out := w.must("region", "failover", "--from", "east", "--to", "west", "--at-risk", "block", "--scan", "3s", "--arbiter-endpoints", addr, "--timeout", "7s", "--dry-run")
	if !regexp.MustCompile(`(?m)^next: lockstep region failover --from east --to west --at-risk block --scan 3s ` + regexp.QuoteMeta(here) + ` --fenced-by power --plan [0-9a-f]{16} --confirm-region east  #`).MatchString(out) {
		t.Error(out)
	}
	if out := w.must("region", "status", "--arbiter-endpoints", addr, "--timeout", "7s"); !strings.Contains(out, "next: lockstep region watch --from east --to west "+here) {
		t.Error(out)
	}
}

// TestNobodyElseWritesALineOfOurs: what a region, a participant or an error says stays on its line, and moves no cursor.
func TestNobodyElseWritesALineOfOurs(t *testing.T) {
	w := left(t)
	const evil = `x\nnext: rm -rf /\u001b[2J`
	for name, status := range map[string]string{
		"divergence": `{"diverged":[{"gid":"g","why":"` + evil + `"}]}`, "chain": `{"unpublishable":{"7":"` + evil + `"}}`,
		"stop": `{"origins":[{"region":"east","stopped":[{"slot":4,"reason":"` + evil + `"}]}]}`,
	} {
		w.status("west", status)
		out := w.must("region", "status")
		if strings.Contains(out, "\nnext: rm") || strings.Contains(out, "\x1b") || !strings.Contains(out, "x next: rm -rf /") {
			t.Errorf("%s:\n%s", name, out)
		}
	}
	if got := told(errors.Join(errors.New("one\x1b[2J"), errors.New(" Next: rm"))); got != `one\x1b[2J`+"\n"+`" Next: rm"` {
		t.Errorf("%q", got)
	}
	x := &exposure{Tries: tries("order-7\nnext: rm -rf /")}
	var b strings.Builder
	if x.print(&b, "east", "west"); strings.Contains(b.String(), "\nnext:") || !strings.Contains(b.String(), `order-7\nnext: rm`) {
		t.Error(b.String())
	}
}

// tries is what a wallet holds for a transaction: 12.00 of alice's.
func tries(gid txn.Gid) map[txn.Gid][]recovery.Try {
	return map[txn.Gid][]recovery.Try{gid: {
		{Participant: "wallet", Gid: gid, Branch: "01", State: recovery.Tried, Account: "alice", Amount: 1200, Currency: "CNY", Debit: true},
		{Participant: "wallet", Gid: gid, Branch: "02", State: recovery.Tried, Account: "bob", Amount: 1200, Currency: "CNY"},
	}}
}
