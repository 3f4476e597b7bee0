package engine

import (
	"hash/fnv"

	"github.com/lockstep-tx/lockstep/coordinator/mutant"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// mutate is what the mutant makes of a call (package mutant): nothing, in a build without it. After the decision to commit,
// it cancels the second branch of some transactions.
func (c *Call) mutate(s *txn.State, branch int) {
	if !mutant.On(mutant.CancelAfterDecision) || c.Op != txn.OpConfirm || branch == 0 {
		return
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(s.Gid)) // it never fails
	if h.Sum32()%20 == 0 {
		c.URL, c.OpWord = s.Branches[branch].Cancel, txn.OpCancel.String()
	}
}
