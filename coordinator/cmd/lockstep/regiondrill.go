package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/lockstep-tx/lockstep/region/failover"
	"github.com/lockstep-tx/lockstep/region/place"
	"github.com/lockstep-tx/lockstep/region/replica"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// rehearse takes slots by force from a region that lives, lets it hand back what it has, and moves them home by plan. What the
// living region says afterwards is the truth that the loss is measured against.
func (c *regionDrillCmd) rehearse(e *env, o *opened) error {
	if c.Slots == "" {
		return usageError{errors.New("--slots: a forced drill wants the slots named: payments in them are put off, and what was not replicated is handed back after it")}
	}
	a := c.asker(e, o)
	ctx, cancel := c.within(e.ctx)
	defer cancel()
	checks, err := c.preflight(e, o, c.From, c.To, nil)
	if err != nil {
		return err
	}
	if !printChecks(e, checks) {
		return &failure{errors.New("the preflight failed; nothing was moved"), "lockstep region status " + c.here()}
	}
	f := &regionFailoverCmd{contextFile: c.contextFile, From: c.From, To: c.To, AtRisk: string(slot.Block), Slots: c.Slots, Why: c.Why, Who: c.Who, Answers: true, Scan: scanLimit}
	owners, err := o.arbiter.Owners(ctx)
	if err != nil {
		return err
	}
	x, err := f.expose(e, o, owners, f.viewsOf(e.ctx, a))
	if err != nil {
		return err
	}
	p, err := f.planOf(owners, x, failover.Rehearsed, nil)
	if err != nil {
		return err
	}
	x.print(e.out, c.From, c.To)
	if c.DryRun {
		fmt.Fprintf(e.out, "plan %s: %d slots would be taken by force and go home again; nothing was written\n", p.Hash()[:16], len(p.Slots))
		next(e.out, c.again("drill --forced", c.From, c.To))
		return nil
	}
	con := c.conductor(e, o)
	if err := c.start(e.ctx, con, *p); err != nil {
		return err
	}
	r, err := c.drive(e, con, p.ID)
	if err == nil && r.Status != failover.Done {
		err = c.ended(e, o, &r)
	}
	if err != nil {
		return err
	}
	return c.measure(e, o, a, p, &r)
}

// returnLimit is how long a living region may take to hand back what it has.
const returnLimit = 2 * time.Minute

// measure waits until the living region has handed back what it had, says how much the taking would have lost, and moves the
// slots home.
func (c *regionDrillCmd) measure(e *env, o *opened, a *asker, p *failover.Plan, r *failover.Run) error {
	taken := map[string]bool{}
	refused := map[string]error{} // the last word on each that could not be taken over
	for end := time.Now().Add(returnLimit); ; {
		left, err := c.unsettled(e.ctx, o, p)
		if err != nil {
			return err
		}
		if left == 0 {
			break
		}
		if time.Now().After(end) {
			return &failure{notHandedBack(c.From, left, a.view(e.ctx, c.From, &slot.Map{}).diverged(), refused), "lockstep region divergence " + c.here()}
		}
		for _, d := range a.view(e.ctx, c.From, &slot.Map{}).diverged() {
			if taken[d.Gid] {
				continue
			}
			q := url.Values{"gid": {d.Gid}, "decision": {"commit"}, "reason": {"drill " + p.ID + ": the living region had committed it"}}
			var out json.RawMessage
			if err := a.ask(e.ctx, c.From, http.MethodPost, "/v1/transaction/resolve?"+q.Encode(), &out); err == nil {
				taken[d.Gid] = true
			} else {
				refused[d.Gid] = err
			}
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-e.ctx.Done():
			return context.Cause(e.ctx)
		}
	}
	lost, err := c.lostIn(e.ctx, a, p)
	if err != nil {
		return err
	}
	oldest := ""
	if len(lost) > 0 && len(r.Batches) > 0 {
		oldest = fmt.Sprintf(", the oldest of them made %d ms before the slots were taken", max(0, r.Batches[0].Frozen-slices.Min(lost)))
	}
	fmt.Fprintf(e.out, "against what %s had: %d decisions were past the seals%s; %d transactions were known to nobody else and were taken over\n", c.From, len(lost), oldest, len(taken))
	back := c.moveFlags
	back.Why = "back from forced drill " + p.ID
	back.Slots = slotList(slices.Sorted(slices.Values(p.Slots))) // not others of --slots, which were not taken
	return back.move(e, failover.Handover, c.To, c.From, 0)
}

func (c *regionDrillCmd) unsettled(ctx context.Context, o *opened, p *failover.Plan) (int, error) {
	rctx, cancel := c.within(ctx)
	defer cancel()
	owners, err := o.arbiter.Owners(rctx)
	if err != nil {
		return 0, err
	}
	left := 0
	for _, n := range p.Slots {
		if owners[n].Lost != 0 {
			left++
		}
	}
	return left, nil
}

// lostIn gives when the decisions past the seals were made that the living region has in its divergence record, unix ms.
func (c *regionDrillCmd) lostIn(ctx context.Context, a *asker, p *failover.Plan) (at []int64, err error) {
	epochs := map[int]slot.Epoch{}
	for i, n := range p.Slots {
		epochs[n] = p.Loss.Epochs[i]
	}
	for before := ""; ; {
		var page []replica.DivergenceInfo
		if err := a.ask(ctx, c.From, http.MethodGet, fmt.Sprintf("/v1/region/divergence?limit=%d&settled=true%s", divergenceMost, before), &page); err != nil {
			return nil, err
		}
		for _, d := range page {
			if d.Origin == c.From && d.Epoch == epochs[d.Slot] && d.Decided != "" && d.Kind == "decision" {
				at = append(at, d.DecidedAt)
			}
		}
		if len(page) < divergenceMost {
			return at, nil
		}
		before = fmt.Sprintf("&before=%d", page[len(page)-1].ID)
	}
}

// diverged is what a region had when slots were taken from it, and nobody has taken over.
func (v regionView) diverged() []place.Diverged {
	if v.Status == nil {
		return nil
	}
	return v.Status.Diverged
}

// notHandedBack names what keeps a living region from having handed back all that it had.
func notHandedBack(from string, slots int, left []place.Diverged, refused map[string]error) error {
	err := fmt.Errorf("region %s has not handed back what it had in %d slots", from, slots)
	for _, d := range left {
		err = fmt.Errorf("%w\n  slot %d, %s: %s", err, d.Slot, d.Gid, d.Why)
		if r := refused[d.Gid]; r != nil {
			err = fmt.Errorf("%w; it is not resolved: %w", err, r)
		}
	}
	return err
}
