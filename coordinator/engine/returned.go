package engine

import (
	"slices"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// Returned is a transaction as a region that was lost had left it, for the slot's new owner (ADR 9). What is in doubt here ends
// by it. Where it has more branches than what was committed here, the answer is txn.CodeIncomplete: their effects are to be posted.
// Where it says otherwise, or what nobody knows here, it is txn.CodeMismatch: an operator settles it.
type Returned struct {
	txn.Tick // an event that Step ignores
	Tx       record.Tx
}

// Reasons of decisions that a return brings.
const (
	reasonReturned  = "the lost region had decided so"
	reasonUndecided = "the lost region had not decided it, and nobody can any more"
)

// returned compares what a lost region says with the transaction as it is here, and ends it if it is in doubt.
func (c *Core) returned(at int64, e *entry, p *pending, theirs *record.Tx) {
	s := &e.tx.State
	if s.Phase != txn.PhaseNone && s.InDoubt {
		e.waiting = append(e.waiting, p)
		c.learnt(at, e, theirs)
		return
	}
	if s.Phase == txn.PhaseNone && uncommitted(&theirs.State) {
		// Its tries may stand where nobody tells of them, and only the record knows where: it is aborted by that. Also where it had
		// ended: begun anew under the same gid, it would meet the cancels of then.
		e.waiting = append(e.waiting, p)
		e.slot.txs[p.req.Gid] = e
		c.live++
		c.learnt(at, e, theirs)
		return
	}
	if e.saved < e.version || s.Phase != txn.PhaseNone && !s.Phase.Decided() {
		// What is not durable yet, or begun anew here and not decided, is no answer: the lost region asks again.
		p.finish(answer{err: ErrUnavailable})
		return
	}
	p.finish(answer{reply: e.reply(), err: differs(s, &theirs.State)})
}

// learnt ends a doubt by the record of the region that was lost: it has every branch.
func (c *Core) learnt(at int64, e *entry, theirs *record.Tx) {
	if theirs.State.Phase.Decided() {
		c.overrule(at, e, theirs.Closed)
		return
	}
	known := e.tx.State
	e.tx.State = theirs.State
	e.tx.State.Gid, e.tx.State.Epoch, e.tx.State.InDoubt, e.tx.State.Stopped = known.Gid, e.slot.epoch, true, false
	e.tx.State = txn.Reloaded(e.tx.State)
	c.step(at, e, txn.Resolve{At: at, Epoch: e.slot.epoch, Reason: reasonUndecided}, nil)
}

// uncommitted says that a lost region had a transaction with branches and had not committed it.
func uncommitted(s *txn.State) bool {
	return !s.Phase.Commit() && s.Phase != txn.PhaseNone && len(s.Branches) > 0
}

// differs says how what a lost region has of a transaction and what stands here do not go together; nil when they do.
func differs(here, theirs *txn.State) error {
	refuse := func(code txn.Code, text string) error {
		return &txn.Error{Code: code, Gid: theirs.Gid, Mode: theirs.Mode, Phase: here.Phase, Text: text}
	}
	switch {
	case here.Phase == txn.PhaseNone && theirs.Phase.Commit():
		return refuse(txn.CodeMismatch, "the lost region had committed it, and it is not known here; next: lockstep tx resolve --commit")
	case here.Phase == txn.PhaseNone:
		return nil
	case theirs.Phase.Decided() && here.Phase.Decided() && here.Phase.Commit() != theirs.Phase.Commit():
		return refuse(txn.CodeMismatch, "it is "+here.Phase.String()+" here, and the lost region had it "+theirs.Phase.String())
	case here.Phase.Commit() && refusedOne(theirs):
		return refuse(txn.CodeMismatch, "it is committed here, and a branch of it was refused in the lost region")
	case here.Phase.Commit() && len(missing(here, theirs)) > 0:
		return refuse(txn.CodeIncomplete, "it is committed here without branches that the lost region has")
	}
	return nil
}

func refusedOne(s *txn.State) bool {
	return slices.ContainsFunc(s.Branches, func(b txn.Branch) bool { return b.One.Status == txn.OpRefused })
}

// missing are the branches of theirs that here does not have.
func missing(here, theirs *txn.State) (out []txn.BranchID) {
	have := map[txn.BranchID]bool{}
	for i := range here.Branches {
		have[here.Branches[i].ID] = true
	}
	for i := range theirs.Branches {
		if !have[theirs.Branches[i].ID] {
			out = append(out, theirs.Branches[i].ID)
		}
	}
	return out
}
