package inventory

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

// This file is stock after the loss of a region (ADR 9): an article is treated like an account, and a reservation like a debit.

func atRisk(field, about, why string) *Refusal {
	return &Refusal{Reason: "account_at_risk", Field: field, About: about + ": its region was lost; " + why}
}

// allowed refuses a reservation of articles at risk. An order's was made by its own region's clock and books, so that nobody
// can say here what it still takes.
func (v *Inventory) allowed(p barrier.Policy, r Request) error {
	switch {
	case p.Risk != barrier.RiskBlock && p.Risk != barrier.RiskLimit:
		return nil
	case r.Order != "":
		return atRisk("order", r.Order, "its reservation waits for the lost region's settlement")
	case p.Risk == barrier.RiskBlock:
		return atRisk("items", r.Items[0].SKU, "its reservations wait for the lost region's settlement")
	}
	return nil
}

// count counts what a reservation takes at risk, once for its holder, and refuses what would go past the cap. The row of the
// sum is locked until the local transaction ends.
func (v *Inventory) count(ctx context.Context, tx *sql.Tx, p barrier.Policy, holder string, items []Item) error {
	if p.Risk != barrier.RiskLimit {
		return nil
	}
	for _, it := range items {
		if _, err := tx.ExecContext(ctx, v.insertNew("inventory_at_risk (sku, epoch, used) VALUES (?, ?, 0)", "sku"), it.SKU, p.Since); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, v.d.Q("INSERT INTO inventory_at_risk_hold (holder, sku, epoch, n) VALUES (?, ?, ?, ?)"), holder, it.SKU, p.Since, it.N); err != nil {
			return err
		}
		ok, err := v.d.Change(ctx, tx, "UPDATE inventory_at_risk SET used = used + ? WHERE sku = ? AND epoch = ? AND used <= ?", it.N, it.SKU, p.Since, p.Cap-it.N)
		if err == nil && !ok {
			err = atRisk("items", it.SKU, fmt.Sprintf("%d more than the %d that may be taken wait for the lost region's settlement", it.N, p.Cap))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// insertNew locks the row that is there as a writer does: on MySQL two that ignore it and then write wait for each other.
func (v *Inventory) insertNew(into, same string) string {
	if v.d.Dialect == barrier.MySQL {
		return "INSERT INTO " + into + " ON DUPLICATE KEY UPDATE " + same + " = " + same
	}
	return v.d.InsertNew("INTO " + into)
}

// giveBack takes a released holder's part out of what was taken at risk.
func (v *Inventory) giveBack(ctx context.Context, tx *sql.Tx, holder string) error {
	items, epochs, err := v.countedOf(ctx, tx, holder)
	if err != nil {
		return err
	}
	for i, it := range items {
		if ok, err := v.d.Change(ctx, tx, "DELETE FROM inventory_at_risk_hold WHERE holder = ? AND sku = ?", holder, it.SKU); err != nil || !ok {
			return err
		}
		if _, err := v.d.Change(ctx, tx, "UPDATE inventory_at_risk SET used = used - ? WHERE sku = ? AND epoch = ?", it.N, it.SKU, epochs[i]); err != nil {
			return err
		}
	}
	return nil
}

func (v *Inventory) countedOf(ctx context.Context, tx *sql.Tx, holder string) (items []Item, epochs []int64, err error) {
	rows, err := tx.QueryContext(ctx, v.d.Q("SELECT sku, epoch, n FROM inventory_at_risk_hold WHERE holder = ? ORDER BY sku"), holder)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var it Item
		var epoch int64
		if err := rows.Scan(&it.SKU, &epoch, &it.N); err != nil {
			return nil, nil, err
		}
		items, epochs = append(items, it), append(epochs, epoch)
	}
	return items, epochs, rows.Err()
}

// errNoHold: there is nothing to settle.
var errNoHold = errors.New("holds nothing")

// Settle is branch.Settler's: it sells or releases what a branch holds. An order that the branch has taken over goes with it.
func (s Slots) Settle(ctx context.Context, tx *sql.Tx, gid, branch, op string) error {
	call := &barrier.Call{Gid: gid, BranchID: branch}
	var r Request
	err := tx.QueryRowContext(ctx, s.d.Q("SELECT id FROM inventory_order WHERE state = 'paying' AND holder = ?"), holderOf(call)).Scan(&r.Order)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if op == barrier.OpConfirm {
		err = s.Deduct(ctx, tx, call, r)
	} else if err = s.Release(ctx, tx, call, r); err == nil && r.Order == "" {
		err = s.giveBack(ctx, tx, holderOf(call)) // no policy comes with this call
	}
	if errors.Is(err, errNoHold) {
		return fmt.Errorf("%w: %w", barrier.ErrNotTried, err)
	}
	return err
}

// Held is branch.Holder's. A branch that holds several articles is listed without them.
func (s Slots) Held(ctx context.Context, db *sql.DB, branches []barrier.BranchKey) (map[barrier.BranchKey]branch.Held, error) {
	out, several := map[barrier.BranchKey]branch.Held{}, map[barrier.BranchKey]bool{}
	by := map[string]barrier.BranchKey{}
	var holders []any
	for _, k := range branches {
		id := k.Gid + ":" + k.Branch
		by[id], holders = k, append(holders, id)
	}
	for part := range slices.Chunk(holders, heldAtOnce) {
		rows, err := db.QueryContext(ctx, s.d.Q("SELECT holder, sku, n FROM inventory_hold WHERE state = 'held' AND holder IN (?"+strings.Repeat(", ?", len(part)-1)+")"), part...)
		if err != nil {
			return nil, err
		}
		for rows.Next() {
			h := held{}
			if err := rows.Scan(&h.Holder, &h.SKU, &h.N); err != nil {
				rows.Close()
				return nil, err
			}
			k := by[h.Holder]
			_, has := out[k]
			several[k] = several[k] || has
			out[k] = branch.Held{Account: h.SKU, Amount: h.N, Debit: true}
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return nil, err
		}
	}
	for k, is := range several {
		if is {
			delete(out, k)
		}
	}
	return out, nil
}

// heldAtOnce bounds the holders of one statement: SQLite's driver finds n parameters in n² steps.
const heldAtOnce = 50
