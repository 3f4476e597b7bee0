package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// ErrNotTogether says that not all of many transfers could be written at once. The caller rolls back to where it was and
// writes them one by one, which says what stands in whose way.
var ErrNotTogether = errors.New("not all of them at once")

// HoldAll is Hold for many transfers: all of them or an error, ErrNotTogether among others, after which the caller rolls
// tx back, or tx to a savepoint before the call. On PostgreSQL it is one round
// trip, elsewhere one for all legs and one for each counter.
func (l *Ledger) HoldAll(ctx context.Context, tx *sql.Tx, all []Transfer) error {
	if len(all) == 1 && l.dialect != barrier.PostgreSQL {
		return l.Hold(ctx, tx, all[0])
	}
	if len(all) == 0 {
		return nil
	}
	plans := make([]*plan, len(all))
	normal := make([]Transfer, len(all))
	for i, t := range all {
		t, err := t.normal()
		normal[i] = t
		if err == nil {
			err = t.callers()
		}
		if err == nil && (len(t.Legs) == 0 || len(t.Legs) > LegsMax) {
			err = fmt.Errorf("%w: %d legs", ErrNotTogether, len(t.Legs))
		}
		if err != nil {
			return err
		}
		if plans[i], err = l.plan(ctx, tx, t, kindHold, false); err != nil {
			return err
		}
		if err := l.allowed(ctx, tx, t); err != nil {
			return err
		}
	}
	enterAll := l.generic.enterAll
	if l.dialect == barrier.PostgreSQL {
		enterAll = l.enterAll
	}
	if err := enterAll(ctx, tx, plans); err != nil {
		return err
	}
	for i, p := range plans {
		if err := l.countLegs(ctx, tx, p); err != nil {
			return err
		}
		if err := l.count(ctx, tx, normal[i]); err != nil {
			return err
		}
	}
	return nil
}

// PostAll is Post for many holds; see HoldAll.
func (l *Ledger) PostAll(ctx context.Context, tx *sql.Tx, all []Transfer) error {
	return l.settleAll(ctx, tx, all, true)
}

// VoidAll is Void for many holds; see HoldAll.
func (l *Ledger) VoidAll(ctx context.Context, tx *sql.Tx, all []Transfer) error {
	return l.settleAll(ctx, tx, all, false)
}

func oneByOne(all []Transfer, do func(Transfer) error) error {
	for _, t := range all {
		if err := do(t); err != nil {
			return err
		}
	}
	return nil
}

func (l *Ledger) settleAll(ctx context.Context, tx *sql.Tx, all []Transfer, post bool) error {
	if l.dialect != barrier.PostgreSQL && (!post || len(all) == 1) {
		return oneByOne(all, func(t Transfer) error { return l.settle(ctx, tx, t, post) })
	}
	ids, digests := make([]string, len(all)), make([]string, len(all))
	for i, t := range all {
		t, err := t.normal()
		if err != nil {
			return err
		}
		ids[i] = t.ID
		if len(t.Legs) > 0 {
			digests[i] = t.digest(kindHold)
		}
	}
	us, day := l.time()
	if l.dialect != barrier.PostgreSQL {
		holds := make([]settlement, len(all))
		for i := range all {
			holds[i] = settlement{id: ids[i], digest: digests[i], post: true, us: us, day: day}
		}
		return l.generic.postAll(ctx, tx, holds)
	}
	if err := l.first(tx.QueryRowContext(ctx, l.q("SELECT {p}settle_all($1, $2, $3, $4, $5)"), ids, digests, post, us, day), ids); err != nil || post {
		return err
	}
	return oneByOne(all, func(t Transfer) error {
		t, err := t.normal()
		if err != nil {
			return err
		}
		return l.giveBack(ctx, tx, t)
	})
}

// first reads the number of the first that failed.
func (l *Ledger) first(row *sql.Row, ids []string) error {
	var n int
	if err := row.Scan(&n); err != nil {
		return fmt.Errorf("ledger: %d at once: %w", len(ids), err)
	}
	if n != 0 {
		return fmt.Errorf("%w: %s", ErrNotTogether, ids[n-1])
	}
	return nil
}

// flat are plans as arrays of rows, with where each plan's part ends.
type flat struct {
	id, gid, branch, digest, of  []string
	total                        []int64
	legTo, gateTo, moveTo        []int32
	leg, debitShard, creditShard []int32
	debit, credit, currency      []string
	amount                       []int64
	gate, gateMode               []string
	account, mode, moveCurrency  []string
	shard                        []int32
	debits, credits              []int64
}

func (f *flat) add(p *plan) {
	f.id, f.gid, f.branch = append(f.id, p.id), append(f.gid, p.gid), append(f.branch, p.branch)
	f.digest, f.of, f.total = append(f.digest, p.digest), append(f.of, p.of), append(f.total, p.total)
	for i, g := range p.legs {
		f.leg, f.debit, f.debitShard = append(f.leg, int32(p.first+i)), append(f.debit, g.debit), append(f.debitShard, int32(g.debitShard))
		f.credit, f.creditShard = append(f.credit, g.credit), append(f.creditShard, int32(g.creditShard))
		f.amount, f.currency = append(f.amount, g.amount), append(f.currency, g.currency)
	}
	for _, g := range p.gates {
		f.gate, f.gateMode = append(f.gate, g.account), append(f.gateMode, string(g.mode))
	}
	for _, v := range p.moves {
		f.account, f.shard, f.mode = append(f.account, v.account), append(f.shard, int32(v.shard)), append(f.mode, string(v.mode))
		f.moveCurrency, f.debits, f.credits = append(f.moveCurrency, v.currency), append(f.debits, v.debit), append(f.credits, v.credit)
	}
	f.legTo, f.gateTo, f.moveTo = append(f.legTo, int32(len(f.leg))), append(f.gateTo, int32(len(f.gate))), append(f.moveTo, int32(len(f.account)))
}

func (l *Ledger) enterAll(ctx context.Context, tx *sql.Tx, plans []*plan) error {
	// Between insert-only accounts there are no moves, elsewhere no gates: nil would be NULL to the function, and no array.
	f := &flat{gate: []string{}, gateMode: []string{}, account: []string{}, shard: []int32{}, mode: []string{},
		moveCurrency: []string{}, debits: []int64{}, credits: []int64{}}
	for _, p := range plans {
		f.add(p)
	}
	us, day := l.time()
	return l.first(tx.QueryRowContext(ctx, l.q("SELECT {p}enter_all($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28)"),
		f.id, kindHold, false, f.gid, f.branch, f.digest, f.of, f.total, us, day, f.legTo, f.gateTo, f.moveTo,
		f.leg, f.debit, f.debitShard, f.credit, f.creditShard, f.amount, f.currency, f.gate, f.gateMode,
		f.account, f.shard, f.mode, f.moveCurrency, f.debits, f.credits), f.id)
}
