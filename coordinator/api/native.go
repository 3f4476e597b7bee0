// Package api is the native API: one gRPC service for programs. What DTM's protocol cannot say is said here: all
// branches in one call, tries that the coordinator drives, idempotency keys, messages that go with a transaction.
//
// The law it keeps: a request that is sent twice has one effect and one answer, and a refusal says which field is
// wrong. It is tested through its own client, the package client.
package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-tx/lockstep/coordinator/api/apipb"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// Engine is what the API needs of the engine.
type Engine interface {
	Do(ctx context.Context, req engine.Request) (engine.Reply, error)
	List(ctx context.Context, f engine.Filter, cursor string, limit int) ([]engine.Reply, string, error)
}

// Rules judge what a request carries; they are the same for every protocol.
type Rules interface {
	// CheckBranches bounds the branches of a transaction and refuses those that can never be called; headers go with
	// every call.
	CheckBranches(gid string, bs []txn.Branch, headers map[string]string) error
}

// Config of a Server.
type Config struct {
	Engine Engine
	Rules  Rules
	// CheckGid says why a gid cannot be used.
	CheckGid func(gid string) error
	// NewGid makes a gid.
	NewGid func() string
	// Tenant names who asks; nil where there are no tenants.
	Tenant func(ctx context.Context) string
	// Global: there is an arbiter, so that a decision can be durable there. GlobalDefault: it is where the client does not
	// say.
	Global, GlobalDefault bool
	// WaitMax bounds an answer that waits. 0 means 60 s.
	WaitMax time.Duration
}

// Server is apipb.CoordinatorServer. Safe for concurrent use.
type Server struct {
	apipb.UnimplementedCoordinatorServer
	cfg Config
}

// New makes a Server.
func New(cfg Config) *Server {
	if cfg.WaitMax == 0 {
		cfg.WaitMax = time.Minute
	}
	if cfg.Tenant == nil {
		cfg.Tenant = func(context.Context) string { return "" }
	}
	return &Server{cfg: cfg}
}

// RegisterGRPC adds the service to a gRPC server.
func (s *Server) RegisterGRPC(g grpc.ServiceRegistrar) { apipb.RegisterCoordinatorServer(g, s) }

// begun is what Begin and Execute have in common.
type begun interface {
	proto.Message
	GetGid() string
	GetIdempotencyKey() string
	GetHashTag() string
	GetBranches() []*apipb.Branch
	GetMessages() []*apipb.Message
	GetOptions() *apipb.Options
}

func invalid(field, format string, args ...any) error {
	return status.Error(codes.InvalidArgument, field+": "+fmt.Sprintf(format, args...))
}

// identify gives the gid of a request and the digest of its body. With an idempotency key the gid is made of the hash
// tag, the tenant and the key alone, so that a repeat finds the first one wherever it arrives.
func (s *Server) identify(ctx context.Context, in begun) (txn.Gid, string, string, error) {
	tenant, key, tag := s.cfg.Tenant(ctx), in.GetIdempotencyKey(), in.GetHashTag()
	gid := in.GetGid()
	switch {
	case key != "" && gid != "":
		return "", "", "", invalid("idempotency_key", "give a gid or an idempotency key, not both")
	case tag != "" && key == "":
		return "", "", "", invalid("hash_tag", "it goes with an idempotency key; in a gid write {tag} yourself")
	case len(key) > 256 || !utf8.ValidString(key):
		return "", "", "", invalid("idempotency_key", "it is not a text of at most 256 bytes")
	case len(tag) > 64 || strings.ContainsAny(tag, "{}"):
		return "", "", "", invalid("hash_tag", "it has at most 64 bytes and no braces")
	case key != "":
		sum := sha256.Sum256([]byte(tenant + "\x00" + key))
		gid = hex.EncodeToString(sum[:16])
		if tag != "" {
			gid = "{" + tag + "}" + gid
		}
	case gid == "":
		gid = s.cfg.NewGid()
	}
	if err := s.cfg.CheckGid(gid); err != nil {
		return "", "", "", status.Error(codes.InvalidArgument, err.Error())
	}
	digest, err := digestOf(in)
	return txn.Gid(gid), digest, tenant, err
}

