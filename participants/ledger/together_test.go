package ledger_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
)

type (
	oneFunc func(context.Context, *sql.Tx, ledger.Transfer) error
	allFunc func(context.Context, *sql.Tx, []ledger.Transfer) error
)

// outcomeOf is what an error says, without what differs between two books.
func outcomeOf(err error) string {
	var no *ledger.Refusal
	var other *ledger.MismatchError
	switch {
	case err == nil:
		return "done"
	case errors.As(err, &no):
		return fmt.Sprint("refused ", no.Reason, " ", no.Field, " ", no.Account)
	case errors.As(err, &other):
		return "mismatch"
	case errors.Is(err, ledger.ErrNoHold):
		return "no hold"
	case errors.Is(err, barrier.ErrContradiction):
		return "contradiction"
	}
	return "unexpected: " + err.Error()
}

// within runs f in a savepoint of tx, and rolls back to it if f fails.
func within(t *testing.T, tx *sql.Tx, f func() error) error {
	t.Helper()
	exec := func(stmt string) {
		if _, err := tx.ExecContext(ctx, stmt); err != nil {
			t.Fatalf("%s: %v", stmt, err)
		}
	}
	exec("SAVEPOINT here")
	err := f()
	if err != nil {
		exec("ROLLBACK TO SAVEPOINT here")
	}
	exec("RELEASE SAVEPOINT here")
	return err
}

// inSequence does each by itself, as the rest of a batch is done.
func (b *book) inSequence(t *testing.T, one oneFunc, set []ledger.Transfer) (outcomes []string) {
	t.Helper()
	b.must(t, b.InTx(ctx, b.db, func(tx *sql.Tx) error {
		outcomes = nil // the transaction may be repeated
		for _, p := range set {
			outcomes = append(outcomes, outcomeOf(within(t, tx, func() error { return one(ctx, tx, p) })))
		}
		return nil
	}))
	return outcomes
}

// together does all at once, or, where that is not possible, each by itself in the same transaction, as the kit does.
func (b *book) together(t *testing.T, all allFunc, one oneFunc, set []ledger.Transfer) (outcomes []string, atOnce bool) {
	t.Helper()
	b.must(t, b.InTx(ctx, b.db, func(tx *sql.Tx) error {
		outcomes = nil
		before := b.rows(t, tx)
		err := within(t, tx, func() error { return all(ctx, tx, set) })
		if atOnce = err == nil; !atOnce {
			if after := b.rows(t, tx); after != before {
				t.Errorf("%v left %v, before it were %v", err, after, before)
			}
		}
		for _, p := range set {
			said := "done"
			if !atOnce {
				said = outcomeOf(within(t, tx, func() error { return one(ctx, tx, p) }))
			}
			outcomes = append(outcomes, said)
		}
		return nil
	}))
	return outcomes, atOnce
}

// rows are the numbers of rows, and sums over them that any change of an account or a transfer moves.
func (b *book) rows(t *testing.T, db ledger.Querier) (n [9]int64) {
	t.Helper()
	for i, what := range []string{
		"count(*) FROM {p}transfer", "count(*) FROM {p}entry", "count(*) FROM {p}buffer", "count(*) FROM {p}transfer WHERE state = 'pending'",
		"coalesce(sum(refunded), 0) FROM {p}transfer", "sum(debits_pending) FROM {p}account", "sum(debits_posted) FROM {p}account",
		"sum(credits_pending) FROM {p}account", "sum(credits_posted) FROM {p}account",
	} {
		if err := db.QueryRowContext(ctx, "SELECT "+strings.ReplaceAll(what, "{p}", b.prefix)).Scan(&n[i]); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	return n
}

// position is what an account stands at, whether posted or still in the buffer: when it is folded is not what is compared.
func (b *book) position(t *testing.T, id string) [4]int64 {
	t.Helper()
	a, err := b.Balance(ctx, b.db, id)
	b.must(t, err)
	return [4]int64{a.DebitsPending, a.CreditsPending, a.DebitsPosted + a.BufferedDebits, a.CreditsPosted + a.BufferedCredits}
}

// entries are all entries with the balances that they left behind, without their times.
func (b *book) entries(t *testing.T) (all []string) {
	t.Helper()
	rows, err := b.db.QueryContext(ctx, strings.ReplaceAll(`SELECT concat(transfer_id, ' ', leg, ' ', direction, ' ', account, ' ', amount, ' ', currency, ' ', gid, ' ', branch, ' leaves ', coalesce(balance_after, -1))
		FROM {p}entry ORDER BY transfer_id, leg, direction`, "{p}", b.prefix))
	b.must(t, err)
	defer rows.Close()
	for rows.Next() {
		var e string
		b.must(t, rows.Scan(&e))
		all = append(all, e)
	}
	b.must(t, rows.Err())
	return all
}

// onTwo runs a test on two books of each kind of database.
func onTwo(t *testing.T, f func(t *testing.T, a, b *book)) {
	for name, open := range openers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, open(t), open(t))
		})
	}
}

