package barrier_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

func call(transType, gid, op string, epoch int64) *barrier.Call {
	c := &barrier.Call{TransType: transType, Gid: gid, BranchID: "01", Op: op}
	if epoch > 0 {
		c.Fence = barrier.Fence{Slot: barrier.SlotOf(gid), Epoch: epoch}
	}
	return c
}

// do makes a call and checks its outcome, its error, and how often op has had its effect by then.
func (c counter) do(t *testing.T, call *barrier.Call, want barrier.Outcome, wantErr error, effects int) {
	t.Helper()
	got, err := c.b.Do(context.Background(), call, c.effect(call.Op))
	if got != want || !errors.Is(err, wantErr) || (wantErr == nil && err != nil) {
		t.Fatalf("%s: got %s and error %v, want %s and %v", call, got, err, want, wantErr)
	}
	if n := c.effects(t, call.Op); n != effects {
		t.Fatalf("%s: its effect is there %d times, want %d", call, n, effects)
	}
}

// Rule: a repeat of any operation succeeds and runs nothing.
func TestRepeatsOfEveryOperationRunNothing(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		for _, sequence := range [][]string{
			{"tcc", "try", "confirm"}, {"tcc", "try", "cancel"},
			{"saga", "action", "compensate"}, {"workflow", "action", "rollback"}, {"workflow", "action", "commit"},
			{"msg", "action"}, {"tcc", "somebody's own op"},
		} {
			t.Run(fmt.Sprint(sequence), func(t *testing.T) {
				c := newCounter(t, d)
				for _, op := range sequence[1:] {
					c.do(t, call(sequence[0], "g1", op, 1), barrier.Done, nil, 1)
					c.do(t, call(sequence[0], "g1", op, 1), barrier.Repeated, nil, 1)
					c.do(t, call(sequence[0], "g1", op, 1), barrier.Repeated, nil, 1)
				}
			})
		}
	})
}

// Rule: a cancel before its try runs nothing and leaves a tombstone; the late try is refused and leaves nothing.
func TestCancelBeforeTryLeavesTombstone(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		for _, ops := range [][3]string{{"tcc", "try", "cancel"}, {"saga", "action", "compensate"}, {"workflow", "action", "rollback"}} {
			t.Run(ops[2], func(t *testing.T) {
				c := newCounter(t, d)
				c.do(t, call(ops[0], "g1", ops[2], 1), barrier.Empty, nil, 0)
				c.do(t, call(ops[0], "g1", ops[1], 1), barrier.Unknown, barrier.ErrRefused, 0)
				c.do(t, call(ops[0], "g1", ops[2], 1), barrier.Repeated, nil, 0)
				if n := c.rows(t); n != 2 {
					t.Errorf("%d barrier rows, want the two of the cancel", n)
				}
			})
		}
	})
}

// Rule: a try without an epoch, as DTM's clients send it, meets the tombstone too.
func TestLateTryWithoutEpochIsRefused(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		c.do(t, call("tcc", "g1", "cancel", 1), barrier.Empty, nil, 0)
		c.do(t, call("tcc", "g1", "try", 0), barrier.Unknown, barrier.ErrRefused, 0)
	})
}

// Rule: the tombstone is of one branch, of one gid.
func TestTombstoneStopsItsOwnBranchOnly(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		c.do(t, call("tcc", "g1", "cancel", 1), barrier.Empty, nil, 0)
		other := call("tcc", "g1", "try", 1)
		other.BranchID = "02"
		c.do(t, other, barrier.Done, nil, 1)
		c.do(t, call("tcc", "g10", "try", 1), barrier.Done, nil, 2)
		c.do(t, call("tcc", "g", "try", 1), barrier.Done, nil, 3)
	})
}

// Rule: confirm and cancel of one branch exclude each other, in both orders, and say so.
func TestConfirmAndCancelContradict(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		for _, ops := range [][4]string{
			{"tcc", "try", "confirm", "cancel"}, {"tcc", "try", "cancel", "confirm"},
			{"workflow", "action", "commit", "rollback"}, {"workflow", "action", "rollback", "commit"},
		} {
			t.Run(ops[2]+" then "+ops[3], func(t *testing.T) {
				c := newCounter(t, d)
				c.do(t, call(ops[0], "g1", ops[1], 1), barrier.Done, nil, 1)
				c.do(t, call(ops[0], "g1", ops[2], 1), barrier.Done, nil, 1)
				before := c.rows(t)
				c.do(t, call(ops[0], "g1", ops[3], 1), barrier.Unknown, barrier.ErrContradiction, 0)
				if after := c.rows(t); after != before {
					t.Errorf("the refused one left %d rows", after-before)
				}
				c.do(t, call(ops[0], "g1", ops[2], 1), barrier.Repeated, nil, 1) // and spoilt nothing
			})
		}
	})
}

