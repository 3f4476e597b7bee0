//go:build servers

package redisbarrier_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/barrier/redisbarrier"
)

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
