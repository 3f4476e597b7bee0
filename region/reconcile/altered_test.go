package reconcile

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/registry"
)

// books are the wallets of both regions: they have posted, or voided, what the journal's rows say.
type books struct {
	t *testing.T
	// has is what the books have of a branch, by gid and branch.
	has map[string]inspected
}

// pays is what the payload of a made-up branch does.
func pays(t *testing.T, payload []byte) posting {
	t.Helper()
	var p struct {
		Account, Currency string
		Amount            int64
	}
	if err := json.Unmarshal(payload, &p); err != nil {
		t.Fatal(err)
	}
	return posting{Account: p.Account, Amount: p.Amount, Currency: p.Currency, Debit: true}
}

func newBooks(p *pair) *books {
	p.t.Helper()
	b := &books{t: p.t, has: map[string]inspected{}}
	for i := range p.rows {
		row := &p.rows[i]
		tx, err := record.FromParts(row.Closed, row.Progress, row.Decision, row.Finish, row.DecisionEpoch, row.FinishEpoch)
		if err != nil {
			p.t.Fatal(err)
		}
		for _, branch := range tx.State.Branches {
			in := inspected{Gid: string(row.Gid), Branch: string(branch.ID), Ops: map[string]string{"try": "done", "cancel": "done"}, Books: &booked{State: "voided"}}
			if row.Phase == txn.PhaseCommitted {
				in.Ops = map[string]string{"try": "done", "confirm": "done"}
				e := pays(p.t, branch.Payload)
				in.Books = &booked{State: "posted", Legs: []leg{{Debit: e.Account, Credit: "house", Amount: e.Amount, Currency: e.Currency}},
					Entries: []posting{e, {Account: "house", Amount: e.Amount, Currency: e.Currency}}}
			}
			b.has[in.Gid+" "+in.Branch] = in
		}
	}
	return b
}

// RoundTrip answers as a participant of the kit.
func (b *books) RoundTrip(r *http.Request) (*http.Response, error) {
	var out []any
	var in []struct {
		Gid, Branch string
		Payload     []byte
	}
	raw, err := io.ReadAll(r.Body)
	if err == nil && len(raw) > 0 {
		err = json.Unmarshal(raw, &in)
	}
	if err != nil {
		return nil, err
	}
	for _, q := range in {
		switch {
		case strings.HasSuffix(r.URL.Path, "/lockstep/inspect"):
			out = append(out, b.has[q.Gid+" "+q.Branch])
		case strings.HasSuffix(r.URL.Path, "/lockstep/effects"):
			out = append(out, effects{Known: true, Legs: []posting{pays(b.t, q.Payload)}})
		}
	}
	answer := "[]"
	if out != nil {
		raw, err := json.Marshal(out)
		if err != nil {
			return nil, err
		}
		answer = string(raw)
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(answer)), Request: r}, nil
}

// copied notes that both regions' accounts have all that the journals say.
func (p *pair) copied() {
	p.t.Helper()
	seqs := map[[2]int]uint64{}
	for i := range p.rows {
		seqs[[2]int{1, p.rows[i].Slot}] = p.rows[i].Finish.Seq
	}
	for _, s := range []*side{p.east, p.west} {
		if err := s.j.SetApplied(p.t.Context(), seqs); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (b *books) find(p *pair) []Finding {
	p.t.Helper()
	r := p.reconciler()
	r.HTTP = &http.Client{Transport: b}
	r.Table = registry.NewTable([]registry.Participant{{Name: "ledger", Can: &registry.Capabilities{Apply: true}, AccountField: "account",
		Endpoints: map[string]string{"east": "http://ledger.pay.example:8080/api/v1/ledger", "west": "http://ledger.west.example/ledger"}}})
	rep, err := r.Detect(p.t.Context(), base, base+1_000_000)
	if err != nil || rep.Branches == 0 {
		p.t.Fatalf("it has not looked: %+v, %v", rep, err)
	}
	return rep.Findings
}

// TestARecordThatIsContradictedProvesNothingOfTheBooks: one letter of a body altered in one journal is a finding of that journal,
// and none of the account that the body now names; books that were altered beside a sound record still are.
func TestARecordThatIsContradictedProvesNothingOfTheBooks(t *testing.T) {
	p := newPair(t, 40, 0)
	p.copied()
	b := newBooks(p)
	if found := b.find(p); len(found) != 0 {
		t.Fatalf("false findings: %+v", found)
	}
	victim := &p.rows[12]
	p.west.behind("UPDATE lockstep_journal SET closed = CAST(replace(closed, 'user-0', 'uzer-0') AS BLOB) WHERE gid = ?", []byte(victim.Gid))
	found := b.find(p)
	if len(found) != 1 || found[0].Class != RecordAltered || found[0].Region != "west" || found[0].Repair == "" {
		t.Fatalf("an altered body: %+v", found)
	}
	p.west.behind("UPDATE lockstep_journal SET closed = CAST(replace(closed, 'uzer-0', 'user-0') AS BLOB) WHERE gid = ?", []byte(victim.Gid))
	in := b.has[string(victim.Gid)+" 01"]
	in.Books.Entries[0].Account, in.Books.Legs[0].Debit = "user-9999999", "user-9999999"
	found = b.find(p)
	if len(found) != 2 { // the same books answer for both regions
		t.Fatalf("another account in the books: %+v", found)
	}
	for _, f := range found {
		if f.Class != WrongAccount || f.Gid != string(victim.Gid) {
			t.Errorf("%+v", f)
		}
	}
}
