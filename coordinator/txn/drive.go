package txn

import (
	"fmt"
	"strings"
)

// decide takes the decision, once. What must be cancelled is fixed here: a later answer of a call that was in flight
// does not make a step that could not have started owe a compensation.
func (w *work) decide(commit bool, reason string) {
	driven, doubt := w.s.Phase == PhaseRunning, w.s.InDoubt
	w.s.InDoubt = false
	w.own()
	for i := range w.s.Branches {
		b := &w.s.Branches[i]
		switch {
		case commit && w.s.Mode == ModeSaga && !b.Message:
			b.Two.Status = OpSkipped
		case commit:
			if w.s.Mode == ModeMsg && w.s.Opt.Delay > 0 {
				b.Two.NextAt = w.s.BegunAt + w.s.Opt.Delay.Milliseconds()
			}
		case b.Message || w.s.Mode == ModeMsg:
			b.Two.Status = OpSkipped
		case !doubt && (driven || w.s.Mode == ModeSaga) && !w.mayHaveRun(i):
			b.Two.Status = OpSkipped
		}
	}
	w.s.Phase, w.s.Reason = PhaseAborting, reason
	if commit {
		w.s.Phase, w.s.Reason = PhaseCommitting, ""
	}
	w.s.DecidedAt = w.at
	w.s.Query.Status = OpSkipped
	w.s.Query.InFlight = false
	w.touch()
	finish := w.owesNothing()
	if finish {
		w.enterFinished()
	}
	w.emit(Save{Decision: true, Finish: finish}, Answer{Accepted}, Answer{Decided})
	if finish {
		w.emit(Answer{Settled}, Answer{FinishedAll})
		return
	}
	w.advance()
}

// mayHaveRun says whether branch i's forward call may have taken effect: it was started, or it could have been at
// this moment (a crash forgets starts, but never lets a call start before what it waits for is durable).
func (w *work) mayHaveRun(i int) bool {
	one := &w.s.Branches[i].One
	return one.Attempts > 0 || one.Status != OpPending || forwardReady(&w.s, i)
}

// forwardReady says that all that branch i's forward call waits for is done.
func forwardReady(s *State, i int) bool {
	for _, j := range s.Branches[i].After {
		if s.Branches[j].One.Status != OpDone {
			return false
		}
	}
	return true
}

// owesNothing says that the decision is carried out.
func (w *work) owesNothing() bool {
	for i := range w.s.Branches {
		b := &w.s.Branches[i]
		if b.One.InFlight || (b.Two.Status == OpPending && !emptyCall(&w.s, i)) {
			return false
		}
	}
	return true
}

// emptyCall says that branch i's call after the decision has no address: it succeeds without a call.
func emptyCall(s *State, i int) bool { return s.SecondURL(i) == "" }

// SecondURL is the address of branch i's call after the decision; empty where there is none.
func (s *State) SecondURL(i int) string {
	if s.Phase.Commit() {
		return s.Branches[i].Confirm
	}
	return s.Branches[i].Cancel
}

// settled says that every branch but the messages has answered the decision.
func (w *work) settled() bool {
	for i := range w.s.Branches {
		b := &w.s.Branches[i]
		if b.One.InFlight || (b.Two.Status == OpPending && !b.Message) {
			return false
		}
	}
	return true
}

// enterFinished moves a decided transaction to its end.
func (w *work) enterFinished() {
	w.own()
	for i := range w.s.Branches {
		two := &w.s.Branches[i].Two
		if two.Status == OpPending {
			two.Status, two.DoneAt = OpDone, w.at
		}
	}
	if w.s.Phase == PhaseCommitting {
		w.s.Phase = PhaseCommitted
	} else {
		w.s.Phase = PhaseAborted
	}
	w.s.FinishedAt = w.at
	w.touch()
}

func (w *work) tick() {
	if w.s.Phase == PhaseNone || w.s.Phase.Finished() {
		return
	}
	w.advance()
}

// advance starts what is due, sees whether the phase is over, and asks for the next wake. It is the only place that
// emits an Invoke.
func (w *work) advance() {
	if w.s.halted() || w.s.Phase.Finished() {
		return
	}
	switch w.s.Phase {
	case PhasePrepared:
		if w.timedOut() && (w.s.Mode == ModeTCC || w.s.Mode == ModeXA) {
			w.decide(false, w.timeoutReason())
			return
		}
		w.startQuery()
	case PhaseRunning:
		if w.timedOut() {
			w.decide(false, w.timeoutReason())
			return
		}
		w.startForward()
		if w.allForwardDone() {
			if w.epoch == w.s.Epoch {
				w.decide(true, "")
			}
			return
		}
		w.passOver()
	case PhaseCommitting, PhaseAborting:
		w.startSecond()
		if w.owesNothing() {
			w.enterFinished()
			w.emit(Answer{Settled}, Answer{FinishedAll}, Save{Finish: true})
			return
		}
		w.passOver()
	case PhaseNone, PhaseCommitted, PhaseAborted:
	}
	w.wake()
}

