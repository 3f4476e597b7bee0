package api_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-tx/lockstep/coordinator/api"
	"github.com/lockstep-tx/lockstep/coordinator/api/apipb"
	"github.com/lockstep-tx/lockstep/coordinator/dtmwire"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/invoke"
	"github.com/lockstep-tx/lockstep/coordinator/store/memstore"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// strict is an engine that carries every event through txn.Step and judges where it leads: what the API lets through
// must never bring a transaction into a state that breaks a rule.
type strict struct {
	t    *testing.T
	asks []engine.Request
}

func (s *strict) Do(_ context.Context, req engine.Request) (engine.Reply, error) {
	s.asks = append(s.asks, req)
	if err := dtmwire.CheckGid(string(req.Gid)); err != nil {
		s.t.Errorf("the gid %q reached the engine: %v", req.Gid, err)
	}
	st := txn.State{Gid: req.Gid}
	switch e := req.Event.(type) {
	case nil:
		return engine.Reply{State: st}, nil
	case txn.Prepare:
		s.callable(req.Gid, &e.Spec)
		e.At = 1
		req.Event = e
	case txn.Execute:
		s.callable(req.Gid, &e.Spec)
		e.At = 1
		req.Event = e
	case txn.Register:
		s.callable(req.Gid, &txn.Spec{Branches: []txn.Branch{e.Branch}})
	}
	next, _, err := txn.Step(st, req.Event)
	if err != nil {
		return engine.Reply{}, err
	}
	if err := txn.Check(&next); err != nil {
		s.t.Errorf("%+v leads to a bad state: %v", req.Event, err)
	}
	return engine.Reply{State: next}, nil
}

// callable judges a spec: every call that it leads to can be made.
func (s *strict) callable(gid txn.Gid, sp *txn.Spec) {
	plain := func(text string) bool {
		return !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' })
	}
	seen, overGRPC := map[txn.BranchID]bool{}, false
	if txn.Cycle(sp.Branches) >= 0 {
		s.t.Errorf("branches wait in a circle: %+v", sp.Branches)
	}
	for _, b := range sp.Branches {
		if b.ID == "" || seen[b.ID] || b.Confirm == "" {
			s.t.Errorf("branch %+v was let through", b)
		}
		seen[b.ID] = true
		for _, u := range []string{b.Try, b.Confirm, b.Cancel} {
			if u == "" || strings.HasPrefix(u, "http") && strings.Contains(u, "://") {
				continue
			}
			overGRPC = true
			if !plain(string(gid)) || !plain(string(b.ID)) {
				s.t.Errorf("gid %q, branch %q at %q was let through: gRPC's metadata cannot carry them", gid, b.ID, u)
			}
		}
	}
	for k, v := range sp.Opt.Headers {
		if strings.ContainsAny(k, " \t:\r\n") || strings.ContainsAny(v, "\r\n\x00") || (overGRPC && !plain(k+v)) {
			s.t.Errorf("the header %q: %q was let through", k, v)
		}
	}
}

func (s *strict) List(_ context.Context, f engine.Filter, _ string, limit int) ([]engine.Reply, string, error) {
	if limit < 1 || limit > 1000 {
		s.t.Errorf("a page of %d rows reached the engine", limit)
	}
	for _, p := range f.Phases {
		if _, ok := txn.ParsePhase(p.String()); !ok {
			s.t.Errorf("phase %d reached the engine", p)
		}
	}
	return nil, "", nil
}

func (*strict) LocalSlots() func(int) bool { return func(int) bool { return true } }
func (*strict) MakeDue(context.Context, time.Duration, int) (int, bool, error) {
	return 0, false, nil
}

// namesAField is how a refusal begins.
var namesAField = regexp.MustCompile(`^[a-z_]+(\.[a-z_]+)?: .`)

