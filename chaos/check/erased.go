package check

import (
	"slices"

	"github.com/lockstep-tx/lockstep/chaos/history"
)

// This file is what the checkers allow where a region's disks were gone, and nowhere else: what was known there alone is known to
// nobody (docs/regions.md: "region lost for good"). Such transactions are named one by one in the evidence, by whoever erased the
// disks, from what the other region had at that moment. Nothing of them may be the opposite of what a client was told.

// erased notes which transactions went with a region's disks, or had been asked for before those were gone.
func (v *view) erased() {
	v.givenUp, v.before = map[string]bool{}, map[string]bool{}
	for _, gid := range v.GivenUp {
		v.givenUp[gid] = true
	}
	for _, w := range v.Windows {
		for _, op := range v.Ops {
			if w.Erased != "" && op.Kind != history.Read && op.Start <= w.Gone {
				v.before[op.Gid] = true
			}
		}
	}
}

// left says that what a book has of a transaction that was given up is what may be left of it: nothing was taken back beside what
// was posted, no branch was posted twice, and nobody has decided that it is aborted.
func (v *view) left(gid string, posted int, taken bool) bool {
	return !taken && posted <= 2 && v.outcome[gid] != history.Aborted
}

// kept are a book's accounts without the entries of transactions that were given up.
func (v *view) kept(b *Book) []Account {
	if len(v.givenUp) == 0 {
		return b.Accounts
	}
	out := slices.Clone(b.Accounts)
	at := map[string]*Account{}
	for i := range out {
		at[out[i].ID] = &out[i]
	}
	for _, e := range b.Entries {
		a := at[e.Account]
		if a == nil || !v.givenUp[e.Gid] {
			continue
		}
		if e.Direction == "credit" {
			a.CreditsPosted -= e.Amount
		} else {
			a.DebitsPosted -= e.Amount
		}
	}
	return out
}

// anew says that a look was at a journal that had begun on an empty disk.
func (v *view) anew(c Reach) bool {
	return slices.ContainsFunc(v.Windows, func(w Window) bool {
		return w.Erased == c.Region && c.At > w.Gone && c.At <= w.Healed
	})
}

// regained says that a look was at how far a journal that had begun anew has its own region's chain back: it has a watermark for that
// which nothing moves once that is done.
func (v *view) regained(c Reach) bool {
	return c.Origin >= 1 && int(c.Origin) <= len(v.Books) && v.Books[c.Origin-1].Region == c.Region && slices.ContainsFunc(v.Windows, func(w Window) bool {
		return w.Erased == c.Region && c.At > w.Gone
	})
}
