package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/lockstep-tx/lockstep/coordinator/server"
	"github.com/lockstep-tx/lockstep/region/replica"
)

type regionUnstopCmd struct {
	contextFile
	dryRun
	Region string `help:"Region in whose journal the slot is stopped." required:""`
	Origin string `help:"Region whose events they are." required:""`
	Slot   int    `help:"The slot." required:""`
	Why    string `help:"Reason, for the audit: what was found and repaired." required:"" placeholder:"TEXT"`
}

// Run lets a stopped slot go on.
func (c *regionUnstopCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *regionUnstopCmd) run(e *env, o *opened) error {
	ctx, cancel := c.within(e.ctx)
	defer cancel()
	a := c.asker(e, o)
	st, err := c.find(ctx, o, a)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("slot %d of %s in %s, stopped after event %d: %s", c.Slot, c.Origin, c.Region, st.Applied, cut(shown(st.Reason), 300))
	if c.DryRun {
		fmt.Fprintf(e.out, "would let go on: %s; nothing was written\n", what)
		next(e.out, fmt.Sprintf("lockstep region unstop --region %s --origin %s --slot %d %s%s %s", c.Region, c.Origin, c.Slot, flagOf("why", c.Why), whoFlag(c.Who), c.here()))
		return nil
	}
	var out struct {
		Was bool `json:"was_stopped"`
	}
	err = o.audited(ctx, c.Who, "unstop", c.Why+": "+what, func() error {
		q := url.Values{"origin": {c.Origin}, "slot": {strconv.Itoa(c.Slot)}}
		return a.ask(ctx, c.Region, http.MethodPost, "/v1/region/unstop?"+q.Encode(), &out)
	})
	switch {
	case err != nil:
		return err
	case !out.Was:
		fmt.Fprintln(e.out, "it had been let go on already")
	default:
		fmt.Fprintf(e.out, "slot %d of %s goes on in %s from event %d\n", c.Slot, c.Origin, c.Region, st.Applied+1)
	}
	fmt.Fprintln(e.out, "next: lockstep region status", c.here())
	return nil
}

// find asks the region how the slot stands there, which must be stopped.
func (c *regionUnstopCmd) find(ctx context.Context, o *opened, a *asker) (*replica.SlotStop, error) {
	for flag, name := range map[string]string{"region": c.Region, "origin": c.Origin} {
		if _, ok := o.file.Regions[name]; !ok {
			return nil, usageError{fmt.Errorf("--%s: %q is not in %s, which has %v", flag, name, c.Context, o.file.Names())}
		}
	}
	var st server.RegionStatus
	if err := a.ask(ctx, c.Region, http.MethodGet, "/v1/region/status", &st); err != nil {
		return nil, err
	}
	for _, or := range st.Origins {
		for i := range or.Stopped {
			s := &or.Stopped[i]
			switch {
			case or.Region != c.Origin || s.Slot != c.Slot:
			case s.Missing:
				return nil, &failure{fmt.Errorf("slot %d of %s is not stopped in %s: it goes on by itself when what is missing can be had: %s", c.Slot, c.Origin, c.Region, shown(s.Reason)),
					fmt.Sprintf("curl %s/readyz", firstAdmin(o, c.Origin))}
			default:
				return s, nil
			}
		}
	}
	return nil, &failure{fmt.Errorf("slot %d of %s is not stopped in %s", c.Slot, c.Origin, c.Region), "lockstep region status " + c.here()}
}
