package demo

import (
	"context"
	"fmt"
	"time"
)

// lookEvery is how often drift is looked for while everything is kept, lookBack from how long before the load's end. The
// books are looked at as they are in any case.
const (
	lookEvery = 2 * time.Second
	lookBack  = 20 * time.Second
)

// keep leaves everything running until ctx ends: whoever breaks something sees it found and repaired.
func (d *demo) keep(ctx context.Context) error {
	if !d.cfg.Keep {
		return nil
	}
	r, account := d.world.regions[len(d.world.regions)-1], d.load.accounts[3]
	d.tell("everything stays up until Ctrl-C; the operator's file is %s. Break something, from another shell:\n\n  %s poke --db '%s' --sql \"%s\"\n",
		d.world.context, d.cfg.Chaos, r.db, fmt.Sprintf("UPDATE ledger_account SET credits_posted = credits_posted + 77700 WHERE id = '%s' AND shard = 0", account))
	told := map[string]bool{}
	for {
		if err := d.lookOnce(ctx, told); err != nil && ctx.Err() == nil {
			d.tell("looking for drift: %v", err) // what was broken may be what looks; the next look may work
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(lookEvery):
		}
	}
}

// lookOnce looks for drift and has it repaired; told are those findings that were printed and could not be repaired.
func (d *demo) lookOnce(ctx context.Context, told map[string]bool) error {
	list, err := d.look(ctx, "run", time.Second, time.Since(d.rested)+lookBack)
	if err != nil {
		return err
	}
	fresh := 0
	for _, f := range list {
		if told[f.ID+f.Text] {
			continue
		}
		told[f.ID+f.Text] = true
		fresh++
		d.tell("found: %s %s in %s: %s", f.ID, f.Class, f.Region, f.Text)
		if f.Repair == "" {
			d.tell("  it has no authority that a repair could follow: a person must decide; lockstep drift show %s --context %s", f.ID, d.world.context)
		}
	}
	if fresh == 0 {
		return nil
	}
	out, err := d.lockstep(ctx, "drift", "apply", "--context", d.world.context, "-o", "json")
	if err != nil {
		return err
	}
	done, err := findings(out)
	if err != nil {
		return err
	}
	for _, f := range done {
		delete(told, f.ID+f.Text) // the same thing may be broken again
		d.tell("repaired: %s %s in %s: %s", f.ID, f.Class, f.Region, f.Repair)
	}
	if len(done) == 0 {
		return nil
	}
	if _, err := d.look(ctx, "verify", time.Second, time.Since(d.rested)+lookBack); err != nil {
		return fmt.Errorf("after the repair: %w", err)
	}
	d.tell("lockstep drift verify finds nothing any more")
	return nil
}