var togetherAccounts = []ledger.Account{
	{ID: "world", Overdraft: true}, {ID: "hotworld", Mode: ledger.Buffered, Overdraft: true}, {ID: "alice"}, {ID: "bob"}, {ID: "capped", MaxCredit: 600, MaxDebit: 300},
	{ID: "serial", Mode: ledger.Serial}, {ID: "buffered", Mode: ledger.Buffered}, {ID: "daily", Mode: ledger.Aggregated}, {ID: "split", Mode: ledger.Split, Shards: 3},
	{ID: "cold"},
}

// HoldAll, PostAll and VoidAll have the outcome of a sequence of Hold, Post and Void: for each member the same answer, and
// the same money at every account. The sets are random, with repeats, other bodies under the same id, holds that are not
// there, too little money and a frozen account among them.
func TestManyAtOnceAreAsInSequence(t *testing.T) {
	onTwo(t, func(t *testing.T, a, b *book) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		r := rand.New(rand.NewPCG(seed, 0))
		for _, k := range []*book{a, b} {
			k.open(t, togetherAccounts...)
			for _, id := range []string{"alice", "bob", "serial", "buffered", "split"} {
				k.must(t, k.transfer("in:"+id, leg("world", id, 2000)))
			}
			k.must(t, k.SetState(ctx, k.db, "cold", ledger.Frozen))
		}
		sets := &members{r: r, pending: map[string]bool{}}
		seen := map[string]int{}
		for round := range 60 {
			op := []string{"hold", "post", "hold", "void"}[round%4]
			allA := map[string]allFunc{"hold": a.HoldAll, "post": a.PostAll, "void": a.VoidAll}[op]
			oneA := map[string]oneFunc{"hold": a.Hold, "post": a.Post, "void": a.Void}[op]
			oneB := map[string]oneFunc{"hold": b.Hold, "post": b.Post, "void": b.Void}[op]
			set := sets.set(op, round/4%2 == 0)
			got, atOnce := a.together(t, allA, oneA, set)
			want := b.inSequence(t, oneB, set)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("round %d, %s of %+v, at once %v (-in sequence, +together):\n%s", round, op, set, atOnce, diff)
			}
			seen[fmt.Sprint(op, " at once: ", atOnce && len(set) > 1)]++
			for i, said := range got {
				seen[said]++
				sets.note(op, said, set[i])
			}
			for _, id := range togetherAccounts {
				if x, y := a.position(t, id.ID), b.position(t, id.ID); x != y {
					t.Fatalf("round %d, %s: %s stands at %v, in sequence at %v", round, op, id.ID, x, y)
				}
			}
		}
		if diff := cmp.Diff(b.entries(t), a.entries(t)); diff != "" {
			t.Errorf("the entries differ (-in sequence, +together):\n%s", diff)
		}
		for _, k := range []*book{a, b} {
			k.audit(t)
			var wrong int
			k.must(t, k.db.QueryRow(strings.ReplaceAll("SELECT count(*) FROM {p}transfer t WHERE leg = 0 AND kind = 'hold' AND legs <> (SELECT count(*) FROM {p}transfer u WHERE u.id = t.id)", "{p}", k.prefix)).Scan(&wrong))
			if wrong > 0 {
				t.Errorf("%d holds say another number of legs than they have", wrong)
			}
		}
		t.Log(seen)
		for _, op := range []string{"hold", "post", "void"} {
			if seen[op+" at once: true"] == 0 {
				t.Errorf("no several members of a %s were done at once: nothing is compared", op)
			}
		}
		if seen["hold at once: false"] == 0 {
			t.Error("no set of holds had to be done one by one")
		}
	})
}

