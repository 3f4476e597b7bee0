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
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/server"
	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// check is one preflight check. One that fails and was waived is not OK and stops nothing.
type check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Waived bool   `json:"waived,omitempty"`
	Text   string `json:"text"`
}

// coordinatorView is what the tool sees of one coordinator.
type coordinatorView struct {
	Member  string `json:"member"`
	Version string `json:"version"`
	// OffsetMillis is how far its clock is ahead of the tool's, known to within half of RTTMillis.
	OffsetMillis int64 `json:"offset_ms"`
	RTTMillis    int64 `json:"rtt_ms"`
}

// waivable are the first words of the checks that an operator may know better than. What fails of the others fails in the move too.
var waivable = []string{"lag", "version", "clock"}

// statusOf asks a coordinator for its status, and looks at its clock.
func (a *asker) statusOf(ctx context.Context, base string, into *server.RegionStatus) (coordinatorView, error) {
	began := time.Now()
	err := a.askOne(ctx, base, http.MethodGet, "/v1/region/status", into)
	took := time.Since(began)
	v := coordinatorView{Member: into.Member, Version: into.Version, RTTMillis: took.Milliseconds()}
	if into.NowMillis != 0 {
		v.OffsetMillis = into.NowMillis - began.Add(took/2).UnixMilli()
	}
	return v, err
}

// What the preflight wants of the arbiter's answers and of clocks: a batch undoes itself by a time that one writes and the others read.
const (
	arbiterRTTMax = time.Second
	clockMax      = time.Second
)

// preflight checks whether slots may go from one region to another; nil slots: those of --slots that from owns.
func (m *moveFlags) preflight(e *env, o *opened, from, to string, slots []int) ([]check, error) {
	for _, name := range m.Waive {
		if !slices.Contains(waivable, name) {
			return nil, usageError{fmt.Errorf("--waive: %q; %s can be waived", name, strings.Join(waivable, ", "))}
		}
	}
	views, owners, err := m.look(e, o)
	if err != nil {
		return nil, err
	}
	var out []check
	add := func(name string, ok bool, format string, args ...any) {
		first, _, _ := strings.Cut(name, " ")
		out = append(out, check{Name: name, OK: ok, Waived: !ok && slices.Contains(m.Waive, first), Text: fmt.Sprintf(format, args...)})
	}
	ctx, cancel := m.within(e.ctx)
	defer cancel()
	began := time.Now()
	dep, err := o.arbiter.Deployment(ctx)
	if err != nil {
		return nil, err
	}
	took := time.Since(began)
	add("arbiter", took < arbiterRTTMax, "a majority answers in %v, %d slots have owners", took.Round(time.Millisecond), slot.Count)
	under, err := m.underWay(e, o, owners)
	if err != nil {
		return nil, err
	}
	if under == "" {
		add("operation", true, "no other one is under way")
	} else {
		add("operation", false, "%s; resume or abort it", under)
	}
	if slots == nil {
		want, err := parseSlots(m.Slots)
		if err != nil {
			return nil, usageError{err}
		}
		for n, w := range owners {
			if w.Region == from && (want == nil || want[n]) {
				slots = append(slots, n)
			}
		}
	}
	checkLoss(&dep, owners, slots, add)
	versions := map[string]bool{}
	for _, v := range views {
		if v.Region == from || v.Region == to {
			m.checkRegion(&v, from, to, versions, add)
		}
	}
	if len(versions) > 0 {
		add("version", len(versions) == 1, "the coordinators are of %s", strings.Join(slices.Sorted(maps.Keys(versions)), ", "))
	}
	t, err := registry.Load(ctx, o.arbiter)
	if err != nil {
		return nil, err
	}
	for _, p := range t.All() {
		can, err := probeAll(ctx, &p)
		add("participant "+p.Name, err == nil && can.Movable && p.Endpoints[to] != "", "%s%s", describe(&can), because(err))
	}
	return out, nil
}

