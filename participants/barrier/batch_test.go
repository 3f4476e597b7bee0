package barrier_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

var errNo = fmt.Errorf("%w: the business says no", barrier.ErrRefused)

// sentinels are what an error is compared by.
var sentinels = []error{barrier.ErrRefused, barrier.ErrOngoing, barrier.ErrStale, barrier.ErrDuplicate, barrier.ErrContradiction, barrier.ErrUnfenced, barrier.ErrInvalid}

func kindOf(err error) string {
	if err == nil {
		return "ok"
	}
	for _, s := range sentinels {
		if errors.Is(err, s) {
			return s.Error()
		}
	}
	return "unknown"
}

// table gives the barrier's rows as text, sorted.
func (c counter) table(t *testing.T) []string {
	t.Helper()
	rows, err := c.db.QueryContext(t.Context(), c.sql(`SELECT trans_type, gid, branch_id, op, barrier_id, reason FROM {barrier}`))
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var f [6]string
		if err := rows.Scan(&f[0], &f[1], &f[2], &f[3], &f[4], &f[5]); err != nil {
			t.Fatal(err)
		}
		all = append(all, strings.Join(f[:], " "))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// branchCall is a member of a batch.
type branchCall struct {
	transType, gid, op string
	epoch              int64
	fails              string // "" not, else how
}

// Rule: the members of a batch have the outcomes, rows and effects that they would have one by one.
func TestBatchIsAsOneByOne(t *testing.T) {
	type member = branchCall
	before := []member{{"tcc", "tried", "try", 1, ""}, {"tcc", "tried2", "try", 1, ""}, {"tcc", "done", "try", 1, ""}, {"tcc", "done", "confirm", 1, ""},
		{"tcc", "gone", "try", 1, ""}, {"tcc", "gone", "cancel", 1, ""}, {"tcc", "empty", "cancel", 1, ""}, {"tcc", "{high}x", "try", 9, ""}, {"workflow", "w", "action", 0, ""}}
	mixed := []member{
		{"tcc", "new", "try", 1, ""}, {"tcc", "tried", "confirm", 1, ""}, {"tcc", "tried2", "cancel", 1, ""},
		{"tcc", "done", "confirm", 1, ""}, {"tcc", "gone", "confirm", 1, ""}, {"tcc", "empty", "try", 1, ""},
		{"tcc", "never", "cancel", 1, ""}, {"tcc", "{high}y", "try", 8, ""}, {"tcc", "{high}w", "cancel", 8, ""}, {"tcc", "{high}z", "try", 10, ""},
		{"tcc", "bare", "confirm", 0, ""}, {"", "untyped", "try", 1, ""}, {"workflow", "w", "rollback", 1, ""},
		{"tcc", "poor", "try", 1, "refused"}, {"tcc", "broken", "try", 1, "sql"}, {"tcc", "bad cancel", "cancel", 1, "sql"}, {"tcc", "later", "try", 1, ""},
		{"msg", "m", "msg", 0, ""}, {"tcc", "odd", "somebody's own op", 1, ""},
	}
	// Only tries and confirms that are all new the first time: on MariaDB they are entered as sets.
	forward := []member{
		{"tcc", "new", "try", 1, ""}, {"tcc", "tried", "confirm", 1, ""}, {"tcc", "tried2", "confirm", 1, "sql"}, {"tcc", "gone", "confirm", 1, ""},
		{"tcc", "empty", "confirm", 1, ""}, {"tcc", "bare", "confirm", 1, ""}, {"tcc", "{high}x", "confirm", 8, ""}, {"tcc", "{high}y", "try", 8, ""},
		{"tcc", "poor", "try", 1, "refused"}, {"tcc", "broken", "try", 1, "sql"}, {"tcc", "later", "try", 1, ""}, {"workflow", "w2", "action", 0, ""},
	}
	t.Run("mixed", func(t *testing.T) { batchIsAsOneByOne(t, before, mixed) })
	t.Run("forward", func(t *testing.T) { batchIsAsOneByOne(t, before, forward) })
}

func batchIsAsOneByOne(t *testing.T, before, batch []branchCall) {
	type member = branchCall
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		run := func(c counter) func(member, *sql.Tx) error {
			return func(m member, tx *sql.Tx) error {
				if err := c.effect(m.gid + m.op)(tx); err != nil {
					return err
				}
				switch m.fails {
				case "refused":
					return errNo
				case "sql":
					_, err := tx.Exec("nonsense")
					return err
				}
				return nil
			}
		}
		callOf := func(m member) *barrier.Call { return call(m.transType, m.gid, m.op, m.epoch) }
		single, together := newCounter(t, d), newCounter(t, d)
		for _, c := range []counter{single, together} {
			for _, m := range before {
				if _, err := c.b.Do(t.Context(), callOf(m), func(tx *sql.Tx) error { return run(c)(m, tx) }); err != nil {
					t.Fatal(m, err)
				}
			}
		}
		for round := range 2 {
			var calls []*barrier.Call
			for _, m := range batch {
				calls = append(calls, callOf(m))
			}
			results := together.b.DoAll(t.Context(), time.Minute, calls, func(i int, tx *sql.Tx) error { return run(together)(batch[i], tx) })
			for i, m := range batch {
				want, wantErr := single.b.Do(t.Context(), callOf(m), func(tx *sql.Tx) error { return run(single)(m, tx) })
				if got := results[i]; got.Outcome != want || kindOf(got.Err) != kindOf(wantErr) {
					t.Errorf("round %d, %+v: in the batch %s and %v, alone %s and %v", round, m, got.Outcome, got.Err, want, wantErr)
				}
				if got, want := together.effects(t, m.gid+m.op), single.effects(t, m.gid+m.op); got != want {
					t.Errorf("round %d, %+v: %d effects in the batch, %d alone", round, m, got, want)
				}
			}
			if got, want := together.table(t), single.table(t); !slices.Equal(got, want) {
				t.Errorf("round %d: rows of the batch:\n%s\nalone:\n%s", round, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
	})
}

// runs counts how often the business of each member ran.
type runs map[int]int

// Rule: members of one set run in one call; a set that fails leaves nothing, and its members run by themselves.
func TestSetRunsTogetherOrOneByOne(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		gids := []string{"a0", "b0", "a1", "x", "b1", "a2", "c0"} // by their first letter: sets 0 and 1, x alone, c a set of one
		var calls []*barrier.Call
		for _, gid := range gids {
			calls = append(calls, call("tcc", gid, "try", 1))
		}
		one := runs{}
		var all [][]int
		results := c.b.DoWork(t.Context(), 0, calls, barrier.Work{
			One: func(i int, tx *sql.Tx) error {
				one[i]++
				if gids[i] == "b1" {
					return errNo
				}
				return c.effect(gids[i])(tx)
			},
			Set: func(i int) int { return strings.Index("abc", gids[i][:1]) },
			All: func(set []int, tx *sql.Tx) error {
				all = append(all, slices.Clone(set))
				for _, i := range set {
					if err := c.effect(gids[i])(tx); err != nil {
						return err
					}
					if gids[i] == "b1" {
						return errNo
					}
				}
				return nil
			},
		})
		for i, r := range results {
			want, wantEffects := "ok", 1
			if gids[i] == "b1" {
				want, wantEffects = barrier.ErrRefused.Error(), 0
			}
			if kindOf(r.Err) != want || c.effects(t, gids[i]) != wantEffects {
				t.Errorf("%s: %v, %d effects", gids[i], r.Err, c.effects(t, gids[i]))
			}
		}
		if len(all) != 2 || one[0]+one[2]+one[5] != 0 || one[1] != 1 || one[4] != 1 || one[3] != 1 || one[6] != 1 {
			t.Errorf("sets %v ran; alone ran %v", all, one)
		}
		if n := c.rows(t); n != 6 {
			t.Errorf("%d rows, want one for each but b1", n)
		}
	})
}