// members makes the sets of a test, and knows which holds wait for their end.
type members struct {
	r       *rand.Rand
	held    []ledger.Transfer // all that was ever tried
	pending map[string]bool
	posted  []ledger.Transfer // what may be refunded, and refunds, which may not
	n       int
}

// note keeps what became of a member.
func (m *members) note(op, said string, p ledger.Transfer) {
	if _, known := m.pending[p.Gid]; op == "hold" && !known && said == "done" {
		m.held = append(m.held, p)
		m.pending[p.Gid] = true
	} else if op != "hold" && said == "done" {
		if op == "post" && m.pending[p.Gid] {
			m.posted = append(m.posted, p)
		}
		m.pending[p.Gid] = false
	}
}

// set gives the members of one call of op. Harmless sets can be done at once: new holds of what is there, or the end of
// some that wait. The others have everything in them that may go wrong.
func (m *members) set(op string, harmless bool) (set []ledger.Transfer) {
	if harmless && op != "hold" {
		for _, i := range m.r.Perm(len(m.held)) {
			if p := m.held[i]; m.pending[p.Gid] && len(set) < 10 {
				set = append(set, p)
			}
		}
		return set
	}
	for range 2 + m.r.IntN(9) {
		if !harmless && len(m.held) > 0 && (op != "hold" || m.r.IntN(3) == 0) {
			p := m.held[m.r.IntN(len(m.held))]
			if m.r.IntN(8) == 0 {
				p.Legs = []ledger.Leg{leg("alice", "bob", 77)} // another body
			}
			set = append(set, p)
			continue
		}
		m.n++
		p := ledger.Transfer{Gid: fmt.Sprint("m", m.n), Branch: "01"}
		for range 1 + m.r.IntN(3) {
			p.Legs = append(p.Legs, m.leg(harmless))
		}
		if m.r.IntN(3) == 0 {
			m.refund(&p, harmless)
		}
		set = append(set, p)
	}
	return set
}

// refund makes a hold one of a posted payment. A harmless one gives back the least there is, of a payment of its own.
func (m *members) refund(p *ledger.Transfer, harmless bool) {
	of := ledger.Transfer{Gid: "nobody", Branch: "01"}
	if len(m.posted) > 0 && (harmless || m.r.IntN(5) > 0) {
		i := m.r.IntN(len(m.posted))
		if of = m.posted[i]; harmless {
			m.posted = slices.Delete(m.posted, i, i+1)
		}
	}
	if harmless && (len(of.Legs) == 0 || of.RefundOf != "") {
		return
	}
	p.RefundOf = ledger.HoldID(of.Gid, of.Branch)
	if harmless {
		p.Legs = []ledger.Leg{leg("world", "bob", 1)}
	}
}

func (m *members) leg(harmless bool) ledger.Leg {
	pick := func(from []string) string { return from[m.r.IntN(len(from))] }
	from, to, most := []string{"world", "hotworld", "alice", "bob", "serial", "buffered", "split"}, []string{"bob", "serial", "buffered", "daily", "split"}, int64(9)
	if !harmless {
		from, to, most = append(from, "capped", "daily"), append(to, "alice", "capped", "cold"), 400
	}
	g := leg(pick(from), pick(to), 1+m.r.Int64N(most))
	for g.Debit == g.Credit {
		g.Credit = pick(to)
	}
	return g
}

