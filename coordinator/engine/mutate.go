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

// mutated is what the mutant makes of a confirm's outcome (package mutant): it is done, whatever the participant said, or did not say.
func mutated(op txn.Op, o txn.Outcome) txn.Outcome {
	if mutant.On(mutant.SkipConfirmRetry) && op == txn.OpConfirm && o != txn.Stale {
		return txn.Done
	}
	return o
}

// forgotten says that the mutant does not drive a transaction on after a restart (package mutant).
func forgotten(p txn.Phase) bool {
	return mutant.On(mutant.RecoverForgetsConfirming) && p == txn.PhaseCommitting
}

// twice says that the mutant gives an event a second number (package mutant).
func twice(gid txn.Gid) bool {
	if !mutant.On(mutant.DoubleOutbox) {
		return false
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(gid)) // it never fails
	return h.Sum32()%20 == 0
}

// bent is what the mutant makes of a state that Step has given (package mutant): another reason of an abort.
func bent(s *txn.State) {
	if mutant.On(mutant.TransitionOutsideStep) && s.Reason != "" {
		s.Reason = "because"
	}
}
