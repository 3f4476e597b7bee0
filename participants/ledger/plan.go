package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// insertOnly is the shard of a side that writes no counter: the leg's row is its pending, a row of the buffer its posted.
const insertOnly = -1

// plan is a transfer as rows. It is made from what never changes of accounts; the database checks the rest.
type plan struct {
	id, kind, gid, branch, digest, of string
	post                              bool
	total                             int64
	us                                int64
	day                               int
	legs                              []planLeg
	first                             int // number of the first leg: 1 where leg 0 is written already
	gates                             []gate
	moves                             []move // by account and shard, so that transactions lock in one order
}

// planLeg is one row.
type planLeg struct {
	debit, credit           string
	debitShard, creditShard int
	amount                  int64
	currency                string
}

// gate is an account that must be open while its insert-only side is used.
type gate struct {
	account string
	mode    Mode
	field   string
}

// move changes one row of counters.
type move struct {
	account       string
	shard         int
	mode          Mode
	currency      string
	debit, credit int64
}

func compareMoves(a, b move) int {
	return cmp.Or(strings.Compare(a.account, b.account), a.shard-b.shard)
}

type answer int

const (
	entered answer = iota
	exists
	refundRefused
	gateRefused
	moveRefused
)

// planner gathers a plan.
type planner struct {
	l  *Ledger
	tx *sql.Tx
	p  *plan
	// Of accounts that were read under lock: what is still free by shard, and what was free in all.
	free   map[string][]shardFree
	before map[string]int64
}

func sumFree(shards []shardFree) (n int64) {
	for _, s := range shards {
		n += s.free
	}
	return n
}

type shardFree struct {
	shard int
	free  int64
}

func (l *Ledger) plan(ctx context.Context, tx *sql.Tx, t Transfer, kind string, post bool) (*plan, error) {
	p := &plan{id: t.ID, kind: kind, gid: t.Gid, branch: t.Branch, digest: t.digest(kind), of: t.RefundOf, post: post}
	p.us, p.day = l.time()
	b := &planner{l: l, tx: tx, p: p, free: map[string][]shardFree{}, before: map[string]int64{}}
	for _, g := range t.Legs {
		p.total += g.Minor
	}
	if slices.ContainsFunc(t.Legs, func(g Leg) bool { return g.Currency != t.Legs[0].Currency }) {
		p.total = 0 // a sum over currencies means nothing; such a transfer has no refunds
	}
	if err := b.prepare(ctx, t); err != nil {
		return p, err
	}
	for _, g := range t.Legs {
		if err := b.add(ctx, g); err != nil {
			return p, err
		}
	}
	slices.SortFunc(p.moves, compareMoves)
	slices.SortFunc(p.gates, func(a, b gate) int { return strings.Compare(a.account, b.account) })
	p.gates = slices.CompactFunc(p.gates, func(a, b gate) bool { return a.account == b.account })
	return p, nil
}

// gathers says whether a debit of such an account looks at its counters first.
func (m meta) gathers() bool { return (m.mode == Split || m.mode == Buffered) && !m.unlimited }

// prepare looks at the accounts. Where a debit gathers, how many rows there are depends on what its shards have, which has
// to be locked before it is read; so that all transactions lock in one order (id, payment, accounts by id and shard), the
// id is written first then, as a leg 0 that moves nothing, and all accounts are locked.
func (b *planner) prepare(ctx context.Context, t Transfer) error {
	gather := false
	shards, whole := map[string][]int{}, map[string]int{}
	for _, g := range t.Legs {
		for _, s := range []struct{ id, field string }{{g.Debit, "debit"}, {g.Credit, "credit"}} {
			m, err := b.account(ctx, s.id, s.field, g.Currency)
			if err != nil {
				return err
			}
			if s.field == "debit" && m.gathers() {
				gather = true
				whole[s.id] = m.shards
			} else if account, shard := b.side(s.id, m, s.field); shard != insertOnly {
				shards[account] = append(shards[account], shard)
			}
		}
	}
	b.p.gates = nil // add finds them again
	if !gather {
		return nil
	}
	if b.p.kind != kindReversal { // whose id is there
		if err := b.l.reserve(ctx, b.tx, b.p, t.Legs[0].Currency); err != nil {
			return err
		}
	}
	b.p.first = 1
	for id, n := range whole {
		shards[id] = upTo(n)
	}
	for _, id := range slices.Sorted(maps.Keys(shards)) {
		free, err := b.l.lockShards(ctx, b.tx, id, shards[id])
		if err != nil {
			return err
		}
		b.free[id], b.before[id] = free, sumFree(free)
	}
	return nil
}