// digestOf is a hash of what the request asks for: not of its id, nor of how long its sender waits.
func digestOf(in begun) (string, error) {
	body := &apipb.ExecuteRequest{Branches: in.GetBranches(), Messages: in.GetMessages(), Options: in.GetOptions()}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		return "", invalid("body", "%v", err)
	}
	sum := sha256.Sum256(raw)
	return string(sum[:]), nil
}

// spec checks a request and turns it into what the core takes.
func (s *Server) spec(gid txn.Gid, in begun, driven bool) (txn.Spec, error) {
	sp := txn.Spec{Mode: txn.ModeTCC}
	var err error
	if sp.Opt, err = optionsOf(in.GetOptions()); err != nil {
		return sp, err
	}
	if sp.Opt.Durability, err = s.durability(in.GetOptions().GetDurability()); err != nil {
		return sp, err
	}
	index := map[string]int{}
	for i, b := range in.GetBranches() {
		if err := checkID("branches", b.GetId(), index); err != nil {
			return sp, err
		}
		index[b.GetId()] = i
		if b.GetConfirmUrl() == "" || b.GetCancelUrl() == "" {
			return sp, invalid("branches", "branch %q needs confirm_url and cancel_url", b.GetId())
		}
		if !driven && (b.GetTryUrl() != "" || len(b.GetAfter()) > 0 || b.GetUseResults()) {
			return sp, invalid("branches", "branch %q: try_url, after and use_results are for Execute; with Begin the caller makes the tries", b.GetId())
		}
		sp.Branches = append(sp.Branches, txn.Branch{
			ID: txn.BranchID(b.GetId()), Try: b.GetTryUrl(), Confirm: b.GetConfirmUrl(), Cancel: b.GetCancelUrl(), Payload: b.GetPayload(), UseResults: b.GetUseResults(),
			Account: b.GetAccount(),
		})
	}
	for i, b := range in.GetBranches() {
		for _, id := range b.GetAfter() {
			j, ok := index[id]
			if !ok || j == i {
				return sp, invalid("branches", "branch %q cannot wait for %q: no such other branch", b.GetId(), id)
			}
			if b.GetUseResults() && strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
				return sp, invalid("branches", "branch %q uses the result of %q: such an id has small letters, digits and -_. alone (it names gRPC metadata)", b.GetId(), id)
			}
			sp.Branches[i].After = append(sp.Branches[i].After, j)
		}
	}
	if i := txn.Cycle(sp.Branches); i >= 0 {
		return sp, invalid("branches", "branch %q waits for itself in a circle", in.GetBranches()[i].GetId())
	}
	for _, m := range in.GetMessages() {
		if err := checkID("messages", m.GetId(), index); err != nil {
			return sp, err
		}
		index[m.GetId()] = len(sp.Branches)
		if m.GetUrl() == "" {
			return sp, invalid("messages", "message %q has no url", m.GetId())
		}
		sp.Branches = append(sp.Branches, txn.Branch{ID: txn.BranchID(m.GetId()), Confirm: m.GetUrl(), Payload: m.GetPayload(), Message: true})
	}
	if driven && len(in.GetBranches()) == 0 {
		return sp, invalid("branches", "there is nothing to execute")
	}
	if err := txn.FitsGlobal(&sp); err != nil {
		return sp, invalid("branches", "%v", err)
	}
	if err := s.cfg.Rules.CheckBranches(string(gid), sp.Branches, sp.Opt.Headers); err != nil {
		return sp, status.Error(codes.InvalidArgument, err.Error())
	}
	return sp, nil
}

// durability maps where the decision shall be durable.
func (s *Server) durability(d apipb.Durability) (txn.Durability, error) {
	switch d {
	case apipb.Durability_DURABILITY_UNSPECIFIED:
		if s.cfg.GlobalDefault {
			return txn.Global, nil
		}
		return txn.Regional, nil
	case apipb.Durability_DURABILITY_REGIONAL:
		return txn.Regional, nil
	case apipb.Durability_DURABILITY_GLOBAL:
		if !s.cfg.Global {
			return 0, invalid("options.durability", "global needs an arbiter, and this coordinator has none (--regions-file); ask for regional")
		}
		return txn.Global, nil
	}
	return 0, invalid("options.durability", "%d is unknown", d)
}