// Rule: a confirm that finds the tombstone of an empty cancel says so; it is no success.
func TestConfirmAfterEmptyCancelContradicts(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		c.do(t, call("tcc", "g1", "cancel", 1), barrier.Empty, nil, 0)
		c.do(t, call("tcc", "g1", "confirm", 1), barrier.Unknown, barrier.ErrContradiction, 0)
	})
}

// Rule: an older epoch is refused for every operation, and leaves nothing.
func TestStaleEpochIsRefused(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		c.do(t, call("tcc", "{s}a", "try", 7), barrier.Done, nil, 1)
		before := c.rows(t)
		for _, op := range []string{"try", "confirm", "cancel"} {
			n := c.effects(t, op)
			c.do(t, call("tcc", "{s}a", op, 6), barrier.Unknown, barrier.ErrStale, n)
			c.do(t, call("tcc", "{s}b", op, 6), barrier.Unknown, barrier.ErrStale, n) // another gid of the slot
		}
		if after := c.rows(t); after != before {
			t.Errorf("the refused ones left %d rows", after-before)
		}
		c.do(t, call("tcc", "{other}a", "try", 1), barrier.Done, nil, 2) // another slot
		c.do(t, call("tcc", "{s}a", "confirm", 7), barrier.Done, nil, 1) // the same epoch
		c.do(t, call("tcc", "{s}c", "try", 8), barrier.Done, nil, 3)     // a higher one raises it
		c.do(t, call("tcc", "{s}d", "try", 7), barrier.Unknown, barrier.ErrStale, 3)
		c.do(t, call("tcc", "{s}d", "try", 0), barrier.Done, nil, 4) // a client's try knows no epoch
	})
}

// Rule: even a repeat, which changes nothing else, raises the epoch: its sender owns the slot now.
func TestRepeatRaisesTheEpoch(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		c.do(t, call("tcc", "{s}a", "try", 1), barrier.Done, nil, 1)
		c.do(t, call("tcc", "{s}a", "try", 2), barrier.Repeated, nil, 1)
		c.do(t, call("tcc", "{s}b", "try", 1), barrier.Unknown, barrier.ErrStale, 1)
	})
}

// Rule: a call whose business fails leaves nothing, the raised epoch included: it may be repeated as if new.
func TestFailedBusinessLeavesNothing(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		boom := errors.New("boom")
		got, err := c.b.Do(context.Background(), call("tcc", "{s}a", "try", 5), func(tx *sql.Tx) error {
			return errors.Join(c.effect("try")(tx), boom)
		})
		if got != barrier.Unknown || !errors.Is(err, boom) {
			t.Fatalf("got %s and %v", got, err)
		}
		if n, rows := c.effects(t, "try"), c.rows(t); n != 0 || rows != 0 {
			t.Fatalf("%d effects and %d rows are left", n, rows)
		}
		c.do(t, call("tcc", "{s}a", "try", 4), barrier.Done, nil, 1)
	})
}

// Rule: a panic in business leaves nothing and no lock.
func TestPanicInBusinessLeavesNothing(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		func() {
			defer func() { _ = recover() }()
			_, _ = c.b.Do(context.Background(), call("tcc", "g1", "try", 1), func(tx *sql.Tx) error {
				_ = c.effect("try")(tx)
				panic("boom")
			})
		}()
		c.do(t, call("tcc", "g1", "try", 1), barrier.Done, nil, 1)
	})
}

