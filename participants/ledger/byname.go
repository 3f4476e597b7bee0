package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
)

// Settle is branch.Settler's: it posts or voids the hold of a branch, whatever it holds.
func (s Slots) Settle(ctx context.Context, tx *sql.Tx, gid, branch, op string) error {
	end := s.Void
	if op == barrier.OpConfirm {
		end = s.Post
	}
	err := end(ctx, tx, Transfer{Gid: gid, Branch: branch})
	if errors.Is(err, ErrNoHold) {
		return fmt.Errorf("%w: %w", barrier.ErrNotTried, err)
	}
	return err
}

// Held is branch.Holder's: of each open hold the customer's leg, the debited customer's where both sides are customers.
func (s Slots) Held(ctx context.Context, db *sql.DB, branches []barrier.BranchKey) (map[barrier.BranchKey]branch.Held, error) {
	out := map[barrier.BranchKey]branch.Held{}
	by := map[string]barrier.BranchKey{}
	var ids []any
	for _, k := range branches {
		id := HoldID(k.Gid, k.Branch)
		by[id], ids = k, append(ids, id)
	}
	for part := range slices.Chunk(ids, inspectAtOnce) {
		if err := s.heldOf(ctx, db, part, by, out); err != nil {
			return nil, fmt.Errorf("ledger: read holds: %w", err)
		}
	}
	return out, nil
}

func (s Slots) heldOf(ctx context.Context, db *sql.DB, ids []any, by map[string]barrier.BranchKey, out map[barrier.BranchKey]branch.Held) error {
	rows, err := db.QueryContext(ctx, s.q(`SELECT t.id, t.debit, t.credit, t.amount, t.currency, coalesce(d.overdraft, 'any'), coalesce(c.overdraft, 'any') FROM {p}transfer t
		LEFT JOIN {p}account d ON d.id = t.debit AND d.shard = 0 LEFT JOIN {p}account c ON c.id = t.credit AND c.shard = 0
		WHERE t.id IN (?`+strings.Repeat(", ?", len(ids)-1)+`) AND t.kind = 'hold' AND t.state = 'pending' AND t.amount > 0 ORDER BY t.id, t.leg`), ids...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id, debitHouse, creditHouse string
		var g Leg
		if err := rows.Scan(&id, &g.Debit, &g.Credit, &g.Minor, &g.Currency, &debitHouse, &creditHouse); err != nil {
			return err
		}
		key, ok := by[id]
		if !ok {
			continue // a server that takes ids for one that differ
		}
		leg := branch.Held{Account: strings.TrimSuffix(g.Debit, clearingSuffix), Amount: g.Minor, Currency: g.Currency, Debit: true}
		if debitHouse == "any" && creditHouse != "any" {
			leg.Account, leg.Debit = strings.TrimSuffix(g.Credit, clearingSuffix), false
		} else if debitHouse == "any" && strings.HasSuffix(g.Credit, clearingSuffix) {
			leg.Account, leg.Debit = strings.TrimSuffix(g.Credit, clearingSuffix), false // an aggregated account takes its credits there
		}
		switch has, seen := out[key]; {
		case !seen, leg.Debit && !has.Debit:
			out[key] = leg
		case has.Account == leg.Account && has.Debit == leg.Debit: // a debit that shards give together
			has.Amount += leg.Amount
			out[key] = has
		}
	}
	return rows.Err()
}