// Rule: ErrAlone has the whole batch rolled back and each member done by itself.
func TestErrAloneHasEveryMemberDoneByItself(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		calls := []*barrier.Call{call("tcc", "a", "try", 1), call("tcc", "b", "try", 1), call("tcc", "c", "cancel", 1), call("tcc", "d", "try", 1)}
		ran, txs := runs{}, map[*sql.Tx]int{}
		results := c.b.DoAll(t.Context(), 0, calls, func(i int, tx *sql.Tx) error {
			ran[i]++
			txs[tx]++
			if i == 1 {
				return fmt.Errorf("cut off: %w", barrier.ErrAlone)
			}
			return c.effect(calls[i].Gid)(tx)
		})
		for i, want := range []barrier.Outcome{barrier.Done, barrier.Unknown, barrier.Empty, barrier.Done} {
			effects := 0
			if want == barrier.Done {
				effects = 1
			}
			if results[i].Outcome != want || (results[i].Err == nil) != (want != barrier.Unknown) || c.effects(t, calls[i].Gid) != effects {
				t.Errorf("%s: %+v, %d effects", calls[i].Gid, results[i], c.effects(t, calls[i].Gid))
			}
		}
		if ran[0] != 2 || ran[1] != 2 || ran[3] != 1 || len(txs) != 4 {
			t.Errorf("ran %v in %d transactions", ran, len(txs))
		}
		if n := c.rows(t); n != 4 {
			t.Errorf("%d rows, want two tries and the two of the cancel", n)
		}
	})
}

