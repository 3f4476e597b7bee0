//go:build servers

package redisbarrier_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/barrier/redisbarrier"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// redisURL names a database of the server with appendfsync always that no other package uses.
func redisURL(t *testing.T) string {
	t.Helper()
	v := os.Getenv("LOCKSTEP_TEST_REDIS_AOF_URL")
	if v == "" {
		t.Fatal("LOCKSTEP_TEST_REDIS_AOF_URL is not set: run the tests with make test, which starts the servers")
	}
	return strings.TrimSuffix(v, "/0") + "/9"
}

var fixtures atomic.Int64

// fixture is a barrier with fences of its own, and a name that no other test's keys begin with.
type fixture struct {
	name   string
	client *redis.Client
	b      *redisbarrier.Barrier
}

func open(t *testing.T, o redisbarrier.Options) fixture {
	t.Helper()
	c, err := redisbarrier.Open(t.Context(), redisURL(t))
	if err != nil {
		t.Fatal(err)
	}
	f := fixture{name: fmt.Sprintf("t%d.%d.", os.Getpid(), fixtures.Add(1)), client: c}
	o.Prefix = f.name
	t.Cleanup(func() {
		var fences []string
		for n := range barrier.SlotCount {
			fences = append(fences, fmt.Sprintf("%s:fence:%d", o.Prefix, n))
		}
		if err := errors.Join(c.Unlink(context.Background(), fences...).Err(), c.Close()); err != nil {
			t.Error(err)
		}
	})
	for range 2 {
		if err := redisbarrier.Migrate(t.Context(), c, o); err != nil {
			t.Fatal(err)
		}
	}
	if f.b, err = redisbarrier.New(c, o); err != nil {
		t.Fatal(err)
	}
	return f
}

func call(transType, gid, op string, epoch int64) *barrier.Call {
	c := &barrier.Call{TransType: transType, Gid: gid, BranchID: "01", Op: op}
	if epoch > 0 {
		c.Fence = barrier.Fence{Slot: barrier.SlotOf(gid), Epoch: epoch}
	}
	return c
}

// effect counts in a key.
func (f fixture) effect(op string) redisbarrier.Work {
	return redisbarrier.Work{Changes: []redisbarrier.Change{{Key: f.name + "effect", Field: op, By: 1, Create: true}}}
}

func (f fixture) effects(t *testing.T, op string) int {
	t.Helper()
	n, err := f.client.HGet(t.Context(), f.name+"effect", op).Int()
	if err != nil && !errors.Is(err, redis.Nil) {
		t.Fatal(err)
	}
	return n
}

