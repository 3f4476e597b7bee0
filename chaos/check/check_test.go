package check

import (
	"fmt"
	"slices"
	"testing"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/tap"
)

// sound is what a small, correct run leaves: one committed and one aborted payment, in two regions, enough snapshots.
func sound() *Evidence {
	e := &Evidence{Opened: 200, Lagged: 1}
	accounts := []Account{
		{ID: "a", DebitsPosted: 5, CreditsPosted: 100}, {ID: "b", CreditsPosted: 105},
		{ID: "house:passage:CNY", DebitsPosted: 5, CreditsPosted: 5},
	}
	for i, region := range []string{"east", "west"} {
		b := Book{Region: region, Accounts: slices.Clone(accounts)}
		b.Transfers = []Transfer{{Gid: "g", Branch: "pay", Kind: "hold", State: "posted", Debit: "a", Credit: "house:passage:CNY", Amount: 5, Currency: "CNY", ID: "g:pay"}, {Gid: "g", Branch: "receive", Kind: "hold", State: "posted", Debit: "house:passage:CNY", Credit: "b", Amount: 5, Currency: "CNY", ID: "g:receive"}}
		b.Entries = []Entry{
			{Direction: "credit", Account: "a", Amount: 100}, {Direction: "credit", Account: "b", Amount: 100},
			{"g", "pay", "debit", "a", 5, "CNY", "g:pay"}, {"g", "pay", "credit", "house:passage:CNY", 5, "CNY", "g:pay"},
			{"g", "receive", "debit", "house:passage:CNY", 5, "CNY", "g:receive"}, {"g", "receive", "credit", "b", 5, "CNY", "g:receive"},
		}
		for _, branch := range []string{"pay", "receive"} {
			if i == 0 {
				b.Rows = append(b.Rows, Row{"g", branch, "try", "try"}, Row{"x", branch, "try", "cancel"}, Row{"x", branch, "cancel", "cancel"})
			}
			b.Rows = append(b.Rows, Row{"g", branch, "confirm", "confirm"})
		}
		e.Books = append(e.Books, b)
		e.Decided = append(e.Decided, Decided{Region: region, Gid: "g", Phase: 5, Finished: true, Body: "11"}, Decided{Region: region, Gid: "x", Phase: 6, Finished: true})
		e.Events = append(e.Events, Event{region, 1, 7, 1, "aa"}, Event{region, 1, 7, 2, "bb"})
	}
	e.Reaches = []Reach{{"west", 5, 1, 7, 0, 0, 0, 0}, {"west", 6, 1, 7, 1, 1, 1, 1}, {"west", 7, 1, 7, 2, 1, 2, 2}}
	for i := range snapshotsNeeded {
		e.Snapshots = append(e.Snapshots, Snapshot{"east", int64(i), slices.Clone(accounts)})
	}
	e.Plants = []Plant{{Region: "east", Class: "D06", Account: "a", At: 3}, {Region: "east", Class: "D10", Account: "b", Gid: "ghost", At: 3, Ambiguous: true, Quarantined: true, Stayed: true}}
	e.Repairs = []tap.Repair{{Region: "east", Path: "/mend", At: 5, Status: 200, Account: "a"}, {Region: "east", Path: "/mend", At: 6, Status: 200, Account: "a"}, {Region: "east", Path: "/mend", At: 6, Status: 409, Account: "b"}}
	e.Stores = Stores{
		Members: []Member{{"arbiter", "a:1", 1, 1, 2, 9, 77, 3}, {"arbiter", "b:1", 2, 1, 2, 9, 77, 3}}, Elections: 1,
		Slots: []Held{{7, "m1", 4}}, Live: []string{"l"}, Views: []View{{"c0", []Held{{7, "m1", 4}}, []string{"l"}}, {"c1", []Held{{7, "m1", 4}}, nil}},
	}
	e.Owned = []Owned{{7, 2, "east", 101}, {8, 2, "west", 102}, {7, 5, "east", 101}, {7, 6, "west", 202}, {7, 7, "east", 301}}
	e.Ops = []history.Op{
		{Client: 1, Kind: history.Execute, Gid: "g", From: "a", To: "b", Amount: 5, Start: 10, End: 20, Outcome: history.OK, Value: history.Committed},
		{Client: 2, Kind: history.Abort, Gid: "x", Start: 10, End: 20, Outcome: history.OK, Value: history.Aborted},
		{Client: 3, Kind: history.Read, Gid: "g", Start: 30, End: 40, Outcome: history.OK, Value: history.Committed},
	}
	e.Calls = []tap.Call{
		{Region: "east", Kind: tap.Plain, Gid: "g", Branch: "pay", Op: "confirm", Slot: 7, Epoch: 101, Start: 11, End: 12, Status: 200},
		{Region: "east", Kind: tap.Plain, Gid: "h", Branch: "pay", Op: "confirm", Slot: 7, Epoch: 202, Start: 13, End: 14, Status: 200},
		{Region: "east", Kind: tap.Stale, Gid: "g", Branch: "pay", Op: "confirm", Slot: 7, Epoch: 101, Start: 15, End: 16, Status: 412},
	}
	return e
}