// Rule: calls for one branch in one batch are done one after another.
func TestOneBranchTwiceInABatch(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		ops := []string{"try", "try", "confirm", "cancel", "confirm"}
		var calls []*barrier.Call
		for _, op := range ops {
			calls = append(calls, call("tcc", "g", op, 1))
		}
		calls = append(calls, call("tcc", "other", "try", 1))
		results := c.b.DoAll(t.Context(), 0, calls, func(i int, tx *sql.Tx) error { return c.effect(calls[i].Gid + calls[i].Op)(tx) })
		for i, want := range []barrier.Outcome{barrier.Done, barrier.Repeated, barrier.Done, barrier.Unknown, barrier.Repeated, barrier.Done} {
			if results[i].Outcome != want {
				t.Errorf("%d %s: %+v, want %s", i, calls[i], results[i], want)
			}
		}
		if !errors.Is(results[3].Err, barrier.ErrContradiction) || c.effects(t, "gtry") != 1 || c.effects(t, "gconfirm") != 1 || c.effects(t, "gcancel") != 0 {
			t.Errorf("%+v", results)
		}
	})
}

// Rule: the same calls in a second batch of their handler are other ones (barrier_id 02), also where they are done one by one.
func TestSecondBatchOfOneHandler(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		handler := func() (out []barrier.Outcome) {
			calls := []*barrier.Call{call("tcc", "a", "try", 1), call("tcc", "b", "try", 1)}
			for n := range 3 {
				for i, r := range c.b.DoAll(t.Context(), 0, calls, func(i int, tx *sql.Tx) error {
					if n == 1 && calls[0].Gid == calls[i].Gid && len(out) == 2 {
						out = append(out, barrier.Unknown) // the first attempt at the second batch fails as a whole
						return barrier.ErrAlone
					}
					return c.effect(fmt.Sprint(calls[i].Gid, n))(tx)
				}) {
					if r.Err != nil {
						t.Fatal(i, r.Err)
					}
					out = append(out, r.Outcome)
				}
			}
			return out
		}
		if got := fmt.Sprint(handler()); got != "[done done unknown done done done done]" {
			t.Error(got)
		}
		if got := fmt.Sprint(handler()); got != "[repeated repeated repeated repeated repeated repeated]" {
			t.Error(got)
		}
		for n := range 3 {
			for _, gid := range []string{"a", "b"} {
				if got := c.effects(t, fmt.Sprint(gid, n)); got != 1 {
					t.Errorf("%s%d: %d effects", gid, n, got)
				}
			}
		}
	})
}