// errThere says that the id is there.
var errThere = errors.New("the id is there")

// reserve writes a transfer's leg 0 alone, and takes its refund from the payment.
func (l *Ledger) reserve(ctx context.Context, tx *sql.Tx, p *plan, currency string) error {
	state, settled := "pending", sql.NullInt64{}
	if p.post {
		state, settled = "posted", sql.NullInt64{Int64: p.us, Valid: true}
	}
	w := l.generic
	fresh, err := changed(ctx, tx, w.insertLeg, p.id, 0, 1, p.kind, state, p.digest, p.gid, p.branch, p.of, "", -2, "", -2, 0, currency, p.total, p.us, settled)
	if err == nil && !fresh {
		err = errThere
	}
	if err != nil {
		return err
	}
	if p.first = 1; p.of == "" {
		return nil
	}
	taken, err := changed(ctx, tx, w.refund, p.total, p.of, currency, p.total)
	if err == nil && !taken {
		err = l.whyNoRefund(ctx, tx, p.of, currency, p.total)
	}
	p.of = "" // leg 0 has it
	return err
}

// add plans one leg: as many rows as shards give.
func (b *planner) add(ctx context.Context, g Leg) error {
	d, err := b.account(ctx, g.Debit, "debit", g.Currency)
	if err != nil {
		return err
	}
	c, err := b.account(ctx, g.Credit, "credit", g.Currency)
	if err != nil {
		return err
	}
	credit, creditShard := b.side(g.Credit, c, "credit")
	put := func(debit string, shard int, amount int64) {
		b.p.legs = append(b.p.legs, planLeg{debit, credit, shard, creditShard, amount, g.Currency})
		b.move(debit, shard, d.mode, g.Currency, amount, 0)
		b.move(credit, creditShard, c.mode, g.Currency, 0, amount)
	}
	if d.gathers() {
		return b.gather(ctx, g, d, put)
	}
	debit, shard := b.side(g.Debit, d, "debit")
	put(debit, shard, g.Minor)
	return nil
}

func (b *planner) account(ctx context.Context, id, field, currency string) (meta, error) {
	m, err := b.l.meta(ctx, b.tx, id)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return m, &Refusal{Reason: NoAccount, Field: field, Account: id}
	case err != nil:
		return m, err
	case m.mode == clearing:
		return m, &Refusal{Reason: AccountInternal, Field: field, Account: id}
	case m.currency != currency:
		return m, &Refusal{Reason: WrongCurrency, Field: "currency", Account: id, Detail: fmt.Sprintf("it is in %s, not %s", m.currency, currency)}
	}
	return m, nil
}

// side says where a side of a leg is written.
func (b *planner) side(id string, m meta, field string) (account string, shard int) {
	buffered := field == "credit" || m.unlimited
	switch {
	case m.mode == Buffered && buffered:
		b.p.gates = append(b.p.gates, gate{id, m.mode, field})
		return id, insertOnly
	case m.mode == Aggregated && buffered:
		b.p.gates = append(b.p.gates, gate{id, m.mode, field})
		return id + clearingSuffix, insertOnly
	case m.mode == Aggregated:
		return id, 1 // a debit of what is posted: the rest comes with the day cut
	case m.mode == Split:
		return id, shardOf(b.p.id, m.shards)
	}
	return id, 0
}

func shardOf(id string, shards int) int {
	h := fnv.New32a()
	h.Write([]byte(id))
	return 1 + int(h.Sum32()%uint32(shards))
}

// gather takes a debit from the shards of a split account: from its own first, then from the others. Of a buffered account, which has one, it posts
// what waits in the buffer if that is needed: a debit sees the whole balance.
func (b *planner) gather(ctx context.Context, g Leg, m meta, put func(string, int, int64)) error {
	free := b.free[g.Debit]
	total := sumFree(free)
	for total < g.Minor && m.mode == Buffered {
		folded, err := b.l.writer.fold(ctx, b.tx, g.Debit)
		if err != nil {
			return err
		}
		if !folded {
			break
		}
		after, err := b.l.lockShards(ctx, b.tx, g.Debit, upTo(m.shards))
		if err != nil {
			return err
		}
		// What this transfer takes itself is not in the row yet.
		free[0].free += sumFree(after) - b.before[g.Debit]
		b.before[g.Debit] = sumFree(after)
		total = sumFree(free)
	}
	if total < g.Minor {
		return &Refusal{Reason: InsufficientFunds, Field: "amount", Account: g.Debit, Detail: fmt.Sprintf("%d available, %d asked for", total, g.Minor)}
	}
	own := shardOf(b.p.id, m.shards)
	rest := g.Minor
	for k := 0; rest > 0; k++ {
		f := &free[(own-1+k)%len(free)]
		if n := min(rest, f.free); n > 0 {
			f.free -= n
			rest -= n
			put(g.Debit, f.shard, n)
		}
	}
	return nil
}