func checkID(field, id string, seen map[string]int) error {
	if err := txn.CheckName(id); err != nil {
		return invalid(field, "id %.40q: %v", id, err)
	}
	if _, twice := seen[id]; twice {
		return invalid(field, "id %q stands twice", id)
	}
	return nil
}

func millis(field string, ms int64) (time.Duration, error) {
	if ms < 0 || ms > 10*365*24*3600*1000 {
		return 0, invalid("options."+field, "%d ms is out of range: 0 (the default) to ten years", ms)
	}
	return time.Duration(ms) * time.Millisecond, nil
}

func optionsOf(o *apipb.Options) (txn.Options, error) {
	var out txn.Options
	var err error
	if out.Timeout, err = millis("timeout_ms", o.GetTimeoutMs()); err != nil {
		return out, err
	}
	if out.RequestTimeout, err = millis("request_timeout_ms", o.GetRequestTimeoutMs()); err != nil {
		return out, err
	}
	if out.RetryInterval, err = millis("retry_interval_ms", o.GetRetryIntervalMs()); err != nil {
		return out, err
	}
	if o.GetRetryLimit() > math.MaxInt32 {
		return out, invalid("options.retry_limit", "%d is out of range", o.GetRetryLimit())
	}
	out.RetryLimit = int(o.GetRetryLimit())
	if len(o.GetHeaders()) > 0 {
		out.Headers = o.GetHeaders()
	}
	return out, nil
}

// wants maps a wait.
func wants(w apipb.Wait) (engine.Want, error) {
	switch w {
	case apipb.Wait_WAIT_ACCEPTED:
		return engine.WantAccepted, nil
	case apipb.Wait_WAIT_UNSPECIFIED, apipb.Wait_WAIT_DECIDED:
		return engine.WantDecided, nil
	case apipb.Wait_WAIT_SETTLED:
		return engine.WantSettled, nil
	case apipb.Wait_WAIT_FINISHED:
		return engine.WantFinished, nil
	}
	return 0, invalid("wait", "unknown milestone %d", w)
}

// do carries a request out.
func (s *Server) do(ctx context.Context, req engine.Request) (*apipb.Transaction, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.WaitMax)
	defer cancel()
	rep, err := s.cfg.Engine.Do(ctx, req)
	if err != nil {
		return nil, Status(ctx, err)
	}
	return transactionOf(&rep.State), nil
}

