package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lockstep-tx/lockstep/coordinator/api"
	"github.com/lockstep-tx/lockstep/coordinator/api/apipb"
	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/coordinator/dtmwire"
	"github.com/lockstep-tx/lockstep/coordinator/dtmwire/dtmwiretest"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/invoke"
	"github.com/lockstep-tx/lockstep/coordinator/store/memstore"
)

// rig is a coordinator with the native API, a client, and a participant that answers as told.
func rig(t *testing.T) (*client.Client, *dtmwiretest.Participant, *dtmwiretest.Rig) {
	t.Helper()
	r := dtmwiretest.Start(t, dtmwiretest.Options{})
	wire := dtmwire.New(r.Runner, memstore.New().KV(), invoke.DefaultAllow(), dtmwire.Limits{Branches: 20}, r.Clock.Now, nil)
	g := grpc.NewServer()
	api.New(api.Config{Engine: r.Runner, Rules: wire, CheckGid: dtmwire.CheckGid, NewGid: wire.NewGid}).RegisterGRPC(g)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-served })
	c, err := client.Dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, dtmwiretest.NewParticipant(t), r
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func branches(p *dtmwiretest.Participant, ids ...string) []client.Branch {
	var out []client.Branch
	for _, id := range ids {
		out = append(out, client.Branch{ID: id, Try: p.HTTP("try"), Confirm: p.HTTP("confirm"), Cancel: p.HTTP("cancel"), Payload: []byte(`{"n":1}`)})
	}
	return out
}

func untried(bs []client.Branch) []client.Branch {
	for i := range bs {
		bs[i].Try = ""
	}
	return bs
}

func TestExecuteTriesDecidesAndConfirms(t *testing.T) {
	c, p, _ := rig(t)
	st, err := c.Execute(within(t), client.Tx{Gid: "g", Branches: branches(p, "a", "b"), Messages: []client.Message{{ID: "m", URL: p.HTTP("message"), Payload: []byte(`{}`)}}}, client.Finished)
	if err != nil || st.GetPhase() != apipb.Phase_PHASE_COMMITTED || !st.Committed() || !st.Ended() {
		t.Fatalf("%v, %v", st.Transaction, err)
	}
	for _, id := range []string{"a", "b"} {
		if p.Count("g", id, "try") != 1 || p.Count("g", id, "confirm") != 1 || p.Count("g", id, "cancel") != 0 {
			t.Errorf("%s: %v", id, p.Ops("g"))
		}
	}
	if p.Count("g", "m", "action") != 1 {
		t.Errorf("the message was delivered %d times", p.Count("g", "m", "action"))
	}
}

func TestARefusedTryCancelsAllAndNoMessageLeaves(t *testing.T) {
	c, p, _ := rig(t)
	p.Always("b", "try", dtmwiretest.Failure)
	st, err := c.Execute(within(t), client.Tx{Gid: "g", Branches: branches(p, "a", "b"), Messages: []client.Message{{ID: "m", URL: p.HTTP("message")}}}, client.Finished)
	if err != nil || st.GetPhase() != apipb.Phase_PHASE_ABORTED || !strings.Contains(st.GetReason(), "insufficient funds") {
		t.Fatalf("%v, %v", st.Transaction, err)
	}
	// b too: a late copy of its try must meet a tombstone.
	if p.Count("g", "a", "cancel") != 1 || p.Count("g", "b", "cancel") != 1 || p.Count("g", "m", "action") != 0 {
		t.Errorf("%v", p.Ops("g"))
	}
}

// Settled answers though a message's receiver is out of order; finished waits for it.
func TestMilestones(t *testing.T) {
	c, p, r := rig(t)
	p.Always("m", "action", dtmwiretest.Broken)
	st, err := c.Execute(within(t), client.Tx{Gid: "g", Branches: branches(p, "a"), Messages: []client.Message{{ID: "m", URL: p.HTTP("message")}}}, client.Settled)
	if err != nil || st.GetPhase() != apipb.Phase_PHASE_COMMITTING {
		t.Fatalf("settled: %v, %v", st.Transaction, err)
	}
	p.Always("m", "action", dtmwiretest.Success)
	r.Advance(time.Minute)
	st, err = c.Commit(within(t), "g", client.Finished)
	if err != nil && status.Code(err) != codes.FailedPrecondition {
		t.Fatal(err)
	}
	if st, err = c.Get(within(t), "g"); err != nil || st.GetPhase() != apipb.Phase_PHASE_COMMITTED {
		t.Errorf("finished: %v, %v", st.Transaction, err)
	}
}

