//go:build servers

package barrier_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// bounded is the time in which whatever waits for one another has resolved itself.
const bounded = 40 * time.Second

// onServers runs a test on the databases with several writers.
func onServers(t *testing.T, f func(t *testing.T, d barrier.Dialect)) {
	for _, d := range []barrier.Dialect{barrier.PostgreSQL, barrier.MySQL} {
		t.Run(d.String(), func(t *testing.T) { f(t, d) })
	}
}

// waits returns when n statements that name the schema wait for a lock.
func (c counter) waits(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(bounded); c.waiting(t) < n; {
		if time.Now().After(deadline) {
			t.Fatal("nobody waits for a lock")
		}
	}
}

func (c counter) waiting(t *testing.T) (n int) {
	t.Helper()
	if c.dialect == barrier.PostgreSQL {
		return c.count(t, `SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE ?`, "%"+c.schema+".%")
	}
	// The table innodb_trx tells those who ask often what it told them last.
	var kind, name, status string
	if err := c.db.QueryRowContext(t.Context(), `SHOW ENGINE INNODB STATUS`).Scan(&kind, &name, &status); err != nil {
		t.Fatal(err)
	}
	for tx := range strings.SplitSeq(status[strings.LastIndex(status, "LIST OF TRANSACTIONS"):], "---TRANSACTION") {
		if strings.Contains(tx, "LOCK WAIT") && strings.Contains(tx, c.schema+".") {
			n++
		}
	}
	return n
}

