package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// regionRestoredCmd makes an arbiter that was restored from a backup safe to use: what it says may be older than what regions
// and participants have seen since.
type regionRestoredCmd struct {
	contextFile
	dryRun
	Without []string `help:"Regions that are not asked, since they are gone: what they alone have seen is not known." placeholder:"NAME"`
}

// seen is the highest epoch of each slot that anybody has seen, and of those that were a region's, the highest; the owner of the
// highest epoch that a coordinator has heard of, and the seals that stand in journals and with those owners.
type seen struct {
	any, owned [slot.Count]slot.Epoch
	heard      slot.Map
	seals      map[int][]slot.Seal
}

// told takes what a coordinator says.
func (s *seen) told(epochs []slot.Epoch, owners []slot.Owner, seals map[int][]slot.Seal) {
	for n, epoch := range epochs {
		s.add(n, epoch)
	}
	for n, o := range owners[:min(len(owners), slot.Count)] {
		s.add(n, o.Epoch)
		if o.Epoch > s.heard[n].Epoch {
			s.heard[n] = o
		}
		if o.Seal != nil && o.Status != slot.Sealed {
			s.sealed(n, *o.Seal)
		}
	}
	for n, list := range seals {
		for _, seal := range list {
			s.sealed(n, seal)
		}
	}
}

func (s *seen) sealed(n int, seal slot.Seal) {
	if n < 0 || n >= slot.Count || slices.ContainsFunc(s.seals[n], func(have slot.Seal) bool { return have.Epoch == seal.Epoch }) {
		return
	}
	s.seals[n] = append(s.seals[n], seal)
}

func (s *seen) add(n int, e slot.Epoch) {
	if n < 0 || n >= slot.Count {
		return
	}
	s.any[n] = max(s.any[n], e)
	if e.Region() != 0 { // between two owners, after a release, it is nobody's
		s.owned[n] = max(s.owned[n], e)
	}
}

