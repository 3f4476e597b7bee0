package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// legKey names a row of transfer.
type legKey struct {
	id  string
	leg int
}

// legsAtOnce bounds the rows that one statement names, so that a condition does not become too deep for SQLite.
const legsAtOnce = 200

// theseRows is a condition for rows by their whole primary keys, of which second is the second column; InnoDB locks records
// with it, and no gaps.
func theseRows(second string, keys []legKey) (where string, args []any) {
	for _, k := range keys {
		args = append(args, k.id, k.leg)
	}
	one := "(id = ? AND " + second + " = ?)"
	return one + strings.Repeat(" OR "+one, len(keys)-1), args
}

// byPrimary keeps MySQL from reading a small table whole, which would lock all of it.
func (n names) byPrimary() string {
	if n.dialect == barrier.MySQL {
		return " FORCE INDEX (PRIMARY)"
	}
	return ""
}

// postAll posts holds, all or ErrNotTogether: what is read, marked and booked is each one statement for all of them, and
// what moves one counter one update by the sum.
func (w *generic) postAll(ctx context.Context, tx *sql.Tx, all []settlement) error {
	plans, err := w.lockHolds(ctx, tx, all)
	if err != nil {
		return err
	}
	var keys []legKey
	var moves []move
	for _, p := range plans {
		for leg := range p.first + len(p.legs) {
			keys = append(keys, legKey{p.id, leg})
		}
		b := &planner{p: &plan{}}
		for _, g := range p.legs {
			b.move(g.debit, g.debitShard, "", "", g.amount, 0)
			b.move(g.credit, g.creditShard, "", "", 0, g.amount)
		}
		moves = append(moves, b.p.moves...)
	}
	for some := range slices.Chunk(keys, legsAtOnce) {
		where, args := theseRows("leg", some)
		r, err := tx.ExecContext(ctx, w.q("UPDATE {p}transfer"+w.byPrimary()+" SET state = 'posted', settled_us = ? WHERE "+where), append([]any{all[0].us}, args...)...)
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n != int64(len(some)) {
			return errors.Join(err, fmt.Errorf("%d of %d legs were there to be posted", n, len(some)))
		}
	}
	if err := w.settleAllMoves(ctx, tx, sumOf(moves)); err != nil {
		return err
	}
	after, err := w.balancesAfter(ctx, tx, plans)
	if err != nil {
		return err
	}
	return w.bookAll(ctx, tx, plans, after)
}

// lockHolds locks the holds to be ended and reads their legs; ErrNotTogether unless all of them wait for their end.
func (w *generic) lockHolds(ctx context.Context, tx *sql.Tx, all []settlement) ([]*plan, error) {
	by, digests := map[string]*plan{}, map[string]string{}
	plans := make([]*plan, len(all))
	first := make([]legKey, len(all))
	for i, s := range all {
		if by[s.id] != nil {
			return nil, fmt.Errorf("%w: %s stands there twice", ErrNotTogether, s.id)
		}
		plans[i] = &plan{id: s.id, us: s.us, day: s.day}
		by[s.id], digests[s.id], first[i] = plans[i], s.digest, legKey{s.id, 0}
	}
	slices.SortFunc(first, func(a, b legKey) int { return strings.Compare(a.id, b.id) })
	var rest []legKey
	found := 0
	if err := w.lockLegs(ctx, tx, first, func(k legKey, h header, g planLeg) error {
		if h.kind != kindHold || h.state != "pending" || (digests[k.id] != "" && digests[k.id] != h.digest) {
			return fmt.Errorf("%w: %s is no such hold that waits", ErrNotTogether, k.id)
		}
		found++
		p := by[k.id]
		p.gid, p.branch, p.of, p.total = h.gid, h.branch, h.of, h.total
		if p.first = 1; g.amount > 0 { // else leg 0 moves nothing
			p.legs, p.first = append(p.legs, g), 0
		}
		for leg := 1; leg < h.legs; leg++ {
			rest = append(rest, legKey{k.id, leg})
		}
		return nil
	}); err != nil {
		return nil, err
	}
	if found != len(all) {
		return nil, fmt.Errorf("%w: %d of %d holds are there", ErrNotTogether, found, len(all))
	}
	more := 0
	err := w.lockLegs(ctx, tx, rest, func(k legKey, _ header, g planLeg) error {
		more++
		by[k.id].legs = append(by[k.id].legs, g)
		return nil
	})
	if err == nil && more != len(rest) {
		err = fmt.Errorf("%d of %d further legs are there", more, len(rest))
	}
	return plans, err
}