// Rule: the account's slot is checked and raised beside the transaction's.
func TestAccountSlotIsFencedToo(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		account := func(epoch int64) barrier.Fence { return barrier.Fence{Slot: barrier.SlotOf("alice"), Epoch: epoch} }
		first := call("tcc", "{s}a", "try", 1)
		first.Account = account(3)
		c.do(t, first, barrier.Done, nil, 1)
		second := call("tcc", "{s}b", "try", 1)
		second.Account = account(2)
		c.do(t, second, barrier.Unknown, barrier.ErrStale, 1)
		c.do(t, call("tcc", "{alice}c", "try", 2), barrier.Unknown, barrier.ErrStale, 1) // the same row, from its other side
		third := call("tcc", "{s}c", "try", 0)                                           // a client's try that names the account's epoch
		third.Account = account(2)
		c.do(t, third, barrier.Unknown, barrier.ErrStale, 1)
	})
}

// Rule: at a copy, a try without an epoch is stale; the coordinator's calls are put off until the slot is adopted.
func TestACopyTakesNoCalls(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		c.exec(t, `UPDATE {fence} SET copied = true WHERE slot = ?`, barrier.SlotOf("g1"))
		c.do(t, call("tcc", "g1", "try", 0), barrier.Unknown, barrier.ErrStale, 0)
		c.do(t, call("tcc", "g1", "try", 1), barrier.Unknown, barrier.ErrMoved, 0)
		elsewhere := call("tcc", "g1", "try", 1) // the transaction's slot is a copy here, its account is at home
		elsewhere.Account = barrier.Fence{Slot: barrier.SlotOf("bob"), Epoch: 1}
		c.do(t, elsewhere, barrier.Done, nil, 1)
	})
}

// Rule: what only a coordinator sends needs an epoch, unless the participant is told that its coordinator has none.
func TestCoordinatorsCallsNeedAnEpoch(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		for _, k := range [][2]string{{"tcc", "confirm"}, {"tcc", "cancel"}, {"saga", "action"}, {"saga", "compensate"}, {"msg", "action"}} {
			c.do(t, call(k[0], "g1", k[1], 0), barrier.Unknown, barrier.ErrUnfenced, 0)
		}
		for _, k := range [][2]string{{"tcc", "try"}, {"workflow", "action"}, {"workflow", "commit"}, {"msg", "msg"}} {
			c.do(t, call(k[0], "g-"+k[0]+k[1], k[1], 0), barrier.Done, nil, 1)
		}
		loose := openCounter(t, d, barrier.Options{AllowUnfenced: true})
		loose.do(t, call("tcc", "g1", "try", 0), barrier.Done, nil, 1)
		loose.do(t, call("tcc", "g1", "confirm", 0), barrier.Done, nil, 1)
	})
}

// Rule: what is at or below the floor and has no row left is not taken for new.
func TestBelowTheFloorNothingRuns(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		times := map[string]int64{"{s}old": 100, "{s}kept": 100, "{s}new": 101}
		c := openCounter(t, d, barrier.Options{GidTime: func(gid string) (int64, bool) {
			ms, ok := times[gid]
			return ms, ok
		}})
		c.do(t, call("tcc", "{s}kept", "try", 1), barrier.Done, nil, 1)
		c.exec(t, `UPDATE {fence} SET floor_ms = 100 WHERE slot = ?`, barrier.SlotOf("{s}old"))
		c.do(t, call("tcc", "{s}old", "try", 1), barrier.Unknown, barrier.ErrRefused, 1)
		for _, op := range []string{"confirm", "cancel"} {
			got, err := c.b.Do(context.Background(), call("tcc", "{s}old", op, 1), c.effect(op))
			if got != barrier.Unknown || err == nil || errors.Is(err, barrier.ErrRefused) || c.effects(t, op) != 0 {
				t.Fatalf("%s below the floor: %s, %v", op, got, err)
			}
		}
		c.do(t, call("tcc", "{s}kept", "confirm", 1), barrier.Done, nil, 1)
		c.do(t, call("tcc", "{s}new", "try", 1), barrier.Done, nil, 2)
		c.do(t, call("tcc", "{s}foreign", "try", 1), barrier.Done, nil, 3) // carries no time
	})
}

