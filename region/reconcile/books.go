package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/lockstep-tx/lockstep/region/slot"
)

func escape(s string) string { return url.QueryEscape(s) }

// inspected is what a participant answers of a branch.
type inspected struct {
	Gid    string            `json:"gid"`
	Branch string            `json:"branch"`
	Ops    map[string]string `json:"ops"`
	Books  *struct {
		State string `json:"state"`
	} `json:"books"`
}

// inspectAtOnce bounds one question to a participant.
const inspectAtOnce = 500

// asked is a branch that is looked up at a participant.
type asked struct {
	tx   *Finished
	b    *FinishedBranch
	rest string // of the branch's URL, behind the participant's base
}

// tier3 compares a region's decisions with what its participants have: barrier rows, books, and the books in themselves.
func (r *Reconciler) tier3(ctx context.Context, rep *Report, region string, from, to int64) {
	parts := r.participants(region)
	if len(parts) == 0 {
		return
	}
	seen := map[string]bool{}
	for from < to {
		var page FinishedAnswer
		if err := r.get(ctx, rep, region, fmt.Sprintf("/v1/drift/finished?from=%d&to=%d", from, to), &page); err != nil {
			rep.skip("decisions of %s: %v", region, err)
			return
		}
		r.decisions(ctx, rep, region, parts, page.List, seen)
		if page.Next == 0 {
			break
		}
		from = page.Next
	}
	for name, endpoint := range parts {
		if err := r.check(ctx, rep, region, name, endpoint); err != nil {
			rep.skip("books of %s in %s: %v", name, region, err)
		}
	}
}

// decisions compares one page of a region's decisions with its participants; seen are those that were.
func (r *Reconciler) decisions(ctx context.Context, rep *Report, region string, parts map[string]string, list []Finished, seen map[string]bool) {
	by := map[string][]asked{}
	for i := range list {
		tx := &list[i]
		if seen[tx.Gid] {
			continue
		}
		seen[tx.Gid] = true
		if !tx.Applied {
			rep.Open++
			continue
		}
		for k := range tx.Branches {
			if p, rest := r.Table.Split(tx.Branches[k].URL); p != nil && parts[p.Name] != "" {
				by[p.Name] = append(by[p.Name], asked{tx, &tx.Branches[k], rest})
			}
		}
	}
	for name, endpoint := range parts {
		for part := range slices.Chunk(by[name], inspectAtOnce) {
			if err := r.inspect(ctx, rep, region, name, endpoint, part); err != nil {
				rep.skip("participant %s in %s: %v", name, region, err)
				break
			}
		}
	}
}

func (r *Reconciler) inspect(ctx context.Context, rep *Report, region, name, endpoint string, part []asked) error {
	question := make([]map[string]string, len(part))
	for i, a := range part {
		question[i] = map[string]string{"gid": a.tx.Gid, "branch": a.b.ID}
	}
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	raw, _, err := r.call(ctx, rep, http.MethodPost, endpoint+"/lockstep/inspect", body, nil)
	if err != nil {
		return err
	}
	var got []inspected
	if err := json.Unmarshal(raw, &got); err != nil || len(got) != len(part) {
		return fmt.Errorf("%d answers to %d questions (%v)", len(got), len(part), err)
	}
	for i := range part {
		rep.Branches++
		if f := r.judge(region, name, &part[i], &got[i]); f != nil {
			rep.Findings = append(rep.Findings, *f)
		}
	}
	return nil
}

// judge compares a decision with what a participant has of one of its branches.
func (r *Reconciler) judge(region, name string, a *asked, in *inspected) *Finding {
	_, confirmed := in.Ops["confirm"]
	_, cancelled := in.Ops["cancel"]
	state := "posted"
	if in.Books != nil {
		state = in.Books.State
	} else if !confirmed {
		state = ""
	}
	f := &Finding{Region: region, Gid: a.tx.Gid, Branch: a.b.ID, Participant: name, Slot: a.tx.Slot, Account: a.b.Account}
	switch {
	case a.tx.Commit && confirmed && state == "posted", !a.tx.Commit && !confirmed && (in.Books == nil || state != "pending"):
		return nil
	case confirmed && cancelled, a.tx.Commit && cancelled, !a.tx.Commit && confirmed:
		f.Class, f.Text = LostConfirm, fmt.Sprintf("the decision is %s, and the barrier has %v: evidence against evidence", word(a.tx.Commit), in.Ops)
		return f // nobody may guess
	case a.tx.Commit && confirmed:
		f.Class, f.Text = LostConfirm, fmt.Sprintf("the decision is commit and the barrier has the confirm, but the books say %q: a repeat would run nothing", state)
		return f
	case a.tx.Commit:
		f.Class, f.Text, f.Repair = LostConfirm, fmt.Sprintf("the decision is commit, and the branch is not confirmed here (books: %q)", state), "send the confirm again"
	default:
		f.Class, f.Text, f.Repair = LostCancel, "the decision is abort, and the branch still holds here", "send the cancel again"
	}
	n := r.Table.AccountSlot(a.b.URL, a.b.Account, a.b.Payload, a.tx.Slot)
	raw, err := json.Marshal(resend{Path: a.rest, Payload: a.b.Payload, AccountSlot: n, Commit: a.tx.Commit})
	if err != nil {
		f.Repair = ""
		return f
	}
	f.Evidence = raw
	return f
}

// resend is the evidence of a lost call: what to call.
type resend struct {
	Path        string `json:"path"` // behind the participant's base, ending in /confirm
	Payload     []byte `json:"payload,omitempty"`
	AccountSlot int    `json:"account_slot"`
	Commit      bool   `json:"commit"`
}

func word(commit bool) string {
	if commit {
		return "commit"
	}
	return "abort"
}

// accountFault is what a participant's books say of an account that does not fold, or whose entries are not its transfers'.
type accountFault struct {
	Account   string   `json:"account"`
	Currency  string   `json:"currency"`
	Have      [4]int64 `json:"have"`
	Fold      [4]int64 `json:"fold"`
	Transfers [4]int64 `json:"transfers"`
	// EntriesDiffer are transfers whose entries are not their legs.
	EntriesDiffer []string `json:"entries_differ,omitempty"`
}

func (f *accountFault) balance() int64 { return (f.Have[3] - f.Have[1]) - (f.Fold[3] - f.Fold[1]) }

// check asks a participant's books for accounts that are not what their entries say, and entries that are not what their
// transfers say.
func (r *Reconciler) check(ctx context.Context, rep *Report, region, name, endpoint string) error {
	raw, status, err := r.call(ctx, rep, http.MethodGet, endpoint+"/lockstep/check", nil, nil)
	if status == http.StatusBadRequest {
		return nil // its books cannot be asked
	}
	if err != nil {
		return err
	}
	var faults []accountFault
	if err := json.Unmarshal(raw, &faults); err != nil {
		return err
	}
	rep.Books++
	sum := map[string]int64{}
	for i := range faults {
		sum[faults[i].Currency] += faults[i].balance()
	}
	for i := range faults {
		f := &faults[i]
		evidence, err := json.Marshal(f)
		if err != nil {
			return err
		}
		class := AmountAltered
		if len(faults) > 1 && sum[f.Currency] == 0 && f.balance() != 0 {
			class = Compensating
		}
		out := Finding{Class: class, Region: region, Participant: name, Account: f.Account, Slot: slot.Of(f.Account), Evidence: evidence}
		out.Text, out.Repair = f.say(region)
		rep.Findings = append(rep.Findings, out)
	}
	return nil
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