// checkLoss is preflight's look at what was taken by force: a slot is not drained before its loss is worked off, so that a move of it
// would stand still, and hold the lock against the next failover.
func checkLoss(dep *arbiter.Deployment, owners *slot.Map, slots []int, add func(name string, ok bool, format string, args ...any)) {
	lost := map[string]int{}
	for _, n := range slots {
		if epoch := owners[n].Lost; epoch != 0 {
			lost[dep.Name(epoch.Region())]++
		}
	}
	if len(lost) == 0 {
		add("loss", true, "no slot has a loss that is not worked off")
		return
	}
	var parts []string
	for _, region := range slices.Sorted(maps.Keys(lost)) {
		parts = append(parts, fmt.Sprintf("%d slots were taken by force from %s", lost[region], region))
	}
	add("loss", false, "%s, and what it had of them is not worked off: it hands that over by itself when it is back (docs/runbooks/region-returned.md), or region settle gives it up", strings.Join(parts, ", "))
}

// checkRegion is preflight's look at one of the two regions.
func (m *moveFlags) checkRegion(v *regionView, from, to string, versions map[string]bool, add func(name string, ok bool, format string, args ...any)) {
	add("region "+v.Region, v.Status != nil, "a coordinator answers %s", v.Error)
	if v.Status == nil {
		return
	}
	add("arbiter from "+v.Region, v.Status.ArbiterMillis >= 0 && v.Status.ArbiterMillis < 5000, "heard %d ms ago", v.Status.ArbiterMillis)
	limit := min(clockMax, m.Deadline/10)
	for _, c := range v.Coordinators {
		versions[c.Version] = true
		sure := max(c.OffsetMillis, -c.OffsetMillis) - c.RTTMillis/2
		add("clock of "+c.Member, sure <= limit.Milliseconds(), "%d ms ahead of this one (within %d ms); at most %v, for a batch undoes itself by the time of day", c.OffsetMillis, c.RTTMillis/2, limit)
	}
	if v.Region == from {
		add("unpublishable slots", len(v.Status.Unpublishable) == 0, "%d chains of %s do not continue in its journal", len(v.Status.Unpublishable), from)
		return
	}
	for _, or := range v.Status.Origins {
		if or.Region == from {
			add("lag", or.LagMillis <= m.MaxLag.Milliseconds() && or.HeardMillis >= 0, "%s is %d ms and %d events behind %s, heard %d ms ago; at most %v", to, or.LagMillis, or.LagEvents, from, or.HeardMillis, m.MaxLag)
			add("stopped slots", len(or.Stopped) == 0, "%d chains of %s are stopped in %s", len(or.Stopped), from, to)
		}
	}
}

// because is an error behind what it is about; "" where there is none.
func because(err error) string {
	if err == nil {
		return ""
	}
	return fmt.Sprintf(" (%s)", cut(err.Error(), 300))
}

// printChecks prints the checks, and says whether none failed but those that were waived.
func printChecks(e *env, checks []check) (ok bool) {
	ok = true
	for _, c := range checks {
		word := "ok  "
		switch {
		case c.Waived:
			word = "waived"
		case !c.OK:
			word, ok = "FAIL", false
		}
		fmt.Fprintf(e.out, "%s %s: %s\n", word, shown(c.Name), shown(cut(c.Text, 600)))
	}
	return ok
}

// waivedWhy is the reason for the audit, with what was waived.
func waivedWhy(why string, checks []check) string {
	var names []string
	for _, c := range checks {
		if c.Waived {
			names = append(names, c.Name)
		}
	}
	if len(names) == 0 {
		return why
	}
	return fmt.Sprintf("%s (waived: %s)", why, strings.Join(names, ", "))
}

type regionPreflightCmd struct {
	moveFlags
	From   string `help:"Region that gives slots." required:""`
	To     string `help:"Region that takes them." required:""`
	Output string `help:"table or json." enum:"table,json" default:"table" short:"o"`
}

// Run checks.
func (c *regionPreflightCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *regionPreflightCmd) run(e *env, o *opened) error {
	checks, err := c.preflight(e, o, c.From, c.To, nil)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		if err := json.NewEncoder(e.out).Encode(checks); err != nil {
			return err
		}
		if slices.ContainsFunc(checks, func(c check) bool { return !c.OK && !c.Waived }) {
			return errors.New("the preflight failed")
		}
		return nil
	}
	if !printChecks(e, checks) {
		return &failure{errors.New("the preflight failed"), "lockstep region status " + c.here()}
	}
	return nil
}