// Rule: several barrier calls in one handler are kept apart, and each once, in the handler's repeat.
func TestSeveralCallsInOneHandler(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		handler := func(op string) (outcomes []barrier.Outcome) {
			one := call("tcc", "g1", op, 1)
			for _, step := range []string{"debit", "fee"} {
				o, err := c.b.Do(context.Background(), one, c.effect(op+step))
				if err != nil {
					t.Fatal(err)
				}
				outcomes = append(outcomes, o)
			}
			return outcomes
		}
		for _, op := range []string{"try", "cancel"} {
			if got := handler(op); got[0] != barrier.Done || got[1] != barrier.Done {
				t.Fatalf("%s: %v", op, got)
			}
			if got := handler(op); got[0] != barrier.Repeated || got[1] != barrier.Repeated {
				t.Fatalf("%s repeated: %v", op, got)
			}
			for _, step := range []string{"debit", "fee"} {
				if n := c.effects(t, op+step); n != 1 {
					t.Errorf("%s%s ran %d times", op, step, n)
				}
			}
		}
	})
}

// Rule: a handler that fell between its two calls finishes the second and repeats nothing; the cancel of a try that did
// only its first part undoes only that.
func TestHandlerCutBetweenItsCalls(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		ctx := context.Background()
		half := call("tcc", "g1", "try", 1)
		if o, err := c.b.Do(ctx, half, c.effect("debit")); o != barrier.Done || err != nil {
			t.Fatal(o, err)
		}
		cancel := call("tcc", "g1", "cancel", 1)
		if o, err := c.b.Do(ctx, cancel, c.effect("undo debit")); o != barrier.Done || err != nil {
			t.Fatal(o, err)
		}
		if o, err := c.b.Do(ctx, cancel, c.effect("undo fee")); o != barrier.Empty || err != nil {
			t.Fatal(o, err)
		}
		if o, err := c.b.Do(ctx, half, c.effect("fee")); !errors.Is(err, barrier.ErrRefused) {
			t.Fatal(o, err)
		}
		if n := c.effects(t, "fee") + c.effects(t, "undo fee"); n != 0 {
			t.Errorf("%d effects of the second part", n)
		}
	})
}

// Rule: a message's local part counts once, and a check-back after it says so.
func TestMessageLocalPartThenCheckBack(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		local := func() *barrier.Call { return &barrier.Call{TransType: "msg", Gid: "m1", BranchID: "00", Op: "msg"} }
		c.do(t, local(), barrier.Done, nil, 1)
		c.do(t, local(), barrier.Unknown, barrier.ErrDuplicate, 1)
		for range 2 {
			if err := c.b.QueryPrepared(context.Background(), local()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Rule: a check-back before the local part decides: the part can no longer be done.
func TestCheckBackBeforeLocalPartDecides(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		local := func() *barrier.Call { return &barrier.Call{TransType: "msg", Gid: "m1", BranchID: "00", Op: "msg"} }
		for range 2 {
			if err := c.b.QueryPrepared(context.Background(), local()); !errors.Is(err, barrier.ErrRefused) {
				t.Fatal(err)
			}
		}
		c.do(t, local(), barrier.Unknown, barrier.ErrDuplicate, 0)
	})
}

// Rule: a check-back of an old owner decides nothing.
func TestStaleCheckBackDecidesNothing(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		c.do(t, call("tcc", "{s}x", "try", 4), barrier.Done, nil, 1)
		if err := c.b.QueryPrepared(context.Background(), call("msg", "{s}m", "msg", 3)); !errors.Is(err, barrier.ErrStale) {
			t.Fatal(err)
		}
		c.do(t, &barrier.Call{TransType: "msg", Gid: "{s}m", BranchID: "00", Op: "msg"}, barrier.Done, nil, 1)
	})
}

// Rule: Migrate makes all fence rows, and a second one lowers none.
func TestMigrateMakesEveryFenceRowAndKeepsThem(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		c.do(t, call("tcc", "{s}a", "try", 9), barrier.Done, nil, 1)
		if err := barrier.MigrateSchema(context.Background(), c.db, d, c.schema); err != nil {
			t.Fatal(err)
		}
		var n, high int
		if err := c.db.QueryRow(c.sql(`SELECT count(*), max(epoch) FROM {fence}`)).Scan(&n, &high); err != nil {
			t.Fatal(err)
		}
		if n != barrier.SlotCount || high != 9 {
			t.Errorf("%d fence rows, highest epoch %d", n, high)
		}
	})
}

// A fence row that is missing is an error, not a permission.
func TestMissingFenceRowIsAnError(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		c.exec(t, `DELETE FROM {fence}`)
		if o, err := c.b.Do(context.Background(), call("tcc", "g1", "try", 1), c.effect("try")); err == nil || o != barrier.Unknown {
			t.Fatal(o, err)
		}
	})
}
