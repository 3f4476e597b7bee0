package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/lockstep-tx/lockstep/region/failover/conduct"
	"github.com/lockstep-tx/lockstep/region/reconcile"
	"github.com/lockstep-tx/lockstep/region/registry"
)

type driftCmd struct {
	Run    driftRunCmd    `cmd:"" help:"Look for records that disagree: between the regions' journals, and between decisions, barriers and books."`
	List   driftListCmd   `cmd:"" help:"List what was found."`
	Show   driftShowCmd   `cmd:"" help:"Show one finding with its evidence."`
	Plan   driftPlanCmd   `cmd:"" help:"Print what apply would repair, and what it leaves to a person. Changes nothing."`
	Apply  driftApplyCmd  `cmd:"" help:"Repair what has an authority, one after the other."`
	Decide driftDecideCmd `cmd:"" help:"Decide what a person must: of a finding that is quarantined."`
	Watch  driftWatchCmd  `cmd:"" help:"Look on and on with a share of one core, from where the last look ended."`
	Verify driftVerifyCmd `cmd:"" help:"Look again; exit code 1 when anything is still wrong."`
}

// driftFlags are those of a look.
type driftFlags struct {
	contextFile
	Since  time.Duration `help:"How far back: transactions that finished in this time." default:"1h"`
	Output string        `help:"table or json (one finding a line)." enum:"table,json" default:"table" short:"o"`
	Settle time.Duration `help:"What finished within this last time is left for the next look." default:"1s"`
	// StaleAfter bounds what is called on its way.
	StaleAfter time.Duration `help:"What is on its way to another region for longer is a finding; 0 never." default:"10m"`
}

// Get is reconcile.Asker's.
func (a *asker) Get(ctx context.Context, region, path string) ([]byte, error) {
	return a.askInTurn(ctx, region, http.MethodGet, path, nil)
}

// Post is reconcile.Asker's.
func (a *asker) Post(ctx context.Context, region, path string, body []byte) ([]byte, error) {
	return a.askInTurn(ctx, region, http.MethodPost, path, body)
}

// reconciler makes what compares and repairs.
func (c *contextFile) reconciler(e *env, o *opened) (*reconcile.Reconciler, error) {
	ctx, cancel := c.within(e.ctx)
	defer cancel()
	dep, err := o.arbiter.Deployment(ctx)
	if err != nil {
		return nil, err
	}
	owners, err := o.arbiter.Owners(ctx)
	if err != nil {
		return nil, err
	}
	table, err := registry.Load(ctx, o.arbiter)
	if err != nil {
		return nil, err
	}
	a := c.asker(e, o)
	a.client.Timeout, a.most = time.Minute, mostDriftBytes
	return &reconcile.Reconciler{Ask: a, HTTP: &http.Client{Timeout: 30 * time.Second}, Regions: dep.Regions, Table: table, Owners: owners}, nil
}

// look detects and writes down what it found.
func (c *driftFlags) look(e *env, o *opened) (*reconcile.Report, error) {
	r, err := c.reconciler(e, o)
	if err != nil {
		return nil, err
	}
	r.StaleAfter = c.StaleAfter
	now := time.Now()
	rep, err := r.Detect(e.ctx, now.Add(-c.Since).UnixMilli(), now.Add(-c.Settle).UnixMilli())
	if err != nil {
		return rep, err
	}
	if rep.Findings, err = reconcile.Save(e.ctx, o.arbiter, rep.Findings, now); err != nil {
		return rep, err
	}
	ended, err := r.Ended(e.ctx, o.arbiter, time.Now())
	for _, f := range ended {
		fmt.Fprintf(e.err, "%s %s in %s is over: %s\n", f.Class, f.ID, f.Region, f.Outcome)
	}
	if err != nil {
		rep.Skipped = append(rep.Skipped, "what may have ended by itself: "+err.Error())
	}
	return rep, nil
}