func find(t *testing.T, all []Result, id string) *Result {
	t.Helper()
	for i := range all {
		if all[i].ID == id {
			return &all[i]
		}
	}
	t.Fatalf("no checker %s", id)
	return nil
}

func TestCorrectEvidenceHasNoViolation(t *testing.T) {
	for _, r := range All(sound(), nil) {
		if r.Count != 0 || r.Examined == 0 {
			t.Errorf("%s: %d examined, %v", r.ID, r.Examined, r.Violations)
		}
	}
}

// TestWhatWasTakenBackIsNotThere: an effect that was there twice and was reversed is there once; the counters still have all.
func TestWhatWasTakenBackIsNotThere(t *testing.T) {
	e := sound()
	b := &e.Books[0]
	second := b.Transfers[0]
	second.ID = "g:pay~1"
	b.Transfers = append(b.Transfers, second, Transfer{Gid: "g", Branch: "pay", Kind: "reversal", State: "posted", Debit: second.Credit, Credit: second.Debit, Amount: 5, Currency: "CNY", ID: "mend", Of: second.ID})
	for _, x := range []Entry{{"g", "pay", "debit", "a", 5, "CNY", second.ID}, {"g", "pay", "credit", "house:passage:CNY", 5, "CNY", second.ID},
		{"g", "pay", "credit", "a", 5, "CNY", "mend"}, {"g", "pay", "debit", "house:passage:CNY", 5, "CNY", "mend"}} {
		b.Entries = append(b.Entries, x)
	}
	b.Accounts[0].DebitsPosted, b.Accounts[0].CreditsPosted, b.Accounts[2].DebitsPosted, b.Accounts[2].CreditsPosted = 10, 105, 10, 10
	for _, r := range All(e, nil) {
		if r.Count != 0 {
			t.Errorf("%s: %v", r.ID, r.Violations)
		}
	}
	b.Transfers = b.Transfers[:len(b.Transfers)-1]
	if r := find(t, All(e, nil), "I6"); r.Count == 0 {
		t.Error("twice without its reversal is not seen")
	}
}

// TestNothingProvesNothing: without evidence no required checker passes.
func TestNothingProvesNothing(t *testing.T) {
	for _, r := range All(&Evidence{}, IDs()) {
		if r.Verdict() != Inconclusive {
			t.Errorf("%s is %s on no evidence at all", r.ID, r.Verdict())
		}
	}
}

