package inventory

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// This file is how stock is kept in several regions (ADR 8): an article has its home in its SKU's slot, the other regions
// have copies. A branch names one article as its account, so that its items are of one home. Orders that reserve ahead stay in
// their region: they lapse by its clock.

// errOrders: an order's reservation has no place in another region.
var errOrders = fmt.Errorf("%w: order: reservations stay in their region; name the items", barrier.ErrInvalid)

// Apply posts a deduction that was confirmed at its home: what is held here is sold, and where nothing is held it goes from
// what is free. A repeat does nothing. An error of the schema's limit means that a delivery is missing that came first.
func (v *Inventory) Apply(ctx context.Context, tx *sql.Tx, call *barrier.Call, r Request) error {
	r, err := r.normal()
	if err != nil {
		return err
	}
	if r.Order != "" {
		return errOrders
	}
	for _, it := range r.Items {
		if err := v.effect(ctx, tx, holderOf(call), it); err != nil {
			return err
		}
	}
	return nil
}

func (v *Inventory) effect(ctx context.Context, tx *sql.Tx, holder string, it Item) error {
	var state string
	err := tx.QueryRowContext(ctx, v.d.Q("SELECT state FROM inventory_hold WHERE holder = ? AND sku = ?"), holder, it.SKU).Scan(&state)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return v.enter(ctx, tx, holder, it, "sold")
	case err != nil:
		return err
	case state == "sold":
		return nil
	case state == "held":
		return v.settle(ctx, tx, holder, "sold")
	}
	return fmt.Errorf("%w: %s of %s is %s here and confirmed at its home", barrier.ErrContradiction, it.SKU, holder, state)
}

// enter writes a hold in the state given that was judged elsewhere.
func (v *Inventory) enter(ctx context.Context, tx *sql.Tx, holder string, it Item, state string) error {
	ok, err := v.d.Change(ctx, tx, "UPDATE inventory_stock SET free = free - ?, "+state+" = "+state+" + ? WHERE sku = ?", it.N, it.N, it.SKU)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("inventory: no article %s here; stock it first", it.SKU)
	}
	_, err = tx.ExecContext(ctx, v.d.Q("INSERT INTO inventory_hold (holder, sku, n, state) VALUES (?, ?, ?, ?)"), holder, it.SKU, it.N, state)
	return err
}

// Slots moves articles between regions: it is the kit's Movable.
type Slots struct{ *Inventory }

// moved is what Take writes down of a slot.
type moved struct {
	Articles []article `json:"articles"`
	Holds    []held    `json:"holds"`
	Sold     []held    `json:"sold"`
}

type article struct {
	SKU  string `json:"sku"`
	Free int64  `json:"free"`
	Held int64  `json:"held"`
	Sold int64  `json:"sold"`
}

type held struct {
	Holder string `json:"holder"`
	Item
}

// Take is branch.Movable's. Open holds go with the slot; what is left here is a copy, which has none.
func (s Slots) Take(ctx context.Context, tx *sql.Tx, slot int, rows []barrier.Row) (json.RawMessage, error) {
	var out moved
	var err error
	if out.Articles, err = s.articles(ctx, tx, slot); err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, r := range rows {
		holder := r.Gid + ":" + r.BranchID
		if seen[holder] {
			continue
		}
		seen[holder] = true
		holds, sold, err := s.holdsOf(ctx, tx, holder)
		if err != nil {
			return nil, err
		}
		out.Holds, out.Sold = append(out.Holds, holds...), append(out.Sold, sold...)
	}
	for _, h := range out.Holds {
		if err := s.letGo(ctx, tx, h); err != nil {
			return nil, err
		}
	}
	return json.Marshal(out)
}

func (s Slots) articles(ctx context.Context, tx *sql.Tx, slot int) ([]article, error) {
	rows, err := tx.QueryContext(ctx, "SELECT sku, free, held, sold FROM inventory_stock ORDER BY sku")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []article
	for rows.Next() {
		var a article
		if err := rows.Scan(&a.SKU, &a.Free, &a.Held, &a.Sold); err != nil {
			return nil, err
		}
		if barrier.SlotOf(a.SKU) == slot {
			out = append(out, a)
		}
	}
	return out, rows.Err()
}

