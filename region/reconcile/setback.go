package reconcile

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// This file tells a participant whose database was set back to a backup (D21) from single effects that are missing: of a time
// nothing is there at all, neither barrier rows nor holds nor entries, of any transaction. What other regions' transactions did
// to copies is had again from the records; what was done for the own accounts nobody can prove to have been possible a second
// time, since others have been answered meanwhile: it is a person's.

// branchSeen is a branch of a committed transaction as it was looked at.
type branchSeen struct {
	at      int64 // of the finish, unix ms
	finding int   // its place among the report's findings; -1: it is all there
	absent  bool  // nothing of it is there
}

const (
	// setBackMin is how many branches in a row must be gone without a trace.
	setBackMin = 8
	// setBackEdge is how far around such a row what is gone belongs to it: transactions do not finish in the order in which
	// their branches were done.
	setBackEdge = 5 * time.Second
)

// seen takes note of a branch for setBack.
func (rep *Report) seen(participant string, a *asked, in *inspected, found bool) {
	if !a.tx.Commit || in.Books == nil {
		return
	}
	b := branchSeen{at: a.tx.At, finding: -1, absent: in.Books.State == "" && len(in.Ops) == 0}
	if found {
		b.finding = len(rep.Findings) - 1
	}
	if rep.branches == nil {
		rep.branches = map[string][]branchSeen{}
	}
	rep.branches[participant] = append(rep.branches[participant], b)
}

// setBack names what a region's participants have lost of a time whole.
func (r *Reconciler) setBack(rep *Report, region string) {
	for participant, list := range rep.branches {
		slices.SortStableFunc(list, func(a, b branchSeen) int { return cmp.Compare(a.at, b.at) })
		for _, row := range gone(list) {
			first, last := list[row[0]].at, list[row[1]-1].at
			edge := setBackEdge.Milliseconds()
			for _, b := range list {
				if b.absent && b.finding >= 0 && b.at >= first-edge && b.at <= last+edge {
					rep.Findings[b.finding].setBack(participant, region, row[1]-row[0], first, last)
				}
			}
		}
	}
	rep.branches = nil
}

// gone gives the rows of at least setBackMin branches, from one place to before another, of which nothing is there.
func gone(list []branchSeen) (out [][2]int) {
	from := 0
	for i := 0; i <= len(list); i++ {
		if i < len(list) && list[i].absent {
			continue
		}
		if i-from >= setBackMin {
			out = append(out, [2]int{from, i})
		}
		from = i + 1
	}
	return out
}

// setBack makes a missing effect part of a database that was set back. Of the own accounts nothing is repaired without a person.
func (f *Finding) setBack(participant, region string, branches int, first, last int64) {
	own := f.Class == NeverTried
	f.Class = SetBack
	f.Text = fmt.Sprintf("the decision is commit, and %s in %s has no trace of it, nor of any of %d branches that finished from %d to %d: its database was set back", participant, region, branches, first, last)
	if own {
		f.Text += "; it was done for the region's own account, whose home must be asked whether it can be done again"
	}
}
