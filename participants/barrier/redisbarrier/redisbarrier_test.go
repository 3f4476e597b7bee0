//go:build servers

package redisbarrier_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
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

func gidTime(gid string) (int64, bool) {
	at, ok := slot.TimeOf(gid)
	return at.UnixMilli(), ok
}

func gidAt(at time.Time, n int) string { return slot.NewGid(at, func(m int) bool { return m == n }) }

// Rule: marks of gids that carry a time go by cleaning alone, at or below a floor that was raised before, which passes
// no unfinished transaction; what is below it is not taken for new. Others live for the time documented.
func TestExpiryAndCleaning(t *testing.T) {
	f := open(t, redisbarrier.Options{GidTime: gidTime})
	ctx, now := t.Context(), time.UnixMilli(1_790_000_000_000)
	old, unfinished, behind, unknown, other := gidAt(now.Add(-50*time.Hour), 1), gidAt(now.Add(-40*time.Hour), 1), gidAt(now.Add(-30*time.Hour), 1),
		gidAt(now.Add(-50*time.Hour), 2), gidAt(now.Add(-30*time.Hour), 3)
	for i, gid := range []string{old, unfinished, behind, unknown, other, "untimed"} {
		f.do(t, call("tcc", gid, "try", 1), barrier.Done, nil, i+1)
	}
	if ttl := f.client.TTL(ctx, old+"-01-try-01").Val(); ttl != -1 {
		t.Errorf("a timed mark expires in %s", ttl)
	}
	if ttl := f.client.TTL(ctx, f.name+"untimed-01-try-01").Val(); ttl < 30*24*time.Hour-time.Minute || ttl > 30*24*time.Hour {
		t.Errorf("an untimed mark expires in %s", ttl)
	}
	o := barrier.CleanOptions{Batch: 20, Now: func() time.Time { return now }, Floors: func(context.Context) (map[int]int64, error) {
		ms, _ := gidTime(unfinished)
		return map[int]int64{1: ms, 3: now.UnixMilli()}, nil
	}}
	done, err := f.b.Clean(ctx, o)
	if err != nil || done != (barrier.Cleaned{Timed: 2, Raised: 2}) {
		t.Fatalf("%+v, %v", done, err)
	}
	f.do(t, call("tcc", old, "try", 1), barrier.Unknown, barrier.ErrRefused, 6)
	for _, op := range []string{"confirm", "cancel"} {
		if got, err := f.b.Do(ctx, call("tcc", old, op, 1), f.effect(op)); got != barrier.Unknown || err == nil || errors.Is(err, barrier.ErrRefused) || f.effects(t, op) != 0 {
			t.Errorf("%s: %s, %v", op, got, err)
		}
	}
	f.do(t, call("tcc", unfinished, "try", 1), barrier.Repeated, nil, 6)
	f.do(t, call("tcc", unfinished, "confirm", 1), barrier.Done, nil, 1)
	f.do(t, call("tcc", behind, "confirm", 1), barrier.Done, nil, 2)
	f.do(t, call("tcc", unknown, "try", 1), barrier.Repeated, nil, 6)
	if done, err = f.b.Clean(ctx, o); err != nil || done != (barrier.Cleaned{}) {
		t.Errorf("again: %+v, %v", done, err)
	}
	for _, gid := range []string{unfinished, behind, unknown} { // the database is shared with later runs
		f.client.Del(ctx, gid+"-01-try-01", gid+"-01-confirm-01")
	}
	if _, err := f.b.Clean(ctx, barrier.CleanOptions{}); !errors.Is(err, barrier.ErrInvalid) {
		t.Error(err)
	}
}

// Rule (G5): of many simultaneous repeats exactly one acts, and all succeed; of racing opposites never both act.
func TestConcurrentCalls(t *testing.T) {
	f := open(t, redisbarrier.Options{})
	for round := range 20 {
		gid := fmt.Sprintf("%sg%d", f.name, round)
		outcomes := make([]barrier.Outcome, 48)
		errs := make([]error, len(outcomes))
		var wg sync.WaitGroup
		ops := []string{"try", "confirm", "cancel"}
		for i := range outcomes {
			wg.Go(func() {
				op := ops[i%3]
				outcomes[i], errs[i] = f.b.Do(context.WithoutCancel(t.Context()), call("tcc", gid, op, 1), f.effect(gid+op))
			})
		}
		wg.Wait()
		n := map[string]int{}
		for i, o := range outcomes {
			if errs[i] != nil && !errors.Is(errs[i], barrier.ErrContradiction) && !errors.Is(errs[i], barrier.ErrRefused) {
				t.Fatal(errs[i])
			}
			if o == barrier.Done || o == barrier.Empty {
				n[ops[i%3]]++
			}
		}
		for _, op := range ops {
			if e := f.effects(t, gid+op); n[op] > 1 || e > n[op] {
				t.Errorf("%s %s: %d first, %d effects", gid, op, n[op], e)
			}
		}
		if n["confirm"]+n["cancel"] != 1 || f.effects(t, gid+"cancel") > f.effects(t, gid+"try") {
			t.Errorf("%s: %v", gid, n)
		}
	}
}