func (c *driftFlags) print(e *env, list []reconcile.Finding) error {
	if c.Output == "json" {
		enc := json.NewEncoder(e.out)
		for i := range list {
			if err := enc.Encode(&list[i]); err != nil {
				return err
			}
		}
		return nil
	}
	if len(list) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tCLASS\tSTATUS\tREGION\tWHAT\tTEXT")
	for _, f := range list {
		what := f.Gid
		if f.Branch != "" {
			what += "/" + f.Branch
		}
		if f.Account != "" {
			what = strings.TrimSpace(f.Account + " " + what)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", f.ID, f.Class, f.Status, f.Region, shown(what), shown(f.Text))
	}
	return w.Flush()
}

// summary says what was looked at, so that nothing found is not taken for nothing looked at.
func (c *driftFlags) summary(e *env, rep *reconcile.Report) {
	w := e.out
	if c.Output == "json" {
		w = e.err // the output is findings alone
	}
	fmt.Fprintf(w, "compared %d chains (%d on their way), %d transactions, %d branches and %d participants' books; %d on their way; %d bytes exchanged; %d findings\n",
		rep.Chains, rep.ChainsMoving, rep.Transactions, rep.Branches, rep.Books, rep.Open, rep.Bytes, len(rep.Findings))
	for _, s := range rep.Unread {
		fmt.Fprintln(w, "NOT READABLE:", shown(s))
	}
	for _, s := range rep.Skipped {
		fmt.Fprintln(w, "NOT COMPARED:", shown(s))
	}
}

// found looks and says what was found.
func (c *driftFlags) found(e *env, o *opened) (*reconcile.Report, error) {
	rep, err := c.look(e, o)
	if err != nil {
		return nil, err
	}
	if err := c.print(e, rep.Findings); err != nil {
		return nil, err
	}
	c.summary(e, rep)
	return rep, nil
}

type driftRunCmd struct{ driftFlags }

// Run looks for drift.
func (c *driftRunCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *driftRunCmd) run(e *env, o *opened) error {
	rep, err := c.found(e, o)
	if err != nil {
		return err
	}
	if len(rep.Findings) > 0 && c.Output == "table" {
		fmt.Fprintln(e.out, "next: lockstep drift plan", c.here())
	}
	return nil
}

type driftListCmd struct {
	driftFlags
	All bool `help:"Also what was repaired."`
}

// Run lists findings.
func (c *driftListCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *driftListCmd) run(e *env, o *opened) error {
	all, err := reconcile.List(e.ctx, o.arbiter)
	if err != nil {
		return err
	}
	var list []reconcile.Finding
	for _, f := range all {
		if c.All || f.Status != reconcile.Repaired && f.Status != reconcile.Accepted {
			list = append(list, f)
		}
	}
	return c.print(e, list)
}

type driftShowCmd struct {
	contextFile
	ID string `arg:"" help:"Id of the finding."`
}

// Run shows a finding.
func (c *driftShowCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *driftShowCmd) run(e *env, o *opened) error {
	all, err := reconcile.List(e.ctx, o.arbiter)
	if err != nil {
		return err
	}
	for _, f := range all {
		if f.ID == c.ID {
			enc := json.NewEncoder(e.out)
			enc.SetIndent("", "  ")
			return enc.Encode(f)
		}
	}
	return &failure{fmt.Errorf("no finding %q", c.ID), "lockstep drift list --all " + c.here()}
}

type driftPlanCmd struct{ driftFlags }

// Run prints what would be repaired.
func (c *driftPlanCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *driftPlanCmd) run(e *env, o *opened) error {
	all, err := reconcile.List(e.ctx, o.arbiter)
	if err != nil {
		return err
	}
	plan := reconcile.Plan(all)
	if c.Output == "json" {
		return c.print(e, plan)
	}
	for _, f := range plan {
		fmt.Fprintf(e.out, "%s %s in %s: %s\n", f.ID, f.Class, f.Region, f.Repair)
	}
	for _, f := range all {
		if f.Status == reconcile.Quarantined {
			fmt.Fprintf(e.out, "%s %s in %s: QUARANTINED, a person must decide: %s\n", f.ID, f.Class, f.Region, shown(f.Text))
		}
	}
	if len(plan) > 0 {
		fmt.Fprintln(e.out, "next: lockstep drift apply", c.here())
	}
	return nil
}

type driftApplyCmd struct {
	driftFlags
	Who   string        `help:"Who does it, for the audit. Defaults to the user."`
	Pause time.Duration `help:"Rest between repairs." default:"0s"`
}

// Run repairs.
func (c *driftApplyCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *driftApplyCmd) run(e *env, o *opened) error {
	r, err := c.reconciler(e, o)
	if err != nil {
		return err
	}
	all, err := reconcile.List(e.ctx, o.arbiter)
	if err != nil {
		return err
	}
	con := &conduct.Conductor{Arbiter: o.arbiter, Who: whoOr(c.Who)}
	var failed []error
	var done []reconcile.Finding
	for _, f := range reconcile.Plan(all) {
		// A tool that is killed during the repair leaves the first of the two lines.
		what := fmt.Sprintf("%s %s in %s: ", f.Class, f.ID, f.Region)
		if err := con.Audit(e.ctx, "drift apply", what+cut(f.Repair, 300), f.ID, time.Now()); err != nil {
			return errors.Join(append(failed, err)...)
		}
		text := "done"
		if err := r.Apply(e.ctx, o.arbiter, &f, time.Now()); err != nil {
			failed, text = append(failed, err), "not done: "+err.Error()
		}
		if err := con.Audit(e.ctx, "drift applied", what+cut(text, 300), f.ID, time.Now()); err != nil {
			return errors.Join(append(failed, err)...)
		}
		done = append(done, f)
		time.Sleep(c.Pause)
	}
	if err := c.print(e, done); err != nil {
		return err
	}
	if len(failed) > 0 {
		return &failure{errors.Join(failed...), "lockstep drift run " + c.here()}
	}
	if c.Output == "table" {
		fmt.Fprintf(e.out, "%d repaired\nnext: lockstep drift verify %s\n", len(done), c.here())
	}
	return nil
}

type driftVerifyCmd struct{ driftFlags }

// Run looks again.
func (c *driftVerifyCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *driftVerifyCmd) run(e *env, o *opened) error {
	rep, err := c.found(e, o)
	if err != nil {
		return err
	}
	rep.Findings = slices.DeleteFunc(rep.Findings, func(f reconcile.Finding) bool { return f.Status == reconcile.Accepted })
	if len(rep.Findings) > 0 {
		return &failure{fmt.Errorf("%d findings", len(rep.Findings)), "lockstep drift plan " + c.here()}
	}
	if len(rep.Skipped) > 0 {
		return &failure{errors.New("not everything was compared"), "lockstep region status " + c.here()}
	}
	return nil
}
