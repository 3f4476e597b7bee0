package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
)

// branches reads what the book has of branches: their legs, their entries, and what was posted for them once more.
func (s Slots) branches(ctx context.Context, db *sql.DB, ids []any, gids []any, into map[string]*Branch) error {
	if err := s.legsIn(ctx, db, ids, into); err != nil {
		return err
	}
	if err := s.sides(ctx, db, ids, into); err != nil {
		return err
	}
	return each(ctx, db, s.q("SELECT id, gid, branch FROM {p}transfer WHERE gid IN (?"+strings.Repeat(", ?", len(gids)-1)+") AND kind = 'hold' AND gid <> '' AND id <> "+s.ownID()+
		" AND leg = 0 AND state = 'posted' AND refunded = 0 AND total > 0 ORDER BY id"), gids, func(rows *sql.Rows) error {
		var id, gid, name string
		if err := rows.Scan(&id, &gid, &name); err != nil {
			return err
		}
		if b := into[HoldID(gid, name)]; b != nil {
			b.Again = append(b.Again, id)
		}
		return nil
	})
}

// ownID is the id that the ledger gives a branch's hold, as the index over the others has it.
func (s Slots) ownID() string {
	if s.dialect == barrier.MySQL {
		return "concat(gid, ':', branch)"
	}
	return "gid || ':' || branch"
}

func (s Slots) legsIn(ctx context.Context, db *sql.DB, ids []any, into map[string]*Branch) error {
	return each(ctx, db, s.q(`SELECT id, legs, state, kind, digest, gid, branch, of_id, debit, debit_shard, credit, credit_shard, amount, currency FROM {p}transfer
		WHERE id IN (?`+strings.Repeat(", ?", len(ids)-1)+") ORDER BY id, leg"), ids, func(rows *sql.Rows) error {
		var id, state, kind, digest string
		var t Transfer
		var g Leg
		var legs, debitShard, creditShard int
		if err := rows.Scan(&id, &legs, &state, &kind, &digest, &t.Gid, &t.Branch, &t.RefundOf, &g.Debit, &debitShard, &g.Credit, &creditShard, &g.Minor, &g.Currency); err != nil {
			return err
		}
		b := into[id]
		if b == nil {
			return nil // a server that takes ids for one that differ
		}
		b.State = state
		if g.Minor > 0 {
			b.Legs = append(b.Legs, g)
		}
		// Where an account is kept in parts, its legs are not what was asked for.
		if legs == 1 && kind == kindHold && debitShard == 0 && creditShard == 0 {
			t.Legs = []Leg{g}
			b.Altered = t.digest(kindHold) != digest
		}
		return nil
	})
}

func (s Slots) sides(ctx context.Context, db Querier, ids []any, into map[string]*Branch) error {
	return each(ctx, db, s.q("SELECT transfer_id, leg, account, amount, currency, direction FROM {p}entry WHERE transfer_id IN (?"+strings.Repeat(", ?", len(ids)-1)+
		") ORDER BY transfer_id, leg, direction"), ids, func(rows *sql.Rows) error {
		var id, direction string
		var e Side
		if err := rows.Scan(&id, &e.Leg, &e.Account, &e.Minor, &e.Currency, &direction); err != nil {
			return err
		}
		e.Debit = direction == "debit"
		if b := into[id]; b != nil {
			b.Entries = append(b.Entries, e)
		}
		return nil
	})
}

// explainMax bounds what is listed of one account.
const explainMax = 20

// explain finds what an account's fault may come of.
func (s Slots) explain(ctx context.Context, tx *sql.Tx, f *AccountFault) error {
	if f.EntriesDiffer != nil {
		if err := each(ctx, tx, s.q(fmt.Sprintf(`SELECT DISTINCT e.transfer_id FROM {p}entry e LEFT JOIN {p}transfer t ON t.id = e.transfer_id AND t.leg = e.leg
			WHERE e.account = ? AND t.id IS NULL ORDER BY e.transfer_id LIMIT %d`, explainMax)), []any{f.Account}, func(rows *sql.Rows) error {
			var id string
			err := rows.Scan(&id)
			f.Phantoms = append(f.Phantoms, id)
			return err
		}); err != nil {
			return err
		}
	}
	if f.Have[0] >= f.Fold[0] && f.Have[2] >= f.Fold[2] {
		return nil
	}
	return each(ctx, tx, s.q(fmt.Sprintf("SELECT id, gid, branch, amount FROM {p}transfer WHERE (debit = ? OR credit = ?) AND kind = 'hold' AND state = 'voided' AND gid <> '' AND of_id = '' AND id <> %s ORDER BY id LIMIT %d",
		s.ownID(), explainMax)), []any{f.Account, f.Account}, func(rows *sql.Rows) error {
		var t TwiceVoided
		err := rows.Scan(&t.ID, &t.Gid, &t.Branch, &t.Minor)
		f.Twice = append(f.Twice, t)
		return err
	})
}

// each calls f for every row.
func each(ctx context.Context, q Querier, query string, args []any, f func(*sql.Rows) error) error {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// EndedAs is branch.Restorable's.
func (s Slots) EndedAs(ctx context.Context, tx *sql.Tx, k barrier.BranchKey) (string, error) {
	h, err := s.header(ctx, tx, HoldID(k.Gid, k.Branch), "{exclusive}")
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return "", nil
	case err != nil:
		return "", err
	case h.state == "posted":
		return barrier.OpConfirm, nil
	case h.state == "voided":
		return barrier.OpCancel, nil
	}
	return "", nil
}

// OpenHolds is branch.Restorable's.
func (s Slots) OpenHolds(ctx context.Context, db *sql.DB, before int64, after string, limit int) ([]branch.OpenHold, error) {
	return s.holdsWhere(ctx, db, "created_us", "state = 'pending' AND created_us < ?", after, limit, before*1000)
}

// PostedHolds is branch.Restorable's.
func (s Slots) PostedHolds(ctx context.Context, db *sql.DB, from, before int64, after string, limit int) ([]branch.OpenHold, error) {
	return s.holdsWhere(ctx, db, "settled_us", "state = 'posted' AND gid <> '' AND settled_us >= ? AND settled_us < ?", after, limit, from*1000, before*1000)
}

// holdsWhere lists holds by the account that their payloads name.
func (s Slots) holdsWhere(ctx context.Context, db *sql.DB, at, where, after string, limit int, args ...any) ([]branch.OpenHold, error) {
	out := []branch.OpenHold{}
	err := each(ctx, db, s.q(fmt.Sprintf("SELECT id, gid, branch, debit, credit, amount, currency, %s FROM {p}transfer WHERE kind = 'hold' AND leg = 0 AND %s AND id > ? ORDER BY id LIMIT %d", at, where, limit)),
		append(args, after), func(rows *sql.Rows) error {
			h := branch.OpenHold{Held: branch.Held{Debit: true}}
			var credit string
			var us int64
			err := rows.Scan(&h.ID, &h.Gid, &h.Branch, &h.Account, &credit, &h.Amount, &h.Currency, &us)
			if h.Since = us / 1000; h.Account == Passage(h.Currency) { // the customer's side, as a payload names it
				h.Account, h.Debit = credit, false
			}
			out = append(out, h)
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("ledger: list holds: %w", err)
	}
	return out, nil
}
