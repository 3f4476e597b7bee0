// Package recovery works out what the new owner of a slot has to drive after its region was lost (ADR 9). It is pure: records
// and decisions in, records out.
//
// The law it keeps: what is decided stays decided; a global transaction that the arbiter knows no decision of is aborted there,
// and nowhere else; a regional one that is not known to be decided is in doubt, whatever its branches look like. Cancelling
// it, because all that is known of it is tried, is the unsafe shortcut (multi-region reference, section 1.4).
//
// It is tested by tables, and by the engine's simulation with the rules switched off.
package recovery

import (
	"fmt"
	"maps"
	"slices"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// Known is what survives of one slot.
type Known struct {
	// Records are those that the journal has decided and not finished, and carried ones that nothing followed.
	Records [][]byte
	// Decisions are the closed transactions in the arbiter, by gid.
	Decisions map[txn.Gid][]byte
	// Finished says that the journal has a transaction's finish.
	Finished func(txn.Gid) (bool, error)
	// Ended: the owner had written the end of the epoch that was lost, and everything up to it is known: what is not decided
	// was carried, and is decided by nobody but the new owner.
	Ended bool
	// RestoredEpoch is the arbiter's: of transactions of an earlier epoch its silence proves nothing.
	RestoredEpoch uint64
	// AtMillis is now.
	AtMillis int64
}

// Drive gives the records that the new owner imports. An error names a record that cannot be read: nothing is dropped.
func Drive(k Known) ([][]byte, error) {
	var out [][]byte
	seen := map[txn.Gid]bool{}
	keep := func(tx *record.Tx) error {
		value, err := tx.Encode()
		if err != nil {
			return fmt.Errorf("record of %q: %w", string(tx.State.Gid), err)
		}
		seen[tx.State.Gid] = true
		out = append(out, value)
		return nil
	}
	for _, raw := range k.Records {
		tx, err := record.Decode(raw)
		if err != nil {
			return nil, err
		}
		if tx, err = k.settle(tx); err != nil {
			return nil, err
		}
		if err := keep(tx); err != nil {
			return nil, err
		}
	}
	for _, gid := range slices.Sorted(maps.Keys(k.Decisions)) { // in one order: the same input gives the same
		body := k.Decisions[gid]
		if seen[gid] {
			continue
		}
		if done, err := k.Finished(gid); err != nil || done {
			if err != nil {
				return nil, err
			}
			continue
		}
		tx, err := decision(gid, body)
		if err != nil {
			return nil, err
		}
		if err := keep(tx); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// settle says what becomes of a transaction whose record is known.
func (k *Known) settle(tx *record.Tx) (*record.Tx, error) {
	s := &tx.State
	if s.Phase.Decided() {
		return tx, nil
	}
	if body := k.Decisions[s.Gid]; body != nil {
		return decision(s.Gid, body)
	}
	if k.Ended {
		return tx, nil
	}
	if s.Opt.Durability == txn.Global && s.Epoch >= k.RestoredEpoch {
		return Aborted(tx, k.AtMillis)
	}
	s.InDoubt = true
	return tx, nil
}

// Aborted is a transaction that is to be aborted: as a global one it is so only when the arbiter has written it.
func Aborted(tx *record.Tx, at int64) (*record.Tx, error) {
	s := tx.State
	s.InDoubt = true // nothing that may have run is skipped
	s, _, err := txn.Step(s, txn.Resolve{At: at, Epoch: s.Epoch, Reason: Lost})
	if err != nil {
		return nil, err
	}
	return &record.Tx{State: s, Timeline: tx.Timeline}, nil
}

// Lost is the reason of what is aborted because its region was lost.
const Lost = "its region was lost before it was decided"

func decision(gid txn.Gid, body []byte) (*record.Tx, error) {
	tx, err := record.FromParts(body, nil, record.Head{}, record.Head{}, 0, 0)
	if err == nil && (tx.State.Gid != gid || !tx.State.Phase.Decided()) {
		err = fmt.Errorf("%w: it is of %q in phase %s", record.ErrCorrupt, string(tx.State.Gid), tx.State.Phase)
	}
	if err != nil {
		return nil, fmt.Errorf("the arbiter's decision of %q: %w", string(gid), err)
	}
	return tx, nil
}

// Try is a branch at a participant that survives, of a transaction without a record.
type Try struct {
	Participant string // its name in the registry
	Gid         txn.Gid
	Branch      txn.BranchID
	Mode        txn.Mode
	Global      bool
	// State is tried, confirmed or cancelled.
	State    string
	Account  string
	Amount   int64
	Currency string
	Debit    bool
}

// States of a Try.
const (
	Tried     = "tried"
	Confirmed = "confirmed"
	Cancelled = "cancelled"
)

// SettlePath is where a participant ends a try by its name. It takes a POST, and a call without a payload is a GET: so there is one.
const SettlePath = "/lockstep/settle"

// BranchOf is the branch of a try whose record is lost: it is ended by its name.
func BranchOf(t Try) txn.Branch {
	url := "lockstep://" + t.Participant + SettlePath
	return txn.Branch{ID: t.Branch, Confirm: url, Cancel: url, Account: t.Account, Payload: []byte("{}"), One: txn.OpState{Status: txn.OpDone}}
}

// Doubt makes the transaction of tries that have no record, as a live one in doubt; begun is when it began as far as anybody
// knows, unix ms. Of what stands at the participants only positive evidence counts: it gives the decision that they prove, nil
// where they prove none, and an error where they prove both. It is global where all tries say so: of a regional one the arbiter's silence
// proves nothing, and one that words contradict of may be that.
func Doubt(gid txn.Gid, tries []Try, begun int64, epoch uint64) (tx *record.Tx, commit *bool, err error) {
	s := txn.State{Gid: gid, Mode: txn.ModeTCC, Phase: txn.PhasePrepared, InDoubt: true, Epoch: epoch, BegunAt: begun, UpdatedAt: begun}
	s.Query.Status = txn.OpSkipped
	yes, no := true, false
	confirmed, cancelled, global := false, false, len(tries) > 0
	known := map[txn.BranchID]bool{}
	for _, t := range tries {
		confirmed, cancelled = confirmed || t.State == Confirmed, cancelled || t.State == Cancelled
		global = global && t.Global
		if known[t.Branch] {
			continue // two participants over one database
		}
		known[t.Branch] = true
		s.Branches = append(s.Branches, BranchOf(t))
		if t.Mode != 0 {
			s.Mode = t.Mode
		}
	}
	if global {
		s.Opt.Durability = txn.Global
	}
	tx = &record.Tx{State: s}
	switch {
	case confirmed && cancelled:
		return tx, nil, fmt.Errorf("transaction %q has a confirm and a cancel", string(gid))
	case confirmed:
		return tx, &yes, nil
	case cancelled:
		return tx, &no, nil
	}
	return tx, nil, nil
}
