package check

import (
	"net/http"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/tap"
)

// balances (I1, of tables that nobody here knows): each account has what it was opened with, less what committed transactions
// took from it, and more what they brought, once each; so the sum is what was opened.
func (v *view) balances(r *Result) {
	want := map[string]int64{}
	for id := range v.Balances {
		want[id] = v.Deposit
	}
	moved := 0
	counted := map[string]bool{}
	for _, op := range v.Ops {
		if op.Kind == history.Read || counted[op.Gid] || v.outcome[op.Gid] != history.Committed {
			continue
		}
		counted[op.Gid] = true
		want[op.From] -= op.Amount
		want[op.To] += op.Amount
		moved++
	}
	sum := int64(0)
	for _, id := range sorted(v.Balances) {
		r.Examined++
		sum += v.Balances[id]
		if v.Balances[id] != want[id] {
			r.bad("%s has %d: with what the committed transactions moved it is %d", id, v.Balances[id], want[id])
		}
	}
	if sum != v.Opened {
		r.bad("all accounts have %d, %d was opened", sum, v.Opened)
	}
	r.arm(moved, outcomesNeeded, "committed transactions")
}

// lateTries (I5 of somebody else's books, which nobody here reads): a try that comes after its cancel was answered is refused; one
// that was taken has frozen what nobody lets go of.
func lateTries(v *view, r *Result) {
	refused := 0
	for i := range v.Calls {
		c := &v.Calls[i]
		if c.Kind != tap.Late || c.Op != "try" {
			continue
		}
		r.Examined++
		switch c.Status {
		case http.StatusOK:
			r.bad("%s: the try of %s came after its cancel, and was answered 200: 409 belongs there", c.Region, c.Key())
		case http.StatusConflict:
			refused++
		}
	}
	r.arm(refused, 1, "tries after their cancel refused")
}
