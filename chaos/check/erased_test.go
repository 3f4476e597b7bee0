package check

import (
	"slices"
	"testing"

	"github.com/lockstep-tx/lockstep/chaos/history"
)

// rebuilt is sound evidence of a run in which east's disks went at 25, and with them the transaction "l": its client was told that it
// is committed, west has its receive posted, and nobody has a record of it.
func rebuilt() *Evidence {
	e := sound()
	e.GivenUp = []string{"l"}
	e.Windows = []Window{{Fault: "f", Lost: true, Erased: "east", Injected: 24, Gone: 25, Healed: 100}}
	e.Ops = append(e.Ops, history.Op{Client: 9, Kind: history.Execute, Gid: "l", From: "a", To: "b", Amount: 3, Start: 21, End: 23, Outcome: history.OK, Value: history.Committed})
	w := &e.Books[1]
	w.Transfers = append(w.Transfers, Transfer{Gid: "l", Branch: "receive", Kind: "hold", State: "posted", Debit: "house:passage:CNY", Credit: "b", Amount: 3, Currency: "CNY", ID: "l:receive"})
	w.Entries = append(w.Entries, Entry{"l", "receive", "debit", "house:passage:CNY", 3, "CNY", "l:receive"}, Entry{"l", "receive", "credit", "b", 3, "CNY", "l:receive"})
	w.Rows = append(w.Rows, Row{"l", "receive", "try", "try"}, Row{"l", "receive", "confirm", "confirm"})
	w.Accounts[1].CreditsPosted += 3
	w.Accounts[2].DebitsPosted += 3
	// Its copies came back by apply: of tries there is no row any more.
	e.Books[0].Rows = slices.DeleteFunc(e.Books[0].Rows, func(r Row) bool { return r.Gid == "g" && r.Op == "try" })
	// Its journal began anew, and has had its own chain back.
	e.Reaches = append(e.Reaches, Reach{"east", 20, 2, 7, 4, 3, 4, 2}, Reach{"east", 50, 2, 7, 1, 1, 1, 1}, Reach{"east", 60, 1, 7, 1, 1, 2, 2})
	e.Snapshots = append(e.Snapshots, Snapshot{"east", 50, nil})
	return e
}

// TestWhatWentWithARegionsDisks: what is left of a transaction that was known to the lost region alone is no violation, and nothing
// else is allowed for it.
func TestWhatWentWithARegionsDisks(t *testing.T) {
	for _, r := range All(rebuilt(), nil) {
		if r.Count != 0 {
			t.Errorf("%s: %v", r.ID, r.Violations)
		}
	}
	for _, c := range []struct {
		id, what string
		breaks   func(e *Evidence)
	}{
		{"I4", "it was not given up", func(e *Evidence) { e.GivenUp = nil }},
		{"I8", "it was not given up", func(e *Evidence) { e.GivenUp = nil }},
		{"I1", "it was not given up", func(e *Evidence) { e.GivenUp = nil }},
		{"I1", "more than it moved is missing", func(e *Evidence) { e.Books[1].Accounts[1].CreditsPosted++ }},
		{"I8", "it is aborted, and its client was told the opposite", func(e *Evidence) {
			for _, region := range []string{"east", "west"} {
				e.Decided = append(e.Decided, Decided{Region: region, Gid: "l", Phase: 6, Finished: true})
			}
		}},
		{"I4", "it is aborted, and one branch is posted", func(e *Evidence) {
			for _, region := range []string{"east", "west"} {
				e.Decided = append(e.Decided, Decided{Region: region, Gid: "l", Phase: 6, Finished: true})
			}
		}},
		{"I8", "its client was told that it is aborted, and it is posted", func(e *Evidence) { e.Ops[len(e.Ops)-1].Value = history.Aborted }},
		{"I4", "one branch is posted, the other was taken back", func(e *Evidence) {
			e.Books[1].Transfers = append(e.Books[1].Transfers, Transfer{Gid: "l", Branch: "pay", Kind: "hold", State: "voided", Debit: "a", Credit: "house:passage:CNY", Amount: 3, Currency: "CNY", ID: "l:pay"})
		}},
		{"I5", "what was asked for later was tried nowhere", func(e *Evidence) { e.Ops[0].Start, e.Ops[0].End = 26, 27 }},
		{"I9", "the other region's watermark stands behind", func(e *Evidence) { e.Reaches[len(e.Reaches)-2].Mark = 0 }},
		{"I10", "the other region's watermark goes back", func(e *Evidence) { e.Reaches = append(e.Reaches, Reach{"west", 61, 1, 7, 1, 1, 1, 1}) }},
		{"I10", "its watermark goes back after it was rebuilt", func(e *Evidence) {
			e.Reaches = append(e.Reaches, Reach{"east", 101, 2, 7, 5, 1, 5, 5}, Reach{"east", 102, 2, 7, 4, 1, 4, 4})
		}},
		{"I1", "a snapshot of the other region", func(e *Evidence) { e.Snapshots[len(e.Snapshots)-1].Region = "west" }},
	} {
		e := rebuilt()
		c.breaks(e)
		if r := find(t, All(e, nil), c.id); r.Verdict() != Failed {
			t.Errorf("%s does not find: %s", c.id, c.what)
		}
	}
}
