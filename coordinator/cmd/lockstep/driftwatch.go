package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/region/reconcile"
)

type driftWatchCmd struct {
	driftFlags
	Share  float64       `help:"Share of one core that it uses, above 0 and at most 1: it rests after each look." default:"0.1"`
	Window time.Duration `help:"How much time of transactions one look has." default:"1m"`
	Looks  int           `help:"Stop after so many looks; 0 never." default:"0"`
	From   string        `help:"Begin here (RFC 3339) instead of where the last look ended: what lies between is not looked at. Audited." placeholder:"TIME"`
	Reason string        `help:"With --from: why, for the audit." placeholder:"TEXT"`
}

// Run looks on and on.
func (c *driftWatchCmd) Run(e *env) error {
	if c.Share <= 0 || c.Share > 1 || c.Window <= 0 {
		return usageError{fmt.Errorf("--share and --window: %v of one core and %v; above 0 and at most 1, and longer than nothing", c.Share, c.Window)}
	}
	if _, err := c.from(); err != nil {
		return usageError{err}
	}
	return c.with(e, c.run)
}

// from is where it is to begin; 0: where the last look ended.
func (c *driftWatchCmd) from() (int64, error) {
	if c.From == "" {
		return 0, nil
	}
	at, err := time.Parse(time.RFC3339, c.From)
	if err != nil {
		return 0, fmt.Errorf("--from: %q: a time such as 2026-11-24T03:00:00Z belongs there", c.From)
	}
	if at.After(time.Now()) {
		return 0, fmt.Errorf("--from: %s is in the future", c.From)
	}
	if strings.TrimSpace(c.Reason) == "" {
		return 0, errors.New("--reason: it says nothing; with --from it says in the audit why a time is not looked at")
	}
	return at.UnixMilli(), nil
}

func (c *driftWatchCmd) run(e *env, o *opened) error {
	r, err := c.reconciler(e, o)
	if err != nil {
		return err
	}
	r.StaleAfter = c.StaleAfter
	from, err := c.from()
	if err != nil {
		return err
	}
	if from > 0 {
		what := fmt.Sprintf("from %s: %s", instant(from), c.Reason)
		if err := o.audited(e.ctx, "", "drift watch", what, func() error { return reconcile.ResetCheckpoint(e.ctx, o.arbiter, from) }); err != nil {
			return err
		}
	}
	renew := func(context.Context) (*reconcile.Reconciler, error) {
		r, err := c.reconciler(e, o)
		if err == nil {
			r.StaleAfter = c.StaleAfter
		}
		return r, err
	}
	w := &reconcile.Watch{Rec: r, Renew: renew, Arbiter: o.arbiter, Share: c.Share, Window: c.Window, Settle: c.Settle, From: time.Now().Add(-c.Since).UnixMilli()}
	seen := map[string]bool{}
	var failed error
	w.Looked = func(rep *reconcile.Report, from, to int64, rest time.Duration) {
		fmt.Fprintf(e.err, "%s to %s, rests %v: ", instant(from), instant(to), rest.Truncate(time.Millisecond))
		(&driftFlags{Output: "table"}).summary(&env{out: e.err}, rep)
		var fresh []reconcile.Finding
		for _, f := range rep.Findings {
			if !seen[f.ID] {
				seen[f.ID], fresh = true, append(fresh, f)
			}
		}
		failed = errors.Join(failed, c.print(e, fresh))
	}
	err = w.Run(e.ctx, c.Looks)
	if errors.Is(err, context.Canceled) {
		err = nil // told to stop
	}
	return errors.Join(err, failed)
}

func instant(ms int64) string { return time.UnixMilli(ms).UTC().Format(time.RFC3339) }

type driftDecideCmd struct {
	contextFile
	ID     string `arg:"" help:"Id of the finding."`
	Accept bool   `help:"It stays as it is."`
	Repair string `help:"End the branch so at its participant: confirm or cancel." placeholder:"OP"`
	Reason string `help:"Why, for the audit." required:"" placeholder:"TEXT"`
	Who    string `help:"Who decides, for the audit. Defaults to the user."`
	DryRun bool   `help:"Say what would be done, and do nothing."`
}

// Run does what a person decided of a finding that has no authority.
func (c *driftDecideCmd) Run(e *env) error {
	if c.Accept == (c.Repair != "") {
		return usageError{errors.New("--accept or --repair: one of them, to say what is decided")}
	}
	if strings.TrimSpace(c.Reason) == "" {
		return usageError{errors.New("--reason: it says nothing")}
	}
	return c.with(e, c.run)
}

func (c *driftDecideCmd) run(e *env, o *opened) error {
	r, err := c.reconciler(e, o)
	if err != nil {
		return err
	}
	all, err := reconcile.List(e.ctx, o.arbiter)
	if err != nil {
		return err
	}
	d := reconcile.Decision{What: c.Repair, Reason: c.Reason, Who: whoOr(c.Who), At: time.Now().UnixMilli()}
	if c.Accept {
		d.What = reconcile.Accept
	}
	for i := range all {
		f := &all[i]
		if f.ID != c.ID {
			continue
		}
		what := fmt.Sprintf("%s %s in %s: %s: %s: %s", f.Class, f.ID, f.Region, d.What, c.Reason, cut(f.Text, 200))
		if c.DryRun {
			fmt.Fprintf(e.out, "would decide %s; possible: %v; nothing was written\n", shown(what), f.Options())
			return nil
		}
		if err := o.audited(e.ctx, c.Who, "drift decide", what, func() error { return r.Decide(e.ctx, o.arbiter, f, d) }); err != nil {
			return &failure{err, fmt.Sprintf("lockstep drift show %s %s", c.ID, c.here())}
		}
		fmt.Fprintf(e.out, "%s is %s: %s\n", f.ID, f.Status, shown(f.Outcome))
		next(e.out, "lockstep drift verify "+c.here())
		return nil
	}
	return &failure{fmt.Errorf("no finding %q", c.ID), "lockstep drift list --all " + c.here()}
}
