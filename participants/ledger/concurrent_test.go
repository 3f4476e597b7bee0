package ledger_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
)

// Many buyers at one account: exactly as much passes as it has money for, in every mode that has a limit, and a cap
// likewise.
func TestConcurrentDebitsNeverOverdraw(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "world", Mode: ledger.Buffered, Overdraft: true}, ledger.Account{ID: "direct"}, ledger.Account{ID: "buffered", Mode: ledger.Buffered},
			ledger.Account{ID: "split", Mode: ledger.Split, Shards: 4}, ledger.Account{ID: "capped", MaxCredit: 1000})
		for i := range 10 {
			for _, id := range []string{"direct", "buffered", "split"} {
				b.must(t, b.transfer(fmt.Sprint("in:", id, i), leg("world", id, 100)))
			}
		}
		var wg sync.WaitGroup
		var passed [4]atomic.Int64
		for k, g := range []ledger.Leg{leg("direct", "world", 30), leg("buffered", "world", 30), leg("split", "world", 30), leg("world", "capped", 30)} {
			for i := range 48 {
				wg.Go(func() {
					gid := fmt.Sprintf("%s-%s-%d", g.Debit, g.Credit, i)
					if err := b.hold(gid, g); err != nil {
						if !errors.Is(err, barrier.ErrRefused) {
							t.Errorf("%s: %v", gid, err)
						}
						return
					}
					passed[k].Add(1)
					if err := b.postHold(gid); err != nil {
						t.Errorf("%s: %v", gid, err)
					}
				})
			}
		}
		wg.Wait()
		for k := range passed {
			if n := passed[k].Load(); n != 33 {
				t.Errorf("case %d: %d passed", k, n)
			}
		}
		b.has(t, "direct", 0, 990, 0, 1000, 0)
		b.has(t, "capped", 0, 0, 0, 990, 0)
	})
}

// One id from many callers at once takes effect once.
func TestConcurrentDuplicates(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "alice"}, ledger.Account{ID: "shop", Mode: ledger.Buffered})
		b.deposit(t, "alice", 1000)
		for round := range 5 {
			gid := fmt.Sprint("g", round)
			all := func(f func() error) {
				var wg sync.WaitGroup
				for range 8 {
					wg.Go(func() {
						if err := f(); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
			}
			all(func() error { return b.hold(gid, leg("alice", "shop", 10)) })
			all(func() error { return b.postHold(gid) })
			all(func() error { return b.transfer(fmt.Sprint("t", round), leg("alice", "shop", 10)) })
			all(func() error { return b.refund(fmt.Sprint("r", round), gid+":01", leg("shop", "alice", 4)) })
			all(func() error { return b.reverse(fmt.Sprint("v", round), fmt.Sprint("t", round)) })
		}
		if a, err := b.Balance(ctx, b.db, "alice"); err != nil || a.Total() != 1000-5*6 {
			t.Errorf("%+v, %v", a, err)
		}
		b.audit(t)
	})
}

