package txn

import "time"

// State is one transaction. It is a value: Step never changes the slices and maps of the state that it is given, so
// that a copy may be read anywhere while the owner goes on. Times are unix milliseconds of the coordinator's clock.
type State struct {
	Gid   Gid
	Mode  Mode
	Phase Phase
	// Stopped: an operator stopped it. The decision stays; nothing is called until a retry.
	Stopped bool
	// InDoubt: its region was lost, and nobody knows what it decided. Nothing is called and nothing decided until evidence,
	// the region's return or an operator says which (ADR 9). Only before the decision.
	InDoubt bool
	// Epoch is the slot's epoch at begin. Only this epoch may decide commit (G4).
	Epoch uint64

	BegunAt    int64
	UpdatedAt  int64
	DecidedAt  int64
	FinishedAt int64

	Opt Options
	// Branches in order of registration, nil while there is none.
	Branches []Branch
	// Steps are a workflow's progress rows in order of registration.
	Steps []WorkflowStep
	// QueryURL is a message's check-back or a workflow's callback address.
	QueryURL string
	// Query is the state of the check-back or callback.
	Query OpState
	// Custom is DTM's custom_data, kept for /query and for a workflow's callback.
	Custom string
	// Reason says why it was aborted; empty on commit.
	Reason string
	// Result is a workflow's result, as its client sent it (base64 text).
	Result string
	// Digest of the request's body, for idempotency keys; empty without one.
	Digest string
	// Tenant whose request began it; empty without tenants.
	Tenant string
	// Retries counts failed phase-one calls, for RetryLimit; shared by all branches as in DTM.
	Retries int
}

// Options are what a client may set per transaction. Zero means the coordinator's default, which Defaults holds.
type Options struct {
	Protocol       Protocol
	WaitResult     bool
	Concurrent     bool
	Timeout        time.Duration // DTM's timeout_to_fail
	RequestTimeout time.Duration // per branch call
	RetryInterval  time.Duration
	RetryLimit     int           // saga and server-driven tries; 0 means none
	Delay          time.Duration // message: no branch is called before begin + Delay
	Headers        map[string]string
	Durability     Durability
}

// Durability is where a decision must be durable before it counts. The numbers are on the wire of the record.
type Durability uint8

const (
	// Regional: the region's etcd is the commit point.
	Regional Durability = iota
	// Global: a first-write-wins record in the arbiter is. For TCC and messages alone: in the other modes work is done
	// before the decision.
	Global
)

func (d Durability) String() string {
	if d == Global {
		return "global"
	}
	return "regional"
}

// Merge gives o with each field that is set in over taken from there: what a submit says wins over what its prepare
// said, what it leaves out stays (reference: DTM wire, section 9).
func (o Options) Merge(over Options) Options {
	if over.Protocol != ProtocolHTTP {
		o.Protocol = over.Protocol
	}
	o.WaitResult = o.WaitResult || over.WaitResult
	o.Concurrent = o.Concurrent || over.Concurrent
	if over.Timeout != 0 {
		o.Timeout = over.Timeout
	}
	if over.RequestTimeout != 0 {
		o.RequestTimeout = over.RequestTimeout
	}
	if over.RetryInterval != 0 {
		o.RetryInterval = over.RetryInterval
	}
	if over.RetryLimit != 0 {
		o.RetryLimit = over.RetryLimit
	}
	if over.Delay != 0 {
		o.Delay = over.Delay
	}
	if over.Durability != Regional {
		o.Durability = over.Durability
	}
	if len(over.Headers) > 0 {
		o.Headers = over.Headers
	}
	return o
}

// Branch is one participant's part. Which addresses are set depends on the mode: TCC has Confirm and Cancel, and
// Try where the coordinator drives it; a saga has Try (its action) and Cancel (its compensation); XA has Confirm and
// Cancel with one address; a message has Confirm. An empty address counts as answered.
type Branch struct {
	ID      BranchID
	Try     string
	Confirm string
	Cancel  string
	Payload []byte
	// After are the indexes of the branches whose forward call must be done before this one's starts.
	After []int
	// Message: delivered at least once if and only if the transaction commits; has neither try nor cancel.
	Message bool
	// UseResults: the forward call carries the results of the branches in After.
	UseResults bool
	// Account is what the branch works on: the account's slot says where its home is. Empty: the transaction's own slot.
	Account string
	// Result is what the forward call answered, kept when a later branch uses it.
	Result []byte
	// One is the forward call of phase one, Two the call after the decision.
	One OpState
	Two OpState
}

// OpStatus is how far one call of a branch is. The numbers are on the wire of the record: append only.
type OpStatus uint8

const (
	OpPending OpStatus = iota
	OpDone
	OpRefused // a forward call that was refused
	OpSkipped // never owed: the step could not have started, or the branch has no such call
)

