package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/place"
	"github.com/lockstep-tx/lockstep/region/registry"
)

type participantCmd struct {
	Set   participantSetCmd   `cmd:"" help:"Register a participant, or change it: one endpoint per region. It is probed before it is written."`
	List  participantListCmd  `cmd:"" help:"List the participants and what each can do."`
	Probe participantProbeCmd `cmd:"" help:"Ask a participant's endpoints what they can do, and write it down."`
	Rm    participantRmCmd    `cmd:"" help:"Remove a participant. Branches that name it are not called until it is back."`
}

type participantSetCmd struct {
	contextFile
	dryRun
	Name         string            `arg:"" help:"Name of the participant."`
	Endpoint     map[string]string `help:"Base of its URLs in a region." placeholder:"REGION=URL" mapsep:","`
	Force        bool              `help:"Also where it cannot do any more what it could: its copies are no longer kept, or nothing is fenced."`
	AccountField string            `help:"Field of the JSON payload that names the account, where the branch names none." placeholder:"FIELD"`
}

// Run registers a participant.
func (c *participantSetCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *participantSetCmd) run(e *env, o *opened) error {
	ctx, cancel := c.within(e.ctx)
	defer cancel()
	dep, err := o.arbiter.Deployment(ctx)
	if err != nil {
		return err
	}
	t, err := registry.Load(ctx, o.arbiter)
	if err != nil {
		return err
	}
	p := registry.Participant{Name: c.Name, Endpoints: map[string]string{}}
	if has := t.Named(c.Name); has != nil {
		p = *has
		p.Endpoints = maps.Clone(has.Endpoints)
	}
	maps.Copy(p.Endpoints, c.Endpoint)
	if c.AccountField != "" {
		p.AccountField = c.AccountField
	}
	if err := p.Check(dep.Regions); err != nil {
		return usageError{err}
	}
	can, err := probeAll(ctx, &p)
	if err != nil {
		return &failure{fmt.Errorf("it was not written: %w", err), fmt.Sprintf("curl %s/lockstep/probe  # from where the coordinators are", firstOf(p.Endpoints))}
	}
	if lost := lostBy(p.Can, &can); lost != "" && !c.Force {
		return &failure{fmt.Errorf("it was not written: %s could %s, and now says that it cannot", p.Name, lost), "look at the participant; with --force it is written all the same"}
	}
	p.Can = &can
	if c.DryRun {
		fmt.Fprintf(e.out, "would write %s: %s\n", p.Name, describe(p.Can))
		return nil
	}
	err = o.audited(ctx, c.Who, "participant set", fmt.Sprintf("%s: %v, account field %q, %s", p.Name, p.Endpoints, p.AccountField, describe(p.Can)), func() error {
		return registry.Set(ctx, o.arbiter, p)
	})
	if err != nil {
		if errors.Is(err, arbiter.ErrChanged) {
			return &failure{err, "lockstep participant list " + c.here()}
		}
		return err
	}
	fmt.Fprintf(e.out, "%s: %s\n", p.Name, describe(p.Can))
	return nil
}

// lostBy names what a participant could do and cannot any more; "" for nothing.
func lostBy(had, can *registry.Capabilities) string {
	var lost []string
	for what, pair := range map[string][2]bool{"keep copies (apply)": {had != nil && had.Apply, can.Apply}, "refuse old epochs (fenced)": {had != nil && had.Fenced, can.Fenced}, "move accounts": {had != nil && had.Movable, can.Movable}} {
		if pair[0] && !pair[1] {
			lost = append(lost, what)
		}
	}
	slices.Sort(lost)
	return strings.Join(lost, ", ")
}