func (w *work) timedOut() bool {
	d := w.s.Deadline()
	return d != 0 && w.at >= d
}

// timeoutReason has the text that DTM's tests match; the number is the client's own timeout, 0 for the default.
func (w *work) timeoutReason() string {
	return fmt.Sprintf("Timeout after %d seconds", int64(w.s.Opt.Timeout.Seconds()))
}

// startQuery starts a message's check-back or a workflow's callback when it is due.
func (w *work) startQuery() {
	q := &w.s.Query
	if q.Status != OpPending || q.InFlight || q.NextAt > w.at {
		return
	}
	q.InFlight = true
	q.Attempts++
	w.emit(Invoke{Branch: CheckBackBranch, Op: w.s.queryOp(), Attempt: q.Attempts})
}

func (s *State) queryOp() Op {
	if s.Mode == ModeWorkflow {
		return OpCallback
	}
	return OpQuery
}

// startForward starts the forward calls that are due. A call without an address is done at once, which may make
// others ready: hence the loop.
func (w *work) startForward() {
	for again := true; again; {
		again = false
		for i := range w.s.Branches {
			one := &w.s.Branches[i].One
			if one.Status != OpPending || one.InFlight || one.NextAt > w.at || !forwardReady(&w.s, i) {
				continue
			}
			w.own()
			one = &w.s.Branches[i].One
			if w.s.Branches[i].Try == "" {
				one.Status, one.DoneAt = OpDone, w.at
				again = true
				continue
			}
			one.InFlight = true
			one.Attempts++
			w.emit(Invoke{Branch: w.s.Branches[i].ID, Op: w.s.ForwardOp(), Attempt: one.Attempts})
		}
	}
}

func (w *work) allForwardDone() bool {
	for i := range w.s.Branches {
		if st := w.s.Branches[i].One.Status; st != OpDone && st != OpSkipped {
			return false
		}
	}
	return true
}

// startSecond starts the confirms or cancels that are due.
func (w *work) startSecond() {
	for again := true; again; {
		again = false
		blocked := secondBlocked(&w.s)
		for i := range w.s.Branches {
			b := &w.s.Branches[i]
			if b.Two.Status != OpPending || b.Two.InFlight || b.Two.NextAt > w.at || b.One.InFlight || (blocked != nil && blocked[i]) {
				continue
			}
			w.own()
			b = &w.s.Branches[i]
			if emptyCall(&w.s, i) {
				b.Two.Status, b.Two.DoneAt = OpDone, w.at
				again = true
				continue
			}
			b.Two.InFlight = true
			b.Two.Attempts++
			w.emit(Invoke{Branch: b.ID, Op: w.s.SecondOp(i, w.s.Phase.Commit()), Attempt: b.Two.Attempts})
		}
	}
}

// secondBlocked marks the branches whose call after the decision must wait for another's: a message's steps go in
// order, a saga's compensations in the reverse of the actions' order. nil where nothing waits.
func secondBlocked(s *State) []bool {
	commit := s.Phase.Commit()
	if !(s.Mode == ModeSaga && !commit) && !(s.Mode == ModeMsg && commit) {
		return nil
	}
	blocked := make([]bool, len(s.Branches))
	for i := range s.Branches {
		for _, j := range s.Branches[i].After {
			if s.Mode == ModeMsg {
				blocked[i] = blocked[i] || s.Branches[j].Two.Status == OpPending
			} else if s.Branches[i].Two.Status == OpPending {
				blocked[j] = true
			}
		}
	}
	return blocked
}

// passOver tells those who wait for the first pass that it is over, when nothing is in flight any more.
func (w *work) passOver() {
	if w.s.Phase.Decided() && w.settled() {
		w.emit(Answer{Settled})
	}
	for i := range w.s.Branches {
		if w.s.Branches[i].One.InFlight || w.s.Branches[i].Two.InFlight {
			return
		}
	}
	w.emit(Answer{PassOver})
}

// wake asks for a tick at the next time at which something is due.
func (w *work) wake() {
	if at := NextWake(&w.s); at != 0 {
		w.emit(Wake{At: at})
	}
}

// reply takes the answer of a call.
func (w *work) reply(e Reply) {
	if e.Op == OpQuery || e.Op == OpCallback {
		w.queryReply(e)
		return
	}
	i := w.s.branch(e.Branch)
	if i < 0 || w.s.Phase.Finished() {
		return
	}
	b := &w.s.Branches[i]
	forward := e.Op == w.s.ForwardOp() && b.One.Status != OpSkipped && !b.Message
	op := &b.Two
	if forward {
		op = &b.One
	} else if e.Op != w.s.SecondOp(i, w.s.Phase.Commit()) {
		return
	}
	if !op.InFlight || op.Attempts != e.Attempt {
		return
	}
	w.own()
	b = &w.s.Branches[i]
	if forward {
		w.forwardReply(i, &b.One, e)
	} else {
		w.secondReply(i, &b.Two, e)
	}
}

