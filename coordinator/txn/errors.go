package txn

import "fmt"

// Code says why an event was refused. Append only: the wire layers map each code to their own form.
type Code uint8

const (
	// CodeInvalid: the request itself is wrong, whatever the state.
	CodeInvalid Code = iota + 1
	// CodeNotFound: no such transaction.
	CodeNotFound
	// CodePhase: the state forbids it.
	CodePhase
	// CodeMismatch: the same id was used with another body.
	CodeMismatch
	// CodeDuplicateStep: a workflow's step is registered already.
	CodeDuplicateStep
	// CodeStaleEpoch: this epoch may not decide.
	CodeStaleEpoch
	// CodeIncomplete: it is committed without branches that a record from elsewhere has (ADR 9).
	CodeIncomplete
)

func (c Code) String() string {
	switch c {
	case CodeInvalid:
		return "invalid"
	case CodeNotFound:
		return "not_found"
	case CodePhase:
		return "wrong_phase"
	case CodeMismatch:
		return "mismatch"
	case CodeDuplicateStep:
		return "duplicate_step"
	case CodeStaleEpoch:
		return "stale_epoch"
	case CodeIncomplete:
		return "incomplete"
	}
	return fmt.Sprintf("code(%d)", uint8(c))
}

// Error refuses an event. The state is unchanged.
type Error struct {
	Code  Code
	Gid   Gid
	Mode  Mode
	Phase Phase
	// Stopped: the transaction was stopped by an operator.
	Stopped bool
	// Text says what is wrong and what to do.
	Text string
}

func (e *Error) Error() string {
	return fmt.Sprintf("transaction %q: %s", string(e.Gid), e.Text)
}

func (s *State) refuse(c Code, format string, args ...any) error {
	return &Error{Code: c, Gid: s.Gid, Mode: s.Mode, Phase: s.Phase, Stopped: s.Stopped, Text: fmt.Sprintf(format, args...)}
}