// TestEachCheckerFindsWhatItIsFor breaks the evidence in one place at a time.
func TestEachCheckerFindsWhatItIsFor(t *testing.T) {
	for _, c := range []struct {
		id, what string
		breaks   func(e *Evidence)
	}{
		{"I1", "a cent too much in a snapshot", func(e *Evidence) { e.Snapshots[3].Accounts[0].CreditsPosted++ }},
		{"I1", "a compensating pair between regions", func(e *Evidence) {
			e.Books[1].Accounts[0].CreditsPosted += 5
			e.Books[1].Accounts[1].CreditsPosted -= 5
		}},
		{"I2", "more is frozen than there is", func(e *Evidence) { e.Snapshots[0].Accounts[0].DebitsPending = 96 }},
		{"I6", "another amount in all rows", func(e *Evidence) {
			b := &e.Books[1]
			b.Transfers[0].Amount, b.Entries[2].Amount, b.Entries[3].Amount = 6, 6, 6
			b.Accounts[0].DebitsPosted, b.Accounts[2].CreditsPosted = 6, 6
		}},
		{"I6", "another account in all rows", func(e *Evidence) {
			b := &e.Books[1]
			b.Transfers[1].Credit, b.Entries[5].Account = "a", "a"
			b.Accounts[0].CreditsPosted, b.Accounts[1].CreditsPosted = 105, 100
		}},
		{"I6", "another currency", func(e *Evidence) { e.Books[0].Transfers[0].Currency = "USD" }},
		{"I6", "an entry of no transfer", func(e *Evidence) {
			e.Books[0].Entries = append(e.Books[0].Entries, Entry{Direction: "credit", Account: "a", Amount: 1, Currency: "CNY", Transfer: "phantom"})
			e.Books[0].Accounts[0].CreditsPosted++
		}},
		{"I6", "a reversal of something else", func(e *Evidence) {
			b := &e.Books[0]
			b.Transfers = append(b.Transfers, Transfer{Gid: "g", Branch: "pay", Kind: "reversal", State: "posted", Debit: "house:passage:CNY", Credit: "a", Amount: 4, Currency: "CNY", ID: "r", Of: "g:pay"})
			b.Entries = append(b.Entries, Entry{"g", "pay", "credit", "a", 4, "CNY", "r"}, Entry{"g", "pay", "debit", "house:passage:CNY", 4, "CNY", "r"})
			b.Accounts[0].CreditsPosted, b.Accounts[2].DebitsPosted = 104, 9
		}},
		{"I10", "a chain that the first region lacks whole", func(e *Evidence) {
			e.Events = slices.DeleteFunc(e.Events, func(x Event) bool { return x.Region == "east" })
		}},
		{"I10", "other numbers of a transaction's events", func(e *Evidence) {
			e.Decided[0].DecisionSeq, e.Decided[0].FinishSeq, e.Decided[2].DecisionSeq, e.Decided[2].FinishSeq = 1, 2, 3, 4
		}},
		{"I10", "another body under the same events", func(e *Evidence) { e.Decided[2].Body = "22" }},
		{"I3", "a decision that is never finished", func(e *Evidence) { e.Decided[0].Finished = false }},
		{"I3", "a hold that stays", func(e *Evidence) { e.Books[0].Transfers[0].State = "pending" }},
		{"I4", "one branch is taken back", func(e *Evidence) { e.Books[0].Transfers[1].State = "voided" }},
		{"I4", "two journals differ", func(e *Evidence) { e.Decided[0].Phase = 6 }},
		{"I5", "no confirm's row", func(e *Evidence) {
			e.Books[0].Rows = slices.DeleteFunc(e.Books[0].Rows, func(r Row) bool { return r.Op == "confirm" })
		}},
		{"I5", "a late try after an empty cancel", func(e *Evidence) {
			e.Books[0].Transfers = append(e.Books[0].Transfers, Transfer{Gid: "x", Branch: "pay", Kind: "hold", State: "pending", Debit: "a", Credit: "house:passage:CNY", Amount: 5, ID: "x:pay"})
		}},
		{"I5", "confirm and cancel", func(e *Evidence) { e.Books[0].Rows = append(e.Books[0].Rows, Row{"g", "pay", "cancel", "cancel"}) }},
		{"I6", "an entry twice", func(e *Evidence) { e.Books[0].Entries = append(e.Books[0].Entries, e.Books[0].Entries[2]) }},
		{"I6", "a counter without an entry", func(e *Evidence) { e.Books[0].Accounts[0].DebitsPosted++ }},
		{"I7", "frozen without a hold", func(e *Evidence) { e.Books[0].Accounts[0].DebitsPending = 5 }},
		{"I8", "an acknowledged commit is aborted", func(e *Evidence) {
			for i := range e.Decided {
				e.Decided[i].Phase = 6
			}
		}},
		{"I8", "an acknowledged abort is posted", func(e *Evidence) {
			e.Ops[1].Gid = "g"
		}},
		{"I9", "a gap", func(e *Evidence) { e.Events = append(e.Events, Event{"east", 1, 7, 4, "dd"}) }},
		{"I9", "an event is missing while the run goes on", func(e *Evidence) { e.Reaches[2].Count = 1 }},
		{"I9", "the watermark is before its events", func(e *Evidence) { e.Reaches[1].High, e.Reaches[1].Low, e.Reaches[1].Count = 0, 0, 0 }},
		{"I9", "events are before their watermark", func(e *Evidence) { e.Reaches[2].Mark = 1 }},
		{"I10", "a watermark goes back", func(e *Evidence) { e.Reaches = append(e.Reaches, Reach{"west", 8, 1, 7, 1, 1, 1, 1}) }},
		{"I10", "another link", func(e *Evidence) { e.Events[0].Chain = "ff" }},
		{"I10", "the tail is missing", func(e *Evidence) { e.Events = e.Events[:3] }},
		{"I11", "a stale call is taken", func(e *Evidence) { e.Calls[2].Status = 200 }},
		{"I11", "a stale try is taken after a hold", func(e *Evidence) {
			e.Calls[0].Op, e.Calls[2].Op, e.Calls[2].Status = "hold", "try", 200
		}},
		{"I12", "a member has something else", func(e *Evidence) { e.Stores.Members[1].Hash++ }},
		{"I12", "a coordinator believes in a holder of before", func(e *Evidence) { e.Stores.Views[1].Slots[0] = Held{7, "m0", 3} }},
		{"I12", "a coordinator does not know of a slot", func(e *Evidence) { e.Stores.Views[1].Slots = nil }},
		{"I12", "a live transaction is shown by nobody", func(e *Evidence) { e.Stores.Views[0].Live = nil }},
		{"I12", "a transaction that has ended is shown", func(e *Evidence) { e.Stores.Views[1].Live = []string{"m"} }},
		{"I13", "what was right is repaired", func(e *Evidence) { e.Repairs[2].Status = 200 }},
		{"I13", "another region's is repaired", func(e *Evidence) { e.Repairs[0].Region = "west" }},
		{"I13", "an ambiguous case is repaired", func(e *Evidence) { e.Plants[1].Stayed = false }},
		{"I13", "an ambiguous case is not named", func(e *Evidence) { e.Plants[1].Quarantined = false }},
		{"I13", "a repair was done twice", func(e *Evidence) { e.Books[0].Accounts[0].CreditsPosted += 7 }},
		{"I14", "a decision is taken back", func(e *Evidence) {
			e.Ops = append(e.Ops, history.Op{Client: 4, Kind: history.Read, Gid: "g", Start: 50, End: 60, Outcome: history.OK, Value: history.Open})
		}},
		{"I14", "a request that is made again is refused", func(e *Evidence) {
			e.Ops = append(e.Ops, history.Op{Client: 4, Kind: history.Again, Gid: "g", Start: 50, End: 60, Outcome: history.Fail, Error: "code = AlreadyExists"})
		}},
		{"I14", "a request that is made again is decided otherwise", func(e *Evidence) {
			e.Ops = append(e.Ops, history.Op{Client: 4, Kind: history.Again, Gid: "g", Start: 50, End: 60, Outcome: history.OK, Value: history.Aborted})
		}},
		{"I14", "something else under a gid is taken for what was asked for", func(e *Evidence) {
			e.Ops = append(e.Ops, history.Op{Client: 4, Kind: history.Other, Gid: "g", Amount: 6, Start: 50, End: 60, Outcome: history.OK, Value: history.Committed})
		}},
		{"I3", "a coordinator still drives something", func(e *Evidence) { e.Driven = []string{"g"} }},
		{"I3", "a coordinator is dead at the end", func(e *Evidence) { e.Silent = []string{"east-0: connection refused"} }},
		{"I14", "two owners use one epoch", func(e *Evidence) { e.Owned[3].Epoch = 101 }},
		{"I14", "an epoch goes back", func(e *Evidence) { e.Owned[4].Epoch = 101 }},
		{"I14", "a slot loses its owner", func(e *Evidence) {
			last := e.Owned[len(e.Owned)-1]
			e.Owned = append(e.Owned, Owned{Slot: last.Slot, Revision: last.Revision + 1})
		}},
		{"I14", "a call at an epoch that nobody gave", func(e *Evidence) { e.Calls[0].Epoch = 401 }},
	} {
		e := sound()
		c.breaks(e)
		if r := find(t, All(e, nil), c.id); r.Verdict() != Failed {
			t.Errorf("%s does not find: %s", c.id, c.what)
		}
	}
}

