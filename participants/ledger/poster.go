package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// foldMax bounds the buffered rows that one transaction posts.
const foldMax = 10_000

// Poster posts what Buffered accounts have accepted. It holds nothing: killed at any instant, it has posted what it
// committed, once, and another goes on.
type Poster struct {
	Ledger *Ledger
	DB     *sql.DB
	// Rate is how many batches an account gets in a second. Defaults to 30.
	Rate int
	// CutAfter, if not nil, has the Poster cut the days of Aggregated accounts too: each day once it has been over for so
	// long.
	CutAfter *time.Duration
	// Log gets what failed; the next round tries again. nil discards.
	Log *slog.Logger
}

// RateDefault is a Poster's Rate.
const RateDefault = 30

// Run posts until ctx ends, and returns nil then.
func (p Poster) Run(ctx context.Context) error {
	rate, log := p.Rate, p.Log
	if rate <= 0 {
		rate = RateDefault
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	cut := 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if _, err := p.Ledger.PostBuffered(ctx, p.DB); err != nil && ctx.Err() == nil {
			log.Warn("post buffered entries", "err", err)
		}
		if p.CutAfter == nil {
			continue
		}
		over := p.Ledger.now().Add(-*p.CutAfter).In(p.Ledger.location).AddDate(0, 0, -1)
		if dayOf(over) == cut {
			continue
		}
		if err := p.Ledger.CutDays(ctx, p.DB, over); err != nil {
			if ctx.Err() == nil {
				log.Warn("day cut", "day", dayOf(over), "err", err)
			}
			continue
		}
		cut = dayOf(over)
	}
}

// PostBuffered posts once what waits at each Buffered account, at most 10,000 rows of each, one transaction per account,
// and gives the number of accounts. Any number of processes may do it at once.
func (l *Ledger) PostBuffered(ctx context.Context, db *sql.DB) (accounts int, err error) {
	due, err := l.list(ctx, db, "SELECT a.id FROM {p}account a WHERE a.mode = 'buffered' AND a.shard = 0 AND EXISTS (SELECT 1 FROM {p}buffer b WHERE b.account = a.id AND b.day = 0) ORDER BY a.id")
	if err != nil {
		return 0, fmt.Errorf("ledger: buffered accounts: %w", err)
	}
	for _, id := range due {
		if err := l.inTx(ctx, db, l.readCommitted(), func(tx *sql.Tx) error {
			_, err := l.writer.fold(ctx, tx, id)
			return err
		}); err != nil {
			return accounts, fmt.Errorf("ledger: post buffered %s: %w", id, err)
		}
		accounts++
	}
	return accounts, nil
}

// CutDays is CutDay for all Aggregated accounts.
func (l *Ledger) CutDays(ctx context.Context, db *sql.DB, day time.Time) error {
	ids, err := l.list(ctx, db, "SELECT id FROM {p}account WHERE mode = 'aggregated' AND shard = 0 ORDER BY id")
	for _, id := range ids {
		if err == nil {
			_, err = l.CutDay(ctx, db, id, day)
		}
	}
	return err
}

