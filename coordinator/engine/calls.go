package engine

import (
	"slices"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// run performs one effect whose condition is met.
func (c *Core) run(e *entry, eff txn.Effect, upTo uint64) {
	switch f := eff.(type) {
	case txn.Invoke:
		if call := c.call(e, f); call != nil {
			c.out.Calls = append(c.out.Calls, call)
		}
	case txn.Answer:
		kept := e.waiting[:0]
		for _, p := range e.waiting {
			if p.id <= upTo && p.req.Want.satisfied(f.Milestone, &e.tx.State) {
				p.finish(answer{reply: e.reply()})
			} else {
				kept = append(kept, p)
			}
		}
		clear(e.waiting[len(kept):])
		e.waiting = kept
		if len(kept) == 0 {
			e.waiting = nil
		}
	case txn.Save, txn.Note, txn.Wake:
	}
}

// call makes the call of an Invoke; nil when the state has moved on and no longer owes it.
func (c *Core) call(e *entry, inv txn.Invoke) *Call {
	s := &e.tx.State
	call := &Call{
		Gid: s.Gid, Slot: e.slot.n, Term: e.slot.term, Epoch: e.slot.epoch, Mode: s.Mode, Branch: inv.Branch, Op: inv.Op,
		AccountSlot: e.slot.n, AccountEpoch: e.slot.epoch,
		OpWord: inv.Op.String(), Attempt: inv.Attempt, Protocol: s.Opt.Protocol, Headers: s.Opt.Headers, Timeout: s.RequestTimeout(),
		Global: s.Opt.Durability == txn.Global,
	}
	if inv.Op == txn.OpQuery || inv.Op == txn.OpCallback {
		call.URL = s.QueryURL
		if inv.Op == txn.OpCallback {
			call.OpWord, call.Payload = WorkflowCallback(s.Custom)
		}
		return call
	}
	for i := range s.Branches {
		b := &s.Branches[i]
		if b.ID != inv.Branch {
			continue
		}
		call.Payload, call.Account = b.Payload, b.Account
		if inv.Op == s.ForwardOp() && !b.Message && s.Mode != txn.ModeMsg {
			call.URL = b.Try
		} else {
			call.URL = s.SecondURL(i)
			call.mutate(s, i)
		}
		if b.UseResults {
			for _, j := range b.After {
				call.Results = append(call.Results, BranchResult{Branch: s.Branches[j].ID, Body: s.Branches[j].Result})
			}
		}
		call.WantResult = feeds(s, i)
		return call
	}
	return nil
}

// feeds says that a later branch uses what branch i answers.
func feeds(s *txn.State, i int) bool {
	for j := range s.Branches {
		if s.Branches[j].UseResults && slices.Contains(s.Branches[j].After, i) {
			return true
		}
	}
	return false
}

// Replied takes the result of a call. One that was started under another term is dropped: the slot was read again
// since, and the call will be made again.
func (c *Core) Replied(at int64, r CallResult) {
	hs := c.slots[r.Call.Slot]
	if hs == nil || !hs.ready || hs.still || hs.term != r.Call.Term {
		return
	}
	e := hs.txs[r.Call.Gid]
	if e == nil {
		return
	}
	if r.Outcome == txn.Stale {
		c.out.StaleSlots = append(c.out.StaleSlots, hs.n)
	}
	if r.Outcome != txn.Deferred {
		e.tx.Timeline.Add(record.Attempt{
			Branch: r.Call.Branch, Op: r.Call.Op, Number: r.Call.Attempt, StartedAt: at - r.Took.Milliseconds(),
			Took: r.Took, Outcome: r.Outcome, Text: txn.Clip(r.Text),
		})
	}
	r.Outcome = mutated(r.Call.Op, r.Outcome)
	c.step(at, e, txn.Reply{
		At: at, Epoch: hs.epoch, Branch: r.Call.Branch, Op: r.Call.Op, Attempt: r.Call.Attempt, Outcome: r.Outcome,
		Text: r.Text, Result: r.Result, RetryAfterMillis: r.RetryAfter.Milliseconds(),
	}, nil)
	fails := 0
	if r.Outcome != txn.Done && r.Outcome != txn.Deferred {
		fails = e.tx.State.MaxFails()
	}
	c.out.Results = append(c.out.Results, CalledResult{Result: r, Fails: fails})
}
