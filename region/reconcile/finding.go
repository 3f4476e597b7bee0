// Package reconcile finds records of one fact that disagree, names them, and repairs what has an authority.
//
// The law it keeps (G9): a finding is made only of what is closed: a record whose events this journal has applied, an
// effect that was applied here; lag is no drift. A repair follows authority (the record that its chain proves, the decision
// for the effect, the entries for the counters where they are what the transfers of the same book say; no other region's
// account is asked) and never the later clock; where there is none, or two, the finding is quarantined for a person. Every
// repair can be repeated.
//
// Tier 1 compares the heads of chains, tier 2 sums of fingerprints over the journals' rows, tier 3 decisions with barrier
// rows and books. It is tested with regions whose databases are changed behind their backs, and under lag. Source: DESIGN
// section 9, multi-region reference section 5.
package reconcile

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/region/arbiter"
)

// Class of a drift, by the names of the chaos suite.
type Class string

const (
	// LostConfirm (D01): the decision is commit, and a branch has no effect.
	LostConfirm Class = "D01"
	// LostCancel (D02): the decision is abort, and a branch still holds.
	LostCancel Class = "D02"
	// ConfirmTwice (D03): what a confirm does is in the books twice.
	ConfirmTwice Class = "D03"
	// CancelTwice (D04): what was held was let go twice.
	CancelTwice Class = "D04"
	// BothApplied (D05): a branch has a confirm and a cancel.
	BothApplied Class = "D05"
	// AmountAltered (D06): an account is not what its entries say, or its entries are not what its transfers say.
	AmountAltered Class = "D06"
	// LegAltered (D07): a branch's transfer or entries have another amount than its payload.
	LegAltered Class = "D07"
	// WrongAccount (D08): a branch's transfer or entries are of another account than its payload's.
	WrongAccount Class = "D08"
	// PhantomEntry (D09): entries of no transfer.
	PhantomEntry Class = "D09"
	// PhantomHold (D10): a hold of a transaction that nobody knows, and no barrier has its try.
	PhantomHold Class = "D10"
	// RowMissing (D11): the effect is there, and the barrier does not know of it.
	RowMissing Class = "D11"
	// EffectMissing (D12): the barrier knows of an effect that is not there.
	EffectMissing Class = "D12"
	// NeverTried (D13): the decision is commit, and the branch's home has never heard of it.
	NeverTried Class = "D13"
	// TxMissing (D14): the region whose transaction it is has no record of it.
	TxMissing Class = "D14"
	// StatusFlipped (D15): a record's decision is not what its chain or the barriers say.
	StatusFlipped Class = "D15"
	// EventMissing (D16): a journal has passed an event of another region and does not have its record.
	EventMissing Class = "D16"
	// AppliedTwice (D17): an effect was applied to a copy twice.
	AppliedTwice Class = "D17"
	// Overwritten (D18): a record holds an older event than the one that it had.
	Overwritten Class = "D18"
	// Stale (D19): a region does not go on with what another has published long ago.
	Stale Class = "D19"
	// RecordAltered (D20): two journals have different bodies under one number.
	RecordAltered Class = "D20"
	// SetBack (D21): a region's books, or its journal, were set back to what they were: all of a time is missing.
	SetBack Class = "D21"
	// Unpublished (D22): an event is noted as published, and the topic does not have it.
	Unpublished Class = "D22"
	// Compensating (D23): accounts of one book are altered so that the total is as before.
	Compensating Class = "D23"
	// UnitSwapped (D24): a branch's amount is in another unit or currency than its payload's.
	UnitSwapped Class = "D24"
	// ChainsDiffer: two journals have different chains at one number.
	ChainsDiffer Class = "CHAIN"
)

// Status of a finding.
type Status string

const (
	Open        Status = "open"
	Repaired    Status = "repaired"
	Quarantined Status = "quarantined"
	// Accepted: a person has decided that it stays as it is.
	Accepted Status = "accepted"
)

