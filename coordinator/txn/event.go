package txn

// Event is something that reached a transaction. The set is closed: Step knows every type. At is unix milliseconds,
// Epoch the slot's epoch as the holder knows it; both are set once, where the event entered.
type Event interface{ isEvent() }

// Spec is what a client says of a transaction when it begins it.
type Spec struct {
	Mode     Mode
	Opt      Options
	Branches []Branch
	QueryURL string
	Custom   string
	Digest   string
	Tenant   string
}

// Prepare begins a transaction whose client drives phase one, or whose submit comes later. A repeat while prepared
// is answered without a change.
type Prepare struct {
	At    int64
	Epoch uint64
	Spec  Spec
}

// Register adds a branch to a prepared TCC or XA transaction. An exact repeat is answered without a change.
type Register struct {
	At     int64
	Epoch  uint64
	Mode   Mode
	Branch Branch
}

// RegisterStep adds a progress row to a prepared workflow. A repeat is an error: two executions of one workflow rely
// on the second registrant being refused (reference: DTM wire, section 6).
type RegisterStep struct {
	At    int64
	Epoch uint64
	Step  WorkflowStep
}

// Submit decides commit for TCC, XA and messages and starts a saga. It creates sagas and messages that are absent.
type Submit struct {
	At    int64
	Epoch uint64
	Spec  Spec
}

// Execute begins a TCC transaction whose tries the coordinator calls and decides.
type Execute struct {
	At    int64
	Epoch uint64
	Spec  Spec
}

// EndWorkflow is the decision of a workflow, taken by its client.
type EndWorkflow struct {
	At     int64
	Epoch  uint64
	Commit bool
	Reason string
	Result string
}

// Abort asks for the decision abort.
type Abort struct {
	At    int64
	Epoch uint64
	// Mode that the request names; 0 when it names none. One that contradicts the stored mode is refused.
	Mode   Mode
	Reason string
}

// Resolve ends a doubt: the decision that evidence, the lost region's return or an operator says. It is the one decision that
// another epoch than the first may take as commit (G1's exception, ADR 9).
type Resolve struct {
	At     int64
	Epoch  uint64
	Commit bool
	// Reason says on whose word. It must not be empty.
	Reason string
}

// Stop is an operator's stop: nothing is called any more until a Retry. A decision that stands, stands.
type Stop struct {
	At    int64
	Epoch uint64
}

// Retry makes everything owed due now, and undoes a Stop.
type Retry struct {
	At    int64
	Epoch uint64
}

// Reply is what is known after a branch call.
type Reply struct {
	At     int64
	Epoch  uint64
	Branch BranchID
	Op     Op
	// Attempt that is answered; an answer to another attempt than the one in flight changes nothing.
	Attempt int
	Outcome Outcome
	// Text of an answer that was not Done.
	Text string
	// Result of a forward call that was Done.
	Result []byte
	// RetryAfterMillis is when a Deferred call should be tried again.
	RetryAfterMillis int64
}

// Tick says what time it is. Timeouts and retries come due by it alone.
type Tick struct {
	At    int64
	Epoch uint64
}

func (Prepare) isEvent()      {}
func (Register) isEvent()     {}
func (RegisterStep) isEvent() {}
func (Submit) isEvent()       {}
func (Execute) isEvent()      {}
func (EndWorkflow) isEvent()  {}
func (Abort) isEvent()        {}
func (Resolve) isEvent()      {}
func (Stop) isEvent()         {}
func (Retry) isEvent()        {}
func (Reply) isEvent()        {}
func (Tick) isEvent()         {}

// Effect is something that a transaction owes after a step. Effects are run in the order given: what stands behind
// a Save runs only when that Save is durable, what stands before it does not wait for it.
type Effect interface{ isEffect() }

// Save asks for the state to be made durable. Everything behind it waits.
type Save struct {
	// Decision: this save carries the decision (event one of the outbox).
	Decision bool
	// Finish: this save carries the finish (event two of the outbox).
	Finish bool
}

// Note says that the state is worth saving but that nothing waits for it: a crash before it costs a repeated call.
type Note struct{}

// Invoke asks for a branch call. The decision, or the begin, that it follows from must be durable (G2).
type Invoke struct {
	Branch  BranchID
	Op      Op
	Attempt int
}

// Wake asks for a Tick at the time given, in unix milliseconds. One transaction has one wake: the latest given.
// Nothing need be durable.
type Wake struct{ At int64 }

// Milestone is what a client may wait for.
type Milestone uint8

const (
	// Accepted: the request was taken, and what it changed is durable.
	Accepted Milestone = iota + 1
	// PassOver: every call that could be made was answered once, and some will be made again later.
	PassOver
	// Decided: the decision is durable.
	Decided
	// Settled: every branch that is not a message has answered the decision.
	Settled
	// FinishedAll: every branch has answered.
	FinishedAll
)

// Answer tells the waiting clients that a milestone was reached. Behind a Save it is durable. FinishedAll may stand
// before its Save: the decision is durable then, and a crash only repeats the confirms.
type Answer struct{ Milestone Milestone }

func (Save) isEffect()   {}
func (Note) isEffect()   {}
func (Invoke) isEffect() {}
func (Wake) isEffect()   {}
func (Answer) isEffect() {}