// TestAnUnknownMayHaveHappened: a commit whose answer was lost, and a read that shows it, or does not, have an order.
func TestAnUnknownMayHaveHappened(t *testing.T) {
	for _, seen := range []history.Value{history.Committed, history.Open} {
		e := sound()
		e.Ops = append(e.Ops, history.Op{Client: 5, Kind: history.Commit, Gid: "u", Start: 1, End: 2, Outcome: history.Unknown},
			history.Op{Client: 6, Kind: history.Read, Gid: "u", Start: 3, End: 4, Outcome: history.OK, Value: seen})
		if r := find(t, All(e, nil), "I14"); r.Count != 0 {
			t.Errorf("read %s: %v", seen, r.Violations)
		}
	}
}

// TestPlantedDriftIsNoViolationUntilItIsRepaired: only the snapshots of the window are left out.
func TestPlantedDriftIsNoViolationUntilItIsRepaired(t *testing.T) {
	for _, c := range []struct {
		drift    bool
		at, want int
	}{{true, 2, 1}, {true, 3, 0}, {true, 6, 0}, {true, 7, 1}, {false, 5, 1}} {
		e := sound()
		e.Windows = []Window{{Drift: c.drift, Injected: 3, Healed: 6}}
		e.Snapshots[c.at].Accounts[0].CreditsPosted++
		if r := find(t, All(e, nil), "I1"); r.Count != c.want {
			t.Errorf("a cent too much at %d, drift planted: %v: %v", c.at, c.drift, r.Violations)
		}
	}
}