// Finding is one drift: two records of a fact that disagree.
type Finding struct {
	ID          string `json:"id"`
	Class       Class  `json:"class"`
	Region      string `json:"region"` // where the wrong one is believed to be
	Gid         string `json:"gid,omitempty"`
	Branch      string `json:"branch,omitempty"`
	Participant string `json:"participant,omitempty"`
	Account     string `json:"account,omitempty"`
	Slot        int    `json:"slot"`
	// Text says what disagrees; Repair what would be done, "" where a person must decide.
	Text   string `json:"text"`
	Repair string `json:"repair,omitempty"`
	// Evidence is what the repair is derived from.
	Evidence json.RawMessage `json:"evidence,omitempty"`
	Status   Status          `json:"status"`
	// FoundMillis and RepairedMillis are unix.
	FoundMillis    int64  `json:"found"`
	RepairedMillis int64  `json:"repaired,omitempty"`
	Outcome        string `json:"outcome,omitempty"` // of the repair
	// Refused is how often the repair was refused on these facts: the second time it waits for a person.
	Refused int `json:"refused,omitempty"`
	// Decision is a person's, of a finding that was quarantined.
	Decision *Decision `json:"decision,omitempty"`

	rev int64
	// shifts: see booked.shifts; of this run alone.
	shifts map[string][2]int64
}

// identify gives a finding the id of its fact: the same drift found again is the same finding.
func (f *Finding) identify() {
	h := sha256.New()
	for _, s := range []string{string(f.Class), f.Region, f.Gid, f.Branch, f.Participant, f.Account, fmt.Sprint(f.Slot)} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	f.ID = hex.EncodeToString(h.Sum(nil)[:6])
}

const driftTable = "drift"

// Save writes findings; those that are known keep the time at which they were found first, and one that was repaired and is
// found again is open again.
func Save(ctx context.Context, a *arbiter.Arbiter, found []Finding, at time.Time) ([]Finding, error) {
	found = kept(found)
	known, err := List(ctx, a)
	if err != nil {
		return nil, err
	}
	by := map[string]Finding{}
	for _, f := range known {
		by[f.ID] = f
	}
	for i := range found {
		f := &found[i]
		f.identify()
		f.FoundMillis, f.Status = at.UnixMilli(), Open
		if f.Repair == "" {
			f.Status = Quarantined
		}
		if was, ok := by[f.ID]; ok {
			f.rev = was.rev
			if was.Status != Repaired {
				f.FoundMillis = was.FoundMillis
			}
			f.goesOn(&was)
			if alike(f, &was) {
				continue
			}
		}
		if err := f.put(ctx, a); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// goesOn takes over what was made of a finding, as long as its facts are the same: others are to be decided anew.
func (f *Finding) goesOn(was *Finding) {
	if was.Text != f.Text {
		return
	}
	switch {
	case was.Status == Accepted:
		f.Status, f.Outcome, f.Decision = was.Status, was.Outcome, was.Decision
	case was.Status != Repaired && alike(was.Evidence, f.Evidence):
		f.Outcome, f.Refused, f.Decision = was.Outcome, was.Refused, was.Decision
		if f.Refused >= refusals {
			f.Status = Quarantined
		}
	}
}

// alike says whether two values are stored alike.
func alike(a, b any) bool {
	x, err := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err == nil && err2 == nil && bytes.Equal(x, y)
}

func (f *Finding) put(ctx context.Context, a *arbiter.Arbiter) error {
	value, err := json.Marshal(f)
	if err != nil {
		return err
	}
	rev, err := a.Put(ctx, driftTable, arbiter.Row{Key: f.ID, Value: value, Rev: f.rev})
	if errors.Is(err, arbiter.ErrChanged) {
		return fmt.Errorf("finding %s was changed by another run: %w", f.ID, err)
	}
	f.rev = rev
	return err
}

// List reads all findings.
func List(ctx context.Context, a *arbiter.Arbiter) ([]Finding, error) {
	rows, err := a.List(ctx, driftTable, "")
	if err != nil {
		return nil, err
	}
	out := make([]Finding, len(rows))
	for i, row := range rows {
		if err := json.Unmarshal(row.Value, &out[i]); err != nil {
			return nil, fmt.Errorf("finding %s: %w", row.Key, err)
		}
		out[i].rev = row.Rev
	}
	return out, nil
}