// CutDay posts what an Aggregated account took up to the end of day (its date counts, as it stands there) as one summed
// transfer between the account and its clearing account, "cut:<account>:<yyyymmdd>", and gives its net amount in minor
// units. A day is cut once; what arrives for it afterwards goes with the next. Durable on nil.
func (l *Ledger) CutDay(ctx context.Context, db *sql.DB, id string, day time.Time) (net int64, err error) {
	n := dayOf(day)
	err = l.inTx(ctx, db, l.readCommitted(), func(tx *sql.Tx) error {
		net, err = l.cut(ctx, tx, id, n)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("ledger: cut day %d of %s: %w", n, id, err)
	}
	return net, nil
}

func (l *Ledger) cut(ctx context.Context, tx *sql.Tx, id string, day int) (int64, error) {
	account, err := l.definition(ctx, tx, id)
	if err != nil || account.Mode != Aggregated {
		return 0, errors.Join(err, fmt.Errorf("%w: %s is no aggregated account", barrier.ErrInvalid, id))
	}
	aside := id + clearingSuffix
	p := &plan{id: fmt.Sprintf("%s%s:%d", cutPrefix, id, day), kind: kindCut, post: true, gid: "", digest: fmt.Sprint(day), day: day}
	p.us, _ = l.time()
	// The lock on the clearing account's counters has two cuts take turns.
	if free, err := l.lockShards(ctx, tx, aside, upTo(1)); err != nil || len(free) != 1 {
		return 0, errors.Join(err, fmt.Errorf("%d rows of counters", len(free)))
	}
	switch h, err := l.header(ctx, tx, p.id, "{share}"); {
	case errors.Is(err, sql.ErrNoRows):
	case err != nil:
		return 0, err
	case h.kind != kindCut || h.digest != p.digest: // of a caller, from before such ids were refused: the day is not cut
		return 0, &MismatchError{ID: p.id, Kind: h.kind, State: h.state}
	default:
		return h.amount, nil
	}
	var ids []any
	var debit, credit int64
	for {
		some, d, c, err := l.waiting(ctx, tx, aside, fmt.Sprintf("day > 0 AND day <= %d", day))
		if err != nil {
			return 0, err
		}
		if err := l.dropSome(ctx, tx, aside, some); err != nil {
			return 0, err
		}
		ids, debit, credit = append(ids, some...), debit+d, credit+c
		if len(some) < foldMax {
			break
		}
	}
	if len(ids) == 0 {
		return 0, nil
	}
	if _, err := tx.ExecContext(ctx, l.q("UPDATE {p}account SET debits_posted = debits_posted + ?, credits_posted = credits_posted + ? WHERE id = ? AND shard = 1"), debit, credit, aside); err != nil {
		return 0, err
	}
	// A cut is no payment: it passes a frozen account, and has no limits, which are those of what it sums up.
	net := credit - debit
	return net, l.writeCut(ctx, tx, p, id, aside, net)
}

// dropSome is drop for any number.
func (l *Ledger) dropSome(ctx context.Context, tx *sql.Tx, account string, ids []any) error {
	if len(ids) == 0 {
		return nil
	}
	return l.drop(ctx, tx, account, ids)
}

// writeCut moves a day's net amount from the clearing account to the account.
func (l *Ledger) writeCut(ctx context.Context, tx *sql.Tx, p *plan, id, aside string, net int64) error {
	g := planLeg{debit: aside, credit: id, debitShard: 1, creditShard: 1, amount: net}
	if net < 0 {
		g.debit, g.credit, g.amount = id, aside, -net
	}
	if err := tx.QueryRowContext(ctx, l.q("SELECT currency FROM {p}account WHERE id = ? AND shard = 0"), id).Scan(&g.currency); err != nil {
		return err
	}
	p.legs = []planLeg{g}
	w := l.generic // once a day: statement by statement everywhere
	if ok, err := changed(ctx, tx, w.insertLeg, p.id, 0, 1, p.kind, "posted", p.digest, "", "", "", g.debit, 1, g.credit, 1, g.amount, g.currency, 0, p.us, p.us); err != nil || !ok {
		return errors.Join(err, errors.New("the cut was there"))
	}
	if net == 0 {
		return nil
	}
	for _, s := range []struct{ column, account string }{{"debits_posted", g.debit}, {"credits_posted", g.credit}} {
		if ok, err := changed(ctx, tx, l.q("UPDATE {p}account SET "+s.column+" = "+s.column+" + ? WHERE id = ? AND shard = 1"), g.amount, s.account); err != nil || !ok {
			return errors.Join(err, fmt.Errorf("account %s took nothing", s.account))
		}
	}
	return w.book(ctx, tx, p)
}

// Rebalance levels what the shards of a Split account may spend, so that a debit finds enough in one. No entry is made:
// the account's sums stay as they are. Durable on nil.
func (l *Ledger) Rebalance(ctx context.Context, db *sql.DB, id string) error {
	err := l.InTx(ctx, db, func(tx *sql.Tx) error {
		a, err := l.definition(ctx, tx, id)
		if err != nil || a.Mode != Split || a.Overdraft {
			return errors.Join(err, fmt.Errorf("%w: %s is no split account with a limit", barrier.ErrInvalid, id))
		}
		free, err := l.lockShards(ctx, tx, id, upTo(a.Shards))
		if err != nil {
			return err
		}
		total, n := sumFree(free), int64(len(free))
		for i, f := range free {
			want := total / n
			if int64(i) < total%n {
				want++
			}
			if want == f.free {
				continue
			}
			if _, err := tx.ExecContext(ctx, l.q("UPDATE {p}account SET credits_posted = credits_posted + ? WHERE id = ? AND shard = ?"), want-f.free, id, f.shard); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("ledger: rebalance %s: %w", id, err)
	}
	return nil
}

func (l *Ledger) list(ctx context.Context, db Querier, query string, args ...any) ([]string, error) {
	rows, err := db.QueryContext(ctx, l.q(query), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, rows.Err()
}

// readCommitted keeps InnoDB from locking the gaps where others insert.
func (l *Ledger) readCommitted() *sql.TxOptions {
	if l.dialect == barrier.SQLite {
		return nil
	}
	return &sql.TxOptions{Isolation: sql.LevelReadCommitted}
}
