package check

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/tap"
)

const outcomesNeeded = 50

// terminality (I3): every transaction that a participant, a journal or a coordinator knows has ended, and every coordinator is
// there to say so.
func terminality(v *view, r *Result) {
	for _, gid := range v.Driven {
		if v.asked[gid] {
			r.Examined++
			r.bad("%s is still driven", gid)
		}
	}
	for _, c := range v.Silent {
		r.bad("a coordinator does not answer at the end: %s", c)
	}
	for _, d := range v.Decided {
		r.Examined++
		if !d.Finished {
			r.bad("%s's journal: %s is decided (%s) and not finished", d.Region, d.Gid, phaseValue(d.Phase))
		}
	}
	for i, b := range v.Books {
		for k, ts := range v.transfers[i] {
			if !v.asked[k.gid] {
				continue
			}
			r.Examined++
			for _, t := range ts {
				if t.State == "pending" {
					r.bad("%s: %s of %s is open", b.Region, k.branch, k.gid)
				}
			}
		}
	}
	n := 0
	for _, w := range v.Windows {
		n += w.AtHeal
	}
	r.arm(n, 1, "transactions in flight at the healing")
}

// atomic (I4): no transaction has one branch posted and another taken back, and what was done is what was decided.
func atomic(v *view, r *Result) {
	decisions := map[string]map[history.Value]bool{}
	for _, d := range v.Decided {
		if decisions[d.Gid] == nil {
			decisions[d.Gid] = map[history.Value]bool{}
		}
		decisions[d.Gid][phaseValue(d.Phase)] = true
	}
	count := map[history.Value]int{}
	for _, gid := range sorted(decisions) {
		r.Examined++
		count[v.outcome[gid]]++
		if len(decisions[gid]) > 1 {
			r.bad("%s is decided in one way here and in another there: %v", gid, decisions[gid])
		}
	}
	for i, b := range v.Books {
		posted, taken := map[string]int{}, map[string]bool{}
		for k, ts := range v.transfers[i] {
			for _, t := range ts {
				if t.State == "posted" && v.asked[k.gid] {
					posted[k.gid]++
				} else if t.State == "voided" {
					taken[k.gid] = true
				}
			}
		}
		for _, gid := range sorted(posted) {
			r.Examined++
			if v.givenUp[gid] && v.left(gid, posted[gid], taken[gid]) {
				continue
			}
			if taken[gid] || v.outcome[gid] != history.Committed || posted[gid] != 2 {
				r.bad("%s: %s has %d branches posted (others taken back: %v), and its decision is %q", b.Region, gid, posted[gid], taken[gid], v.outcome[gid])
			}
		}
		for gid, o := range v.outcome {
			if o == history.Committed && posted[gid] == 0 && !v.Foreign && !v.givenUp[gid] {
				r.bad("%s: %s is decided commit, and nothing of it is posted", b.Region, gid)
			}
		}
	}
	r.arm(min(count[history.Committed], count[history.Aborted]), outcomesNeeded, fmt.Sprintf("of the rarer outcome (%d committed, %d aborted)", count[history.Committed], count[history.Aborted]))
}

// acknowledged (I8): what a client was told is committed is posted in every region, and what it was told is aborted never is.
func acknowledged(v *view, r *Result) {
	for _, gid := range sorted(v.told) {
		for value, op := range v.told[gid] {
			r.Examined++
			if o := v.outcome[gid]; o != value && !(v.givenUp[gid] && o == "") {
				r.bad("client %d was told at %d ms that %s is %s: the journals have %q", op.Client, op.End/1e6, gid, value, o)
			}
			for i, b := range v.Books {
				n := 0
				for _, branch := range []string{"pay", "receive"} {
					for _, t := range v.transfers[i][branchKey{gid, branch}] {
						if t.State == "posted" {
							n++
						}
					}
				}
				if v.Foreign {
					continue // the balances say whether it was posted
				}
				if value == history.Committed && n != 2 && !v.givenUp[gid] || value == history.Aborted && n != 0 {
					r.bad("client %d was told at %d ms that %s is %s: %s has %d branches posted", op.Client, op.End/1e6, gid, value, b.Region, n)
				}
			}
		}
	}
	n := 0
	for _, w := range v.Windows {
		for _, op := range v.Ops {
			if w.Crash && op.Kind != history.Read && op.Outcome == history.OK && op.End <= w.Injected && op.End > w.Injected-1e9 {
				n++
			}
		}
	}
	r.arm(n, 1, "acknowledgements within the second before a crash")
}