// One member that cannot be written keeps all of them away: the error says so, and after the rollback to before the call
// nothing of them is left, while the transaction around goes on.
func TestWhatIsNotTogetherLeavesNothing(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "shop", Mode: ledger.Buffered}, ledger.Account{ID: "alice"}, ledger.Account{ID: "cold"},
			ledger.Account{ID: "coldshop", Mode: ledger.Buffered})
		b.deposit(t, "alice", 1000)
		b.must(t, b.SetState(ctx, b.db, "cold", ledger.Frozen), b.SetState(ctx, b.db, "coldshop", ledger.Frozen), b.hold("other", leg("alice", "shop", 1)), b.void("other"))
		good := func(i int) ledger.Transfer {
			return ledger.Transfer{Gid: fmt.Sprint("g", i), Branch: "01", Legs: []ledger.Leg{leg("alice", "shop", 10)}}
		}
		bad := map[string]ledger.Transfer{
			"frozen": {Gid: "bad", Branch: "01", Legs: []ledger.Leg{leg("alice", "cold", 1)}}, "too much": {Gid: "bad", Branch: "01", Legs: []ledger.Leg{leg("alice", "shop", 990)}},
			"frozen, insert only": {Gid: "bad", Branch: "01", Legs: []ledger.Leg{leg("alice", "coldshop", 1)}},
			"voided":              {Gid: "other", Branch: "01", Legs: []ledger.Leg{leg("alice", "shop", 1)}},
		}
		fails := func(what string, all allFunc, set []ledger.Transfer, want string) {
			t.Helper()
			before := b.rows(t, b.db)
			b.must(t, b.InTx(ctx, b.db, func(tx *sql.Tx) error {
				err := within(t, tx, func() error { return all(ctx, tx, set) })
				if b.dialect == barrier.PostgreSQL { // asks for one by one, which says why; the others did so already
					if !errors.Is(err, ledger.ErrNotTogether) {
						t.Errorf("%s: %v, want ErrNotTogether", what, err)
					}
				} else if got := outcomeOf(err); !strings.HasPrefix(got, want) && !errors.Is(err, ledger.ErrNotTogether) {
					t.Errorf("%s: %s, want %s", what, got, want)
				}
				if after := b.rows(t, tx); after != before {
					t.Errorf("%s left %v, before it were %v", what, after, before)
				}
				return nil
			}))
			if after := b.rows(t, b.db); after != before {
				t.Errorf("%s left %v when all was committed, before it were %v", what, after, before)
			}
			b.audit(t)
		}
		for name, p := range bad {
			for at := range 3 { // first, amid, last
				set := []ledger.Transfer{good(1), good(2)}
				set = append(set[:at], append([]ledger.Transfer{p}, set[at:]...)...)
				fails(fmt.Sprintf("HoldAll, %s at %d", name, at), b.HoldAll, set, "refused")
			}
		}
		b.must(t, b.InTx(ctx, b.db, func(tx *sql.Tx) error { return b.HoldAll(ctx, tx, []ledger.Transfer{good(1), good(2)}) }))
		b.has(t, "alice", 20, 0, 0, 1000, 0)
		for name, all := range map[string]allFunc{"PostAll": b.PostAll, "VoidAll": b.VoidAll} {
			fails(name+" of one that is not there", all, []ledger.Transfer{good(1), good(3), good(2)}, "no hold")
		}
		fails("PostAll of a voided one", b.PostAll, []ledger.Transfer{good(1), {Gid: "other", Branch: "01"}}, "contradiction")
		another := good(2)
		another.Legs = []ledger.Leg{leg("alice", "shop", 11)}
		fails("PostAll with another body", b.PostAll, []ledger.Transfer{good(1), another}, "mismatch")
		fails("HoldAll with another body", b.HoldAll, []ledger.Transfer{good(3), another}, "mismatch")
		b.must(t, b.InTx(ctx, b.db, func(tx *sql.Tx) error { return b.PostAll(ctx, tx, []ledger.Transfer{good(1), good(2)}) }))
		b.has(t, "alice", 0, 20, 0, 1000, 0)
	})
}

// Sets without rows of some kind: none at all, and holds between insert-only accounts alone, which move no counter.
func TestManyAtOnceOfLittle(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "hotworld", Mode: ledger.Buffered, Overdraft: true}, ledger.Account{ID: "shop", Mode: ledger.Buffered})
		set := []ledger.Transfer{{Gid: "a", Branch: "01", Legs: []ledger.Leg{leg("hotworld", "shop", 3)}}, {Gid: "b", Branch: "01", Legs: []ledger.Leg{leg("hotworld", "shop", 4)}}}
		for _, members := range [][]ledger.Transfer{nil, set} {
			for _, all := range []allFunc{b.HoldAll, b.PostAll} {
				b.must(t, b.InTx(ctx, b.db, func(tx *sql.Tx) error { return all(ctx, tx, members) }))
			}
		}
		if got := b.position(t, "shop"); got != [4]int64{0, 0, 0, 7} {
			t.Errorf("shop stands at %v", got)
		}
		b.must(t, b.InTx(ctx, b.db, func(tx *sql.Tx) error { return b.VoidAll(ctx, tx, nil) }))
		b.audit(t)
	})
}