// lockLegs locks rows of transfer and gives them, by id and leg.
func (w *generic) lockLegs(ctx context.Context, tx *sql.Tx, keys []legKey, each func(legKey, header, planLeg) error) error {
	one := func(where string, args []any) error {
		rows, err := tx.QueryContext(ctx, w.q(`SELECT id, leg, legs, kind, state, digest, of_id, total, gid, branch, debit, debit_shard, credit, credit_shard, amount, currency
			FROM {p}transfer`+w.byPrimary()+` WHERE `+where+` ORDER BY id, leg{exclusive}`), args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var k legKey
			var h header
			var g planLeg
			if err := rows.Scan(&k.id, &k.leg, &h.legs, &h.kind, &h.state, &h.digest, &h.of, &h.total, &h.gid, &h.branch,
				&g.debit, &g.debitShard, &g.credit, &g.creditShard, &g.amount, &g.currency); err != nil {
				return err
			}
			if err := each(k, h, g); err != nil {
				return err
			}
		}
		return rows.Err()
	}
	for some := range slices.Chunk(keys, legsAtOnce) {
		where, args := theseRows("leg", some)
		if err := one(where, args); err != nil {
			return err
		}
	}
	return nil
}

// account0 is what an entry's balance is of: a transfer's side, where one row counts the account.
type account0 struct{ transfer, account string }

// balancesAfter gives the balances that each transfer leaves, in the order of plans: those now, when all are posted, less
// what the transfers after it did.
func (w *generic) balancesAfter(ctx context.Context, tx *sql.Tx, plans []*plan) (map[account0]int64, error) {
	changes := make([]map[string]int64, len(plans))
	var counted []legKey // accounts, and the shard that counts them whole
	now := map[string]int64{}
	for i, p := range plans {
		changes[i] = map[string]int64{}
		change := func(account string, shard int, n int64) {
			if shard != 0 {
				return
			}
			changes[i][account] += n
			if _, known := now[account]; !known {
				now[account], counted = 0, append(counted, legKey{account, 0})
			}
		}
		for _, g := range p.legs {
			change(g.debit, g.debitShard, -g.amount)
			change(g.credit, g.creditShard, g.amount)
		}
	}
	for some := range slices.Chunk(counted, legsAtOnce) {
		where, args := theseRows("shard", some)
		if err := w.readBalances(ctx, tx, where, args, now); err != nil {
			return nil, err
		}
	}
	out := map[account0]int64{}
	for i, p := range slices.Backward(plans) {
		for account, n := range changes[i] {
			out[account0{p.id, account}] = now[account]
			now[account] -= n
		}
	}
	return out, nil
}

func (w *generic) readBalances(ctx context.Context, tx *sql.Tx, where string, args []any, into map[string]int64) error {
	rows, err := tx.QueryContext(ctx, w.q("SELECT id, credits_posted - debits_posted FROM {p}account"+w.byPrimary()+" WHERE "+where), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		var balance int64
		if err := rows.Scan(&id, &balance); err != nil {
			return err
		}
		into[id] = balance
	}
	return rows.Err()
}

// settleAllMoves takes what was held out of what is pending and posts it.
func (w *generic) settleAllMoves(ctx context.Context, tx *sql.Tx, sums []move) error {
	if w.dialect == barrier.MySQL && len(sums) > 1 {
		n, err := w.moveTogether(ctx, tx, sums, `a.debits_pending = a.debits_pending - m.debit, a.credits_pending = a.credits_pending - m.credit,
			a.debits_posted = a.debits_posted + m.debit, a.credits_posted = a.credits_posted + m.credit`, "TRUE")
		if err == nil && n < len(sums) {
			err = fmt.Errorf("%d of %d accounts, which holds name, are there", n, len(sums))
		}
		return err
	}
	for _, m := range sums {
		ok, err := changed(ctx, tx, w.settleMove, m.debit, m.credit, m.debit, m.credit, m.account, m.shard)
		if err != nil || !ok {
			return errors.Join(err, fmt.Errorf("account %s shard %d, which a hold names: changed %v", m.account, m.shard, ok))
		}
	}
	return nil
}

// moveTogether changes many rows of counters (a) by sums (m) in one statement, in the order of sums, and says how many
// it changed. MySQL has no other way to say it: the sums are a table that is joined with, and come first.
func (w *generic) moveTogether(ctx context.Context, tx *sql.Tx, sums []move, set, where string) (changed int, err error) {
	args := make([]any, 0, 6*len(sums))
	for _, m := range sums {
		args = append(args, m.account, m.shard, m.mode, m.currency, m.debit, m.credit)
	}
	// All texts are compared by their bytes, as the columns are.
	r, err := tx.ExecContext(ctx, w.q("UPDATE (SELECT ? AS id, ? AS shard, ? AS mode, ? AS currency, ? AS debit, ? AS credit"+
		strings.Repeat(" UNION ALL SELECT ?, ?, ?, ?, ?, ?", len(sums)-1)+
		") m STRAIGHT_JOIN {p}account a FORCE INDEX (PRIMARY) ON a.id = m.id COLLATE utf8mb4_bin AND a.shard = m.shard SET "+set+" WHERE "+where), args...)
	if err != nil {
		return 0, err
	}
	n, err := r.RowsAffected()
	return int(n), err
}
