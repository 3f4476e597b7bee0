package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
)

// mendLegs sets the rows of a branch's transfer to what its payload says, if the digest that its try left proves that this was
// tried. Counters that agreed with the rows go with them; others stay, for the rows alone were changed: Check judges them next.
func (s Slots) mendLegs(ctx context.Context, tx *sql.Tx, o MendOrder) (json.RawMessage, error) {
	id := HoldID(o.Gid, o.Branch)
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: transfer %s: %s", barrier.ErrRefused, id, fmt.Sprintf(format, args...))
	}
	h, err := s.header(ctx, tx, id, "{exclusive}")
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, refuse("there is none")
	case err != nil:
		return nil, err
	case h.kind != kindHold || h.legs != 1 || len(o.Want) != 1 || h.state == "voided":
		return nil, refuse("a %s of %d legs that is %s, and %d in the payload: a person must look", h.kind, h.legs, h.state, len(o.Want))
	}
	have := Leg{Debit: h.debit, Credit: h.credit, Minor: h.amount, Currency: h.currency}
	if have.Currency, err = s.currencyOf(ctx, tx, id); err != nil {
		return nil, err
	}
	sides, err := s.sidesOf(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	want, ok := proven(Transfer{Gid: h.gid, Branch: h.branch, RefundOf: h.of}, h.digest, have, o.Want[0], sides)
	if !ok {
		return nil, refuse("the payload says %+v, and that was not tried: its digest is another", o.Want[0])
	}
	if have == want && (h.state == "pending" || areSides(sides, want)) {
		return json.Marshal(map[string]any{"transfer": id, "mended": false, "why": "it is right already"})
	}
	ids := []string{have.Debit, have.Credit, want.Debit, want.Credit}
	for _, side := range sides {
		ids = append(ids, side.Account)
	}
	if err := s.withCounters(ctx, tx, ids, func() error { return s.rewrite(ctx, tx, id, h, want) }); err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"transfer": id, "mended": true, "before": have, "entries_before": sides, "after": want})
}

func (s Slots) currencyOf(ctx context.Context, tx *sql.Tx, id string) (out string, err error) {
	err = tx.QueryRowContext(ctx, s.q("SELECT currency FROM {p}transfer WHERE id = ? AND leg = 0"), id).Scan(&out)
	return out, err
}

func (s Slots) sidesOf(ctx context.Context, tx *sql.Tx, id string) ([]Side, error) {
	found := map[string]*Branch{id: {}}
	err := s.sides(ctx, tx, []any{id}, found)
	return found[id].Entries, err
}

// proven makes the leg that the payload says, and has the digest prove it. The payload names the customer; the other side is
// one that is found in the rows, or the passage of the currency.
func proven(t Transfer, digest string, have Leg, want branch.Held, sides []Side) (Leg, bool) {
	others := []string{have.Debit, have.Credit, Passage(want.Currency)}
	for _, side := range sides {
		others = append(others, side.Account)
	}
	for _, other := range others {
		leg := Leg{Debit: other, Credit: want.Account, Minor: want.Amount, Currency: want.Currency}
		if want.Debit {
			leg.Debit, leg.Credit = leg.Credit, leg.Debit
		}
		if t.Legs = []Leg{leg}; t.digest(kindHold) == digest {
			return leg, true
		}
	}
	return Leg{}, false
}

// areSides says whether a transfer's entries are the two of its leg.
func areSides(sides []Side, leg Leg) bool {
	if len(sides) != 2 {
		return false
	}
	for _, side := range sides {
		account := leg.Credit
		if side.Debit {
			account = leg.Debit
		}
		if (side != Side{Account: account, Minor: leg.Minor, Currency: leg.Currency, Debit: side.Debit}) {
			return false
		}
	}
	return sides[0].Debit != sides[1].Debit
}

// withCounters changes rows of accounts, and has counters that agreed with the rows before agree with them afterwards.
func (s Slots) withCounters(ctx context.Context, tx *sql.Tx, ids []string, change func() error) error {
	ids, err := s.lockAccounts(ctx, tx, ids...)
	if err != nil {
		return err
	}
	agreed := map[string]bool{}
	for _, id := range ids {
		a, err := s.definition(ctx, tx, id)
		if errors.Is(err, sql.ErrNoRows) {
			continue // rows may name an account that never was
		}
		if err != nil {
			return err
		}
		if a.Mode != Direct && a.Mode != Serial {
			return fmt.Errorf("%w: account %q is %s: its counters are in several places; an operator must look", barrier.ErrRefused, a.ID, a.Mode)
		}
		faults, err := s.faults(ctx, tx, id)
		if err != nil {
			return err
		}
		agreed[id] = len(faults) == 0 || faults[0].Have == faults[0].Fold
	}
	if err := change(); err != nil {
		return err
	}
	for _, id := range ids {
		if !agreed[id] {
			continue
		}
		faults, err := s.faults(ctx, tx, id)
		if err == nil && len(faults) > 0 && faults[0].Have != faults[0].Fold {
			err = s.setCounters(ctx, tx, id, faults[0].Fold)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// rewrite writes a transfer's one leg and, where it is posted, its two entries.
func (s Slots) rewrite(ctx context.Context, tx *sql.Tx, id string, h header, leg Leg) error {
	if _, err := tx.ExecContext(ctx, s.q("UPDATE {p}transfer SET debit = ?, credit = ?, amount = ?, currency = ?, total = ? WHERE id = ? AND leg = 0"),
		leg.Debit, leg.Credit, leg.Minor, leg.Currency, leg.Minor, id); err != nil {
		return err
	}
	if h.state != "posted" {
		return nil
	}
	var us int64
	if err := tx.QueryRowContext(ctx, s.q("SELECT coalesce(settled_us, created_us) FROM {p}transfer WHERE id = ? AND leg = 0"), id).Scan(&us); err != nil {
		return err
	}
	steps := []struct {
		stmt string
		args []any
	}{
		{"INSERT INTO {p}mending (id) VALUES (?)", []any{id}}, // opens the trigger, to this transaction alone
		{"DELETE FROM {p}entry WHERE transfer_id = ?", []any{id}},
	}
	for direction, account := range map[string]string{"debit": leg.Debit, "credit": leg.Credit} {
		steps = append(steps, struct {
			stmt string
			args []any
		}{"INSERT INTO {p}entry (transfer_id, leg, direction, account, amount, currency, gid, branch, posted_us, balance_after) VALUES (?, 0, ?, ?, ?, ?, ?, ?, ?, NULL)",
			[]any{id, direction, account, leg.Minor, leg.Currency, h.gid, h.branch, us}})
	}
	steps = append(steps, struct {
		stmt string
		args []any
	}{"DELETE FROM {p}mending WHERE id = ?", []any{id}})
	for _, step := range steps {
		if _, err := tx.ExecContext(ctx, s.q(step.stmt), step.args...); err != nil {
			return err
		}
	}
	return nil
}
