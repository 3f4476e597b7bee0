package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/region/arbiter"
)

// This file ends findings that end by themselves: a region that did not go on (D19) goes on when what kept it is gone, and no
// later window has what was found.

// unapplied is the evidence of effects that were not applied: when their transaction finished, unix ms.
type unapplied struct {
	At int64 `json:"at"`
}

// cameOutcome is what becomes of a finding that has ended by itself.
const cameOutcome = "it has come since"

// Ended closes the findings of class D19 whose events have come and whose effects were applied meanwhile, and gives them. What
// does not answer leaves its findings as they are, with an error. A finding that was accepted stays accepted.
func (r *Reconciler) Ended(ctx context.Context, a *arbiter.Arbiter, at time.Time) (ended []Finding, err error) {
	all, err := List(ctx, a)
	if err != nil {
		return nil, err
	}
	for i := range all {
		f := &all[i]
		if f.Class != Stale || f.Status != Open && f.Status != Quarantined {
			continue
		}
		came, err := r.came(ctx, f)
		if err != nil {
			return ended, fmt.Errorf("finding %s of %s: %w", f.ID, f.Region, err)
		}
		if !came {
			continue
		}
		f.Status, f.Outcome, f.RepairedMillis = Repaired, cameOutcome, at.UnixMilli()
		if err := f.put(ctx, a); err != nil {
			return ended, err
		}
		ended = append(ended, *f)
	}
	return ended, nil
}

// came asks a region again for what it lacked.
func (r *Reconciler) came(ctx context.Context, f *Finding) (bool, error) {
	var none Report
	var e resume
	var u unapplied
	if err := json.Unmarshal(f.Evidence, &e); err != nil {
		return false, fmt.Errorf("the finding's evidence: %w", err)
	}
	if e.Gid != "" {
		var row RowAnswer
		err := r.get(ctx, &none, f.Region, "/v1/drift/row?gid="+escape(e.Gid), &row)
		return err == nil && row.Row != nil && row.Row.Finish.Seq > 0, err
	}
	if err := json.Unmarshal(f.Evidence, &u); err != nil || u.At == 0 {
		return false, err // found by an older version, which did not say when
	}
	for from := u.At; from <= u.At; {
		var page FinishedAnswer
		if err := r.get(ctx, &none, f.Region, fmt.Sprintf("/v1/drift/finished?from=%d&to=%d", from, u.At+1), &page); err != nil {
			return false, err
		}
		for i := range page.List {
			if page.List[i].Gid == f.Gid {
				return page.List[i].Applied, nil
			}
		}
		if page.Next == 0 {
			break
		}
		from = page.Next
	}
	return false, nil
}
