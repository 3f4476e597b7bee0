package main

import (
	"errors"
	"fmt"

	"github.com/lockstep-tx/lockstep/region/arbiter"
)

// regionSettleCmd says that a lost region will hand nothing back: its disks are gone.
type regionSettleCmd struct {
	contextFile
	dryRun
	From          string `help:"Region that was lost." required:"" placeholder:"NAME"`
	ConfirmRegion string `help:"Its name once more: what it alone had is given up." placeholder:"NAME"`
	Why           string `help:"Reason, for the audit: a ticket, a name." required:""`
}

// Run settles every slot that was taken from the region.
func (c *regionSettleCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *regionSettleCmd) run(e *env, o *opened) error {
	ctx, cancel := c.within(e.ctx)
	defer cancel()
	dep, err := o.arbiter.Deployment(ctx)
	if err != nil {
		return err
	}
	index := dep.Index(c.From)
	if index == 0 {
		return usageError{fmt.Errorf("--from: %q is not one of the regions %v", c.From, dep.Regions)}
	}
	owners, err := o.arbiter.Owners(ctx)
	if err != nil {
		return err
	}
	var changes []arbiter.Change
	for n, w := range owners {
		if w.Lost == 0 || w.Lost.Region() != index {
			continue
		}
		to, err := w.Settled()
		if err != nil {
			return &failure{fmt.Errorf("slot %d: %w", n, err), "lockstep region resume " + c.here()}
		}
		changes = append(changes, arbiter.Change{Slot: n, From: w, To: to})
	}
	fmt.Fprintf(e.out, "%d slots were taken from %s, and what it had of them is not worked off; what it alone had would be given up\n", len(changes), c.From)
	switch {
	case c.DryRun:
		fmt.Fprintln(e.out, "nothing was written")
		next(e.out, c.again("--confirm-region "+c.From))
		return nil
	case c.ConfirmRegion != c.From:
		return &failure{errors.New("--confirm-region: type the region's name to give up what it alone had; nothing was written"),
			c.again("--confirm-region " + c.From)}
	}
	err = o.audited(ctx, c.Who, "settle", fmt.Sprintf("%s: %d slots of %s are given up", c.Why, len(changes), c.From), func() error {
		for len(changes) > 0 {
			part := changes[:min(20, len(changes))]
			if err := o.arbiter.Change(ctx, part...); err != nil {
				return err
			}
			changes = changes[len(part):]
		}
		return nil
	})
	if err != nil {
		return &failure{err, c.again("--dry-run")}
	}
	next(e.out, "lockstep drift run "+c.here())
	return nil
}

// again is the command with another flag for the consent.
func (c *regionSettleCmd) again(flags string) string {
	return "lockstep region settle --from " + c.From + " " + flags + " " + flagOf("why", c.Why) + whoFlag(c.Who) + " " + c.here()
}