// TestAHoldMayBeLostWithItsRegion: a hold of which there is no trace but its try's row is a violation, unless the region was lost and
// its heir has cancelled.
func TestAHoldMayBeLostWithItsRegion(t *testing.T) {
	for _, c := range []struct {
		lost, heir bool
		want       int
	}{{true, true, 0}, {false, true, 1}, {true, false, 1}} {
		e := sound()
		e.Windows = []Window{{Fault: "f", Lost: c.lost}}
		for i, r := range e.Books[0].Rows {
			if r.Gid == "x" && r.Branch == "pay" && r.Op == "try" {
				e.Books[0].Rows[i].Reason = "try"
			}
		}
		if c.heir {
			e.Books[1].Rows = append(e.Books[1].Rows, Row{"x", "pay", "try", "cancel"}, Row{"x", "pay", "cancel", "cancel"})
		}
		if r := find(t, All(e, nil), "I5"); r.Count != c.want {
			t.Errorf("lost %v, cancelled by its heir %v: %d violations, want %d: %v", c.lost, c.heir, r.Count, c.want, r.Violations)
		}
	}
}

func TestEvidenceIsStoredWhole(t *testing.T) {
	dir := t.TempDir()
	if err := sound().Save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", sound()); a != b {
		t.Errorf("got  %s\nwant %s", a, b)
	}
}

// TestWhatASystemHasNotIsSkipped: a checker of what the system under test does not have is neither passed nor inconclusive,
// also where it is required and after the evidence was stored.
func TestWhatASystemHasNotIsSkipped(t *testing.T) {
	e := sound()
	e.Lacks, e.LateAnswer = map[string]string{"I11": "it has no epochs"}, 200
	dir := t.TempDir()
	if err := e.Save(dir); err != nil {
		t.Fatal(err)
	}
	again, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, of := range []*Evidence{e, again} {
		if r := find(t, All(of, []string{"I11"}), "I11"); r.Verdict() != Skipped || r.Skipped != "it has no epochs" {
			t.Errorf("I11 is %s: %q", r.Verdict(), r.Skipped)
		}
	}
	again.Books[0].Rows = append(again.Books[0].Rows, Row{"x", "other", "confirm", "confirm"}, Row{"x", "other", "cancel", "cancel"})
	if r := find(t, All(again, nil), "I5"); r.Verdict() != Failed {
		t.Error("what is lacking keeps other checkers from finding")
	}
}

