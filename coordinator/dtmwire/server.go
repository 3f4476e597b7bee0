// Package dtmwire is DTM's wire protocol on the engine: HTTP, gRPC and JSON-RPC, to the letter where clients rely on
// it, without the defects that the reference lists.
//
// The law it keeps: nothing that reaches the engine is malformed. One validator serves all three protocols, says what
// is wrong and how to mend it, and stores nothing. The word FAILURE stands only in answers that are final.
//
// It is tested with DTM's own Go SDK unchanged, with bodies written by hand after the other SDKs, and with a test per
// known defect. Source: DTM wire reference; ADR 0001.
package dtmwire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// DTMVersion is the version of DTM whose protocol is spoken.
const DTMVersion = "v1.19.0"

// Engine is what the protocol needs of the engine.
type Engine interface {
	// Do carries out a request (engine.Runner.Do).
	Do(ctx context.Context, req engine.Request) (engine.Reply, error)
	// List pages through transactions, newest first (engine.Runner.List).
	List(ctx context.Context, f engine.Filter, cursor string, limit int) ([]engine.Reply, string, error)
	// LocalSlots says which slots this process holds.
	LocalSlots() func(n int) bool
	// MakeDue makes due now what waits longer than after, at most limit; it says how many and whether more are left.
	MakeDue(ctx context.Context, after time.Duration, limit int) (done int, more bool, err error)
}

// Limits bound what one request may carry. Zero fields take the default given.
type Limits struct {
	// BodyBytes of one request. Defaults to 1 MiB.
	BodyBytes int64
	// Branches of one transaction. Defaults to 500.
	Branches int
	// PayloadBytes of all branches of one transaction together. Defaults to 512 KiB.
	PayloadBytes int
	// Wait bounds an answer that waits for a result. Defaults to 60 s.
	Wait time.Duration
}

func (l Limits) withDefaults() Limits {
	if l.BodyBytes == 0 {
		l.BodyBytes = 1 << 20
	}
	if l.Branches == 0 {
		l.Branches = 500
	}
	if l.PayloadBytes == 0 {
		l.PayloadBytes = 512 << 10
	}
	if l.Wait == 0 {
		l.Wait = 60 * time.Second
	}
	return l
}

// URLChecker refuses branch addresses (invoke.Allow).
type URLChecker interface{ CheckURL(raw string) error }

// Server answers DTM's clients. Safe for concurrent use.
type Server struct {
	// Named: participants may be called by name (lockstep://name/path). Set it before serving.
	Named bool
	// Global: there is an arbiter, so that a decision can be durable there (branch header Lockstep-Durability).
	// GlobalDefault: it is where the client does not say. Set them before serving.
	Global, GlobalDefault bool
	engine                Engine
	topics                *Topics
	allow                 URLChecker
	lim                   Limits
	log                   *slog.Logger
	now                   func() time.Time

	// AuditTopic is told of every request to change a topic and how it ended: act is subscribe, unsubscribe or delete
	// topic; url is empty at a delete. nil tells nobody. Set it before the first request.
	AuditTopic func(ctx context.Context, act, topic, url string, err error)
}

// New makes a Server. now is the coordinator's clock; log may be nil.
func New(e Engine, kv engine.KV, allow URLChecker, lim Limits, now func() time.Time, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{engine: e, topics: NewTopics(kv), allow: allow, lim: lim.withDefaults(), now: now, log: log}
}

// hotSlots is how many slots the gids of one second fall into: transactions that are written together then share
// guards and outbox heads. The window moves on every second, so that all slots are used alike.
const hotSlots = 4

// NewGid makes a gid whose slot this process holds, so that its requests need no second hop: one of the first hotSlots
// that it holds from the second's slot on.
func (s *Server) NewGid() string {
	now, holds := s.now(), s.engine.LocalSlots()
	first := int(now.Unix()) * hotSlots % slot.Count
	var hot [hotSlots]int
	n := 0
	for i := 0; i < slot.Count && n < hotSlots; i++ {
		if at := (first + i) % slot.Count; holds(at) {
			hot[n] = at
			n++
		}
	}
	if n == 0 {
		return slot.NewGid(now, nil)
	}
	return slot.NewGid(now, func(at int) bool { return slices.Contains(hot[:n], at) })
}

// prepare begins a transaction.
func (s *Server) prepare(ctx context.Context, g *global) error {
	if err := s.forgetStoredSteps(ctx, g); err != nil {
		return err
	}
	sp, err := s.spec(ctx, g, false)
	if err != nil {
		return err
	}
	_, err = s.do(ctx, engine.Request{Gid: txn.Gid(g.Gid), Event: txn.Prepare{Spec: sp}, Want: engine.WantAccepted}, verbPrepare)
	return err
}

// forgetStoredSteps drops the steps of a message that is known already and goes to topics: they were expanded when it
// was created, and a topic that lost its subscribers since must not stop its submit.
func (s *Server) forgetStoredSteps(ctx context.Context, g *global) error {
	if g.TransType != "msg" || checkGid(g.Gid) != nil {
		return nil
	}
	for _, st := range g.Steps {
		if !strings.HasPrefix(st["action"], topicScheme) {
			continue
		}
		known, err := s.find(ctx, g.Gid)
		if known != nil {
			g.Steps = nil
		}
		return err
	}
	return nil
}

