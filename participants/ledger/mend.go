package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
	"github.com/lockstep-tx/lockstep/participants/mutant"
)

// This file repairs a book that was changed behind its back: counters from entries, a branch's rows from what its payload
// says and the digest of its try proves, and an effect that is there twice by its reversal. What nothing proves is refused.

// What a mend does.
const (
	// MendCounters is an account's counters, from its entries and holds: the default.
	MendCounters = ""
	// MendLegs is the rows of a branch's transfer, from its payload.
	MendLegs = "legs"
	// MendReverse is a second posting of a branch, taken back by a reversal.
	MendReverse = "reverse"
)

// MendOrder is what Mend takes: an AccountFault as Check gave it, or a branch and what to do about it.
type MendOrder struct {
	AccountFault
	Do     string `json:"do,omitempty"`
	Gid    string `json:"gid,omitempty"`
	Branch string `json:"branch,omitempty"`
	// ID of the second posting, for reverse.
	ID string `json:"id,omitempty"`
	// Want is what the payload's confirm does to customers' accounts, for legs.
	Want []branch.Held `json:"want,omitempty"`
}

// Mend is branch.Inspectable's. It may be repeated; barrier.ErrRefused says why something is not set right. What was and what
// is stands in the answer.
func (s Slots) Mend(ctx context.Context, tx *sql.Tx, raw json.RawMessage) (json.RawMessage, error) {
	var order MendOrder
	if err := json.Unmarshal(raw, &order); err != nil {
		return nil, fmt.Errorf("%w: the fault: %w", barrier.ErrInvalid, err)
	}
	switch order.Do {
	case MendCounters:
		if mutant.On(mutant.RepairNotIdempotent) {
			return s.mendAgain(ctx, tx, order.AccountFault)
		}
		return s.mendCounters(ctx, tx, order.AccountFault)
	case MendLegs:
		return s.mendLegs(ctx, tx, order)
	case MendReverse:
		return s.mendTwice(ctx, tx, order)
	}
	return nil, fmt.Errorf("%w: do: %q; legs, reverse and nothing are possible", barrier.ErrInvalid, order.Do)
}

// mendCounters sets an account's counters to what its entries and holds say, if the fault is still the one that was found. Only
// accounts of one row of counters are set, and only where the entries are what the transfers say;
// barrier.ErrRefused says why another is not. What was and what is stands in the answer.
func (s Slots) mendCounters(ctx context.Context, tx *sql.Tx, want AccountFault) (json.RawMessage, error) {
	// The row's lock comes before anything is read: nobody moves money on it between the look and the change, and where a
	// transaction sees what was there at its first read, that is after the lock.
	if _, err := tx.ExecContext(ctx, s.q("UPDATE {p}account SET state = state WHERE id = ? AND shard = 0"), want.Account); err != nil {
		return nil, err
	}
	a, err := s.definition(ctx, tx, want.Account)
	if err != nil {
		return nil, fmt.Errorf("%w: account %q: %w", barrier.ErrInvalid, want.Account, err)
	}
	if a.Mode != Direct && a.Mode != Serial {
		return nil, fmt.Errorf("%w: account %q is %s: its counters are in several places; an operator must look", barrier.ErrRefused, a.ID, a.Mode)
	}
	now, err := s.faults(ctx, tx, a.ID)
	if err != nil {
		return nil, err
	}
	switch {
	case len(now) == 0:
		return json.Marshal(map[string]any{"account": a.ID, "mended": false, "why": "it is right already"})
	case now[0].EntriesDiffer != nil:
		return nil, fmt.Errorf("%w: account %q: its entries are not what the transfers %v say, so that they prove no counter: compare both with the callers' records, and restore the one that was altered",
			barrier.ErrRefused, a.ID, now[0].EntriesDiffer)
	case now[0].Have[1]-now[0].Fold[1] != want.Have[1]-want.Fold[1] || now[0].Have[3]-now[0].Fold[3] != want.Have[3]-want.Fold[3]:
		return nil, fmt.Errorf("%w: account %q differs otherwise than it was found: %v, not %v; run the reconciliation again", barrier.ErrRefused, a.ID, now[0], want)
	}
	f := now[0]
	if err := s.setCounters(ctx, tx, a.ID, f.Fold); err != nil {
		return nil, err
	}
	for _, t := range want.Twice { // so that they explain no later fault of as much
		if t.Minor != f.Fold[0]-f.Have[0] && t.Minor != f.Fold[2]-f.Have[2] {
			continue
		}
		if _, err := tx.ExecContext(ctx, s.q("UPDATE {p}transfer SET of_id = ? WHERE id = ? AND leg = 0 AND kind = 'hold' AND state = 'voided' AND id <> "+s.ownID()), "mended", t.ID); err != nil {
			return nil, err
		}
	}
	return json.Marshal(map[string]any{"account": a.ID, "mended": true, "before": f.Have, "after": f.Fold})
}

// lockAccounts takes the rows' locks in their order: nobody moves money on them between the look and the change, and where a
// transaction sees what was there at its first read, that is after the locks.
func (s Slots) lockAccounts(ctx context.Context, tx *sql.Tx, ids ...string) ([]string, error) {
	slices.Sort(ids)
	ids = slices.Compact(ids)
	for _, id := range ids {
		if _, err := tx.ExecContext(ctx, s.q("UPDATE {p}account SET state = state WHERE id = ? AND shard = 0"), id); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

func (s Slots) setCounters(ctx context.Context, tx *sql.Tx, id string, to [4]int64) error {
	_, err := tx.ExecContext(ctx, s.q("UPDATE {p}account SET debits_pending = ?, debits_posted = ?, credits_pending = ?, credits_posted = ? WHERE id = ? AND shard = 0"),
		to[0], to[1], to[2], to[3], id)
	return err
}

// mendTwice takes back a second posting of a branch.
func (s Slots) mendTwice(ctx context.Context, tx *sql.Tx, o MendOrder) (json.RawMessage, error) {
	own, state, err := s.transfer(ctx, tx, HoldID(o.Gid, o.Branch))
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	second, there, err := s.transfer(ctx, tx, o.ID)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	if state != "posted" || there != "posted" || second.Gid != o.Gid || second.Branch != o.Branch || !slices.Equal(own.Legs, second.Legs) {
		return nil, fmt.Errorf("%w: %s (%s) is not what %s (%s) is once more", barrier.ErrRefused, o.ID, there, own.ID, state)
	}
	if err := s.Reverse(ctx, tx, "mend:"+o.ID, o.ID, o.Gid, o.Branch); err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"transfer": o.ID, "mended": true, "reversal": "mend:" + o.ID})
}