// TestALateTryIsArmedByTheAnswerThatItsBarrierGives: where a try that comes too late is answered with success and does nothing,
// its 200 arms I5, and a 409 does not.
func TestALateTryIsArmedByTheAnswerThatItsBarrierGives(t *testing.T) {
	for status, want := range map[int]bool{200: true, 409: false} {
		e := sound()
		e.LateAnswer = 200
		e.Calls = append(e.Calls, tap.Call{Region: "east", Kind: tap.Plain, Gid: "x", Branch: "pay", Op: "cancel", Start: 20, End: 21, Status: 200},
			tap.Call{Region: "east", Kind: tap.Late, Gid: "x", Branch: "pay", Op: "try", Start: 22, End: 23, Status: status})
		if r := find(t, All(e, []string{"I5"}), "I5"); r.Armed != want {
			t.Errorf("a late try answered with %d: armed %v, %s", status, r.Armed, r.Arming)
		}
	}
}

// TestRepeatsAreNoNewRequests: what is asked for again, or refused because something else was asked for, changes nothing of what the
// other checkers ask of a request.
func TestRepeatsAreNoNewRequests(t *testing.T) {
	e := sound()
	e.Ops = append(e.Ops,
		history.Op{Client: 4, Kind: history.Again, Gid: "g", From: "a", To: "b", Amount: 5, Start: 50, End: 60, Outcome: history.OK, Value: history.Committed},
		history.Op{Client: 5, Kind: history.Other, Gid: "g", From: "a", To: "b", Amount: 6, Start: 50, End: 60, Outcome: history.Fail, Error: "code = AlreadyExists"})
	for _, r := range All(e, nil) {
		if r.Count != 0 {
			t.Errorf("%s: %v", r.ID, r.Violations)
		}
	}
}

// TestWhatWasSeenDuringTheRunStays: a promise that the fault itself saw broken is a violation, by whatever evidence.
func TestWhatWasSeenDuringTheRunStays(t *testing.T) {
	r := Broken("drift is found", fmt.Errorf("it was not"))
	if r.Verdict() != Failed || !r.Seen() {
		t.Errorf("%+v", r)
	}
}

// TestWhatHappensSometimesIsCounted: each is seen where it happened, and is 0 where nothing did.
func TestWhatHappensSometimesIsCounted(t *testing.T) {
	for _, r := range Sometimes(&Evidence{}) {
		if r.N != 0 {
			t.Errorf("%s: %d times in nothing at all", r.What, r.N)
		}
	}
	e := sound()
	e.Lagged, e.Stores.Relisted = gapMany+1, 1
	e.Windows = []Window{{InFlight: 1}, {Crash: true}}
	e.Ops = append(e.Ops, history.Op{Kind: history.Execute, Gid: "g", Outcome: history.Unknown}, history.Op{Kind: history.Execute, Gid: "x", Outcome: history.Unknown},
		history.Op{Kind: history.Again, Gid: "g", Outcome: history.OK, Value: history.Committed}, history.Op{Kind: history.Other, Gid: "g", Outcome: history.Fail})
	e.Calls = append(e.Calls,
		tap.Call{Kind: tap.Plain, Gid: "g", Branch: "pay", Op: "confirm", Slot: 7, Epoch: 301, Status: 200}, tap.Call{Kind: tap.Copy, Op: "try", Status: 200},
		tap.Call{Kind: tap.Late, Op: "try", Status: 409})
	for _, r := range Sometimes(e) {
		if r.N == 0 {
			t.Errorf("%s: not seen", r.What)
		}
	}
}

// TestALateTryOfSomebodyElsesParticipant: their books are not read, and what they answered is.
func TestALateTryOfSomebodyElsesParticipant(t *testing.T) {
	e := sound()
	e.Foreign = true
	e.Calls = append(e.Calls, tap.Call{Kind: tap.Late, Gid: "g", Branch: "pay", Op: "try", Status: 409})
	if r := find(t, All(e, []string{"I5"}), "I5"); r.Verdict() != Passed {
		t.Errorf("%+v", r)
	}
	e.Calls[len(e.Calls)-1].Status = 200
	if r := find(t, All(e, []string{"I5"}), "I5"); r.Verdict() != Failed {
		t.Errorf("%+v", r)
	}
}