// Status puts an error of the engine into the API's form.
func Status(ctx context.Context, err error) error {
	var te *txn.Error
	var oe *engine.OverloadedError
	switch {
	case errors.As(err, &te):
		return status.Error(codeOf(te.Code), te.Error())
	case errors.As(err, &oe):
		_ = grpc.SetTrailer(ctx, metadata.Pairs("retry-after", strconv.Itoa(max(1, int(oe.RetryAfter/time.Second)))))
		return status.Error(codes.ResourceExhausted, oe.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the wait is over; the transaction goes on, ask for it with Get")
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the caller went away; the transaction goes on")
	}
	return status.Error(codes.Unavailable, "nothing is known of the outcome; repeat the same request: "+err.Error())
}

func codeOf(c txn.Code) codes.Code {
	switch c {
	case txn.CodeInvalid:
		return codes.InvalidArgument
	case txn.CodeNotFound:
		return codes.NotFound
	case txn.CodePhase, txn.CodeStaleEpoch, txn.CodeIncomplete:
		return codes.FailedPrecondition
	case txn.CodeMismatch, txn.CodeDuplicateStep:
		return codes.AlreadyExists
	}
	return codes.Unknown
}

// Begin is apipb.CoordinatorServer's.
func (s *Server) Begin(ctx context.Context, in *apipb.BeginRequest) (*apipb.Transaction, error) {
	gid, digest, tenant, err := s.identify(ctx, in)
	if err != nil {
		return nil, err
	}
	sp, err := s.spec(gid, in, false)
	if err != nil {
		return nil, err
	}
	sp.Digest, sp.Tenant = digest, tenant
	return s.do(ctx, engine.Request{Gid: gid, Event: txn.Prepare{Spec: sp}, Want: engine.WantAccepted})
}

// Execute is apipb.CoordinatorServer's.
func (s *Server) Execute(ctx context.Context, in *apipb.ExecuteRequest) (*apipb.Transaction, error) {
	want, err := wants(in.GetWait())
	if err != nil {
		return nil, err
	}
	gid, digest, tenant, err := s.identify(ctx, in)
	if err != nil {
		return nil, err
	}
	sp, err := s.spec(gid, in, true)
	if err != nil {
		return nil, err
	}
	sp.Digest, sp.Tenant = digest, tenant
	return s.do(ctx, engine.Request{Gid: gid, Event: txn.Execute{Spec: sp}, Want: want})
}

// Register is apipb.CoordinatorServer's.
func (s *Server) Register(ctx context.Context, in *apipb.RegisterRequest) (*apipb.Transaction, error) {
	b := in.GetBranch()
	if err := s.cfg.CheckGid(in.GetGid()); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := checkID("branch", b.GetId(), nil); err != nil {
		return nil, err
	}
	if b.GetConfirmUrl() == "" || b.GetCancelUrl() == "" || b.GetTryUrl() != "" {
		return nil, invalid("branch", "it needs confirm_url and cancel_url, and no try_url: the caller makes the try")
	}
	br := txn.Branch{ID: txn.BranchID(b.GetId()), Confirm: b.GetConfirmUrl(), Cancel: b.GetCancelUrl(), Payload: b.GetPayload(), Account: b.GetAccount()}
	if err := s.cfg.Rules.CheckBranches(in.GetGid(), []txn.Branch{br}, nil); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return s.do(ctx, engine.Request{Gid: txn.Gid(in.GetGid()), Event: txn.Register{Mode: txn.ModeTCC, Branch: br}, Want: engine.WantAccepted})
}

// Commit is apipb.CoordinatorServer's.
func (s *Server) Commit(ctx context.Context, in *apipb.DecideRequest) (*apipb.Transaction, error) {
	return s.decide(ctx, in, true)
}

// Abort is apipb.CoordinatorServer's.
func (s *Server) Abort(ctx context.Context, in *apipb.DecideRequest) (*apipb.Transaction, error) {
	return s.decide(ctx, in, false)
}

// decide asks for a decision. One that stands already the same way is a good answer: G1.
func (s *Server) decide(ctx context.Context, in *apipb.DecideRequest, commit bool) (*apipb.Transaction, error) {
	want, err := wants(in.GetWait())
	if err != nil {
		return nil, err
	}
	if err := s.cfg.CheckGid(in.GetGid()); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	req := engine.Request{Gid: txn.Gid(in.GetGid()), Event: txn.Submit{Spec: txn.Spec{Mode: txn.ModeTCC}}, Want: want}
	if !commit {
		req.Event = txn.Abort{Mode: txn.ModeTCC, Reason: strings.ToValidUTF8(in.GetReason(), "?")}
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.WaitMax)
	defer cancel()
	rep, err := s.cfg.Engine.Do(ctx, req)
	var te *txn.Error
	if errors.As(err, &te) && te.Code == txn.CodePhase && te.Phase.Finished() && te.Phase.Commit() == commit && !te.Stopped {
		rep, err = s.cfg.Engine.Do(ctx, engine.Request{Gid: req.Gid, Want: engine.WantAccepted})
	}
	if err != nil {
		return nil, Status(ctx, err)
	}
	return transactionOf(&rep.State), nil
}

// NewGid is apipb.CoordinatorServer's.
func (s *Server) NewGid(context.Context, *apipb.NewGidRequest) (*apipb.NewGidReply, error) {
	return &apipb.NewGidReply{Gid: s.cfg.NewGid()}, nil
}
