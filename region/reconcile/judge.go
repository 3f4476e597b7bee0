package reconcile

import (
	"encoding/json"
	"fmt"
)

// inspected is what a participant answers of a branch.
type inspected struct {
	Gid    string            `json:"gid"`
	Branch string            `json:"branch"`
	Ops    map[string]string `json:"ops"`
	Books  *booked           `json:"books,omitempty"`
}

// booked is what its books say.
type booked struct {
	State   string    `json:"state"`
	Legs    []leg     `json:"legs,omitempty"`
	Entries []posting `json:"entries,omitempty"`
	Altered bool      `json:"altered,omitempty"`
	Again   []string  `json:"again,omitempty"`
}

type leg struct {
	Debit    string `json:"debit"`
	Credit   string `json:"credit"`
	Amount   int64  `json:"amount"`
	Currency string `json:"currency"`
}

// posting is one entry, or what a payload does to one account.
type posting struct {
	Account  string `json:"account"`
	Amount   int64  `json:"amount"`
	Currency string `json:"currency"`
	Debit    bool   `json:"debit"`
}

func (s posting) String() string {
	verb := "credits"
	if s.Debit {
		verb = "debits"
	}
	return fmt.Sprintf("%s %s by %d %s", verb, s.Account, s.Amount, s.Currency)
}

// effects are what a payload's confirm does, as its participant says.
type effects struct {
	Known bool      `json:"known"`
	Legs  []posting `json:"legs"`
	Error string    `json:"error"`
}

// case3 is one branch as tier 3 judges it: what was decided, what the barrier has, what the books have, what the payload says.
type case3 struct {
	*asked
	in        *inspected
	want      *effects
	home      bool // the account's home is here
	confirmed bool
	cancelled bool
	state     string
}

// judge compares a decision with what a participant has of one of its branches.
func (r *Reconciler) judge(region, name string, a *asked, in *inspected, want *effects) *Finding {
	n := r.Table.AccountSlot(a.b.URL, a.b.Account, a.b.Payload, a.tx.Slot)
	c := &case3{asked: a, in: in, want: want, home: r.Owners[n].Region == "" || r.Owners[n].Region == region}
	_, c.confirmed = in.Ops["confirm"]
	_, c.cancelled = in.Ops["cancel"]
	f := &Finding{Region: region, Gid: a.tx.Gid, Branch: a.b.ID, Participant: name, Slot: a.tx.Slot, Account: a.b.Account}
	if f.Account == "" && want.Known && len(want.Legs) > 0 {
		f.Account = want.Legs[0].Account
	}
	if in.Books == nil {
		c.state = ""
		if c.confirmed {
			c.state = "posted"
		}
	} else {
		c.state = in.Books.State
	}
	if !c.judged(f, n) {
		return nil
	}
	if f.Evidence == nil { // for whoever decides
		f.Evidence, _ = json.Marshal(map[string]any{"decision": word(a.tx.Commit), "payload": a.b.Payload, "says": want, "has": in,
			"resend": resend{Path: a.rest, Payload: a.b.Payload, AccountSlot: n, Commit: a.tx.Commit}}) // maps and texts
	}
	return f
}

// judged fills in what is wrong; false where nothing is.
func (c *case3) judged(f *Finding, accountSlot int) bool {
	switch {
	case c.confirmed && c.cancelled, c.state == "posted" && c.cancelled, c.state == "voided" && c.confirmed:
		f.Class, f.Text = BothApplied, fmt.Sprintf("the decision is %s, the barrier has %v and the books say %q: both were applied, and to take one back may overdraw", word(c.tx.Commit), c.in.Ops, c.state)
	case c.tx.Commit && (c.cancelled || c.state == "voided"), !c.tx.Commit && (c.confirmed || c.state == "posted"):
		f.Class, f.Text = StatusFlipped, fmt.Sprintf("the decision is %s, the barrier has %v and the books say %q: evidence against evidence", word(c.tx.Commit), c.in.Ops, c.state)
	case c.tx.Commit && c.confirmed && c.state == "posted":
		return c.posted(f)
	case c.tx.Commit && c.confirmed, !c.tx.Commit && c.cancelled && c.state == "pending":
		f.Class, f.Text = EffectMissing, fmt.Sprintf("the decision is %s and the barrier has it, but the books say %q: a repeat would run nothing", word(c.tx.Commit), c.state)
		f.proposes("do the effect again behind its barrier row", c.restore("effect"))
	case c.tx.Commit && c.state == "posted", !c.tx.Commit && c.state == "voided" && !c.cancelled:
		f.Class, f.Text = RowMissing, fmt.Sprintf("the decision is %s and the books say %q, but the barrier does not know of it: a repeat might do it again", word(c.tx.Commit), c.state)
		f.proposes("write the barrier row again", c.restore("row"))
	case c.tx.Commit && c.home && c.in.Books != nil && c.state == "" && len(c.in.Ops) == 0:
		f.Class, f.Text = NeverTried, "the decision is commit, and the account's home has neither a barrier row nor a hold: nobody has checked that the money is there"
	case c.tx.Commit:
		f.Class, f.Text = LostConfirm, fmt.Sprintf("the decision is commit, and the branch is not confirmed here (books: %q)", c.state)
		f.proposes("send the confirm again", resend{Path: c.rest, Payload: c.b.Payload, AccountSlot: accountSlot, Commit: true})
	case c.in.Books != nil && c.state == "pending":
		f.Class, f.Text = LostCancel, "the decision is abort, and the branch still holds here"
		f.proposes("send the cancel again", resend{Path: c.rest, Payload: c.b.Payload, AccountSlot: accountSlot})
	default:
		return false
	}
	return true
}