func (s Slots) holdsOf(ctx context.Context, tx *sql.Tx, holder string) (open, sold []held, err error) {
	rows, err := tx.QueryContext(ctx, s.d.Q("SELECT sku, n, state FROM inventory_hold WHERE holder = ? ORDER BY sku"), holder)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	for rows.Next() {
		h := held{Holder: holder}
		var state string
		if err := rows.Scan(&h.SKU, &h.N, &state); err != nil {
			return nil, nil, err
		}
		switch state {
		case "held":
			open = append(open, h)
		case "sold":
			sold = append(sold, h)
		}
	}
	return open, sold, rows.Err()
}

func (s Slots) letGo(ctx context.Context, tx *sql.Tx, h held) error {
	if ok, err := s.d.Change(ctx, tx, "UPDATE inventory_stock SET held = held - ?, free = free + ? WHERE sku = ?", h.N, h.N, h.SKU); err != nil || !ok {
		return errors.Join(err, fmt.Errorf("inventory: article %s of hold %s", h.SKU, h.Holder))
	}
	_, err := tx.ExecContext(ctx, s.d.Q("DELETE FROM inventory_hold WHERE holder = ? AND sku = ? AND state = 'held'"), h.Holder, h.SKU)
	return err
}

// Differs is the error of an adoption whose article does not come out as it was released. Nothing was adopted.
type Differs struct{ Want, Have article }

func (e *Differs) Error() string {
	return fmt.Sprintf("article %s: released with %d free, %d held, %d sold, and here it comes to %d, %d, %d: drift",
		e.Want.SKU, e.Want.Free, e.Want.Held, e.Want.Sold, e.Have.Free, e.Have.Held, e.Have.Sold)
}

// Give is branch.Movable's: deductions that have not happened here are posted, holds are held unless they were sold after the
// release, and then every article must be as it was released.
func (s Slots) Give(ctx context.Context, tx *sql.Tx, slot int, data json.RawMessage, _, fresh []barrier.Row) error {
	var in moved
	if err := json.Unmarshal(data, &in); err != nil {
		return fmt.Errorf("%w: what was released of slot %d: %w", barrier.ErrInvalid, slot, err)
	}
	isFresh := map[string]bool{}
	for _, r := range fresh {
		if r.Op == barrier.OpConfirm {
			isFresh[r.Gid+":"+r.BranchID] = true
		}
	}
	for _, h := range in.Sold {
		if isFresh[h.Holder] {
			if err := s.effect(ctx, tx, h.Holder, h.Item); err != nil {
				return err
			}
		}
	}
	for _, h := range in.Holds {
		ok, err := s.soldHere(ctx, tx, h)
		if ok {
			in.confirmed(h)
		} else if err == nil {
			err = s.enter(ctx, tx, h.Holder, h.Item, "held")
		}
		if err != nil {
			return err
		}
	}
	have, err := s.articles(ctx, tx, slot)
	if err != nil {
		return err
	}
	by := map[string]article{}
	for _, a := range have {
		by[a.SKU] = a
	}
	for _, want := range in.Articles {
		if by[want.SKU] != want {
			return &Differs{Want: want, Have: by[want.SKU]}
		}
	}
	return nil
}

// soldHere says whether a hold that was released open has been sold here since: after a forced seal apply
// comes in confirm's place, and no home is asked for it.
func (s Slots) soldHere(ctx context.Context, tx *sql.Tx, h held) (bool, error) {
	var n int
	err := tx.QueryRowContext(ctx, s.d.Q("SELECT count(*) FROM inventory_hold WHERE holder = ? AND sku = ? AND state = 'sold'"), h.Holder, h.SKU).Scan(&n)
	return n > 0, err
}

// confirmed counts a hold as sold.
func (m *moved) confirmed(h held) {
	for i := range m.Articles {
		if a := &m.Articles[i]; a.SKU == h.SKU {
			a.Held, a.Sold = a.Held-h.N, a.Sold+h.N
		}
	}
}
