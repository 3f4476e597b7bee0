package failover

import (
	"fmt"
	"slices"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// This file is the forced failover's part of the machine (ADR 9): take, bound, serve. There is no way back once a slot is
// taken: its epoch has changed, and the lost region's with it. So an operation that is aborted takes no more slots, and ends
// what it has begun.

// Evidence is how it is known that the lost region spends no more.
type Evidence string

const (
	Power   Evidence = "power"   // its machines are off
	Network Evidence = "network" // nothing gets out of it
	Quota   Evidence = "quota"   // a majority of its own store is gone for good
	// MaySpend: nothing is known, and the operator has accepted that it may still spend.
	MaySpend Evidence = "may-spend"
	// Rehearsed: the region lives and hears of it; a drill.
	Rehearsed Evidence = "drill"
)

// Loss is what a forced failover's consent is about: part of the plan, and so of its hash.
type Loss struct {
	Evidence Evidence  `json:"evidence"`
	Risk     slot.Risk `json:"risk"`
	// Epochs are those of the slots that are taken, in the order of the plan's slots. A slot that the target has at its epoch came
	// by plan from the lost region before, and its accounts did not: it is not taken, and its accounts are.
	Epochs []slot.Epoch `json:"epochs"`
	// OnSwitch is the shell command that moves outside traffic once the slots are served; "" for none.
	OnSwitch string `json:"on_switch,omitempty"`
	// Exposure is the digest of what was shown as exposed.
	Exposure string `json:"exposure"`
}

func (p *Plan) checkLoss() error {
	l := p.Loss
	switch {
	case (p.Kind == Forced) != (l != nil):
		return fmt.Errorf("loss: it goes with a forced failover, and with nothing else")
	case l == nil:
		return nil
	case !slices.Contains([]Evidence{Power, Network, Quota, MaySpend, Rehearsed}, l.Evidence):
		return fmt.Errorf("fenced-by: %q is none of power, network, quota", l.Evidence)
	case !slices.Contains([]slot.Policy{slot.Block, slot.Limit, slot.Allow}, l.Risk.Policy):
		return fmt.Errorf("at-risk: %q is none of block, limit, allow", l.Risk.Policy)
	case l.Risk.Policy == slot.Limit && l.Risk.Cap <= 0:
		return fmt.Errorf("cap: %d; limit wants an amount in minor units, more than 0", l.Risk.Cap)
	case l.Risk.Policy != slot.Limit && l.Risk.Cap != 0:
		return fmt.Errorf("cap: %d; it goes with limit alone", l.Risk.Cap)
	case len(l.Epochs) != len(p.Slots):
		return fmt.Errorf("epochs: %d for %d slots", len(l.Epochs), len(p.Slots))
	}
	return nil
}

// nextForced is Next for a forced failover. All slots go at once.
func nextForced(r Run, o Observed) Step {
	to := r.Plan.To
	var toTake, unbound, bound, there, astray []int
	for i, n := range r.Plan.Slots {
		w := o.Owners[n]
		switch {
		case w.Region == to && w.Status == slot.Taken && w.Op == r.Plan.ID && w.Seal == nil:
			unbound = append(unbound, n)
		case w.Region == to && w.Status == slot.Taken && w.Op == r.Plan.ID:
			bound = append(bound, n)
		case w.Region == to && w.Status == slot.Active && w.Epoch > r.Plan.Loss.Epochs[i]:
			there = append(there, n)
		case w.Epoch == r.Plan.Loss.Epochs[i] && (w.Region == r.Plan.From || w.Region == to && (w.Status == slot.Active || w.Status == slot.Taken)):
			toTake = append(toTake, n)
		default:
			astray = append(astray, n)
		}
	}
	begun := len(unbound)+len(bound)+len(there) > 0
	switch {
	case r.Status == Aborting && (!begun || r.Leave):
		r.Status, r.EndedMillis = Aborted, o.AtMillis
		return Step{Run: r, Act: Finish, Why: r.Failure}
	case len(toTake) > 0 && r.Status != Aborting:
		if r.StartedMillis == 0 {
			r.StartedMillis = o.AtMillis
		}
		return Step{Run: r, Act: Take, Slots: toTake, Why: "the epochs change"}
	case len(unbound) > 0:
		return Step{Run: r, Act: Bind, Slots: unbound, Why: "the journals are frozen, and the highest valid event is the seal"}
	case len(bound) > 0:
		return pass(r, o, bound, Serve, "the target fetches up to the seals")
	}
	return endForced(r, o, there, astray)
}

func endForced(r Run, o Observed, there, astray []int) Step {
	for _, n := range there {
		if !o.Serves(n) {
			return Step{Run: r, Act: Wait, Why: "the target takes the slots"}
		}
	}
	if len(there) > 0 {
		r.Batches = []Batch{{Slots: there, Frozen: r.StartedMillis, Given: max(r.GivenMillis, r.StartedMillis), Served: o.served()}}
	}
	to := Done
	if r.Status == Aborting {
		to = Aborted
	}
	r.Status, r.EndedMillis = to, o.served()
	if len(astray) > 0 {
		r.Failure = fmt.Sprintf("slots %v are in other hands and were left there", astray)
	}
	return Step{Run: r, Act: Finish, Why: r.Failure}
}
