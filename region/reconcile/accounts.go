package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// accountFault is what a participant's books say of an account that does not fold, or whose entries are not its transfers'.
type accountFault struct {
	Account   string   `json:"account"`
	Currency  string   `json:"currency"`
	Have      [4]int64 `json:"have"`
	Fold      [4]int64 `json:"fold"`
	Transfers [4]int64 `json:"transfers"`
	// EntriesDiffer are transfers whose entries are not their legs.
	EntriesDiffer []string `json:"entries_differ,omitempty"`
	// Phantoms are ids of entries that have no transfer; Twice are voided holds beside their branches' own.
	Phantoms []string `json:"phantoms,omitempty"`
	Twice    []struct {
		ID     string `json:"id"`
		Gid    string `json:"gid"`
		Branch string `json:"branch"`
		Minor  int64  `json:"amount"`
	} `json:"twice,omitempty"`
}

func (f *accountFault) balance() int64 { return (f.Have[3] - f.Have[1]) - (f.Fold[3] - f.Fold[1]) }

// check asks a participant's books for accounts that are not what their entries say, and entries that are not what their
// transfers say.
func (r *Reconciler) check(ctx context.Context, rep *Report, region, name, endpoint string) error {
	raw, status, err := r.call(ctx, rep, http.MethodGet, endpoint+"/lockstep/check", nil, nil)
	if status == http.StatusBadRequest {
		rep.notRead("books of %s in %s: its accounts cannot be asked for", name, region)
		return nil
	}
	if err != nil {
		return err
	}
	var faults []accountFault
	if err := json.Unmarshal(raw, &faults); err != nil {
		return err
	}
	rep.Books++
	known := rep.explained(region, name)
	for i := range faults {
		f := &faults[i]
		if f.explainedBy(known) {
			continue
		}
		evidence, err := json.Marshal(f)
		if err != nil {
			return err
		}
		out := Finding{Class: AmountAltered, Region: region, Participant: name, Account: f.Account, Slot: slot.Of(f.Account), Evidence: evidence}
		out.Text, out.Repair = f.say(region)
		switch {
		case len(f.Phantoms) > 0:
			out.Class, out.Repair = PhantomEntry, ""
			out.Text = fmt.Sprintf("account %s in %s has entries of %s, and there is no such transfer; by its transfers it has %v, by its counters %v",
				f.Account, region, strings.Join(f.Phantoms, ", "), f.Transfers, f.Have)
		case f.letGoTwice(&out):
		case f.pairOf(faults):
			out.Class = Compensating
		}
		rep.Findings = append(rep.Findings, out)
	}
	return nil
}

// explained is what this run's findings of branches mean for a participant's accounts.
type explained struct {
	transfers map[string]bool     // that have findings
	shifts    map[string][2]int64 // by account: debits and credits that their entries have too much
}

// explained collects the findings of a participant's branches in this run.
func (rep *Report) explained(region, participant string) explained {
	out := explained{map[string]bool{}, map[string][2]int64{}}
	for i := range rep.Findings {
		f := &rep.Findings[i]
		if f.Region != region || f.Participant != participant || f.Branch == "" {
			continue
		}
		out.transfers[f.Gid+":"+f.Branch] = true
		for account, by := range f.shifts {
			was := out.shifts[account]
			out.shifts[account] = [2]int64{was[0] + by[0], was[1] + by[1]}
		}
	}
	return out
}

// explainedBy says whether what is wrong with an account comes of branches that have findings: its entries are wrong there, or
// its counters are what they were before the entries were changed. It is judged by itself when those are repaired.
func (f *accountFault) explainedBy(known explained) bool {
	for _, id := range f.EntriesDiffer {
		if !known.transfers[id] {
			return false
		}
	}
	by := known.shifts[f.Account]
	return len(f.EntriesDiffer) > 0 || by != [2]int64{} && f.Have[0] == f.Fold[0] && f.Have[2] == f.Fold[2] && f.Fold[1]-f.Have[1] == by[0] && f.Fold[3]-f.Have[3] == by[1]
}

// shifts says how much more than the payload's confirm does a branch's entries do, by account: debits and credits.
func (b *booked) shifts(want posting) map[string][2]int64 {
	out := map[string][2]int64{}
	add := func(account string, debit bool, n int64) {
		was := out[account]
		if debit {
			was[0] += n
		} else {
			was[1] += n
		}
		out[account] = was
	}
	add(want.Account, want.Debit, -want.Amount)
	for _, e := range b.Entries {
		if add(e.Account, e.Debit, e.Amount); e.Debit != want.Debit {
			add(e.Account, e.Debit, -want.Amount) // the other side, which the payload does not name
		}
	}
	return out
}

// letGoTwice names the branch whose cancel was done twice, where that is what less is pending than is held.
func (f *accountFault) letGoTwice(out *Finding) bool {
	if f.Have[1] != f.Fold[1] || f.Have[3] != f.Fold[3] {
		return false
	}
	for _, t := range f.Twice {
		if f.Fold[0]-f.Have[0] == t.Minor || f.Fold[2]-f.Have[2] == t.Minor {
			out.Class, out.Gid, out.Branch = CancelTwice, t.Gid, t.Branch
			out.Text = fmt.Sprintf("account %s in %s holds %d and %d in debits and credits by its holds, and %d and %d by its counters: branch %s of %s was cancelled twice (%s)",
				f.Account, out.Region, f.Fold[0], f.Fold[2], f.Have[0], f.Have[2], t.Branch, t.Gid, t.ID)
			return true
		}
	}
	return false
}

// pairOf says whether a fault is one of several that leave the total as it was: of another account that has as much too little
// as this has too much, or of all of the currency together. Entries that differ themselves are no part of it.
func (f *accountFault) pairOf(all []accountFault) bool {
	sum := int64(0)
	for i := range all {
		o := &all[i]
		if o.Currency != f.Currency || len(o.EntriesDiffer) > 0 {
			continue
		}
		if o.balance() == -f.balance() && f.balance() != 0 {
			return true
		}
		sum += o.balance()
	}
	return sum == 0 && f.balance() != 0 && len(all) > 1
}

// say says what is wrong and what may be done. Entries that their transfers contradict prove nothing: a person must decide.
func (f *accountFault) say(region string) (text, repair string) {
	text = fmt.Sprintf("account %s in %s is %+d %s from what its entries and holds come to", f.Account, region, f.balance(), strings.TrimSpace(f.Currency))
	if len(f.EntriesDiffer) == 0 {
		return text, "set the counters to what the entries and holds come to"
	}
	return fmt.Sprintf("%s, and its entries are not the legs of its transfers (%s): posted debits and credits are %d and %d by the counters, %d and %d by the entries, %d and %d by the transfers",
		text, strings.Join(f.EntriesDiffer, ", "), f.Have[1], f.Have[3], f.Fold[1], f.Fold[3], f.Transfers[1], f.Transfers[3]), ""
}
