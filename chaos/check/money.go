package check

import (
	"net/http"
	"slices"
	"strings"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/tap"
)

const snapshotsNeeded = 20

// conservation (I1): in every snapshot of a book the wallets and what passes between them are what was opened; at the end
// nothing passes any more, and the wallets of all regions are alike. Snapshots
// of a time in which drift was planted on purpose are not judged, nor are those of a region while it was rebuilt; what is left at
// the end of transactions that went with a region's disks is not counted.
func conservation(v *view, r *Result) {
	if v.Foreign {
		v.balances(r)
		return
	}
	judged := 0
	for _, s := range v.Snapshots {
		if slices.ContainsFunc(v.Windows, func(w Window) bool {
			return (w.Drift || w.Erased == s.Region) && s.At >= w.Injected && s.At <= w.Healed
		}) {
			continue
		}
		judged++
		wallets, house := sums(s.Accounts)
		r.Examined++
		if wallets+house != v.Opened {
			r.bad("%s at %d ms: wallets have %d and %d passes: %d is not the %d that was opened", s.Region, s.At/1e6, wallets, house, wallets+house, v.Opened)
		}
	}
	for i, b := range v.Books {
		wallets, house := sums(v.kept(&b))
		r.Examined++
		if wallets != v.Opened || house != 0 {
			r.bad("%s at the end: wallets have %d of %d, and %d has not arrived", b.Region, wallets, v.Opened, house)
		}
		if i > 0 {
			v.alike(&v.Books[0], &v.Books[i], r)
		}
	}
	r.arm(judged, snapshotsNeeded, "snapshots")
}

// passes says that an account is what money passes over between wallets.
func passes(id string) bool { return strings.HasPrefix(id, "house:passage:") }

// sums are the wallets' money, and what the passages hold; what opened the accounts is neither.
func sums(accounts []Account) (wallets, passage int64) {
	for _, a := range accounts {
		switch {
		case !a.House():
			wallets += a.Balance()
		case passes(a.ID):
			passage += a.Balance()
		}
	}
	return wallets, passage
}

func (v *view) alike(a, b *Book, r *Result) {
	of := map[string]int64{}
	for _, x := range v.kept(a) {
		of[x.ID] = x.Balance()
	}
	for _, x := range v.kept(b) {
		r.Examined++
		if of[x.ID] != x.Balance() {
			r.bad("%s has %d in %s and %d in %s", x.ID, of[x.ID], a.Region, x.Balance(), b.Region)
		}
	}
}

// nonNegative (I2): available and frozen are never below zero in a wallet, whatever its row says of overdrafts: the load
// opened all of them without.
func nonNegative(v *view, r *Result) {
	one := func(where string, all []Account) {
		for _, a := range all {
			r.Examined++
			if a.DebitsPending < 0 || a.CreditsPending < 0 || (!a.House() && a.Balance()-a.DebitsPending < 0) {
				r.bad("%s: %s has %d, of which %d are frozen", where, a.ID, a.Balance(), a.DebitsPending)
			}
		}
	}
	for _, s := range v.Snapshots {
		one(s.Region, s.Accounts)
	}
	for _, b := range v.Books {
		one(b.Region+" at the end", b.Accounts)
	}
	over := map[string]bool{}
	for _, op := range v.Ops {
		if op.Over {
			over[op.Gid] = true
		}
	}
	r.arm(v.count(func(c *tap.Call) bool {
		return c.Op == "try" && c.Status == http.StatusConflict && over[c.Gid]
	}), 1, "overdrafts refused")
}