func TestAnIdempotencyKeyHasOneEffectAndOneAnswer(t *testing.T) {
	c, p, r := rig(t)
	tx := client.Tx{IdempotencyKey: "order-1", HashTag: "user42", Branches: branches(p, "a")}
	first, err := c.Execute(within(t), tx, client.Finished)
	if err != nil || !strings.HasPrefix(first.GetGid(), "{user42}") {
		t.Fatalf("%v, %v", first.Transaction, err)
	}
	for _, when := range []string{"while it is live", "from the journal"} {
		again, err := c.Execute(within(t), tx, client.Decided)
		if err != nil || again.GetGid() != first.GetGid() || !again.Committed() {
			t.Errorf("%s: %v, %v", when, again.Transaction, err)
		}
		other := tx
		other.Branches = branches(p, "a", "b")
		if _, err := c.Execute(within(t), other, client.Decided); status.Code(err) != codes.AlreadyExists {
			t.Errorf("%s: another body: %v", when, err)
		}
		r.Await(first.GetGid(), "succeed")
	}
	if n := p.Count(first.GetGid(), "a", "try"); n != 1 {
		t.Errorf("%d tries", n)
	}
}

// The same key with another body is a clear error, at Begin as at Execute, whatever became of the first; the first stays.
func TestBeginWithTheSameKeyAndAnotherBodyIsRefused(t *testing.T) {
	c, p, _ := rig(t)
	ctx := within(t)
	tx := client.Tx{IdempotencyKey: "order-1", Branches: untried(branches(p, "a"))}
	first, err := c.Begin(ctx, tx)
	if err != nil {
		t.Fatal(err)
	}
	other := tx
	other.Branches = untried(branches(p, "a"))
	other.Branches[0].Payload = []byte(`{"n":2}`)
	refused := func(when string) {
		t.Helper()
		for what, begin := range map[string]func() (client.State, error){
			"begin": func() (client.State, error) { return c.Begin(ctx, other) }, "without branches": func() (client.State, error) { return c.Begin(ctx, client.Tx{IdempotencyKey: "order-1"}) },
		} {
			if st, err := begin(); status.Code(err) != codes.FailedPrecondition && status.Code(err) != codes.AlreadyExists || !strings.Contains(status.Convert(err).Message(), "idempotency key") {
				t.Errorf("%s, %s: %v, %v", when, what, st.Transaction, err)
			}
		}
		if again, err := c.Begin(ctx, tx); when == "prepared" && (err != nil || again.GetGid() != first.GetGid()) {
			t.Errorf("%s: the same again: %v, %v", when, again.Transaction, err)
		}
	}
	refused("prepared")
	if st, err := c.Get(ctx, first.GetGid()); err != nil || len(st.GetBranches()) != 1 {
		t.Errorf("%v, %v", st.Transaction, err)
	}
	if st, err := c.Commit(ctx, first.GetGid(), client.Finished); err != nil || !st.Committed() {
		t.Fatal(st, err)
	}
	refused("committed")
}

func TestBeginRegisterCommit(t *testing.T) {
	c, p, _ := rig(t)
	ctx := within(t)
	st, err := c.Begin(ctx, client.Tx{Branches: untried(branches(p, "a"))})
	if err != nil || st.GetPhase() != apipb.Phase_PHASE_PREPARED {
		t.Fatalf("%v, %v", st.Transaction, err)
	}
	gid := st.GetGid()
	if _, err := c.Register(ctx, gid, untried(branches(p, "b"))[0]); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a repeat has the same answer
		if st, err = c.Commit(ctx, gid, client.Settled); err != nil || !st.Committed() {
			t.Fatalf("%v, %v", st.Transaction, err)
		}
	}
	if _, err := c.Abort(ctx, gid, "late", client.Decided); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("an abort after the commit: %v", err)
	}
	if p.Count(gid, "a", "confirm") != 1 || p.Count(gid, "b", "confirm") != 1 {
		t.Errorf("%v", p.Ops(gid))
	}
}

func TestAResultIsPassedOn(t *testing.T) {
	c, p, _ := rig(t)
	p.Always("quote", "try", dtmwiretest.Answer{Body: `{"rate":7}`})
	for _, form := range []string{"http", "grpc"} {
		bs := branches(p, "quote", "pay")
		if form == "grpc" {
			bs[1].Try, bs[1].Confirm, bs[1].Cancel = p.GRPC("Try"), p.GRPC("Confirm"), p.GRPC("Cancel")
		}
		bs[1].After, bs[1].UseResults = []string{"quote"}, true
		if st, err := c.Execute(within(t), client.Tx{Gid: form, Branches: bs}, client.Finished); err != nil || !st.Committed() {
			t.Fatalf("%s: %v, %v", form, st.Transaction, err)
		}
		call := p.Calls(form, "pay", "try")[0]
		if form == "grpc" {
			if got := call.Header.Get("lockstep-result-quote-bin"); got != `{"rate":7}` {
				t.Errorf("metadata %q in %v", got, call.Header)
			}
			continue
		}
		var body struct {
			N       int
			Results map[string]struct{ Rate int }
		}
		if err := json.Unmarshal(call.Body, &body); err != nil || body.N != 1 || body.Results["quote"].Rate != 7 {
			t.Errorf("the body is %s", call.Body)
		}
	}
}