// FuzzRequest: whatever bytes come as a request of the native API, nothing panics; what is malformed is InvalidArgument,
// names its field and never reaches the engine; what is let through leads to sound states and to calls that can be made,
// and means the same when it is sent again.
func FuzzRequest(f *testing.F) {
	branch := &apipb.Branch{Id: "a", ConfirmUrl: "http://a/c", CancelUrl: "http://a/x", Payload: []byte("{}")}
	tried := &apipb.Branch{Id: "b", TryUrl: "a:1/p.S/T", ConfirmUrl: "a:1/p.S/C", CancelUrl: "a:1/p.S/X", After: []string{"a"}, UseResults: true}
	odd := &apipb.Branch{Id: "ä", ConfirmUrl: "a:1/p.S/C", CancelUrl: "grpcs://a:1/p.S/X"}
	header := &apipb.Options{TimeoutMs: 1, RetryLimit: 3, Headers: map[string]string{"a b": "c"}}
	for kind, m := range []proto.Message{
		&apipb.BeginRequest{Gid: "g", Branches: []*apipb.Branch{branch, branch}}, &apipb.ExecuteRequest{IdempotencyKey: "k", HashTag: "t", Branches: []*apipb.Branch{branch, tried}, Messages: []*apipb.Message{{Id: "m", Url: "http://a/m"}}, Wait: 4},
		&apipb.RegisterRequest{Gid: "g", Branch: branch}, &apipb.DecideRequest{Gid: "g", Wait: 9}, &apipb.DecideRequest{Gid: "g", Reason: "why"}, &apipb.GetRequest{Gid: "g\x01"},
		&apipb.ListRequest{Phases: []apipb.Phase{7}, Mode: "tcc", PageSize: 1 << 31},
		&apipb.BeginRequest{Gid: "ä", Branches: []*apipb.Branch{odd}}, &apipb.ExecuteRequest{Branches: []*apipb.Branch{branch}, Options: header}, &apipb.RegisterRequest{Gid: "g", Branch: odd},
	} {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(kind%7), raw)
	}
	f.Fuzz(func(t *testing.T, kind uint8, raw []byte) {
		type ask func(s *api.Server) error
		var in proto.Message
		var call ask
		ctx := context.Background()
		switch kind % 7 {
		case 0:
			m := &apipb.BeginRequest{}
			in, call = m, func(s *api.Server) error { _, err := s.Begin(ctx, m); return err }
		case 1:
			m := &apipb.ExecuteRequest{}
			in, call = m, func(s *api.Server) error { _, err := s.Execute(ctx, m); return err }
		case 2:
			m := &apipb.RegisterRequest{}
			in, call = m, func(s *api.Server) error { _, err := s.Register(ctx, m); return err }
		case 3:
			m := &apipb.DecideRequest{}
			in, call = m, func(s *api.Server) error { _, err := s.Commit(ctx, m); return err }
		case 4:
			m := &apipb.DecideRequest{}
			in, call = m, func(s *api.Server) error { _, err := s.Abort(ctx, m); return err }
		case 5:
			m := &apipb.GetRequest{}
			in, call = m, func(s *api.Server) error { _, err := s.Get(ctx, m); return err }
		case 6:
			m := &apipb.ListRequest{}
			in, call = m, func(s *api.Server) error { _, err := s.List(ctx, m); return err }
		}
		if proto.Unmarshal(raw, in) != nil {
			return
		}
		var first []engine.Request
		for again := range 2 {
			e := &strict{t: t}
			wire := dtmwire.New(e, memstore.New().KV(), invoke.DefaultAllow(), dtmwire.Limits{Branches: 20, PayloadBytes: 4096}, time.Now, nil)
			s := api.New(api.Config{Engine: e, Rules: wire, CheckGid: dtmwire.CheckGid, NewGid: func() string { return "made" }})
			err := call(s)
			if _, ok := status.FromError(err); !ok {
				t.Fatalf("%v is no status", err)
			}
			if status.Code(err) == codes.InvalidArgument && (len(e.asks) > 0 || !namesAField.MatchString(status.Convert(err).Message())) {
				t.Errorf("%v was refused with %q after %d requests to the engine", in, status.Convert(err).Message(), len(e.asks))
			}
			if err == nil && len(e.asks) == 0 && kind%7 != 6 {
				t.Errorf("%v was taken and never reached the engine", in)
			}
			if again == 0 {
				first = e.asks
			} else if d := cmp.Diff(fmt.Sprintf("%+v", first), fmt.Sprintf("%+v", e.asks)); d != "" {
				t.Errorf("sent again it means something else (-first +again):\n%s", d)
			}
		}
	})
}