// exactlyOnce (I6): a branch has at most one pair of entries, counters are what the entries add up to, and what was moved is
// what a client has asked for: so much, of that account, in the currency of what it passes over.
func exactlyOnce(v *view, r *Result) {
	for i, b := range v.Books {
		debits, credits := map[string]int64{}, map[string]int64{}
		for _, e := range b.Entries {
			if e.Direction == "debit" {
				debits[e.Account] += e.Amount
			} else {
				credits[e.Account] += e.Amount
			}
		}
		for _, a := range b.Accounts {
			if a.House() && !passes(a.ID) {
				continue // what opened the accounts is counted by its entries alone
			}
			r.Examined++
			if a.DebitsPosted != debits[a.ID] || a.CreditsPosted != credits[a.ID] {
				r.bad("%s: %s has %d debits and %d credits, its entries %d and %d", b.Region, a.ID, a.DebitsPosted, a.CreditsPosted, debits[a.ID], credits[a.ID])
			}
		}
		for k, es := range v.entries[i] {
			if !v.asked[k.gid] {
				continue // what opened an account
			}
			r.Examined++
			if len(es) != 2 || es[0].Direction == es[1].Direction || es[0].Amount != es[1].Amount {
				r.bad("%s: %s of %s has %d entries", b.Region, k.branch, k.gid, len(es))
			}
		}
		v.asAsked(&b, r)
	}
	seen, twice := map[string]bool{}, 0
	for _, c := range v.Calls {
		if c.Status != http.StatusOK || c.Kind == tap.Lost {
			continue
		}
		key := c.Region + c.Key() + c.Op
		if seen[key] {
			twice++
		}
		seen[key] = true
	}
	r.arm(twice, 1, "duplicates delivered")
}

// asAsked compares a book's transfers and entries with the clients' requests.
func (v *view) asAsked(b *Book, r *Result) {
	ops := map[string]*history.Op{}
	for i := range v.Ops {
		if op := &v.Ops[i]; op.Kind != history.Read {
			ops[op.Gid] = op
		}
	}
	one := func(what, gid, branch, currency string, amount int64, debit, credit string) {
		op := ops[gid]
		if op == nil || op.From == "" {
			return
		}
		r.Examined++
		customer, passage, want := debit, credit, op.From
		if branch == "receive" {
			customer, passage, want = credit, debit, op.To
		}
		if amount != op.Amount || customer != "" && customer != want || passage != "" && !strings.HasSuffix(passage, ":"+currency) {
			r.bad("%s: the %s %s of %s moves %d %s from %q to %q: asked for were %d from %s to %s", b.Region, what, branch, gid, amount, currency, debit, credit, op.Amount, op.From, op.To)
		}
	}
	there, netted := map[string]bool{}, b.netted()
	for _, t := range b.Transfers {
		if there[t.ID] = true; !netted[t.ID] {
			one("transfer", t.Gid, t.Branch, t.Currency, t.Amount, t.Debit, t.Credit)
		}
	}
	for _, x := range b.Entries {
		if netted[x.Transfer] {
			continue
		}
		if x.Transfer != "" && !there[x.Transfer] {
			r.bad("%s: %s has an entry of %d of %s, and there is no such transfer", b.Region, x.Account, x.Amount, x.Transfer)
			continue
		}
		if x.Direction == "debit" {
			one("entry", x.Gid, x.Branch, x.Currency, x.Amount, x.Account, "")
		} else {
			one("entry", x.Gid, x.Branch, x.Currency, x.Amount, "", x.Account)
		}
	}
}

// orphans (I7): at the end what is frozen is what open transactions hold, and no transaction is open.
func orphans(v *view, r *Result) {
	for _, b := range v.Books {
		held := map[string]int64{}
		for _, t := range b.Transfers {
			if t.State != "pending" {
				continue
			}
			held[t.Debit] += t.Amount
			if o := v.outcome[t.Gid]; o != history.Open && o != history.None {
				r.bad("%s: %s of %s is frozen, and the transaction is %s", b.Region, t.Branch, t.Gid, o)
			} else {
				r.bad("%s: %s of %s is still frozen", b.Region, t.Branch, t.Gid)
			}
		}
		for _, a := range b.Accounts {
			r.Examined++
			if a.DebitsPending != held[a.ID] {
				r.bad("%s: %s has %d frozen, its holds are %d", b.Region, a.ID, a.DebitsPending, held[a.ID])
			}
		}
	}
	n := 0
	for _, op := range v.Ops {
		if op.Kind == history.Abandon && op.Outcome == history.OK {
			n++
		}
	}
	r.arm(n, 1, "clients that walked away")
}