// restore is the evidence of a branch whose barrier and books disagree: what to ask of the participant.
type restore struct {
	Gid     string `json:"gid"`
	Branch  string `json:"branch"`
	Op      string `json:"op"`
	What    string `json:"what"`
	Path    string `json:"path"`
	Payload []byte `json:"payload,omitempty"`
}

func (c *case3) restore(what string) restore {
	op := "cancel"
	if c.tx.Commit {
		op = "confirm"
	}
	return restore{Gid: c.tx.Gid, Branch: c.b.ID, Op: op, What: what, Path: c.rest, Payload: c.b.Payload}
}

// mend is the evidence of a branch whose rows are wrong: what the participant's books are asked to do.
type mend struct {
	Do     string    `json:"do"`
	Gid    string    `json:"gid"`
	Branch string    `json:"branch"`
	ID     string    `json:"id,omitempty"`
	Want   []posting `json:"want,omitempty"`
}

// proposes makes evidence and what would be done with it.
func (f *Finding) proposes(repair string, evidence any) {
	raw, err := json.Marshal(evidence)
	if err == nil {
		f.Repair, f.Evidence = repair, raw
	}
}

// posted judges a branch that all have as confirmed: whether its rows are what its payload says, once. Where the participant
// does not say, or a branch has several legs, its book's own check is all there is.
func (c *case3) posted(f *Finding) bool {
	b := c.in.Books
	if b == nil || !c.want.Known || len(c.want.Legs) != 1 || len(b.Legs) > 1 {
		return false
	}
	want := c.want.Legs[0]
	f.Account = want.Account
	if f.Class = b.differs(want); f.Class != "" {
		f.shifts = b.shifts(want)
		f.Text = fmt.Sprintf("the payload %s; the books have the legs %v and the entries %v", want, b.Legs, b.Entries)
		f.proposes("set the transfer and its entries to what the payload says, where the try's digest proves it",
			mend{Do: "legs", Gid: c.tx.Gid, Branch: c.b.ID, Want: c.want.Legs})
		return true
	}
	if len(b.Again) == 0 {
		return false
	}
	if f.Class = ConfirmTwice; !c.home {
		f.Class = AppliedTwice
	}
	f.Text = fmt.Sprintf("the payload %s once; the books have it under %s:%s and once more under %v", want, c.tx.Gid, c.b.ID, b.Again)
	f.proposes("take the second posting back by a reversal", mend{Do: "reverse", Gid: c.tx.Gid, Branch: c.b.ID, ID: b.Again[0]})
	return true
}

// differs names how a posted branch's leg and entries are not what its payload says; "" where they are.
func (b *booked) differs(want posting) Class {
	if len(b.Legs) != 1 || len(b.Entries) != 2 || b.Entries[0].Debit == b.Entries[1].Debit {
		return EffectMissing // of a branch that is posted
	}
	g := b.Legs[0]
	debit, credit := b.Entries[0], b.Entries[1]
	if !debit.Debit {
		debit, credit = credit, debit
	}
	customer := []string{g.Credit, credit.Account}
	if want.Debit {
		customer = []string{g.Debit, debit.Account}
	}
	amounts := []int64{g.Amount, debit.Amount, credit.Amount}
	switch {
	case g.Currency != want.Currency, debit.Currency != want.Currency, credit.Currency != want.Currency:
		return UnitSwapped
	case scaled(amounts, want.Amount):
		return UnitSwapped
	case customer[0] != want.Account, customer[1] != want.Account, debit.Account != g.Debit, credit.Account != g.Credit:
		return WrongAccount
	case amounts[0] != want.Amount, amounts[1] != want.Amount, amounts[2] != want.Amount:
		return LegAltered
	case b.Altered:
		return WrongAccount // the other side's, which the payload does not name, was moved in all rows
	}
	return ""
}

// scaled says whether one of the amounts is the right one times or by a power of ten: in another unit.
func scaled(amounts []int64, want int64) bool {
	for _, n := range amounts {
		for k := int64(10); k <= 10_000; k *= 10 {
			if n == want*k || n > 0 && n*k == want {
				return true
			}
		}
	}
	return false
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