// probeAll asks every endpoint; what not all of them can do the participant cannot.
func probeAll(ctx context.Context, p *registry.Participant) (registry.Capabilities, error) {
	all := registry.Capabilities{Fenced: true, Batch: true, Apply: true, Movable: true, Tries: true, Settle: true, Hold: true}
	for _, region := range slices.Sorted(maps.Keys(p.Endpoints)) {
		can, err := place.Probe(ctx, http.DefaultClient, p.Endpoints[region])
		if err != nil {
			return all, fmt.Errorf("the endpoint in region %s does not answer: %w", region, err)
		}
		all.Fenced, all.Batch = all.Fenced && can.Fenced, all.Batch && can.Batch
		all.Apply, all.Movable = all.Apply && can.Apply, all.Movable && can.Movable
		all.Tries, all.Settle = all.Tries && can.Tries, all.Settle && can.Settle
		all.Hold = all.Hold && can.Hold
	}
	return all, nil
}

func firstOf(m map[string]string) string {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		return m[k]
	}
	return ""
}

// describe says what a participant can do, and loudly what it cannot.
func describe(can *registry.Capabilities) string {
	if can == nil {
		return "NOT PROBED"
	}
	var words []string
	word := func(has bool, yes, no string) {
		if has {
			words = append(words, yes)
		} else {
			words = append(words, no)
		}
	}
	word(can.Fenced, "fenced", "UNFENCED (an owner of before is not kept out)")
	word(can.Batch, "batch", "no batch")
	word(can.Apply, "apply", "NO COPIES (no apply)")
	word(can.Movable, "movable", "NOT MOVABLE (no release/adopt)")
	if can.Fenced {
		word(can.Tries, "tries", "NO TRIES (what is open there is not seen when a region is lost)")
		word(can.Settle, "settle", "no settle")
		word(can.Hold, "hold", "no hold")
	}
	return strings.Join(words, ", ")
}

type participantListCmd struct {
	contextFile
	Output string `help:"table or json." enum:"table,json" default:"table" short:"o"`
}

// Run lists participants.
func (c *participantListCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *participantListCmd) run(e *env, o *opened) error {
	ctx, cancel := c.within(e.ctx)
	defer cancel()
	t, err := registry.Load(ctx, o.arbiter)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return json.NewEncoder(e.out).Encode(t.All())
	}
	w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tENDPOINTS\tCAN")
	unfenced := ""
	for _, p := range t.All() {
		var ends []string
		for _, region := range slices.Sorted(maps.Keys(p.Endpoints)) {
			ends = append(ends, region+"="+p.Endpoints[region])
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", p.Name, strings.Join(ends, " "), describe(p.Can))
		if p.Can == nil || !p.Can.Fenced {
			unfenced = p.Name
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if unfenced != "" {
		fmt.Fprintf(e.out, "next: lockstep participant probe %s %s\n", unfenced, c.here())
	}
	return nil
}

type participantProbeCmd struct {
	contextFile
	dryRun
	Name string `arg:"" help:"Name of the participant."`
}

// Run probes a participant.
func (c *participantProbeCmd) Run(e *env) error {
	return (&participantSetCmd{contextFile: c.contextFile, dryRun: c.dryRun, Name: c.Name}).Run(e)
}

type participantRmCmd struct {
	contextFile
	dryRun
	Name string `arg:"" help:"Name of the participant."`
}

// Run removes a participant.
func (c *participantRmCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *participantRmCmd) run(e *env, o *opened) error {
	ctx, cancel := c.within(e.ctx)
	defer cancel()
	t, err := registry.Load(ctx, o.arbiter)
	if err != nil {
		return err
	}
	p := t.Named(c.Name)
	if p == nil {
		return &failure{fmt.Errorf("no participant %q", c.Name), "lockstep participant list " + c.here()}
	}
	if c.DryRun {
		fmt.Fprintf(e.out, "would remove %s: branches that name it would not be called until it is back\n", p.Name)
		return nil
	}
	return o.audited(ctx, c.Who, "participant rm", p.Name, func() error { return registry.Remove(ctx, o.arbiter, *p) })
}