// barrier (I5): a branch's rows are those of one allowed history, and the book says the same.
func barrier(v *view, r *Result) {
	for i, b := range v.Books {
		keys := map[branchKey]bool{}
		for k := range v.rows[i] {
			keys[k] = true
		}
		for k := range v.transfers[i] {
			keys[k] = true
		}
		for k := range keys {
			if !v.asked[k.gid] {
				continue
			}
			r.Examined++
			rows := v.rows[i][k]
			state := ""
			for _, t := range v.transfers[i][k] {
				state += t.State + " "
			}
			if why := v.judge(rows, strings.TrimSpace(state), v.outcome[k.gid], i, k); why != "" {
				r.bad("%s: %s of %s has the rows %v and is %q in the book: %s", b.Region, k.branch, k.gid, rows, state, why)
			}
		}
	}
	empty := v.emptyCancels()
	late := cmp.Or(v.LateAnswer, http.StatusConflict) // what it did, or did not, is in the rows
	blocked := v.count(func(c *tap.Call) bool { return c.Kind == tap.Late && c.Status == late })
	r.Armed = empty > 0 && blocked > 0
	r.Arming = fmt.Sprintf("%d cancels of tries that never came, %d late tries answered with %d (1 of each wanted)", empty, blocked, late)
}

// emptyCancels counts cancels that were answered before any try of their branch had come to the participant.
func (v *view) emptyCancels() (n int) {
	tried := map[string]int64{}
	for _, c := range v.Calls {
		if c.Op == "try" && c.Kind != tap.Dropped {
			if t, ok := tried[c.Key()]; !ok || c.Start < t {
				tried[c.Key()] = c.Start
			}
		}
	}
	counted := map[string]bool{}
	for _, c := range v.Calls {
		if t, ok := tried[c.Key()]; c.Op == "cancel" && c.Status == http.StatusOK && (!ok || c.End < t) && !counted[c.Key()] {
			counted[c.Key()] = true
			n++
		}
	}
	return n
}

// judge says what is wrong with a branch's rows, or nothing.
func (v *view) judge(rows map[string]string, state string, outcome history.Value, book int, k branchKey) string {
	_, confirm := rows["confirm"]
	_, cancel := rows["cancel"]
	try, tried := rows["try"]
	switch {
	case confirm && cancel:
		return "confirmed and cancelled"
	case confirm && !tried && !v.rowElsewhere(book, k, "try") && !v.before[k.gid]:
		return "confirmed and tried nowhere"
	case confirm && state != "posted":
		return "confirmed and not posted"
	case !confirm && state == "posted":
		return "posted without a confirm's row"
	case cancel && try == "try" && state != "voided" && !(state == "" && (v.voidedElsewhere(book, k) || v.lostWith(book, k))):
		return "cancelled and not voided"
	case cancel && !tried:
		return "cancelled without the row that blocks a late try"
	case cancel && try == "cancel" && state != "":
		return "a try has come through after the cancel"
	case tried && !confirm && !cancel && outcome == history.Aborted && !(state == "" && v.rowElsewhere(book, k, "cancel")):
		return "tried, and aborted, and never cancelled: a try after the cancel was taken"
	}
	return ""
}

// voidedElsewhere: rows move with their account to a new home, holds that were taken back before do not.
func (v *view) voidedElsewhere(book int, k branchKey) bool {
	for i := range v.transfers {
		for _, t := range v.transfers[i][k] {
			if i != book && t.State == "voided" {
				return true
			}
		}
	}
	return false
}

// lostWith: what was held at a home that was lost with its region is gone with that home, and whoever took the account over has
// cancelled a try that it never had. Its rows came home with the account.
func (v *view) lostWith(book int, k branchKey) bool {
	if !slices.ContainsFunc(v.Windows, func(w Window) bool { return w.Lost }) {
		return false
	}
	for i := range v.rows {
		if _, ok := v.rows[i][k]["cancel"]; ok && i != book && v.rows[i][k]["try"] == "cancel" {
			return true
		}
	}
	return false
}

// rowElsewhere: a copy has the confirm's row alone, its home has the try's; a home of before has the try's alone, the home
// that came after it has the cancel's.
func (v *view) rowElsewhere(book int, k branchKey, op string) bool {
	for i := range v.rows {
		if _, ok := v.rows[i][k][op]; ok && i != book {
			return true
		}
	}
	return false
}
