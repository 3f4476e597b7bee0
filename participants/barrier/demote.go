package barrier

import (
	"context"
	"database/sql"
	"encoding/json"
)

// TakeFunc writes down what a slot's accounts have, and lets go what they hold. rows are the barrier rows of the branches
// that touched them. It runs in the local transaction that ends the home.
type TakeFunc func(tx *sql.Tx, slot int, rows []Row) (json.RawMessage, error)

// Homes tells which slots have their home here and which are copies: by the first owners of a deployment, and where a slot
// was taken away by force. A slot that has been at that epoch or above is left as it is. One that is home here and is
// elsewhere at a higher epoch becomes a copy, also where calls or a fence have brought its row to that epoch before: take lets go what its accounts hold, since holds live at the home, and what it
// gave is kept under that epoch as evidence (Released), in one local transaction for each such slot. A planned move has
// released the slot before, and is not disturbed. Durable on nil; after an error some slots may have been told, and a repeat
// goes on.
func (b *Barrier) Homes(ctx context.Context, homes []Home, take TakeFunc) error {
	var demoted []Home
	err := b.change(ctx, slotsOf(homes), func(tx *sql.Tx, f *facts) error {
		demoted = nil
		for _, h := range homes {
			row := f.fences[h.Slot]
			ends, err := b.ends(ctx, tx, row, h)
			switch {
			case err != nil:
				return err
			case ends:
				demoted = append(demoted, h)
			case row.epoch >= h.Epoch || row.epoch >= RegionsFrom && h.Here:
			default:
				if err := b.setFence(ctx, tx, h); err != nil {
					return err
				}
			}
		}
		return nil
	})
	for _, h := range demoted {
		if err == nil {
			err = b.demote(ctx, h, take)
		}
	}
	return err
}

// ends says whether a home ends by h. Before regions were there nothing was written down that could be let go. A row that is
// at h's epoch already says home by what it was told at that epoch, or because nobody has told it anything since.
func (b *Barrier) ends(ctx context.Context, tx *sql.Tx, row fenceRow, h Home) (bool, error) {
	if h.Here || row.copied || row.epoch < RegionsFrom || row.epoch != h.Epoch {
		return !h.Here && !row.copied && row.epoch >= RegionsFrom && row.epoch < h.Epoch, nil
	}
	var since int64
	err := tx.QueryRowContext(ctx, "SELECT home_epoch FROM "+b.dialect.fence()+" WHERE slot = "+b.dialect.arg(1), h.Slot).Scan(&since)
	return RegionsFrom <= since && since < h.Epoch, err
}

func (b *Barrier) demote(ctx context.Context, h Home, take TakeFunc) error {
	return b.change(ctx, []int{h.Slot}, func(tx *sql.Tx, f *facts) error {
		ends, err := b.ends(ctx, tx, f.fences[h.Slot], h)
		if err != nil || !ends {
			return err // released or told meanwhile
		}
		err = b.keep(ctx, tx, h, true, func(tx *sql.Tx, rows []Row) (json.RawMessage, error) { return take(tx, h.Slot, rows) })
		if err != nil {
			return err
		}
		if err := b.setPolicy(ctx, tx, h.Slot, Policy{}); err != nil {
			return err
		}
		return b.setFence(ctx, tx, h)
	})
}

// keep writes down what a slot's accounts have when their home ends here.
func (b *Barrier) keep(ctx context.Context, tx *sql.Tx, h Home, letGo bool, take func(*sql.Tx, []Row) (json.RawMessage, error)) error {
	s := snapshot{Slot: h.Slot, Epoch: h.Epoch, LetGo: letGo}
	a := b.dialect.arg
	err := tx.QueryRowContext(ctx, "SELECT risk, cap, risk_epoch FROM "+b.dialect.fence()+" WHERE slot = "+a(1), h.Slot).Scan(&s.Policy.Risk, &s.Policy.Cap, &s.Policy.Since)
	if err != nil {
		return err
	}
	if s.Rows, err = b.rowsOf(ctx, tx, h.Slot); err != nil {
		return err
	}
	if s.Data, err = take(tx, s.Rows); err != nil {
		return err
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	kind := 0
	if letGo {
		kind = 1
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO "+b.beside("released")+" (slot, epoch, snapshot, let_go) VALUES ("+a(1)+", "+a(2)+", "+a(3)+", "+a(4)+")", h.Slot, h.Epoch, raw, kind)
	return err
}