// marks gives the marks of the fixture's gids with their values.
func (f fixture) marks(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	it := f.client.Scan(t.Context(), 0, "*"+f.name+"*", 1000).Iterator()
	for it.Next(t.Context()) {
		if strings.Contains(it.Val(), "-") {
			v, err := f.client.Get(t.Context(), it.Val()).Result()
			if err != nil {
				t.Fatal(err)
			}
			out[it.Val()] = v
		}
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// do makes a call on a gid of the fixture and checks its outcome, its error, and how often op has had its effect by then.
func (f fixture) do(t *testing.T, c *barrier.Call, want barrier.Outcome, wantErr error, effects int) {
	t.Helper()
	tag, rest, tagged := strings.Cut(strings.TrimPrefix(c.Gid, "{"), "}")
	if !strings.HasPrefix(c.Gid, slot.GidPrefix) {
		if tagged {
			c.Gid = "{" + tag + "}" + f.name + rest
		} else {
			c.Gid = f.name + c.Gid
		}
	}
	if c.Fence.Epoch > 0 {
		c.Fence.Slot = barrier.SlotOf(c.Gid)
	}
	got, err := f.b.Do(t.Context(), c, f.effect(c.Op))
	if got != want || !errors.Is(err, wantErr) || (wantErr == nil && err != nil) {
		t.Fatalf("%s: got %s and error %v, want %s and %v", c, got, err, want, wantErr)
	}
	if n := f.effects(t, c.Op); n != effects {
		t.Fatalf("%s: its effect is there %d times, want %d", c, n, effects)
	}
}

// Rule: a repeat of any operation succeeds and runs nothing.
func TestRepeatsOfEveryOperationRunNothing(t *testing.T) {
	for _, sequence := range [][]string{
		{"tcc", "try", "confirm"}, {"tcc", "try", "cancel"}, {"saga", "action", "compensate"},
		{"workflow", "action", "rollback"}, {"workflow", "action", "commit"}, {"msg", "action"}, {"tcc", "somebody's own op"},
	} {
		f := open(t, redisbarrier.Options{})
		for _, op := range sequence[1:] {
			f.do(t, call(sequence[0], "g1", op, 1), barrier.Done, nil, 1)
			f.do(t, call(sequence[0], "g1", op, 1), barrier.Repeated, nil, 1)
			f.do(t, call(sequence[0], "g1", op, 1), barrier.Repeated, nil, 1)
		}
	}
}

// Rule: a cancel before its try runs nothing and leaves a tombstone; the late try is refused and leaves nothing. A
// workflow's rollback too, which DTM's Redis barrier does not know.
func TestCancelBeforeTryLeavesTombstone(t *testing.T) {
	for _, ops := range [][3]string{{"tcc", "try", "cancel"}, {"saga", "action", "compensate"}, {"workflow", "action", "rollback"}} {
		f := open(t, redisbarrier.Options{})
		f.do(t, call(ops[0], "g1", ops[2], 1), barrier.Empty, nil, 0)
		f.do(t, call(ops[0], "g1", ops[1], 1), barrier.Unknown, barrier.ErrRefused, 0)
		f.do(t, call(ops[0], "g1", ops[2], 1), barrier.Repeated, nil, 0)
		want := map[string]string{f.name + "g1-01-" + ops[1] + "-01": "rollback", f.name + "g1-01-" + ops[2] + "-01": "op"}
		if got := f.marks(t); !maps.Equal(got, want) {
			t.Errorf("marks %v, want DTM's %v", got, want)
		}
	}
}

// Rule: confirm and cancel of one branch exclude each other, in both orders, and say so.
func TestConfirmAndCancelContradict(t *testing.T) {
	for _, ops := range [][4]string{
		{"tcc", "try", "confirm", "cancel"}, {"tcc", "try", "cancel", "confirm"},
		{"workflow", "action", "commit", "rollback"}, {"workflow", "action", "rollback", "commit"},
	} {
		f := open(t, redisbarrier.Options{})
		f.do(t, call(ops[0], "g1", ops[1], 1), barrier.Done, nil, 1)
		f.do(t, call(ops[0], "g1", ops[2], 1), barrier.Done, nil, 1)
		f.do(t, call(ops[0], "g1", ops[3], 9), barrier.Unknown, barrier.ErrContradiction, 0)
		f.do(t, call(ops[0], "g1", ops[2], 1), barrier.Repeated, nil, 1) // it spoilt nothing and raised nothing
	}
	f := open(t, redisbarrier.Options{})
	f.do(t, call("tcc", "g2", "cancel", 1), barrier.Empty, nil, 0)
	f.do(t, call("tcc", "g2", "confirm", 1), barrier.Unknown, barrier.ErrContradiction, 0)
}

// Rule: an older epoch is refused for every operation; a newer one is kept, by a repeat and an empty cancel too; an
// account's slot counts beside the transaction's.
func TestFence(t *testing.T) {
	f := open(t, redisbarrier.Options{})
	f.do(t, call("tcc", "{s}a", "try", 7), barrier.Done, nil, 1)
	before := f.marks(t)
	for _, op := range []string{"try", "confirm", "cancel"} {
		n := f.effects(t, op)
		f.do(t, call("tcc", "{s}a", op, 6), barrier.Unknown, barrier.ErrStale, n)
		f.do(t, call("tcc", "{s}b", op, 6), barrier.Unknown, barrier.ErrStale, n)
	}
	if err := f.b.QueryPrepared(t.Context(), call("msg", "{s}m", "msg", 6)); !errors.Is(err, barrier.ErrStale) {
		t.Error(err)
	}
	if after := f.marks(t); !maps.Equal(before, after) {
		t.Errorf("stale calls left %v", after)
	}
	f.do(t, call("tcc", "{s}a", "try", 8), barrier.Repeated, nil, 1)
	f.do(t, call("tcc", "{s}b", "try", 7), barrier.Unknown, barrier.ErrStale, 1)
	f.do(t, call("tcc", "{s}c", "cancel", 9), barrier.Empty, nil, 0)
	f.do(t, call("tcc", "{s}b", "try", 8), barrier.Unknown, barrier.ErrStale, 1)
	f.do(t, call("tcc", "{s}d", "try", 0), barrier.Done, nil, 2) // a client's try knows no epoch
	account := call("tcc", "{other}e", "try", 1)
	account.Account = barrier.Fence{Slot: barrier.SlotOf("s"), Epoch: 8}
	f.do(t, account, barrier.Unknown, barrier.ErrStale, 2)
	account = call("tcc", "{other}f", "try", 1)
	account.Account = barrier.Fence{Slot: barrier.SlotOf("s"), Epoch: 10}
	f.do(t, account, barrier.Done, nil, 3)
	f.do(t, call("tcc", "{s}g", "try", 9), barrier.Unknown, barrier.ErrStale, 3)
	for _, k := range [][2]string{{"tcc", "confirm"}, {"tcc", "cancel"}, {"saga", "action"}, {"msg", "action"}} {
		f.do(t, call(k[0], "u", k[1], 0), barrier.Unknown, barrier.ErrUnfenced, 0)
	}
	key := fmt.Sprintf("%s:fence:%d", f.name, barrier.SlotOf("s"))
	f.client.HSet(t.Context(), key, "copied", 1)
	f.do(t, call("tcc", "{s}h", "try", 0), barrier.Unknown, barrier.ErrStale, 3)
	f.do(t, call("tcc", "{s}h", "try", 10), barrier.Done, nil, 4)
	f.client.Del(t.Context(), key)
	got, err := f.b.Do(t.Context(), call("tcc", "{s}i", "try", 10), f.effect("try"))
	if got != barrier.Unknown || err == nil || errors.Is(err, barrier.ErrRefused) || errors.Is(err, barrier.ErrStale) {
		t.Errorf("without the fence: %s, %v", got, err)
	}
}

// Rule: duplicates are judged before the balance (DTM's defect D11), and a refusal leaves nothing.
func TestBusinessIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	f := open(t, redisbarrier.Options{})
	ctx := t.Context()
	account := f.name + "alice"
	work := func(gid, op string, w redisbarrier.Work) (barrier.Outcome, error) {
		return f.b.Do(ctx, call("tcc", f.name+gid, op, 3), w)
	}
	if got, err := work("g1", "try", redisbarrier.Freeze(account, 1)); !errors.Is(err, barrier.ErrRefused) {
		t.Fatal("a missing account:", got, err)
	}
	if got, err := work("g1", "try", redisbarrier.Work{Changes: []redisbarrier.Change{{Key: account, Field: redisbarrier.Available, By: 1}}}); !errors.Is(err, barrier.ErrRefused) {
		t.Fatal("a credit to a missing account:", got, err)
	}
	f.client.HSet(ctx, account, redisbarrier.Available, 100)
	for n, want := range []barrier.Outcome{barrier.Done, barrier.Repeated} {
		if got, err := work("g2", "try", redisbarrier.Freeze(account, 70)); got != want || err != nil {
			t.Fatal(n, got, err)
		}
	}
	for range 2 {
		if got, err := work("g3", "try", redisbarrier.Freeze(account, 31)); !errors.Is(err, barrier.ErrRefused) {
			t.Fatal(got, err)
		}
	}
	mustBe := func(available, frozen string) {
		t.Helper()
		if got, err := f.client.HMGet(ctx, account, redisbarrier.Available, redisbarrier.Frozen).Result(); err != nil || got[0] != available || got[1] != frozen {
			t.Fatalf("%v, %v; want %s and %s", got, err, available, frozen)
		}
	}
	mustBe("30", "70")
	if got, err := work("g4", "try", redisbarrier.Freeze(account, 30)); got != barrier.Done {
		t.Fatal(got, err)
	}
	if got, err := work("g2", "confirm", redisbarrier.Spend(account, 70)); got != barrier.Done {
		t.Fatal(got, err)
	}
	for range 2 {
		if got, err := work("g4", "cancel", redisbarrier.Release(account, 30)); err != nil {
			t.Fatal(got, err)
		}
		if got, err := work("g2", "confirm", redisbarrier.Spend(account, 70)); got != barrier.Repeated {
			t.Fatal(got, err)
		}
	}
	mustBe("30", "0")
	if len(f.marks(t)) != 4 {
		t.Errorf("marks %v: want two tries, a confirm and a cancel", f.marks(t))
	}
	// Of several changes all are made or none; the second counts on the first.
	split := redisbarrier.Work{Changes: []redisbarrier.Change{
		{Key: account, Field: redisbarrier.Available, By: -20}, {Key: f.name + "bob", By: 20, Create: true}, {Key: account, Field: redisbarrier.Available, By: -20}}}
	if got, err := work("g5", "try", split); !errors.Is(err, barrier.ErrRefused) || f.client.Exists(ctx, f.name+"bob").Val() != 0 {
		t.Fatal(got, err)
	}
	split.Changes[2].Overdraft = 10
	if got, err := work("g5", "try", split); got != barrier.Done || f.client.Get(ctx, f.name+"bob").Val() != "20" {
		t.Fatal(got, err)
	}
	mustBe("-10", "0")
	for name, c := range map[string]redisbarrier.Change{
		"too large": {Key: account, Field: redisbarrier.Available, By: 1<<53 - 1}, "much too large": {Key: account, Field: redisbarrier.Available, By: 1 << 60},
		"wrong type": {Key: account, By: 1}, "no number": {Key: f.name + "word", By: 1}, "huge": {Key: f.name + "huge", By: 1}, "the barrier's": {Key: f.name + "g6-01-try-01", By: 1}} {
		f.client.Set(ctx, f.name+"word", "1e3", 0)
		f.client.Set(ctx, f.name+"huge", "9007199254740993", 0)
		got, err := work("g6", "try", redisbarrier.Work{Changes: []redisbarrier.Change{{Key: f.name + "bob", By: 1}, c}})
		if (err == nil) != (name == "too large") || f.client.Get(ctx, f.name+"bob").Val() != "20" && name != "too large" {
			t.Errorf("%s: %s, %v; bob %s", name, got, err, f.client.Get(ctx, f.name+"bob").Val())
		}
		if name == "too large" { // -10 + the largest is possible; once more is not
			if got, err := work("g7", "try", redisbarrier.Work{Changes: []redisbarrier.Change{c}}); !errors.Is(err, barrier.ErrRefused) {
				t.Errorf("%s: %v", got, err)
			}
			f.client.HSet(ctx, account, redisbarrier.Available, 0)
			f.client.Set(ctx, f.name+"bob", 20, 0)
			f.client.Del(ctx, f.name+"g6-01-try-01")
		}
	}
}

// Rule: a script of the author's own is refused and asked again by what it returns, and one that fails is unknown.
func TestScript(t *testing.T) {
	f := open(t, redisbarrier.Options{})
	script := redisbarrier.NewScript(`
		if ARGV[1] == 'fail' then return redis.call('LPUSH', KEYS[1]) end
		if ARGV[1] == 'odd' then return 'yes' end
		if ARGV[1] ~= 'ok' then return ARGV[1], 'says ' .. KEYS[1] end
		redis.call('RPUSH', KEYS[1], ARGV[2])`)
	work := func(how string) redisbarrier.Work {
		return redisbarrier.Work{Script: script, Keys: []string{f.name + "list"}, Args: []any{how, 7}}
	}
	for how, want := range map[string]error{"refused": barrier.ErrRefused, "ongoing": barrier.ErrOngoing, "fail": nil, "odd": nil} {
		got, err := f.b.Do(t.Context(), call("tcc", f.name+"g", "try", 2), work(how))
		if err == nil || want != nil && !errors.Is(err, want) || want == nil && (errors.Is(err, barrier.ErrRefused) || errors.Is(err, barrier.ErrOngoing)) {
			t.Errorf("%s: %s, %v", how, got, err)
		}
	}
	if m := f.marks(t); len(m) != 0 {
		t.Errorf("marks %v", m)
	}
	for _, want := range []barrier.Outcome{barrier.Done, barrier.Repeated} {
		if got, err := f.b.Do(t.Context(), call("tcc", f.name+"g", "try", 1), work("ok")); got != want || err != nil {
			t.Errorf("%s, %v", got, err)
		}
	}
	if n := f.client.LLen(t.Context(), f.name+"list").Val(); n != 1 {
		t.Errorf("it ran %d times", n)
	}
}

// Rule: several barrier calls in one handler are kept apart, and each once in the handler's repeat.
func TestSeveralCallsInOneHandler(t *testing.T) {
	f := open(t, redisbarrier.Options{})
	for _, op := range []string{"try", "cancel"} {
		for _, want := range []barrier.Outcome{barrier.Done, barrier.Repeated} {
			one := call("tcc", f.name+"g", op, 1)
			for _, part := range []string{"debit", "fee"} {
				if got, err := f.b.Do(t.Context(), one, f.effect(op+part)); got != want || err != nil || f.effects(t, op+part) != 1 {
					t.Errorf("%s %s: %s, %v", op, part, got, err)
				}
			}
		}
	}
	if m := f.marks(t); len(m) != 4 || m[f.name+"g-01-try-02"] != "op" {
		t.Error(m)
	}
}

// Rule: a message's local part counts once; a check-back says so, or decides that it can no longer be done.
func TestMessage(t *testing.T) {
	f := open(t, redisbarrier.Options{})
	local := func(gid string) *barrier.Call {
		return &barrier.Call{TransType: "msg", Gid: f.name + gid, BranchID: "00", Op: "msg"}
	}
	done := func(gid string) (barrier.Outcome, error) { return f.b.Do(t.Context(), local(gid), f.effect(gid)) }
	if got, err := done("m1"); got != barrier.Done {
		t.Fatal(got, err)
	}
	if got, err := done("m1"); !errors.Is(err, barrier.ErrDuplicate) {
		t.Fatal(got, err)
	}
	for range 2 {
		if err := f.b.QueryPrepared(t.Context(), local("m1")); err != nil {
			t.Fatal(err)
		}
		if err := f.b.QueryPrepared(t.Context(), local("m2")); !errors.Is(err, barrier.ErrRefused) {
			t.Fatal(err)
		}
	}
	if got, err := done("m2"); !errors.Is(err, barrier.ErrDuplicate) || f.effects(t, "m1") != 1 || f.effects(t, "m2") != 0 {
		t.Fatal(got, err)
	}
}

// Rule: calls whose keys could be one another's are invalid.
func TestAmbiguousKeysAreInvalid(t *testing.T) {
	f := open(t, redisbarrier.Options{})
	for _, c := range []*barrier.Call{
		{TransType: "tcc", Gid: "a", BranchID: "b-c", Op: "try"}, {TransType: "tcc", Gid: "a", BranchID: "b", Op: "c-try"},
		{TransType: "tcc", Gid: "", BranchID: "b", Op: "try"}, call("tcc", "a", "try", 1<<53),
	} {
		if got, err := f.b.Do(t.Context(), c, redisbarrier.Work{}); !errors.Is(err, barrier.ErrInvalid) {
			t.Errorf("%s: %s, %v", c, got, err)
		}
	}
	for _, o := range []redisbarrier.Options{{Prefix: "a-b"}, {KeepUntimed: time.Hour}} {
		if _, err := redisbarrier.New(f.client, o); !errors.Is(err, barrier.ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