// proxy forwards connections to addr; once armed, it lets one request through and drops the connection instead of giving
// its answer.
func proxy(t *testing.T, addr string) (at string, armed *atomic.Bool) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	armed = new(atomic.Bool)
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return // closed
			}
			out, err := net.Dial("tcp", addr)
			if err != nil {
				in.Close()
				continue
			}
			go func() { _, _ = io.Copy(out, in); out.Close() }()
			go func() {
				defer in.Close()
				answer := make([]byte, 1<<16)
				for {
					n, err := out.Read(answer)
					if err != nil || armed.CompareAndSwap(true, false) {
						return
					}
					if _, err := in.Write(answer[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String(), armed
}

// Rule (G5): where the answer is lost after the script has run, the call is unknown, and its repeat runs nothing.
func TestAnswerThatIsLost(t *testing.T) {
	f := open(t, redisbarrier.Options{})
	u, err := url.Parse(redisURL(t))
	if err != nil {
		t.Fatal(err)
	}
	var armed *atomic.Bool
	u.Host, armed = proxy(t, u.Host)
	c, err := redisbarrier.Open(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, err := redisbarrier.New(c, redisbarrier.Options{Prefix: f.name})
	if err != nil {
		t.Fatal(err)
	}
	f.do(t, call("tcc", "warm", "try", 1), barrier.Done, nil, 1) // the script is known to the server
	for i, s := range []struct {
		transType, op string
		again         barrier.Outcome
		err           error
	}{{"tcc", "try", barrier.Repeated, nil}, {"tcc", "confirm", barrier.Repeated, nil}, {"msg", "msg", barrier.Unknown, barrier.ErrDuplicate}} {
		one := func() *barrier.Call { return call(s.transType, fmt.Sprint(f.name, s.op), s.op, 1) }
		effect := fmt.Sprint("lost", i)
		armed.Store(true)
		if got, err := b.Do(t.Context(), one(), f.effect(effect)); err == nil || errors.Is(err, barrier.ErrDuplicate) || errors.Is(err, barrier.ErrRefused) {
			t.Errorf("%s whose answer is lost: %s, %v", s.op, got, err)
		}
		if got, err := b.Do(t.Context(), one(), f.effect(effect)); got != s.again || !errors.Is(err, s.err) || f.effects(t, effect) != 1 {
			t.Errorf("%s again: %s, %v, %d effects", s.op, got, err, f.effects(t, effect))
		}
	}
}

const crashAs = "LOCKSTEP_REDIS_BARRIER_CRASH"

// TestMain turns the test binary into the participant that TestKilledClientActsOnce kills.
func TestMain(m *testing.M) {
	if as := os.Getenv(crashAs); as != "" {
		url, name, _ := strings.Cut(as, " ")
		c, err := redisbarrier.Open(context.Background(), url)
		if err != nil {
			fmt.Println(err)
			os.Exit(4)
		}
		f := fixture{name: name, client: c}
		f.b, _ = redisbarrier.New(c, redisbarrier.Options{Prefix: name})
		for i := range 100000 {
			if _, err := f.b.Do(context.Background(), call("tcc", fmt.Sprint(name, i), "try", 1), f.effect("try")); err != nil {
				fmt.Println(err)
				os.Exit(4)
			}
			fmt.Println(i)
		}
	}
	os.Exit(m.Run())
}

// Rule (G5): a client killed with SIGKILL amid its calls has done each or not; the repeats make each once, and what was
// answered is there.
func TestKilledClientActsOnce(t *testing.T) {
	for range 5 {
		f := open(t, redisbarrier.Options{})
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), crashAs+"="+redisURL(t)+" "+f.name)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		answered := -1
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if answered, err = strconv.Atoi(lines.Text()); err != nil {
				t.Fatal(lines.Text())
			}
			if answered == 20+rand.IntN(20) || answered > 40 {
				_ = child.Process.Kill()
			}
		}
		_ = child.Wait()
		if answered < 20 {
			t.Fatalf("the child answered %d calls", answered)
		}
		for i := range answered + 3 {
			got, err := f.b.Do(t.Context(), call("tcc", fmt.Sprint(f.name, i), "try", 1), f.effect("try"))
			if err != nil || i <= answered && got != barrier.Repeated {
				t.Fatalf("call %d of %d answered: %s, %v", i, answered, got, err)
			}
		}
		if n := f.effects(t, "try"); n != answered+3 {
			t.Errorf("%d effects of %d calls", n, answered+3)
		}
	}
}

// The servers of make test keep what they answer, or say what is wrong.
func TestDurable(t *testing.T) {
	f := open(t, redisbarrier.Options{})
	if err := f.b.Durable(t.Context()); err != nil {
		t.Error(err)
	}
	loose, err := redisbarrier.Open(t.Context(), os.Getenv("LOCKSTEP_TEST_REDIS_URL"))
	if err != nil {
		t.Fatal(err)
	}
	defer loose.Close()
	b, err := redisbarrier.New(loose, redisbarrier.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Durable(t.Context()); err == nil {
		t.Error("a Redis without its log passed as durable")
	}
}

// Random sequences through DTM's Redis barrier and through ours have the same outcomes, balances and marks, but for the
// differences that are asserted here one by one.
func TestSameAsDTM(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	ours, theirs := open(t, redisbarrier.Options{}), open(t, redisbarrier.Options{})
	ctx := t.Context()
	// By branch: one that DTM treated as we do not is compared no more. Each has its balance, so that nothing else differs.
	apart, seen := map[string]bool{}, map[string]int{}
	for _, f := range []fixture{ours, theirs} {
		for n := range 40 {
			f.client.Set(ctx, fmt.Sprintf("%sbalance%d", f.name, n), 30, 0)
		}
	}
	const none, undone = "none", "nothing ran"
	for i := range 1200 {
		n := rng.IntN(40)
		kind := [][]string{{"tcc", "try", "confirm", "cancel"}, {"saga", "action", "compensate"}, {"workflow", "action", "commit", "rollback"}, {"msg", "msg", "query"}}[n%4]
		op := kind[1+rng.IntN(len(kind)-1)]
		if at := slices.Index(kind, op); len(kind) == 4 && at > 1 && rng.IntN(15) > 0 {
			op = kind[2+n/4%2]
		}
		if i == 0 { // a rollback before its action is rare otherwise
			n, kind, op = 6, []string{"workflow", "action", "commit", "rollback"}, "rollback"
		}
		branch := "01"
		if kind[0] == "msg" {
			branch = "00"
		}
		gid, amount := fmt.Sprintf("g%d", n), map[string]int{"try": -20, "action": -20, "msg": -20, "confirm": -5, "commit": -5, "cancel": 20, "compensate": 20, "rollback": 20}[op]
		if rng.IntN(4) == 0 && amount < 0 {
			amount = -35 // never there
		}
		balance := func(f fixture) string {
			return f.client.Get(ctx, fmt.Sprintf("%sbalance%d", f.name, n)).Val()
		}
		bb, err := dtmcli.BarrierFrom(kind[0], theirs.name+gid, branch, op)
		if err != nil {
			t.Fatal(err)
		}
		one := call(kind[0], ours.name+gid, op, 1)
		one.BranchID = branch
		before, beforeTheirs := map[string]string{}, balance(theirs)
		for _, op := range kind[1:] {
			before[op] = ours.client.Get(ctx, fmt.Sprintf("%s%s-%s-%s-01", ours.name, gid, branch, op)).Val()
		}
		beforeOurs := balance(ours)
		var err1, err2 error
		if op == "query" {
			one.Op = "msg"
			err1, err2 = ours.b.QueryPrepared(ctx, one), bb.RedisQueryPrepared(theirs.client, 86400)
		} else {
			_, err1 = ours.b.Do(ctx, one, redisbarrier.Work{Changes: []redisbarrier.Change{{Key: fmt.Sprintf("%sbalance%d", ours.name, n), By: int64(amount)}}})
			err2 = bb.RedisCheckAdjustAmount(theirs.client, fmt.Sprintf("%sbalance%d", theirs.name, n), amount, 86400)
		}
		came := func(err error, changed bool) string {
			switch {
			case errors.Is(err, barrier.ErrContradiction):
				return "contradiction"
			case errors.Is(err, barrier.ErrRefused), errors.Is(err, dtmcli.ErrFailure):
				return "refused"
			case errors.Is(err, barrier.ErrDuplicate), errors.Is(err, dtmcli.ErrDuplicated):
				return "duplicate"
			case err != nil:
				t.Fatal(err)
			case changed:
				return "ran"
			}
			return undone
		}
		got, want := came(err1, balance(ours) != beforeOurs), came(err2, balance(theirs) != beforeTheirs)
		mark := func(op string) string { return before[op] }
		name := none
		switch {
		case got == want:
		case got == "contradiction":
			if name = got; mark("confirm")+mark("commit")+mark("cancel")+mark("rollback") == "" {
				t.Errorf("%s %s contradicts nothing", gid, op)
			}
			apart[gid] = true
		case apart[gid]:
		case (op == "try" || op == "action") && got == "refused" && want == undone && mark(op) == "rollback":
			name = "late try" // a success with DTM
		case (got == undone || got == "duplicate") && want == "refused" && mark(op) != "":
			name = "repeat above the balance" // D11: DTM looks at the balance before the mark
		case op == "rollback" && got == undone && mark("action") == "" && (want == "ran" || want == "refused"):
			name = "empty rollback" // DTM takes back an action that never was
			apart[gid] = true
		default:
			t.Fatalf("%s %s %d: ours %s (%v), DTM's %s (%v)", gid, op, amount, got, err1, want, err2)
		}
		seen[name]++
	}
	t.Logf("calls by difference: %v; %d of 40 apart", seen, len(apart))
	for _, name := range []string{none, "contradiction", "late try", "repeat above the balance", "empty rollback"} {
		if seen[name] == 0 {
			t.Errorf("the sequence met no case of %q", name)
		}
	}
	if len(apart) > 25 {
		t.Error("too little is compared")
	}
	strip := func(f fixture) map[string]string {
		out := map[string]string{}
		for k, v := range f.marks(t) {
			k = strings.TrimPrefix(k, f.name)
			if gid, _, _ := strings.Cut(k, "-"); !apart[gid] {
				out[k] = v
			}
		}
		return out
	}
	if mine, his := strip(ours), strip(theirs); !maps.Equal(mine, his) {
		t.Errorf("our marks %v\nDTM's %v", mine, his)
	}
	for n := range 40 {
		mine, his := ours.client.Get(ctx, fmt.Sprintf("%sbalance%d", ours.name, n)).Val(), theirs.client.Get(ctx, fmt.Sprintf("%sbalance%d", theirs.name, n)).Val()
		if mine != his && !apart[fmt.Sprintf("g%d", n)] {
			t.Errorf("g%d: our balance %s, DTM's %s", n, mine, his)
		}
	}
}

// Participants of both SDKs share a database: each finds the marks of the other.
func TestSharedWithDTM(t *testing.T) {
	f := open(t, redisbarrier.Options{})
	dtm := func(gid, op string) error {
		bb, err := dtmcli.BarrierFrom("tcc", f.name+gid, "01", op)
		if err != nil {
			t.Fatal(err)
		}
		return bb.RedisCheckAdjustAmount(f.client, f.name+"balance", 1, 86400)
	}
	f.client.Set(t.Context(), f.name+"balance", 0, 0)
	f.do(t, call("tcc", "a", "try", 1), barrier.Done, nil, 1)
	f.do(t, call("tcc", "b", "cancel", 1), barrier.Empty, nil, 0)
	for _, s := range [][2]string{{"a", "try"}, {"b", "try"}, {"b", "cancel"}, {"c", "cancel"}} {
		if err := dtm(s[0], s[1]); err != nil || f.client.Get(t.Context(), f.name+"balance").Val() != "0" {
			t.Errorf("DTM's %s of %s ran, %v", s[1], s[0], err)
		}
	}
	if err := dtm("d", "try"); err != nil || f.client.Get(t.Context(), f.name+"balance").Val() != "1" {
		t.Errorf("DTM's first try did not run: %v", err)
	}
	f.do(t, call("tcc", "c", "try", 1), barrier.Unknown, barrier.ErrRefused, 1)
	f.do(t, call("tcc", "c", "cancel", 1), barrier.Repeated, nil, 0)
	f.do(t, call("tcc", "c", "confirm", 1), barrier.Unknown, barrier.ErrContradiction, 0)
	f.do(t, call("tcc", "d", "try", 1), barrier.Repeated, nil, 1)
	f.do(t, call("tcc", "d", "cancel", 1), barrier.Done, nil, 1)
}