// Everything at once at the databases' default isolation: payments both ways between accounts of every mode, refunds,
// reversals that race with their originals, a poster, a day cut and a rebalancer. What the database gives up is repeated;
// nothing else fails, and the book agrees with itself meanwhile and afterwards.
func TestEverythingAtOnce(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		ids := []string{"alice", "bob", "serial", "buffered", "daily", "split"}
		b.open(t, ledger.Account{ID: "alice"}, ledger.Account{ID: "bob"}, ledger.Account{ID: "serial", Mode: ledger.Serial}, ledger.Account{ID: "buffered", Mode: ledger.Buffered},
			ledger.Account{ID: "daily", Mode: ledger.Aggregated}, ledger.Account{ID: "split", Mode: ledger.Split, Shards: 4})
		for _, id := range ids {
			b.deposit(t, id, 2000)
		}
		b.must(t, b.CutDays(ctx, b.db, b.clock()))
		b.advance(24 * time.Hour)
		run, stop := context.WithCancel(ctx)
		beat := make(chan struct{}, 1) // once per 64 calls that were done: rebalancer and audit go with the traffic, not with a clock
		var beside, wg sync.WaitGroup
		beside.Go(func() {
			after := time.Duration(0)
			if err := (ledger.Poster{Ledger: b.Ledger, DB: b.db, Rate: 100, CutAfter: &after}).Run(run); err != nil {
				t.Error(err)
			}
		})
		beside.Go(func() {
			for run.Err() == nil {
				b.advance(12 * time.Hour)
				if err := b.Rebalance(ctx, b.db, "split"); err != nil {
					t.Error(err)
				}
				faults, err := b.Audit(ctx, b.db)
				if err != nil || faults != nil {
					t.Error(faults, err)
				}
				select {
				case <-beat:
				case <-run.Done():
				}
			}
		})
		var refusedCalls, done atomic.Int64
		call := func(what string, f func(tx *sql.Tx) error) bool {
			err := b.InTx(ctx, b.db, f)
			if err != nil && !errors.Is(err, barrier.ErrRefused) && !errors.Is(err, barrier.ErrOngoing) {
				t.Errorf("%s: %v", what, err)
			}
			if err != nil {
				refusedCalls.Add(1)
			} else if done.Add(1)%64 == 0 {
				select {
				case beat <- struct{}{}:
				default: // it has not come round yet
				}
			}
			return err == nil
		}
		for worker := range 12 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(worker), 7))
				for i := range rounds {
					from, to := r.IntN(len(ids)), r.IntN(len(ids)-1)
					if to >= from {
						to++
					}
					id, n := fmt.Sprintf("%d-%d", worker, i), 1+r.Int64N(50)
					g := leg(ids[from], ids[to], n)
					p := ledger.Transfer{Gid: id, Branch: "01", Legs: []ledger.Leg{g, leg(g.Debit, ids[(from+1)%len(ids)], 1)}}
					switch r.IntN(4) {
					case 0, 1:
						if !call("hold", func(tx *sql.Tx) error { return b.Hold(ctx, tx, p) }) {
							continue
						}
						if r.IntN(3) == 0 {
							call("void", func(tx *sql.Tx) error { return b.Void(ctx, tx, ledger.Transfer{Gid: id, Branch: "01"}) })
							continue
						}
						call("post", func(tx *sql.Tx) error { return b.Post(ctx, tx, p) })
						call("refund", func(tx *sql.Tx) error {
							return b.Transfer(ctx, tx, ledger.Transfer{ID: "r" + id, RefundOf: id + ":01", Legs: []ledger.Leg{leg(g.Credit, g.Debit, (n+1)/2)}})
						})
					case 2:
						call("transfer", func(tx *sql.Tx) error { return b.Transfer(ctx, tx, ledger.Transfer{ID: id, Legs: p.Legs}) })
					case 3:
						var race sync.WaitGroup
						race.Go(func() {
							call("original", func(tx *sql.Tx) error { return b.Transfer(ctx, tx, ledger.Transfer{ID: id, Legs: p.Legs}) })
						})
						call("reversal", func(tx *sql.Tx) error { return b.Reverse(ctx, tx, "v"+id, id, "", "") })
						race.Wait()
					}
				}
			})
		}
		wg.Wait()
		stop()
		beside.Wait()
		t.Logf("%d done, %d refused", done.Load(), refusedCalls.Load())
		b.audit(t)
		var sum int64
		for _, id := range append(ids, "world") {
			a, err := b.Balance(ctx, b.db, id)
			b.must(t, err)
			if sum += a.Total(); a.DebitsPending != 0 || a.CreditsPending != 0 || (id != "world" && a.Total() < 0) {
				t.Errorf("%+v", a)
			}
		}
		if sum != 0 {
			t.Errorf("%d out of nothing", sum)
		}
	})
}

// Inside the kit's shared transactions: a member that is refused leaves nothing, the others stand.
func TestMembersOfABatch(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "alice"}, ledger.Account{ID: "shop", Mode: ledger.Serial}, ledger.Account{ID: "cold"})
		b.deposit(t, "alice", 100)
		b.must(t, b.SetState(ctx, b.db, "cold", ledger.Frozen))
		schema := ""
		if b.options.Schema != "" {
			schema = b.options.Schema
		}
		b.must(t, barrier.MigrateSchema(ctx, b.db, b.dialect, schema))
		guard, err := barrier.New(b.db, b.dialect, barrier.Options{Schema: schema})
		b.must(t, err)
		batch := func(op string, f func(ctx context.Context, tx *sql.Tx, t ledger.Transfer) error) []barrier.Result {
			var calls []*barrier.Call
			for i := range 12 {
				gid := fmt.Sprintf("g%02d", i) // a batch runs its members in this order
				calls = append(calls, &barrier.Call{TransType: "tcc", Gid: gid, BranchID: "01", Op: op, Fence: barrier.Fence{Slot: barrier.SlotOf(gid), Epoch: 1}})
			}
			return guard.DoAll(ctx, 0, calls, func(i int, tx *sql.Tx) error {
				legs := []ledger.Leg{leg("alice", "shop", 10)}
				if i == 3 {
					legs = append(legs, leg("alice", "cold", 1))
				}
				return f(ctx, tx, ledger.Of(calls[i], legs...))
			})
		}
		for i, r := range batch("try", b.Hold) {
			if want := i != 3 && i != 11; (r.Err == nil) != want || (!want && !errors.Is(r.Err, barrier.ErrRefused)) {
				t.Errorf("member %d: %v", i, r.Err)
			}
		}
		b.has(t, "alice", 100, 0, 0, 100, 0)
		for i, r := range batch("confirm", b.Post) {
			if want := i != 3 && i != 11; (r.Err == nil) != want {
				t.Errorf("member %d: %v", i, r.Err)
			}
		}
		b.has(t, "shop", 0, 0, 0, 100, 0)
	})
}
