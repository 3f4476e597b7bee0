package dtmwire

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// FaultKind is how an error looks on the wire. docs/reference/errors.md lists them; a test compares.
type FaultKind uint8

const (
	// FaultFailure: definite, by the state: 409, Aborted, -32901.
	FaultFailure FaultKind = iota + 1
	// FaultOngoing: not over yet: 425, FailedPrecondition, -32603.
	FaultOngoing
	// FaultInvalid: malformed or against a rule: 400, InvalidArgument, -32602.
	FaultInvalid
	// FaultNotFound: a workflow that is not there or not open any more: 500 as in DTM, NotFound, -32603.
	FaultNotFound
	// FaultDuplicate: a workflow's step stands already: 500 as in DTM, AlreadyExists, -32603.
	FaultDuplicate
	// FaultInternal: DTM's other errors: 500, Internal, -32603.
	FaultInternal
	// FaultUnknown: DTM's other errors that its gRPC server leaves without a code: 500, Unknown, -32603.
	FaultUnknown
	// FaultOverloaded: begins are refused for now: 429, ResourceExhausted, -32029.
	FaultOverloaded
	// FaultUnavailable: nothing is known; a repeat with the same gid is safe: 503, Unavailable, -32030.
	FaultUnavailable
)

// FaultKinds lists every kind.
var FaultKinds = []FaultKind{FaultFailure, FaultOngoing, FaultInvalid, FaultNotFound, FaultDuplicate, FaultInternal, FaultUnknown, FaultOverloaded, FaultUnavailable}

// Codes are the kind's HTTP status, gRPC code and JSON-RPC code.
func (k FaultKind) Codes() (httpStatus int, grpcCode codes.Code, rpcCode int) {
	switch k {
	case FaultFailure:
		return http.StatusConflict, codes.Aborted, -32901
	case FaultOngoing:
		return http.StatusTooEarly, codes.FailedPrecondition, -32603
	case FaultInvalid:
		return http.StatusBadRequest, codes.InvalidArgument, -32602
	case FaultNotFound:
		return http.StatusInternalServerError, codes.NotFound, -32603
	case FaultDuplicate:
		return http.StatusInternalServerError, codes.AlreadyExists, -32603
	case FaultInternal:
		return http.StatusInternalServerError, codes.Internal, -32603
	case FaultUnknown:
		return http.StatusInternalServerError, codes.Unknown, -32603
	case FaultOverloaded:
		return http.StatusTooManyRequests, codes.ResourceExhausted, -32029
	case FaultUnavailable:
		return http.StatusServiceUnavailable, codes.Unavailable, -32030
	}
	return http.StatusInternalServerError, codes.Internal, -32603
}