// Rule: a commit that fails for one member's sake has every member done by itself, and only that one fails.
func TestBatchWhoseCommitFails(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		if d == barrier.MySQL { // it checks nothing at the commit, so the connection fails there
			c.exec(t, `CREATE TABLE {child} (parent int)`)
		} else {
			c.exec(t, `CREATE TABLE {parent} (id int PRIMARY KEY)`)
			c.exec(t, `CREATE TABLE {child} (parent int REFERENCES {parent} (id) DEFERRABLE INITIALLY DEFERRED)`)
		}
		calls := []*barrier.Call{call("tcc", "a", "try", 1), call("tcc", "b", "try", 1), call("tcc", "c", "try", 1)}
		results := c.b.DoAll(t.Context(), 0, calls, func(i int, tx *sql.Tx) error {
			if err := c.effect(calls[i].Gid)(tx); err != nil || i != 1 {
				return err
			}
			if _, err := tx.Exec(c.sql(`INSERT INTO {child} VALUES (7)`)); err != nil || d != barrier.MySQL {
				return err
			}
			return c.killConnectionOf(t, tx)
		})
		for i, want := range []barrier.Outcome{barrier.Done, barrier.Unknown, barrier.Done} {
			effects := 1
			if want == barrier.Unknown {
				effects = 0
			}
			if got := c.effects(t, calls[i].Gid); results[i].Outcome != want || kindOf(results[i].Err) != map[barrier.Outcome]string{barrier.Done: "ok", barrier.Unknown: "unknown"}[want] || got != effects {
				t.Errorf("%s: %+v, %d effects", calls[i].Gid, results[i], got)
			}
		}
		if n := c.rows(t); n != 2 {
			t.Errorf("%d rows", n)
		}
	})
}

// killConnectionOf ends, from another connection, the one that tx is on.
func (c counter) killConnectionOf(t *testing.T, tx *sql.Tx) error {
	which, kill := `SELECT pg_backend_pid()`, `SELECT pg_terminate_backend(%d)`
	if c.dialect == barrier.MySQL {
		which, kill = `SELECT connection_id()`, `KILL CONNECTION %d`
	}
	var id int64
	if err := tx.QueryRow(which).Scan(&id); err != nil {
		return err
	}
	_, err := c.db.ExecContext(context.WithoutCancel(t.Context()), fmt.Sprintf(kill, id))
	return err
}

// Rule: calls whose identity differs in anything are different calls, or cannot be.
func TestIdentitiesThatAreAlmostEqual(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) { almostEqual(t, newCounter(t, d)) })
}

func almostEqual(t *testing.T, c counter) {
	n := 0
	for _, gid := range []string{"g", "G", "g ", " g", "gg", "ɡ", "g\u0301", "ǵ", "ß", "ss", "g\x00", "g\xff", "g\xffx", "g\t", "g\n", "g%", "g_", "g'", `g"`, `g\`, "g{}", strings.Repeat("g", 128), strings.Repeat("g", 127) + "h", strings.Repeat("g", 129)} {
		for _, branch := range []string{"01", "1", "01 "} {
			one := call("tcc", gid, "try", 1)
			one.BranchID = branch
			got, err := c.b.Do(t.Context(), one, c.effect("try"))
			if err == nil && got == barrier.Done {
				n++
			} else if !errors.Is(err, barrier.ErrInvalid) {
				t.Errorf("gid %q branch %q: %s, %v", gid, branch, got, err)
			}
		}
	}
	if got := c.effects(t, "try"); got != n || c.rows(t) != n || n < 30 {
		t.Errorf("%d effects and %d rows of %d calls", got, c.rows(t), n)
	}
}