func TestWatchTellsEveryChangeUntilTheEnd(t *testing.T) {
	c, p, _ := rig(t)
	ctx := within(t)
	st, err := c.Begin(ctx, client.Tx{Branches: untried(branches(p, "a"))})
	if err != nil {
		t.Fatal(err)
	}
	var seen []apipb.Phase
	err = c.Watch(ctx, st.GetGid(), func(s client.State) error {
		if seen = append(seen, s.GetPhase()); len(seen) == 1 {
			go func() { _, _ = c.Commit(ctx, st.GetGid(), client.Accepted) }() // what it leads to is watched
		}
		return nil
	})
	if err != nil || seen[0] != apipb.Phase_PHASE_PREPARED || seen[len(seen)-1] != apipb.Phase_PHASE_COMMITTED {
		t.Errorf("%v, %v", seen, err)
	}
	if _, err := c.Get(ctx, "nobody"); status.Code(err) != codes.NotFound {
		t.Errorf("an unknown gid: %v", err)
	}
}

func TestListPagesThroughAll(t *testing.T) {
	c, p, _ := rig(t)
	ctx := within(t)
	for i := range 25 {
		if _, err := c.Begin(ctx, client.Tx{Gid: fmt.Sprintf("page-%02d", i), Branches: untried(branches(p, "a"))}); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]bool{}
	for token := ""; ; {
		page, next, err := c.List(ctx, &apipb.ListRequest{PageSize: 10, PageToken: token, GidPrefix: "page-", Phases: []apipb.Phase{apipb.Phase_PHASE_PREPARED}})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range page {
			if seen[s.GetGid()] {
				t.Errorf("%s stands twice", s.GetGid())
			}
			seen[s.GetGid()] = true
		}
		if token = next; token == "" {
			break
		}
	}
	if len(seen) != 25 {
		t.Errorf("%d of 25 were listed", len(seen))
	}
}

// Each is refused with the field's name, and nothing is stored.
func TestBadInputIsRefusedAtTheDoor(t *testing.T) {
	c, p, r := rig(t)
	ok := func() client.Tx { return client.Tx{Gid: "bad", Branches: branches(p, "a", "b")} }
	for name, tc := range map[string]struct {
		change func(*client.Tx)
		says   string
	}{
		"no branches":      {func(x *client.Tx) { x.Branches = nil }, "branches"},
		"two of one id":    {func(x *client.Tx) { x.Branches[1].ID = "a" }, "stands twice"},
		"no id":            {func(x *client.Tx) { x.Branches[0].ID = "" }, "branches"},
		"no confirm":       {func(x *client.Tx) { x.Branches[0].Confirm = "" }, "confirm_url"},
		"a circle":         {func(x *client.Tx) { x.Branches[0].After, x.Branches[1].After = []string{"b"}, []string{"a"} }, "circle"},
		"waits for nobody": {func(x *client.Tx) { x.Branches[0].After = []string{"zz"} }, "zz"},
		"a result of Odd id": {func(x *client.Tx) {
			x.Branches[0].ID, x.Branches[1].After, x.Branches[1].UseResults = "Odd id", []string{"Odd id"}, true
		}, "gRPC metadata"},
		"link-local":             {func(x *client.Tx) { x.Branches[0].Try = "http://169.254.169.254/" }, "not allowed"},
		"no address":             {func(x *client.Tx) { x.Branches[0].Try = "nonsense" }, "no '/' found"},
		"gid and key":            {func(x *client.Tx) { x.IdempotencyKey = "k" }, "idempotency_key"},
		"tag without key":        {func(x *client.Tx) { x.HashTag = "u" }, "hash_tag"},
		"an odd gid":             {func(x *client.Tx) { x.Gid = "a;b" }, "gid"},
		"a negative timeout":     {func(x *client.Tx) { x.Options.Timeout = -time.Second }, "timeout_ms"},
		"a message without url":  {func(x *client.Tx) { x.Messages = []client.Message{{ID: "m"}} }, "messages"},
		"too many branches":      {func(x *client.Tx) { x.Branches = branches(p, strings.Split("abcdefghijklmnopqrstu", "")...) }, "at most 20"},
		"a header with a break":  {func(x *client.Tx) { x.Options.Headers = map[string]string{"x": "a\r\nb"} }, "headers"},
		"a message named branch": {func(x *client.Tx) { x.Messages = []client.Message{{ID: "a", URL: p.HTTP("m")}} }, "stands twice"},
	} {
		tx := ok()
		tc.change(&tx)
		_, err := c.Execute(within(t), tx, client.Decided)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want InvalidArgument with %q", name, err, tc.says)
		}
	}
	if n := r.Live(); n != 0 {
		t.Errorf("%d transactions were stored", n)
	}
	if _, err := c.Commit(within(t), "never", client.Decided); status.Code(err) != codes.NotFound {
		t.Errorf("commit of what was never begun: %v", err)
	}
}

var _ api.Engine = (*engine.Runner)(nil)