// upTo is 1 to n.
func upTo(n int) []int {
	shards := make([]int, n)
	for i := range shards {
		shards[i] = i + 1
	}
	return shards
}

// lockShards locks rows of counters of an account, in order, and gives what each may spend. They are named one by one:
// InnoDB would lock what follows a range too.
func (l *Ledger) lockShards(ctx context.Context, tx *sql.Tx, id string, shards []int) ([]shardFree, error) {
	args := []any{id}
	for _, s := range shards {
		args = append(args, s)
	}
	which := "shard IN (?" + strings.Repeat(", ?", len(shards)-1) + ")"
	rows, err := tx.QueryContext(ctx, l.q("SELECT shard, credits_posted - debits_posted - debits_pending FROM {p}account WHERE id = ? AND "+which+" ORDER BY shard{exclusive}"), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []shardFree
	for rows.Next() {
		var s shardFree
		if err := rows.Scan(&s.shard, &s.free); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, rows.Err()
}

func (b *planner) move(account string, shard int, m Mode, currency string, debit, credit int64) {
	if shard == insertOnly {
		return
	}
	for i := range b.p.moves {
		if v := &b.p.moves[i]; v.account == account && v.shard == shard {
			v.debit += debit
			v.credit += credit
			return
		}
	}
	b.p.moves = append(b.p.moves, move{account, shard, m, currency, debit, credit})
}

// enter writes a hold or an immediate transfer.
func (l *Ledger) enter(ctx context.Context, tx *sql.Tx, t Transfer, kind string, post bool) error {
	t, err := t.normal()
	if err == nil && (len(t.Legs) == 0 || len(t.Legs) > LegsMax) {
		err = fmt.Errorf("%w: %d legs; 1 to %d are possible", barrier.ErrInvalid, len(t.Legs), LegsMax)
	}
	if err != nil {
		return err
	}
	p, err := l.plan(ctx, tx, t, kind, post)
	if err == nil {
		err = l.allowed(ctx, tx, t)
	}
	if errors.Is(err, errThere) || (errors.Is(err, barrier.ErrRefused) && p.first == 0) {
		// What is refused today may have been held yesterday. (Where leg 0 is written by now, it was not.)
		if _, there, err := l.existing(ctx, tx, t.ID, p.digest); there || err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	if err := l.write(ctx, tx, p); err != nil {
		return err
	}
	if err := l.countLegs(ctx, tx, p); err != nil {
		return err
	}
	return l.count(ctx, tx, t)
}

// countLegs corrects the number of legs that leg 0 has, where it was written before the others were known.
func (l *Ledger) countLegs(ctx context.Context, tx *sql.Tx, p *plan) error {
	if p.first == 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, l.q("UPDATE {p}transfer SET legs = ? WHERE id = ? AND leg = 0"), p.first+len(p.legs), p.id)
	return err
}

// write carries out a plan and says what stood in its way.
func (l *Ledger) write(ctx context.Context, tx *sql.Tx, p *plan) error {
	a, at, err := l.writer.enter(ctx, tx, p)
	if err != nil {
		return fmt.Errorf("ledger %s %s: %w", p.kind, p.id, err)
	}
	switch a {
	case entered:
		return nil
	case exists:
		_, there, err := l.existing(ctx, tx, p.id, p.digest)
		if !there && err == nil {
			err = fmt.Errorf("ledger %s %s: the id was there and is not", p.kind, p.id)
		}
		return err
	case refundRefused:
		return l.whyNoRefund(ctx, tx, p.of, p.legs[0].currency, p.total)
	case gateRefused:
		g := p.gates[at]
		return l.why(ctx, tx, p, move{account: g.account, mode: g.mode, currency: p.legs[0].currency}, g.field, true)
	case moveRefused:
		m := p.moves[at]
		field := "debit"
		if m.debit == 0 {
			field = "credit"
		}
		return l.why(ctx, tx, p, m, field, false)
	}
	panic(fmt.Sprintf("ledger: answer %d", a))
}