func (s OpStatus) String() string {
	switch s {
	case OpPending:
		return "pending"
	case OpDone:
		return "done"
	case OpRefused:
		return "refused"
	case OpSkipped:
		return "skipped"
	}
	return "unknown"
}

// OpState is one call of a branch.
type OpState struct {
	Status OpStatus
	// InFlight: an Invoke was emitted and not answered. It is not stored: after a crash nothing is in flight.
	InFlight bool
	// Attempts counts the Invokes emitted; an answer names the attempt that it answers.
	Attempts int
	// Fails counts the answers since the last Done or Ongoing that were neither.
	Fails int
	// NextAt is when the next attempt is due, in unix milliseconds; 0 means at once.
	NextAt int64
	// DoneAt is when it was answered for good.
	DoneAt int64
	// LastError is the last answer that was not Done, cut to ErrorBytesMax.
	LastError string
}

// ErrorBytesMax bounds the text that is kept of a participant's answer.
const ErrorBytesMax = 256

// What may be registered with one transaction, one by one: the branches of TCC and XA, the steps of a workflow. Together
// with what its begin said it must fit one write of the store (etcd: 1.5 MiB).
const (
	RegisteredMax      = 500
	RegisteredBytesMax = 640 << 10
	// GlobalBytesMax bounds them where the durability is global: the arbiter takes 64 KiB.
	GlobalBytesMax = 48 << 10
)

// WorkflowStep is one progress row of a workflow. Steps belong to the client: they are stored and handed back, never
// interpreted.
type WorkflowStep struct {
	Branch BranchID
	Op     string // action, commit, rollback or business
	Failed bool
	Data   []byte
	At     int64
}

// Defaults of every transaction, as DTM has them (reference: DTM wire, section 9).
const (
	// DefaultTimeout: an undecided TCC or XA transaction is aborted, a prepared message is checked back, after this.
	DefaultTimeout = 35 * time.Second
	// DefaultRetryInterval: the pause after ONGOING and between a workflow's callbacks.
	DefaultRetryInterval = 10 * time.Second
	// DefaultRequestTimeout of one branch call.
	DefaultRequestTimeout = 3 * time.Second
)

// Deadline is when an undecided transaction times out, in unix milliseconds; 0 where it never does: sagas without
// timeout_to_fail and workflows.
func (s *State) Deadline() int64 {
	t := s.Opt.Timeout
	if t == 0 {
		switch s.Mode {
		case ModeSaga, ModeWorkflow:
			return 0
		case ModeTCC, ModeXA, ModeMsg:
			t = DefaultTimeout
		}
	}
	if s.Mode == ModeWorkflow {
		return 0
	}
	return s.BegunAt + t.Milliseconds()
}

// RequestTimeout of one branch call of the transaction.
func (s *State) RequestTimeout() time.Duration {
	if s.Opt.RequestTimeout > 0 {
		return s.Opt.RequestTimeout
	}
	return DefaultRequestTimeout
}

// retryInterval is the pause after ONGOING.
func (s *State) retryInterval() int64 {
	if s.Opt.RetryInterval > 0 {
		return s.Opt.RetryInterval.Milliseconds()
	}
	return DefaultRetryInterval.Milliseconds()
}

// MaxFails is the largest count of failures in a row among the calls that are still owed; "stuck" is measured by it.
func (s *State) MaxFails() int {
	m := 0
	if !s.Phase.Finished() && s.Query.Status == OpPending {
		m = s.Query.Fails
	}
	for i := range s.Branches {
		for _, op := range []*OpState{&s.Branches[i].One, &s.Branches[i].Two} {
			if op.Status == OpPending && op.Fails > m {
				m = op.Fails
			}
		}
	}
	return m
}

// halted says that nothing is called.
func (s *State) halted() bool { return s.Stopped || s.InDoubt }

// branch finds a branch by id; -1 when there is none.
func (s *State) branch(id BranchID) int {
	for i := range s.Branches {
		if s.Branches[i].ID == id {
			return i
		}
	}
	return -1
}

// ForwardOp is the word of a branch's call in phase one.
func (s *State) ForwardOp() Op {
	if s.Mode == ModeTCC {
		return OpTry
	}
	return OpAction
}

// SecondOp is the word of branch i's call after the decision.
func (s *State) SecondOp(i int, commit bool) Op {
	if s.Branches[i].Message {
		return OpAction
	}
	switch s.Mode {
	case ModeTCC:
		if commit {
			return OpConfirm
		}
		return OpCancel
	case ModeXA:
		if commit {
			return OpCommit
		}
		return OpRollback
	case ModeMsg:
		return OpAction
	case ModeSaga:
		return OpCompensate
	case ModeWorkflow:
		return OpAction
	}
	return OpAction
}
