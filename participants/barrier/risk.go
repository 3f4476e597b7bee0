package barrier

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// This file is a forced failover at a participant (ADR 9): epochs are raised, copies become homes that nobody released, and
// until the lost region's return is settled a policy says what their accounts may do.

// Risk is what accounts may do whose home was lost.
type Risk string

// The risks. The zero Risk is an account that is not at risk.
const (
	// RiskBlock refuses debits.
	RiskBlock Risk = "block"
	// RiskLimit lets each account debit up to the cap.
	RiskLimit Risk = "limit"
	// RiskAllow refuses nothing.
	RiskAllow Risk = "allow"
)

// Policy is the risk of a slot's accounts.
type Policy struct {
	Risk Risk `json:"risk"`
	// Cap of RiskLimit: what each account may debit since the adoption, held and posted, in minor units.
	Cap int64 `json:"cap"`
	// Since is the epoch of the adoption: debits are counted under it.
	Since int64 `json:"since"`
}

// ErrNotTried answers a settlement that would confirm what was never tried here: nothing was done. HTTP 422.
var ErrNotTried = errors.New("nothing was tried here")

// SlotEpoch is a slot at an epoch.
type SlotEpoch struct {
	Slot  int   `json:"slot"`
	Epoch int64 `json:"epoch"`
}

func checkSlots(slots []SlotEpoch) error {
	if len(slots) == 0 {
		return fmt.Errorf("%w: slots: none is named", ErrInvalid)
	}
	for i, s := range slots {
		if s.Slot < 0 || s.Slot >= SlotCount {
			return fmt.Errorf("%w: slots[%d].slot: %d; 0 to %d are possible", ErrInvalid, i, s.Slot, SlotCount-1)
		}
		if s.Epoch < 1 {
			return fmt.Errorf("%w: slots[%d].epoch: %d; an epoch is from 1 up", ErrInvalid, i, s.Epoch)
		}
	}
	return nil
}

// Raise brings fence rows up to epochs; one that is higher is left, and home or copy stays as it is. From then on every call
// with a lower epoch is Stale; one that was under way has ended. Durable on nil. ErrInvalid names the field.
func (b *Barrier) Raise(ctx context.Context, slots []SlotEpoch) error {
	if err := checkSlots(slots); err != nil {
		return err
	}
	epochs := map[int]int64{}
	for _, s := range slots {
		epochs[s.Slot] = max(epochs[s.Slot], s.Epoch)
	}
	locks := make([]lock, 0, len(epochs))
	for n, epoch := range epochs {
		locks = append(locks, lock{slot: n, epoch: epoch, exclusive: true})
	}
	sortLocks(locks)
	c := &cleaning{b: b}
	return c.inTx(ctx, func(tx *sql.Tx) error {
		_, err := b.dialect.enter(ctx, tx, locks, nil) // which raises what is lower
		return err
	})
}

// Check reports what is wrong with a policy, by the names of the adoption's parameters.
func (p Policy) Check() error {
	switch p.Risk {
	case RiskBlock, RiskAllow:
		if p.Cap != 0 {
			return fmt.Errorf("%w: cap: it goes with at_risk limit, not %s", ErrInvalid, p.Risk)
		}
		return nil
	case RiskLimit:
		if p.Cap < 0 {
			return fmt.Errorf("%w: cap: %d; it is in minor units, 0 or more", ErrInvalid, p.Cap)
		}
		return nil
	}
	return fmt.Errorf("%w: at_risk: %q; block, limit and allow are possible", ErrInvalid, p.Risk)
}

// AdoptForced makes this database, which has copies, the home of slots without a release, in one local transaction: the region
// that had them is lost. p rules their accounts from then on. A slot that is home here already goes to its epoch and keeps its
// policy; at that epoch nothing changes. Durable on nil. ErrStale, and none is adopted, when one has been at a higher epoch;
// ErrInvalid names the field.
func (b *Barrier) AdoptForced(ctx context.Context, p Policy, slots ...SlotEpoch) error {
	if err := checkSlots(slots); err != nil {
		return err
	}
	if err := p.Check(); err != nil {
		return err
	}
	homes := make([]Home, 0, len(slots))
	seen := map[int]bool{}
	for _, at := range slots {
		if seen[at.Slot] {
			return fmt.Errorf("%w: slots: %d stands twice", ErrInvalid, at.Slot)
		}
		seen[at.Slot] = true
		homes = append(homes, Home{Slot: at.Slot, Epoch: at.Epoch, Here: true})
	}
	return b.change(ctx, slotsOf(homes), func(tx *sql.Tx, f *facts) error {
		for _, h := range homes {
			row := f.fences[h.Slot]
			switch {
			case row.epoch > h.Epoch:
				return fmt.Errorf("%w: slot %d is at epoch %d, not %d", ErrStale, h.Slot, row.epoch, h.Epoch)
			case row.epoch == h.Epoch && !row.copied:
				continue
			case row.copied:
				p.Since = h.Epoch
				if err := b.setPolicy(ctx, tx, h.Slot, p); err != nil {
					return err
				}
			}
			if err := b.setFence(ctx, tx, h); err != nil {
				return err
			}
		}
		return nil
	})
}

// LiftRisk ends the policy of slots that are at the epochs given; others are left. Durable on nil. ErrInvalid names the field.
func (b *Barrier) LiftRisk(ctx context.Context, slots []SlotEpoch) error {
	if err := checkSlots(slots); err != nil {
		return err
	}
	homes := make([]Home, len(slots))
	for i, s := range slots {
		homes[i] = Home{Slot: s.Slot}
	}
	return b.change(ctx, slotsOf(homes), func(tx *sql.Tx, f *facts) error {
		for _, s := range slots {
			if row := f.fences[s.Slot]; row.epoch != s.Epoch || row.policy == (Policy{}) {
				continue
			}
			if err := b.setPolicy(ctx, tx, s.Slot, Policy{}); err != nil {
				return err
			}
		}
		return nil
	})
}

func (b *Barrier) setPolicy(ctx context.Context, tx *sql.Tx, slot int, p Policy) error {
	a := b.dialect.arg
	_, err := tx.ExecContext(ctx, "UPDATE "+b.dialect.fence()+" SET risk = "+a(1)+", cap = "+a(2)+", risk_epoch = "+a(3)+" WHERE slot = "+a(4), string(p.Risk), p.Cap, p.Since, slot)
	return err
}