// String is the kind's name in docs/reference/errors.md.
func (k FaultKind) String() string {
	names := [...]string{"", "failure", "ongoing", "invalid", "not_found", "duplicate", "internal", "unknown", "overloaded", "unavailable"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("fault(%d)", uint8(k))
}

// Fault is an error as DTM's clients see it.
type Fault struct {
	Kind       FaultKind
	Text       string
	RetryAfter time.Duration
	// waited: the server's own bound on the wait was reached.
	waited bool
}

func (f *Fault) Error() string { return f.message() }

// message is the text on the wire: a definite one ends in the word FAILURE, one that is not over in ONGOING.
func (f *Fault) message() string {
	switch f.Kind {
	case FaultFailure:
		return endWith(f.Text, "FAILURE")
	case FaultOngoing:
		return endWith(f.Text, "ONGOING")
	case FaultInvalid, FaultNotFound, FaultDuplicate, FaultInternal, FaultUnknown, FaultOverloaded, FaultUnavailable:
	}
	return f.Text
}

func endWith(text, word string) string {
	switch {
	case strings.HasSuffix(text, word):
		return text
	case text == "":
		return word
	}
	return text + " " + word
}

func invalid(field, format string, args ...any) error {
	return &Fault{Kind: FaultInvalid, Text: field + ": " + fmt.Sprintf(format, args...)}
}

// verb is what the client asked for: DTM's texts depend on it.
type verb uint8

const (
	verbPrepare verb = iota + 1
	verbPrepareWorkflow
	verbSubmit
	verbSubmitWorkflow
	verbAbort
	verbRegister
	verbRegisterStep
	verbForceStop
	verbRetry
	verbQuery
)

// fault puts an error of the engine into DTM's words.
func (s *Server) fault(err error, v verb) error {
	var te *txn.Error
	var oe *engine.OverloadedError
	var f *Fault
	switch {
	case errors.As(err, &f):
		return f
	case errors.As(err, &te):
		return refusal(te, v)
	case errors.As(err, &oe):
		return &Fault{Kind: FaultOverloaded, Text: oe.Error(), RetryAfter: oe.RetryAfter}
	case errors.Is(err, engine.ErrWaitOver):
		return &Fault{Kind: FaultUnavailable, Text: "nothing is known of the outcome; repeat the request with the same gid: " + err.Error(), RetryAfter: time.Second, waited: true}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return &Fault{Kind: FaultUnavailable, Text: "nothing is known of the outcome; repeat the request with the same gid: " + err.Error(), RetryAfter: time.Second}
	case errors.Is(err, engine.ErrUnavailable), errors.Is(err, engine.ErrStopping), errors.Is(err, engine.ErrNotHolder):
		return &Fault{Kind: FaultUnavailable, Text: err.Error(), RetryAfter: time.Second}
	}
	s.log.Error("a request could not be carried out", "err", err)
	return &Fault{Kind: FaultUnavailable, Text: "nothing is known of the outcome; repeat the request with the same gid: " + err.Error(), RetryAfter: time.Second}
}

// refusal gives DTM's texts (reference, section 3.2).
func refusal(e *txn.Error, v verb) error {
	status := statusOf(e.Phase, e.Mode, e.Stopped)
	failure := func(format string, args ...any) error {
		return &Fault{Kind: FaultFailure, Text: fmt.Sprintf(format, args...)}
	}
	if e.Code == txn.CodeInvalid {
		if e.Gid == "" {
			return &Fault{Kind: FaultInvalid, Text: e.Text}
		}
		return &Fault{Kind: FaultInvalid, Text: e.Error()}
	}
	switch v {
	case verbPrepare, verbPrepareWorkflow:
		if e.Code == txn.CodePhase {
			return failure("current status '%s', cannot prepare. FAILURE", status)
		}
	case verbSubmit:
		if e.Code == txn.CodePhase {
			return failure("current status '%s', cannot sumbmit. FAILURE", status)
		}
		if e.Code == txn.CodeNotFound {
			return failure("no trans with gid: %s was prepared: a submit of it would commit nothing. FAILURE", e.Gid)
		}
	case verbSubmitWorkflow:
		if e.Code == txn.CodePhase || e.Code == txn.CodeNotFound {
			return &Fault{Kind: FaultNotFound, Text: "storage: NotFound"}
		}
	case verbAbort:
		if e.Code == txn.CodeNotFound {
			return &Fault{Kind: FaultInternal, Text: fmt.Sprintf("no TransGlobal with gid: %s found", e.Gid)}
		}
		if e.Code == txn.CodePhase {
			return failure("trans type: '%s' current status '%s', cannot abort. FAILURE", e.Mode, status)
		}
	case verbRegister:
		if e.Code == txn.CodePhase || e.Code == txn.CodeNotFound {
			return failure("no trans with gid: %s status: prepared found FAILURE", e.Gid)
		}
	case verbRegisterStep:
		// Never FAILURE over gRPC: the SDK would compensate a step of a workflow that has already ended (D39).
		switch e.Code {
		case txn.CodeDuplicateStep:
			return &Fault{Kind: FaultDuplicate, Text: "storage: UniqueKeyConflict: " + e.Text}
		case txn.CodePhase, txn.CodeNotFound, txn.CodeMismatch, txn.CodeStaleEpoch, txn.CodeIncomplete, txn.CodeInvalid:
			return &Fault{Kind: FaultNotFound, Text: fmt.Sprintf("no trans with gid: %s status: prepared found", e.Gid)}
		}
	case verbForceStop:
		if e.Code == txn.CodePhase {
			return failure("global transaction force stop error. status: %s. error: FAILURE", status)
		}
		if e.Code == txn.CodeNotFound {
			return &Fault{Kind: FaultInternal, Text: fmt.Sprintf("no TransGlobal with gid: %s found", e.Gid)}
		}
	case verbRetry, verbQuery:
		if e.Code == txn.CodeNotFound {
			return &Fault{Kind: FaultInternal, Text: fmt.Sprintf("no TransGlobal with gid: %s found", e.Gid)}
		}
	}
	return failure("%s", e.Error())
}

// statusOf is DTM's word for where a transaction stands.
func statusOf(p txn.Phase, m txn.Mode, stopped bool) string {
	if stopped {
		return "failed"
	}
	switch p {
	case txn.PhaseNone:
		return ""
	case txn.PhasePrepared:
		return "prepared"
	case txn.PhaseRunning:
		if m == txn.ModeTCC {
			return "prepared"
		}
		return "submitted"
	case txn.PhaseCommitting:
		return "submitted"
	case txn.PhaseAborting:
		return "aborting"
	case txn.PhaseCommitted:
		return "succeed"
	case txn.PhaseAborted:
		return "failed"
	}
	return ""
}