// Run raises every epoch above any that was seen, and gives every slot to the region that had it last.
func (c *regionRestoredCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *regionRestoredCmd) run(e *env, o *opened) error {
	ctx, cancel := c.within(e.ctx)
	defer cancel()
	dep, err := o.arbiter.Deployment(ctx)
	if err != nil {
		return err
	}
	for _, name := range c.Without {
		if dep.Index(name) == 0 {
			return usageError{fmt.Errorf("--without: %q is not one of %s", name, strings.Join(dep.Regions, ", "))}
		}
	}
	owners, err := o.arbiter.Owners(ctx)
	if err != nil {
		return err
	}
	under, err := c.underWay(e, o, owners)
	if err != nil {
		return err
	}
	for _, w := range owners {
		if w.Status == slot.Taken {
			under = "slots are taken by force and not served yet"
		}
	}
	if under != "" {
		return &failure{fmt.Errorf("%s, as the backup has it: end it first", under), "lockstep region resume " + c.here() + "  # or abort it"}
	}
	s := &seen{seals: map[int][]slot.Seal{}}
	for n, w := range owners {
		s.add(n, w.Epoch)
	}
	if err := c.ask(ctx, e, o, dep.Regions, s); err != nil {
		return &failure{fmt.Errorf("%w; an epoch that nobody tells of cannot be passed", err),
			fmt.Sprintf("lockstep region restored %s --without REGION  # only for a region that is gone for good", c.here())}
	}
	floor, changes := raise(&dep, owners, s)
	moved := 0
	for _, ch := range changes {
		if ch.To.Region != ch.From.Region {
			moved++
		}
	}
	fmt.Fprintf(e.out, "the highest epoch that was seen is %d; every slot goes to an epoch from %d on; %d slots had moved since the backup\n", slices.Max(s.any[:]), floor, moved)
	if c.DryRun {
		fmt.Fprintln(e.out, "nothing was written")
		next(e.out, c.again())
		return nil
	}
	err = o.audited(ctx, c.Who, "restored", fmt.Sprintf("epochs from %d on, %d slots had moved since the backup, not asked: %v", floor, moved, c.Without), func() error {
		// First what absence proves, then the epochs: killed in between, the arbiter only claims to know less.
		if err := o.arbiter.Restored(ctx, floor); err != nil {
			return err
		}
		if err := o.arbiter.PutSeals(ctx, s.seals); err != nil {
			return err
		}
		for part := range slices.Chunk(changes, 20) {
			if err := o.arbiter.Change(ctx, part...); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return &failure{err, c.again() + "  # it may be repeated"}
	}
	fmt.Fprintln(e.out, "done: of transactions that began before, the absence of a decision proves nothing")
	next(e.out, "lockstep region verify "+c.here())
	return nil
}

// again is the command without --dry-run.
func (c *regionRestoredCmd) again() string {
	out := "lockstep region restored"
	if len(c.Without) > 0 {
		out += " " + flagOf("without", strings.Join(c.Without, ","))
	}
	return out + whoFlag(c.Who) + " " + c.here()
}

// raise gives the least new epoch, and every slot's change: to the region that it was last seen with, with the seal and the loss
// that the owner's coordinators have heard of, for those may be newer than the backup.
func raise(dep *arbiter.Deployment, owners *slot.Map, s *seen) (floor slot.Epoch, changes []arbiter.Change) {
	highest := slices.Max(s.any[:])
	floor = highest - highest%100 + 100
	for n, from := range owners {
		region := dep.Name(s.owned[n].Region())
		if region == "" {
			region = from.Region
		}
		to := slot.Owner{Region: region, Epoch: floor + slot.Epoch(dep.Index(region)), Status: slot.Active, Seal: from.Seal}
		switch heard := s.heard[n]; {
		case heard.Epoch == s.owned[n] && heard.Region == region && heard.Status == slot.Active:
			to.Seal, to.Lost, to.Risk = heard.Seal, heard.Lost, heard.Risk
		case region != from.Region:
			to.Seal = nil // it was written after the backup, and nobody tells of it
		default:
			to.Lost, to.Risk = from.Lost, from.Risk
		}
		changes = append(changes, arbiter.Change{Slot: n, From: from, To: to})
	}
	return floor, changes
}

// ask asks every coordinator and every participant for the epochs that it has seen.
func (c *regionRestoredCmd) ask(ctx context.Context, e *env, o *opened, regions []string, s *seen) error {
	a := c.asker(e, o)
	for _, region := range regions {
		if slices.Contains(c.Without, region) {
			continue
		}
		for _, base := range o.file.Regions[region].Admin {
			var out struct {
				Epochs []slot.Epoch        `json:"epochs"`
				Owners []slot.Owner        `json:"owners"`
				Seals  map[int][]slot.Seal `json:"seals"`
			}
			if err := a.askOne(ctx, base, http.MethodGet, "/v1/region/epochs", &out); err != nil {
				return fmt.Errorf("a coordinator of region %s does not answer: %w", region, err)
			}
			s.told(out.Epochs, out.Owners, out.Seals)
		}
	}
	t, err := registry.Load(ctx, o.arbiter)
	if err != nil {
		return err
	}
	for _, p := range t.All() {
		if p.Can == nil || !p.Can.Fenced {
			continue
		}
		for region, endpoint := range p.Endpoints {
			if slices.Contains(c.Without, region) {
				continue
			}
			if err := askState(ctx, a.client, endpoint, s); err != nil {
				return fmt.Errorf("participant %s in %s: %w", p.Name, region, err)
			}
		}
	}
	return nil
}

func askState(ctx context.Context, client *http.Client, endpoint string, s *seen) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(endpoint, "/")+"/lockstep/state", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	var rows []struct {
		Slot  int        `json:"slot"`
		Epoch slot.Epoch `json:"epoch"`
	}
	if err == nil {
		err = json.Unmarshal(raw, &rows)
	}
	for _, r := range rows {
		s.add(r.Slot, r.Epoch)
	}
	return err
}