func (w *work) forwardReply(i int, one *OpState, e Reply) {
	b := &w.s.Branches[i]
	refused := e.Outcome == Refused && w.s.Phase == PhaseRunning
	w.settle(one, e, b.ID)
	switch {
	case e.Outcome == Done:
		one.Status = OpDone
		keep := w.feeds(i)
		if keep {
			b.Result = e.Result
		}
		// What waits for this call may start only when this is durable: after a crash, a step that may have run
		// must look like one (saga compensation), and a result must not change.
		if w.s.Phase == PhaseRunning && !w.s.halted() && (keep || w.hasDependents(i)) {
			w.touch()
			w.emit(Save{})
		}
	case e.Outcome == Refused:
		one.Status = OpRefused
	case e.Outcome == Unknown || e.Outcome == Ongoing:
		w.s.Retries++
		w.touch()
		w.emit(Note{})
	}
	if w.s.Phase == PhaseRunning && !w.s.halted() {
		if refused {
			w.decide(false, fmt.Sprintf("url:%s return failed: %s", b.Try, Clip(e.Text)))
			return
		}
		if n := w.s.Opt.RetryLimit; n > 0 && w.s.Retries > n && one.Status == OpPending && e.Outcome != Deferred && e.Outcome != Stale {
			w.decide(false, fmt.Sprintf("RetryCount is greater than RetryLimit, RetryLimit: %d", n))
			return
		}
	}
	w.advance()
}

// hasDependents says that some branch's forward call waits for branch i's.
func (w *work) hasDependents(i int) bool {
	for j := range w.s.Branches {
		for _, k := range w.s.Branches[j].After {
			if k == i {
				return true
			}
		}
	}
	return false
}

// feeds says that some branch uses the result of branch i.
func (w *work) feeds(i int) bool {
	for j := range w.s.Branches {
		if !w.s.Branches[j].UseResults {
			continue
		}
		for _, k := range w.s.Branches[j].After {
			if k == i {
				return true
			}
		}
	}
	return false
}

func (w *work) secondReply(i int, two *OpState, e Reply) {
	w.settle(two, e, w.s.Branches[i].ID)
	if e.Outcome == Done {
		two.Status = OpDone
	} else if e.Outcome != Deferred && e.Outcome != Stale {
		w.touch()
		w.emit(Note{})
	}
	w.advance()
}

// queryReply takes the answer of a check-back or a callback.
func (w *work) queryReply(e Reply) {
	q := &w.s.Query
	if w.s.Phase != PhasePrepared || e.Op != w.s.queryOp() || !q.InFlight || q.Attempts != e.Attempt {
		return
	}
	w.settle(q, e, CheckBackBranch)
	if w.s.halted() {
		return
	}
	if w.s.Mode == ModeWorkflow {
		// The answer says nothing about the workflow: its client submits the end itself.
		if q.Fails == 0 {
			q.NextAt = w.at + w.s.retryInterval()
		}
		w.wake()
		return
	}
	switch e.Outcome {
	case Done:
		if w.epoch == w.s.Epoch {
			w.decide(true, "")
			return
		}
	case Refused:
		w.decide(false, fmt.Sprintf("url:%s return failed: %s", w.s.QueryURL, Clip(e.Text)))
		return
	case Ongoing, Unknown, Stale, Deferred:
	}
	w.touch()
	w.emit(Note{})
	w.wake()
}

// settle books an answer in the call's state: when it was done, or when it is due again.
func (w *work) settle(op *OpState, e Reply, id BranchID) {
	op.InFlight = false
	switch e.Outcome {
	case Done:
		op.Fails, op.NextAt, op.DoneAt, op.LastError = 0, 0, w.at, ""
	case Ongoing:
		op.Fails, op.NextAt, op.LastError = 0, w.at+w.s.retryInterval(), Clip(e.Text)
	case Deferred:
		op.Attempts--
		op.NextAt = w.at + max(e.RetryAfterMillis, 1)
	case Refused, Unknown, Stale:
		op.Fails++
		op.LastError = Clip(e.Text)
		op.NextAt = w.at + Backoff(op.Fails, w.s.Opt.RetryInterval.Milliseconds(), hash64(w.s.Gid, id))
	}
}

// Clip bounds a text of somebody else's to ErrorBytesMax bytes of valid UTF-8: what is stored must be readable again.
func Clip(s string) string {
	if len(s) > ErrorBytesMax {
		s = s[:ErrorBytesMax]
	}
	return strings.ToValidUTF8(s, "?")
}