// Rule (G5): a call of an old epoch that waits while the fence is raised is refused when the raise is committed, at the
// database's default isolation level and at any other that the connection brings.
func TestOldEpochThatWaitedForTheFenceIsStale(t *testing.T) {
	levels := map[barrier.Dialect][]string{
		barrier.PostgreSQL: {"", "&default_transaction_isolation=repeatable%20read", "&default_transaction_isolation=serializable"},
		barrier.MySQL:      {"", "?tx_isolation='READ-COMMITTED'", "?tx_isolation='SERIALIZABLE'"},
	}
	onServers(t, func(t *testing.T, d barrier.Dialect) {
		for i, level := range append(levels[d], levels[d]...) {
			primed := i >= len(levels[d])
			t.Run(fmt.Sprintf("level%s primed %t", level, primed), func(t *testing.T) {
				p := freshPlace(t, d)
				owner := p.open(t, barrier.Options{})
				p.url += level
				old := p.open(t, barrier.Options{})
				if primed { // it knows that the fence is at 4 at least, and asks for the shared lock alone
					old.do(t, call("tcc", "{s}before", "try", 4), barrier.Done, nil, 1)
				}
				result := make(chan error, 2)
				if _, err := owner.b.Do(t.Context(), call("tcc", "{s}new", "try", 5), func(*sql.Tx) error {
					go func() {
						_, err := old.b.Do(context.WithoutCancel(t.Context()), call("tcc", "{s}old", "try", 4), p.effect("old"))
						result <- err
					}()
					go func() {
						r := old.b.DoAll(context.WithoutCancel(t.Context()), 0, []*barrier.Call{call("tcc", "{s}old2", "try", 4), call("tcc", "{s}old3", "cancel", 3)},
							func(int, *sql.Tx) error { return errors.New("it ran") })
						if errors.Is(r[1].Err, barrier.ErrStale) {
							result <- r[0].Err
						} else {
							result <- fmt.Errorf("the second of the batch: %w", r[1].Err)
						}
					}()
					owner.waits(t, 2)
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					if err := <-result; !errors.Is(err, barrier.ErrStale) {
						t.Error(err)
					}
				}
				if n := owner.count(t, `SELECT count(*) FROM {barrier} WHERE gid LIKE ?`, "{s}old%"); n != 0 || owner.effects(t, "old") != 0 {
					t.Errorf("%d rows of the old calls", n)
				}
			})
		}
	})
}

// Rule (G5): a newer epoch is answered only when what the old one has under way has ended, so that it has no effect after.
func TestNewerEpochWaitsForTheOldOnesCalls(t *testing.T) {
	onServers(t, func(t *testing.T, d barrier.Dialect) {
		p := freshPlace(t, d)
		old, owner := p.open(t, barrier.Options{}), p.open(t, barrier.Options{})
		old.do(t, call("tcc", "{s}before", "try", 4), barrier.Done, nil, 1)
		var oldEnds atomic.Bool
		answered := make(chan error, 1)
		if got, err := old.b.Do(t.Context(), call("tcc", "{s}old", "try", 4), func(tx *sql.Tx) error {
			go func() {
				_, err := owner.b.Do(context.WithoutCancel(t.Context()), call("tcc", "{s}new", "try", 5), p.effect("new"))
				if !oldEnds.Load() {
					err = errors.Join(err, errors.New("epoch 5 was answered while a call of epoch 4 was under way"))
				}
				answered <- err
			}()
			owner.waits(t, 1)
			oldEnds.Store(true)
			return p.effect("old")(tx)
		}); got != barrier.Done {
			t.Error(got, err)
		}
		if err := <-answered; err != nil {
			t.Error(err)
		}
	})
}

// Rule (G5): confirm and cancel of one branch exclude each other also where there was no try, at every isolation level.
func TestOppositesOfAMissingTryExcludeEachOther(t *testing.T) {
	levels := map[barrier.Dialect][]string{
		barrier.PostgreSQL: {"", "&default_transaction_isolation=serializable"},
		barrier.MySQL:      {"", "?tx_isolation='READ-COMMITTED'"},
	}
	onServers(t, func(t *testing.T, d barrier.Dialect) {
		for _, level := range levels[d] {
			t.Run("level"+level, func(t *testing.T) {
				p := freshPlace(t, d)
				p.url += level
				handles := []counter{p.open(t, barrier.Options{}), p.open(t, barrier.Options{})}
				for round := range 60 {
					gid := fmt.Sprintf("g%d", round)
					var outcomes [2]barrier.Outcome
					var errs [2]error
					var wg sync.WaitGroup
					for i, op := range []string{"confirm", "cancel"} {
						wg.Go(func() {
							outcomes[i], errs[i] = handles[i].b.Do(context.WithoutCancel(t.Context()), call("tcc", gid, op, 1), p.effect(gid+op))
						})
					}
					wg.Wait()
					if errs[0] == nil && errs[1] == nil {
						t.Fatalf("%s: both stand: %v", gid, outcomes)
					}
				}
			})
		}
	})
}

// hold takes the locks of rows of {money} in a transaction that grows heavier than any other, so that a deadlock is not
// resolved at its cost; the returned function ends it.
func (c counter) hold(t *testing.T, id int) (tx *sql.Tx, end func()) {
	t.Helper()
	tx, err := c.db.BeginTx(context.WithoutCancel(t.Context()), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if _, err := tx.Exec(c.sql(`INSERT INTO {effect} VALUES ('weight')`)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tx.Exec(c.sql(`UPDATE {money} SET amount = amount WHERE id = ?`), id); err != nil {
		t.Fatal(err)
	}
	return tx, sync.OnceFunc(func() { _ = tx.Rollback() })
}

func moneyTable(t *testing.T, c counter, n int) {
	t.Helper()
	c.exec(t, `CREATE TABLE {money} (id int PRIMARY KEY, amount int NOT NULL)`)
	for i := range n {
		c.exec(t, `INSERT INTO {money} VALUES (?, 0)`, i)
	}
}

func add(c counter, id int) func(*sql.Tx) error {
	return func(tx *sql.Tx) error {
		_, err := tx.Exec(c.sql(`UPDATE {money} SET amount = amount + 1 WHERE id = ?`), id)
		return err
	}
}

// Rule: a lock that a batch waits for too long costs the batch, and no member: each is done by itself.
func TestBatchThatWaitsTooLongIsDoneOneByOne(t *testing.T) {
	impatient := map[barrier.Dialect]string{barrier.PostgreSQL: "&lock_timeout=100ms", barrier.MySQL: "?innodb_lock_wait_timeout=1"}
	onServers(t, func(t *testing.T, d barrier.Dialect) {
		p := freshPlace(t, d)
		p.url += impatient[d]
		c := p.open(t, barrier.Options{})
		moneyTable(t, c, 3)
		_, end := c.hold(t, 1)
		defer end()
		calls := []*barrier.Call{call("tcc", "a", "try", 1), call("tcc", "b", "try", 1), call("tcc", "c", "try", 1)}
		ran := runs{}
		for i, r := range c.b.DoAll(t.Context(), bounded, calls, func(i int, tx *sql.Tx) error {
			if ran[i]++; ran[1] == 1 && ran[0] == 2 {
				end()
			}
			return add(c, i)(tx)
		}) {
			if r.Outcome != barrier.Done || r.Err != nil {
				t.Errorf("%d: %+v", i, r)
			}
		}
		if n := c.count(t, `SELECT count(*) FROM {money} WHERE amount = 1`); n != 3 || ran[0] != 2 {
			t.Errorf("%d of 3 rows were changed once; ran %v", n, ran)
		}
	})
}

// Rule: a business function that passes over a deadlock, in which the server took its transaction away, does not make
// its call, or the batch it is in, look done.
func TestDeadlockThatBusinessPassesOver(t *testing.T) {
	onServers(t, func(t *testing.T, d barrier.Dialect) {
		for _, at := range [][2]int{{0, 1}, {1, 3}, {2, 3}} { // alone, amid a batch, and its last
			hit, n := at[0], at[1]
			t.Run(fmt.Sprintf("member %d of %d", hit, n), func(t *testing.T) {
				c := newCounter(t, d)
				moneyTable(t, c, 5)
				if d == barrier.PostgreSQL { // it is who waits longest that looks for deadlocks there
					c.exec(t, `CREATE TABLE {unused} (id int)`)
				}
				other, end := c.hold(t, 4)
				defer end()
				var calls []*barrier.Call
				for i := range n {
					calls = append(calls, call("tcc", fmt.Sprint("g", i), "try", 1))
				}
				ran := runs{}
				results := c.b.DoAll(t.Context(), bounded, calls, func(i int, tx *sql.Tx) error {
					ran[i]++
					if i != hit || ran[i] > 1 {
						return add(c, i)(tx)
					}
					if err := add(c, 3)(tx); err != nil {
						return err
					}
					if d == barrier.PostgreSQL {
						if _, err := tx.Exec(`SET LOCAL deadlock_timeout = '1ms'`); err != nil {
							return err
						}
					}
					met := make(chan error, 1)
					go func() {
						if d == barrier.PostgreSQL {
							_, _ = other.Exec(`SET LOCAL deadlock_timeout = '1min'`)
						}
						_, err := other.Exec(c.sql(`UPDATE {money} SET amount = amount WHERE id = 3`))
						met <- err
					}()
					c.waits(t, 1)
					if err := add(c, 4)(tx); err == nil {
						t.Error("there was no deadlock")
					}
					if err := <-met; err != nil {
						t.Error("the other side fell:", err)
					}
					end()
					return nil // as if nothing had been
				})
				for i, r := range results {
					// Alone it is an error. In a batch, all are done again by themselves, where business has no deadlock.
					want := 1
					if n == 1 {
						want = 0
					}
					if got := c.count(t, `SELECT amount FROM {money} WHERE id = ?`, i); got != want || (r.Err == nil) != (want == 1) || r.Outcome == barrier.Done && want == 0 {
						t.Errorf("%d: %+v, and its row was changed %d times", i, r, got)
					}
				}
				if got := c.rows(t); got != n && n > 1 || n == 1 && got != 0 {
					t.Errorf("%d barrier rows", got)
				}
			})
		}
	})
}

// Rule (G5): a call whose database connection is killed in the middle is an error that is none of the answers, nothing of
// it stands, and its repeat does it once; a batch finishes all the same.
func TestConnectionKilledInTheMiddle(t *testing.T) {
	onServers(t, func(t *testing.T, d barrier.Dialect) {
		for _, at := range []string{"before business", "after business", "unnoticed by business"} {
			for _, n := range []int{1, 3} {
				t.Run(fmt.Sprintf("%s of %d", at, n), func(t *testing.T) {
					c := newCounter(t, d)
					var calls []*barrier.Call
					for i := range n {
						calls = append(calls, call("tcc", fmt.Sprint("g", i), "try", 3))
					}
					killed := false
					kill := func(tx *sql.Tx) {
						killed = true
						if err := c.killConnectionOf(t, tx); err != nil {
							t.Fatal(err)
						}
					}
					business := func(i int, tx *sql.Tx) error {
						hit := i == n/2 && !killed
						if hit && at == "before business" {
							kill(tx)
						}
						if err := c.effect(calls[i].Gid)(tx); err != nil {
							return err
						}
						if hit && at == "after business" {
							kill(tx)
							return c.effect("after")(tx)
						}
						if hit && at == "unnoticed by business" {
							kill(tx)
						}
						return nil
					}
					for i, r := range c.b.DoAll(t.Context(), bounded, calls, business) {
						if n == 1 && (r.Outcome != barrier.Unknown || kindOf(r.Err) != "unknown") || n > 1 && r.Outcome != barrier.Done {
							t.Errorf("%d: %+v", i, r)
						}
					}
					if n == 1 && (c.rows(t) != 0 || c.effects(t, "g0") != 0) {
						t.Errorf("%d rows and %d effects of the killed one", c.rows(t), c.effects(t, "g0"))
					}
					for i := range n {
						calls[i] = call("tcc", calls[i].Gid, "try", 3)
					}
					for i, r := range c.b.DoAll(t.Context(), bounded, calls, business) {
						if r.Err != nil || r.Outcome != map[bool]barrier.Outcome{true: barrier.Done, false: barrier.Repeated}[n == 1] || c.effects(t, calls[i].Gid) != 1 {
							t.Errorf("repeat %d: %+v, %d effects", i, r, c.effects(t, calls[i].Gid))
						}
					}
				})
			}
		}
	})
}

// told is what the world was told of a call: the answers that say it is durable.
type told struct {
	mu      sync.Mutex
	done    map[string]int  // "gid op" to how often Done was answered
	answers map[string]bool // "gid op" that has been answered with success
}

func (k *told) tell(c *barrier.Call, o barrier.Outcome) {
	k.mu.Lock()
	defer k.mu.Unlock()
	at := c.Gid + " " + c.Op
	k.answers[at] = true
	if o == barrier.Done {
		k.done[at]++
	}
}

// Rule (G5): over several connections, with tries, confirms, cancels and repeats of a few branches in random order, alone
// and in batches that overlap in branches and business rows in opposite orders, while the fence is raised and
// connections are killed: no branch is both confirmed and cancelled, each operation takes effect once if it was answered
// with Done and never twice, a cancel takes back its own try alone, no row of the business loses an update, no call of
// an old epoch has an effect after a newer one was answered, and everything ends in bounded time.
func TestInterleavings(t *testing.T) {
	for _, kills := range []bool{false, true} {
		onServers(t, func(t *testing.T, d barrier.Dialect) { interleave(t, d, kills) })
	}
}

func interleave(t *testing.T, d barrier.Dialect, kills bool) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, with kills %t", seed, kills)
	ctx, cancel := context.WithTimeout(t.Context(), bounded)
	defer cancel()
	p := freshPlace(t, d)
	const workers, rounds, gids, accounts = 6, 40, 24, 4
	reader := p.open(t, barrier.Options{})
	moneyTable(t, reader, accounts)
	reader.exec(t, `CREATE TABLE {log} (gid varchar(128), op varchar(45), epoch int)`)
	k := &told{done: map[string]int{}, answers: map[string]bool{}}
	var epoch, answered atomic.Int64 // the newest that was given out, and the newest that was answered
	epoch.Store(1)
	var retried, contradicted atomic.Int64
	var handles []counter
	for range workers {
		handles = append(handles, p.open(t, barrier.Options{}))
	}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			c, rng := handles[w], rand.New(rand.NewPCG(seed, uint64(w)))
			for range rounds {
				if rng.IntN(10) == 0 {
					epoch.Add(1)
				}
				n := 1
				if rng.IntN(2) == 0 {
					n = 2 + rng.IntN(5)
				}
				var calls []*barrier.Call
				var rows [][2]int
				for range n {
					gid := fmt.Sprintf("{s}g%d", rng.IntN(gids))
					e := epoch.Load() - int64(rng.IntN(2)*rng.IntN(2))
					calls = append(calls, call("tcc", gid, []string{"try", "confirm", "cancel"}[rng.IntN(3)], max(1, e)))
					rows = append(rows, [2]int{rng.IntN(accounts), rng.IntN(accounts)})
				}
				floor := answered.Load() // answered before these calls began
				for i, r := range c.b.DoAll(ctx, bounded, calls, func(i int, tx *sql.Tx) error {
					if _, err := tx.Exec(c.sql(`INSERT INTO {log} VALUES (?, ?, ?)`), calls[i].Gid, calls[i].Op, calls[i].Fence.Epoch); err != nil {
						return err
					}
					for _, id := range rows[i] { // in any order
						// Read, then write: an update is lost unless the read locks.
						var amount int
						if err := tx.QueryRow(c.sql(`SELECT amount FROM {money} WHERE id = ? FOR UPDATE`), id).Scan(&amount); err != nil {
							return err
						}
						if _, err := tx.Exec(c.sql(`UPDATE {money} SET amount = ? WHERE id = ?`), amount+1, id); err != nil {
							return err
						}
					}
					if kills && rand.IntN(20) == 0 {
						return c.killConnectionOf(t, tx)
					}
					return nil
				}) {
					switch kind := kindOf(r.Err); {
					case r.Err == nil:
						k.tell(calls[i], r.Outcome)
						e := calls[i].Fence.Epoch
						if e < floor {
							t.Errorf("%s at epoch %d was answered %s after an answer to epoch %d", calls[i], e, r.Outcome, floor)
						}
						for old := answered.Load(); old < e && !answered.CompareAndSwap(old, e); old = answered.Load() {
						}
					case errors.Is(r.Err, barrier.ErrContradiction):
						contradicted.Add(1)
					case kind == "unknown":
						retried.Add(1)
						if ctx.Err() != nil {
							t.Errorf("%s: still waiting after %s: %v", calls[i], bounded, r.Err)
							return
						}
						if text := strings.ToLower(r.Err.Error()); !kills && !strings.Contains(text, "deadlock") {
							t.Errorf("%s: %v", calls[i], r.Err)
						}
					}
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d unknown, %d contradictions, epoch %d", retried.Load(), contradicted.Load(), epoch.Load())

	total := 0
	rows, err := reader.db.QueryContext(ctx, reader.sql(`SELECT gid, op, count(*) FROM {log} GROUP BY gid, op`))
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	ran := map[string]int{}
	for rows.Next() {
		var gid, op string
		var n int
		if err := rows.Scan(&gid, &op, &n); err != nil {
			t.Fatal(err)
		}
		ran[gid+" "+op] = n
		total += n
		if n != 1 {
			t.Errorf("%s %s had %d effects", gid, op, n)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	for at, n := range k.done {
		if n > 1 || ran[at] != 1 {
			t.Errorf("%s: %d times Done, %d effects", at, n, ran[at])
		}
	}
	for i := range gids {
		gid := fmt.Sprintf("{s}g%d", i)
		if k.answers[gid+" confirm"] && k.answers[gid+" cancel"] {
			t.Errorf("%s was told both confirmed and cancelled", gid)
		}
		if ran[gid+" confirm"] > 0 && ran[gid+" cancel"] > 0 {
			t.Errorf("%s was both confirmed and cancelled", gid)
		}
		if ran[gid+" cancel"] > ran[gid+" try"] {
			t.Errorf("%s: a cancel acted without its try", gid)
		}
	}
	if sum := reader.count(t, `SELECT coalesce(sum(amount), 0) FROM {money}`); sum != 2*total {
		t.Errorf("the money rows show %d changes of %d", sum, 2*total)
	}
	if total == 0 || contradicted.Load() == 0 {
		t.Error("the interleavings met nothing")
	}
}
