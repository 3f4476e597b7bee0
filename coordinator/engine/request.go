package engine

import (
	"errors"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// Want is what a caller waits for.
type Want uint8

const (
	// WantAccepted: the request was taken and what it changed is durable.
	WantAccepted Want = iota + 1
	// WantDecided: the decision is durable.
	WantDecided
	// WantSettled: every branch but the messages has answered the decision.
	WantSettled
	// WantFinished: every branch has answered.
	WantFinished
	// WantPass: finished, or every call that could be made was answered once (DTM's wait_result).
	WantPass
	// WantOption: WantPass where the transaction's own options say wait_result, else WantAccepted.
	WantOption
)

// Request is one client request for one transaction. Event nil only reads. At and Epoch of the event are filled in by
// the holder.
type Request struct {
	Gid   txn.Gid
	Event txn.Event
	Want  Want
	// Patience bounds the wait for the answer; past it the answer is ErrWaitOver and the request may still take effect. 0
	// leaves the wait to the context.
	Patience time.Duration
	// Resent: the engine sends it again by itself, and may have carried it out before. An outcome that stands as it asks
	// is then its answer; a client's own repeat is judged by the protocol.
	Resent bool
	// Hops counts the coordinators of this region that forwarded it: 0 or 1.
	Hops int
	// Border: it came from another region, and does not go back over a border.
	Border bool
}

// Reply answers a request. State is a snapshot; its slices are read-only. Its Phase is PhaseNone where the
// transaction is unknown, which is an error for every request but a read.
type Reply struct {
	State    txn.State
	Timeline record.Timeline
	// Decision and Finish are the numbers of its events, zero while there is none.
	Decision, Finish record.Head
	// Trimmed: only the outcome is still kept, so that State has neither branches nor a reason.
	Trimmed bool
}

// Errors of Do beside *txn.Error.
var (
	// ErrOverloaded: begins are refused; OverloadedError says when to try again. Nothing was stored.
	ErrOverloaded = errors.New("overloaded")
	// ErrNotHolder: this process does not hold the slot, and may not forward the request again. Nothing was changed.
	ErrNotHolder = errors.New("this coordinator does not hold the transaction's slot")
	// ErrUnavailable: nobody was found who holds the slot within the time given. Nothing is known of the outcome when
	// the request was under way; a repeat with the same gid is safe.
	ErrUnavailable = errors.New("no coordinator holds the transaction's slot at the moment; repeat the request")
	// ErrWaitOver: the request's patience is over; it may still take effect, and a repeat is safe.
	ErrWaitOver = errors.New("the wait for the transaction's result is over")
	// ErrStopping: this process is shutting down. A repeat elsewhere is safe.
	ErrStopping = errors.New("the coordinator is shutting down; repeat the request")
)

// OverloadedError says why a begin was refused and when to try again. It is ErrOverloaded.
type OverloadedError struct {
	Why        string
	RetryAfter time.Duration
}

func (e *OverloadedError) Error() string {
	return "overloaded, retry after " + e.RetryAfter.String() + ": " + e.Why
}

// Unwrap makes it ErrOverloaded.
func (e *OverloadedError) Unwrap() error { return ErrOverloaded }

// pending is a request under way in this process.
type pending struct {
	req  Request
	id   uint64 // order of arrival at Core
	done chan answer
	// looked: the journal was asked under the term lookedIn and does not know the gid. Under another term that says
	// nothing.
	looked   bool
	lookedIn Term
	// again: the journal was asked a second time, because the gid was written there while it was asked.
	again bool
}

type answer struct {
	reply Reply
	err   error
}

// finish answers p once; it never blocks, and later answers are dropped.
func (p *pending) finish(a answer) {
	select {
	case p.done <- a:
	default:
	}
}

// answered says that what a request asks for stands already.
func answered(ev txn.Event, s *txn.State) bool {
	switch e := ev.(type) {
	case txn.Submit:
		return s.Mode == e.Spec.Mode && s.Phase == txn.PhaseCommitted && !s.Stopped
	case txn.Abort:
		return s.Phase == txn.PhaseAborted && !s.Stopped
	case txn.Stop:
		return s.Stopped
	case txn.RegisterStep:
		for _, st := range s.Steps {
			if st.Branch == e.Step.Branch && st.Op == e.Step.Op {
				return st.Failed == e.Step.Failed && string(st.Data) == string(e.Step.Data)
			}
		}
	}
	return false
}

// satisfied says whether a milestone ends the wait.
func (w Want) satisfied(m txn.Milestone, s *txn.State) bool {
	switch w {
	case WantAccepted:
		return m == txn.Accepted
	case WantDecided:
		return m == txn.Decided
	case WantSettled:
		return m == txn.Settled || m == txn.FinishedAll
	case WantFinished:
		return m == txn.FinishedAll
	case WantPass:
		return m == txn.PassOver || m == txn.FinishedAll
	case WantOption:
		if s.Opt.WaitResult {
			return WantPass.satisfied(m, s)
		}
		return m == txn.Accepted
	}
	return false
}

// stamp sets the time and the epoch of an event where it enters the core.
func stamp(ev txn.Event, at int64, epoch uint64) txn.Event {
	switch e := ev.(type) {
	case txn.Prepare:
		e.At, e.Epoch = at, epoch
		return e
	case txn.Register:
		e.At, e.Epoch = at, epoch
		return e
	case txn.RegisterStep:
		e.At, e.Epoch, e.Step.At = at, epoch, at
		return e
	case txn.Submit:
		e.At, e.Epoch = at, epoch
		return e
	case txn.Execute:
		e.At, e.Epoch = at, epoch
		return e
	case txn.EndWorkflow:
		e.At, e.Epoch = at, epoch
		return e
	case txn.Abort:
		e.At, e.Epoch = at, epoch
		return e
	case txn.Resolve:
		e.At, e.Epoch = at, epoch
		return e
	case txn.Stop:
		e.At, e.Epoch = at, epoch
		return e
	case txn.Retry:
		e.At, e.Epoch = at, epoch
		return e
	case txn.Reply:
		e.At, e.Epoch = at, epoch
		return e
	case txn.Tick:
		e.At, e.Epoch = at, epoch
		return e
	}
	return ev
}

// Begins says that an event creates the transaction where it is absent: limits on begins count these.
func Begins(ev txn.Event) bool {
	_, ok := begins(ev)
	return ok
}

// begins says that the event creates a transaction that is absent.
func begins(ev txn.Event) (mode txn.Mode, ok bool) {
	switch e := ev.(type) {
	case txn.Prepare:
		return e.Spec.Mode, true
	case txn.Execute:
		return e.Spec.Mode, true
	case txn.Submit:
		return e.Spec.Mode, e.Spec.Mode == txn.ModeSaga || e.Spec.Mode == txn.ModeMsg
	case Adopt:
		return e.Tx.State.Mode, true
	}
	return 0, false
}
