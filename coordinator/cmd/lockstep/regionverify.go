package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/region/replica"
	"github.com/lockstep-tx/lockstep/region/slot"
)

type regionVerifyCmd struct {
	contextFile
	Slots int `help:"How many slots of each region are written to." default:"8"`
}

// Run writes to every region and reads what each says of the others.
func (c *regionVerifyCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *regionVerifyCmd) run(e *env, o *opened) error {
	views, owners, err := c.look(e, o)
	if err != nil {
		return err
	}
	var checks []check
	a := c.asker(e, o)
	lost := lostOf(views)
	for _, v := range views {
		checks = append(checks, c.writes(e, a, &v, owners))
		if v.Status == nil {
			continue
		}
		for i := range v.Status.Origins {
			checks = append(checks, hears(v.Region, &v.Status.Origins[i], lost))
		}
	}
	if !printChecks(e, checks) {
		return &failure{errors.New("something is wrong"), "lockstep region status " + c.here()}
	}
	return nil
}

// writes is verify's look at a region's own slots.
func (c *regionVerifyCmd) writes(e *env, a *asker, v *regionView, owners *slot.Map) check {
	ck := check{Name: "writes in " + v.Region, OK: true}
	if v.lost() {
		ck.Text = fmt.Sprintf("none: the region was lost, %d slots were taken from it and it owns nothing", v.Lost)
		return ck
	}
	wrote, failed := 0, error(nil)
	for n, w := range owners {
		if w.Region == v.Region && w.Status == slot.Active && wrote < c.Slots && failed == nil {
			wrote++
			failed = a.Canary(e.ctx, v.Region, n)
		}
	}
	ck.OK, ck.Text = failed == nil, fmt.Sprintf("%d slots%s", wrote, because(failed))
	return ck
}

// unheardMax is how long ago one region may have heard another one that is not lost.
const unheardMax = 10 * time.Second

// hears is verify's look at what a region hears of another one. One that was lost is silent, and what it alone has is missing; lost has
// the number of slots that were taken from each such region.
func hears(region string, or *replica.OriginStatus, lost map[string]int) check {
	stopped := 0
	for _, st := range or.Stopped {
		if n := lost[or.Region]; n == 0 || !st.Missing {
			stopped++
		}
	}
	ck := check{Name: fmt.Sprintf("%s hears %s", region, or.Region), OK: stopped == 0}
	ago := fmt.Sprintf("%d ms ago", or.HeardMillis)
	if or.HeardMillis < 0 {
		ago = "never"
	}
	if n := lost[or.Region]; n > 0 {
		ck.Text = fmt.Sprintf("it was lost and may be silent: heard %s, %d slots were taken from it, %d chains stopped for more than what it alone has", ago, n, stopped)
		return ck
	}
	ck.OK = ck.OK && or.HeardMillis >= 0 && or.HeardMillis < unheardMax.Milliseconds()
	ck.Text = fmt.Sprintf("%s, %d events behind, %d chains stopped", ago, or.LagEvents, stopped)
	return ck
}
