package txn

import "fmt"

// Gid names one global transaction, chosen by the client or by newGid. At most GidBytesMax bytes.
type Gid string

// BranchID names one branch within its transaction. It is opaque: clients nest them as they like.
type BranchID string

// GidBytesMax is the longest gid in bytes: the width of the barrier table's column in every SDK.
const GidBytesMax = 128

// CheckBackBranch is the branch id under which DTM's SDKs answer a message's check-back and a workflow's callback
// (reference: DTM wire, section 7).
const CheckBackBranch BranchID = "00"

// Mode is the kind of a transaction. The numbers are on the wire of the record: append only.
type Mode uint8

const (
	ModeTCC Mode = iota + 1
	ModeSaga
	ModeMsg
	ModeXA
	ModeWorkflow
)

// Modes lists every mode, in the order of their numbers.
var Modes = []Mode{ModeTCC, ModeSaga, ModeMsg, ModeXA, ModeWorkflow}

// String gives DTM's word for the mode (its trans_type).
func (m Mode) String() string {
	switch m {
	case ModeTCC:
		return "tcc"
	case ModeSaga:
		return "saga"
	case ModeMsg:
		return "msg"
	case ModeXA:
		return "xa"
	case ModeWorkflow:
		return "workflow"
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// ParseMode reads DTM's word for a mode; false for any other text.
func ParseMode(s string) (Mode, bool) {
	for _, m := range Modes {
		if m.String() == s {
			return m, true
		}
	}
	return 0, false
}

// Phase is where a transaction stands. The numbers are on the wire of the record: append only.
type Phase uint8

const (
	// PhaseNone is the state of a gid that was never begun.
	PhaseNone Phase = iota
	// PhasePrepared is begun and undecided; the client drives the tries, or has not submitted yet.
	PhasePrepared
	// PhaseRunning is begun and undecided; the coordinator calls the actions or tries.
	PhaseRunning
	// PhaseCommitting has the decision commit; confirms are owed.
	PhaseCommitting
	// PhaseAborting has the decision abort; cancels are owed.
	PhaseAborting
	// PhaseCommitted is finished: every branch answered its confirm.
	PhaseCommitted
	// PhaseAborted is finished: every branch answered its cancel.
	PhaseAborted
)

// Phases lists every phase, in the order of their numbers.
var Phases = []Phase{PhaseNone, PhasePrepared, PhaseRunning, PhaseCommitting, PhaseAborting, PhaseCommitted, PhaseAborted}

func (p Phase) String() string {
	switch p {
	case PhaseNone:
		return "none"
	case PhasePrepared:
		return "prepared"
	case PhaseRunning:
		return "running"
	case PhaseCommitting:
		return "committing"
	case PhaseAborting:
		return "aborting"
	case PhaseCommitted:
		return "committed"
	case PhaseAborted:
		return "aborted"
	}
	return fmt.Sprintf("phase(%d)", uint8(p))
}

// ParsePhase reads what String gives; false for any other text.
func ParsePhase(s string) (Phase, bool) {
	for _, p := range Phases {
		if p.String() == s {
			return p, true
		}
	}
	return 0, false
}

// Decided says that a decision was taken: it never changes from there (G1).
func (p Phase) Decided() bool { return p >= PhaseCommitting }

// Finished says that nothing is owed any more.
func (p Phase) Finished() bool { return p == PhaseCommitted || p == PhaseAborted }

// Commit says that the decision was commit; false also where there is none.
func (p Phase) Commit() bool { return p == PhaseCommitting || p == PhaseCommitted }

// Op is what a branch is asked to do. The numbers are on the wire of the record: append only.
type Op uint8

const (
	OpTry        Op = iota + 1 // TCC, phase one, called by the coordinator
	OpAction                   // saga's and message's forward call
	OpConfirm                  // TCC, after commit
	OpCancel                   // TCC, after abort
	OpCompensate               // saga, after abort
	OpCommit                   // XA, after commit
	OpRollback                 // XA, after abort
	OpQuery                    // message: ask the sender whether its local transaction was committed
	OpCallback                 // workflow: ask the client to go on
)

// String gives DTM's word for the operation, as it stands in a branch call. The word of OpQuery is "msg"; a
// callback carries the workflow's name instead of this word.
func (o Op) String() string {
	switch o {
	case OpTry:
		return "try"
	case OpAction:
		return "action"
	case OpConfirm:
		return "confirm"
	case OpCancel:
		return "cancel"
	case OpCompensate:
		return "compensate"
	case OpCommit:
		return "commit"
	case OpRollback:
		return "rollback"
	case OpQuery:
		return "msg"
	case OpCallback:
		return "callback"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// PhaseOne says that the operation belongs to the time before the decision.
func (o Op) PhaseOne() bool { return o == OpTry || o == OpAction }

// Outcome is what is known after a call. Only an explicit answer is Refused: a timeout, a lost connection and a 5xx
// are Unknown and are tried again (G2, design section 4 step 5).
type Outcome uint8

const (
	Done     Outcome = iota + 1 // the participant says it took effect, now or before
	Refused                     // the participant says no
	Ongoing                     // the participant says ask again later
	Unknown                     // nothing was learned
	Stale                       // a newer epoch has been here; changes no state
	Deferred                    // the call was not sent (destination full or its breaker open); not an attempt
)

func (o Outcome) String() string {
	switch o {
	case Done:
		return "done"
	case Refused:
		return "refused"
	case Ongoing:
		return "ongoing"
	case Unknown:
		return "unknown"
	case Stale:
		return "stale"
	case Deferred:
		return "deferred"
	}
	return fmt.Sprintf("outcome(%d)", uint8(o))
}

// Protocol is how a branch without its own scheme is called.
type Protocol uint8

const (
	ProtocolHTTP Protocol = iota
	ProtocolGRPC
	ProtocolJSONRPC
)

func (p Protocol) String() string {
	switch p {
	case ProtocolHTTP:
		return "http"
	case ProtocolGRPC:
		return "grpc"
	case ProtocolJSONRPC:
		return "json-rpc"
	}
	return fmt.Sprintf("protocol(%d)", uint8(p))
}

// ParseProtocol reads DTM's word; the empty text means HTTP.
func ParseProtocol(s string) (Protocol, bool) {
	switch s {
	case "", "http":
		return ProtocolHTTP, true
	case "grpc":
		return ProtocolGRPC, true
	case "json-rpc":
		return ProtocolJSONRPC, true
	}
	return 0, false
}