// submit decides or starts a transaction, and waits for its result where its options say so.
func (s *Server) submit(ctx context.Context, g *global) error {
	if g.TransType == "workflow" {
		return s.submitWorkflow(ctx, g)
	}
	if err := s.forgetStoredSteps(ctx, g); err != nil {
		return err
	}
	sp, err := s.spec(ctx, g, true)
	if err != nil {
		return err
	}
	rep, err := s.do(ctx, engine.Request{Gid: txn.Gid(g.Gid), Event: txn.Submit{Spec: sp}, Want: engine.WantOption}, verbSubmit)
	if f := (*Fault)(nil); g.WaitResult && errors.As(err, &f) && f.waited {
		return &Fault{Kind: FaultOngoing, Text: engine.ErrWaitOver.Error()}
	}
	if err != nil {
		return err
	}
	st := &rep.State
	if !st.Opt.WaitResult {
		return nil
	}
	switch {
	case st.Phase == txn.PhaseCommitted:
		return nil
	case st.Phase == txn.PhaseAborting || st.Phase == txn.PhaseAborted || st.Stopped:
		return &Fault{Kind: FaultFailure, Text: st.Reason}
	}
	return &Fault{Kind: FaultOngoing, Text: stillRunning(st)}
}

// stillRunning says why a wait_result is not over: the last thing that a branch answered.
func stillRunning(st *txn.State) string {
	for i := range st.Branches {
		b := &st.Branches[i]
		for _, op := range []*txn.OpState{&b.One, &b.Two} {
			if op.Status == txn.OpPending && op.LastError != "" {
				return fmt.Sprintf("branch %s has not succeeded yet and is retried: %s", b.ID, op.LastError)
			}
		}
	}
	return "the transaction is still running"
}

func (s *Server) submitWorkflow(ctx context.Context, g *global) error {
	if err := checkGid(g.Gid); err != nil {
		return err
	}
	ev := txn.EndWorkflow{Reason: g.ReqExtra["rollback_reason"], Result: g.ReqExtra["result"]}
	switch g.ReqExtra["status"] {
	case "succeed":
		ev.Commit = true
	case "failed":
	default:
		return invalid("req_extra.status", "a workflow ends with succeed or failed, not %q", g.ReqExtra["status"])
	}
	_, err := s.do(ctx, engine.Request{Gid: txn.Gid(g.Gid), Event: ev, Want: engine.WantAccepted}, verbSubmitWorkflow)
	return err
}

// abort asks for the decision abort.
func (s *Server) abort(ctx context.Context, g *global) error {
	if err := checkGid(g.Gid); err != nil {
		return err
	}
	mode, ok := txn.ParseMode(g.TransType)
	if !ok && g.TransType != "" {
		return invalid("trans_type", "unknown trans type: %q; it is one of tcc, saga, msg, xa, workflow", g.TransType)
	}
	reason := g.RollbackReason
	if len(reason) > reasonBytesMax {
		reason = reason[:reasonBytesMax]
	}
	_, err := s.do(ctx, engine.Request{Gid: txn.Gid(g.Gid), Event: txn.Abort{Mode: mode, Reason: toValid(reason)}, Want: engine.WantOption}, verbAbort)
	return err
}

// reasonBytesMax bounds a rollback reason; a longer one is cut, never refused (D34).
const reasonBytesMax = 4096

// register adds a branch or a workflow's step.
func (s *Server) register(ctx context.Context, b *branch) error {
	ev, err := s.branchEvent(b)
	if err != nil {
		return err
	}
	verb := verbRegister
	if b.TransType == "workflow" {
		verb = verbRegisterStep
	}
	_, err = s.do(ctx, engine.Request{Gid: txn.Gid(b.Gid), Event: ev, Want: engine.WantAccepted}, verb)
	return err
}

// prepareWorkflow creates a workflow, or gives the existing one in whatever status.
func (s *Server) prepareWorkflow(ctx context.Context, g *global) (engine.Reply, error) {
	if g.TransType != "workflow" {
		return engine.Reply{}, invalid("trans_type", "%q is no workflow", g.TransType)
	}
	sp, err := s.spec(ctx, g, false)
	if err != nil {
		return engine.Reply{}, err
	}
	return s.do(ctx, engine.Request{Gid: txn.Gid(g.Gid), Event: txn.Prepare{Spec: sp}, Want: engine.WantAccepted}, verbPrepareWorkflow)
}

// forceStop stops a transaction: nothing is called any more. DTM shows it as failed.
func (s *Server) forceStop(ctx context.Context, gid string) error {
	if err := checkGid(gid); err != nil {
		return err
	}
	_, err := s.do(ctx, engine.Request{Gid: txn.Gid(gid), Event: txn.Stop{}, Want: engine.WantAccepted}, verbForceStop)
	return err
}

// resetNextCronTime makes one transaction due now.
func (s *Server) resetNextCronTime(ctx context.Context, gid string) error {
	if err := checkGid(gid); err != nil {
		return err
	}
	_, err := s.do(ctx, engine.Request{Gid: txn.Gid(gid), Event: txn.Retry{}, Want: engine.WantAccepted}, verbRetry)
	return err
}

// do carries out a request and puts its refusal into DTM's words.
func (s *Server) do(ctx context.Context, req engine.Request, v verb) (engine.Reply, error) {
	req.Patience = s.lim.Wait
	rep, err := s.engine.Do(ctx, req)
	if err == nil {
		return rep, nil
	}
	return rep, s.fault(err, v)
}
