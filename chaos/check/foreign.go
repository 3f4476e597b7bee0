package check

import "github.com/lockstep-tx/lockstep/chaos/history"

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
