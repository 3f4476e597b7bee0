package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/server"
	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/failover"
	"github.com/lockstep-tx/lockstep/region/failover/conduct"
	"github.com/lockstep-tx/lockstep/region/replica"
	"github.com/lockstep-tx/lockstep/region/slot"
)

type regionCmd struct {
	Init       regionInitCmd       `cmd:"" help:"Create the deployment in the arbiter: its regions, and which one owns which slots first."`
	Status     regionStatusCmd     `cmd:"" help:"Show every region: its state, slots, open transactions, lag, and when it was last heard."`
	Preflight  regionPreflightCmd  `cmd:"" help:"Check whether slots can be moved; exit code 1 when not. Changes nothing."`
	Plan       regionPlanCmd       `cmd:"" help:"Print what a handover would do. Changes nothing."`
	Handover   regionHandoverCmd   `cmd:"" help:"Move slots to another region, under load."`
	Failover   regionFailoverCmd   `cmd:"" help:"Take the slots of a region that is lost, from the arbiter and the target alone."`
	Watch      regionWatchCmd      `cmd:"" help:"Look whether a region is dead, from here and from the other regions; with --auto and every guard, fail over."`
	Failback   regionFailbackCmd   `cmd:"" help:"Move slots back to the region that the deployment gave them first."`
	Drill      regionDrillCmd      `cmd:"" help:"Move slots there and back again, to practise."`
	Pause      regionPauseCmd      `cmd:"" help:"Let the operation stop at its next batch."`
	Resume     regionResumeCmd     `cmd:"" help:"Go on with the operation, also after the tool was killed."`
	Abort      regionAbortCmd      `cmd:"" help:"End the operation: what is on its way goes back, what has moved stays."`
	Unstop     regionUnstopCmd     `cmd:"" help:"Let a stopped slot of another region go on, after what stopped it was repaired. Nothing of it is skipped."`
	Divergence regionDivergenceCmd `cmd:"" help:"What a lost region that is back says otherwise: a proposed settlement per transaction, and the note that it was done."`
	Settle     regionSettleCmd     `cmd:"" help:"Give up what a lost region alone had, when its disks are gone for good."`
	Restored   regionRestoredCmd   `cmd:"" help:"After the arbiter was restored from a backup: raise every epoch above any that was seen since."`
	Verify     regionVerifyCmd     `cmd:"" help:"Write to slots of every region and read what it says of the others; exit code 1 when something is wrong."`
	History    regionHistoryCmd    `cmd:"" help:"Print every operation and the audit, whose chain is checked."`
}

type regionInitCmd struct {
	contextFile
	dryRun
	Regions []string `help:"Regions in the order of their indexes, which never changes; new ones go to the end. Defaults to those of the file, by name." placeholder:"NAME"`
}

// Run creates the deployment: the slots are spread evenly over the regions.
func (c *regionInitCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *regionInitCmd) run(e *env, o *opened) error {
	names := c.Regions
	if len(names) == 0 {
		names = o.file.Names()
	}
	for _, n := range names {
		if _, ok := o.file.Regions[n]; !ok {
			return usageError{fmt.Errorf("--regions: %q is not in %s", n, c.Context)}
		}
	}
	ctx, cancel := c.within(e.ctx)
	defer cancel()
	if c.DryRun {
		dep, err := o.arbiter.Deployment(ctx)
		switch {
		case errors.Is(err, arbiter.ErrNoDeployment):
			fmt.Fprintf(e.out, "there is no deployment yet; it would have the regions %s and %d slots\n", strings.Join(names, ", "), slot.Count)
			next(e.out, c.again(names))
			return nil
		case err != nil:
			return err
		}
		if err := dep.Grows(names); err != nil {
			return usageError{err}
		}
		fmt.Fprintf(e.out, "the deployment has the regions %s; it would have %s\n", strings.Join(dep.Regions, ", "), strings.Join(names, ", "))
		next(e.out, c.again(names))
		return nil
	}
	err := o.audited(ctx, c.Who, "init", "regions "+strings.Join(names, ", "), func() error {
		return o.arbiter.Init(ctx, names, time.Now(), func(n int) string { return names[n%len(names)] })
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(e.out, "the deployment has the regions %s and %d slots\n", strings.Join(names, ", "), slot.Count)
	return nil
}

// again is the command with everything said.
func (c *regionInitCmd) again(names []string) string {
	return "lockstep region init " + flagOf("regions", strings.Join(names, ",")) + whoFlag(c.Who) + " " + c.here()
}

type regionStatusCmd struct {
	contextFile
	Output string `help:"table or json." enum:"table,json" default:"table" short:"o"`
}

// regionView is one region as status shows it.
type regionView struct {
	Region string               `json:"region"`
	State  string               `json:"state"` // up, up 1/2 where one of two coordinators answers, unreachable
	Error  string               `json:"error,omitempty"`
	Slots  map[slot.Status]int  `json:"slots"`
	Forced int                  `json:"forced,omitempty"` // slots taken by force whose loss is not worked off
	Lost   int                  `json:"lost,omitempty"`   // slots taken from it by force whose loss is not worked off
	Status *server.RegionStatus `json:"status,omitempty"`
	// Coordinators are those that answer.
	Coordinators []coordinatorView `json:"coordinators,omitempty"`
}

// lost says that the region was lost whole: it owns nothing, and what was taken from it is not worked off. It is silent by right.
func (v *regionView) lost() bool {
	return v.Lost > 0 && v.Slots[slot.Active]+v.Slots[slot.Draining]+v.Slots[slot.Sealed]+v.Slots[slot.Taken] == 0
}

// lostOf gives the regions that were lost whole, with how many slots were taken from them.
func lostOf(views []regionView) map[string]int {
	lost := map[string]int{}
	for _, v := range views {
		if v.lost() {
			lost[v.Region] = v.Lost
		}
	}
	return lost
}

// stopOf is the stop of another region's chains that wants somebody first; nil for none. What a region that was lost alone has is
// missing until it is back.
func stopOf(or *replica.OriginStatus, lost bool) *replica.SlotStop {
	if at := slices.IndexFunc(or.Stopped, func(s replica.SlotStop) bool { return !s.Missing }); at >= 0 {
		return &or.Stopped[at]
	}
	if len(or.Stopped) == 0 || lost {
		return nil
	}
	return &or.Stopped[0]
}

// Run shows the regions.
func (c *regionStatusCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *regionStatusCmd) run(e *env, o *opened) error {
	views, owners, err := c.look(e, o)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return json.NewEncoder(e.out).Encode(views)
	}
	w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "REGION\tSTATE\tSLOTS\tOPEN\tEXPOSED\tLAG\tHEARD\tCOPIES LAG\tARBITER")
	then, doubts, lost := "", "", lostOf(views)
	for _, v := range views {
		slots := fmt.Sprint(v.Slots[slot.Active])
		for _, st := range []slot.Status{slot.Draining, slot.Sealed, slot.Taken} {
			if v.Slots[st] > 0 {
				slots += fmt.Sprintf(" +%d %s", v.Slots[st], st)
			}
		}
		if v.Forced > 0 {
			slots += fmt.Sprintf(" (%d by force)", v.Forced)
		}
		if v.Status == nil {
			fmt.Fprintf(w, "%s\t%s\t%s\t?\t?\t?\t?\t?\t?\n", v.Region, v.State, slots)
			if !v.lost() { // else what is left to do is at the region that took its slots
				then = c.silentNext(o, views, &v)
			}
			continue
		}
		if v.Error != "" {
			then = fmt.Sprintf("lockstep region status %s --output json  # %s in %s: %s", c.here(), v.State, v.Region, cut(v.Error, 200))
		}
		if len(v.Status.Diverged) > 0 {
			d := v.Status.Diverged[0]
			then = fmt.Sprintf("lockstep region divergence %s  # docs/runbooks/divergence.md; %d transactions of %s: %s", c.here(), len(v.Status.Diverged), v.Region, cut(d.Why, 200))
		} else if v.Forced > 0 && doubts == "" {
			doubts = fmt.Sprintf("lockstep tx list --in-doubt --admin-addr %s  # %d slots were taken by force, docs/runbooks/region-lost.md", hostOf(firstAdmin(o, v.Region)), v.Forced)
		}
		if n := unpublishable(v.Status); n >= 0 {
			then = fmt.Sprintf("lockstep drift run %s  # slot %d of %s goes to no other region, docs/runbooks/slot-stopped.md: %s", c.here(), n, v.Region, cut(v.Status.Unpublishable[n], 200))
		}
		lag, heard := "", ""
		for _, or := range v.Status.Origins {
			lag += fmt.Sprintf("%s %d events %d ms ", or.Region, or.LagEvents, or.LagMillis)
			heard += fmt.Sprintf("%s %d ms ", or.Region, or.HeardMillis)
			if st := stopOf(&or, lost[or.Region] > 0); st != nil {
				then = c.stoppedNext(o, v.Region, or.Region, st)
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\t%s\t%d\t%d ms\n", v.Region, v.State, slots, v.Status.Open, exposed(v.Status), strings.TrimSpace(lag), strings.TrimSpace(heard), v.Status.ApplyLag, v.Status.ArbiterMillis)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	under, err := c.underWay(e, o, owners)
	if err != nil {
		return err
	}
	switch { // what came last of the regions' own goes before; an operation ends before what it leaves in doubt is looked at
	case then == "" && under != "":
		then = "lockstep region resume " + c.here() + "  # " + under
	case then == "":
		then = doubts
	}
	if then != "" {
		next(e.out, then)
	}
	return nil
}

// silentNext is what to do about a region that does not answer: another one says whether it hears it.
func (c *contextFile) silentNext(o *opened, views []regionView, v *regionView) string {
	owns := v.Slots[slot.Active]+v.Slots[slot.Draining]+v.Slots[slot.Sealed]+v.Slots[slot.Taken] > 0
	for _, other := range views {
		if owns && other.Status != nil {
			return fmt.Sprintf("lockstep region watch --from %s --to %s %s  # docs/runbooks/region-lost.md; it does not answer: %s", v.Region, other.Region, c.here(), cut(v.Error, 120))
		}
	}
	return fmt.Sprintf("curl %s/readyz  # %s", firstAdmin(o, v.Region), cut(v.Error, 200))
}

// stoppedNext is what to do about a slot that does not go on.
func (c *contextFile) stoppedNext(o *opened, region, origin string, st *replica.SlotStop) string {
	if st.Missing { // it goes on when its origin answers
		return fmt.Sprintf("curl %s/readyz  # slot %d of %s does not go on in %s: %s", firstAdmin(o, origin), st.Slot, origin, region, cut(st.Reason, 200))
	}
	return fmt.Sprintf("lockstep region unstop --region %s --origin %s --slot %d --why REASON %s  # first docs/runbooks/slot-stopped.md; it is stopped: %s",
		region, origin, st.Slot, c.here(), cut(st.Reason, 200))
}

func firstAdmin(o *opened, region string) string {
	if all := o.file.Regions[region].Admin; len(all) > 0 {
		return all[0]
	}
	return "http://" + region
}

// unpublishable is the first slot whose own chain is broken in the region's journal; -1: none.
func unpublishable(st *server.RegionStatus) int {
	first := -1
	for n := range st.Unpublishable {
		if first < 0 || n < first {
			first = n
		}
	}
	return first
}

// exposed is how many events another region would not have if this one were lost now: those not in Kafka, and those that the
// peer which has the least is not known to have.
func exposed(st *server.RegionStatus) uint64 {
	worst := uint64(0)
	for _, n := range st.Unacknowledged {
		worst = max(worst, n)
	}
	return uint64(st.Unpublished) + worst
}

// underWay says which operation holds the lock, or has slots on their way; "" for none. Between its batches, and while it is
// paused, the lock alone shows it.
func (c *contextFile) underWay(e *env, o *opened, owners *slot.Map) (string, error) {
	ctx, cancel := c.within(e.ctx)
	defer cancel()
	r, err := (&conduct.Conductor{Arbiter: o.arbiter}).Load(ctx, "")
	switch {
	case err == nil && r.Status == failover.Running:
		return holder(&r) + " is on its way, or its tool was killed", nil
	case err == nil:
		return fmt.Sprintf("%s is %s", holder(&r), r.Status), nil
	case !errors.Is(err, conduct.ErrNone):
		return "", err
	}
	if op := moving(owners); op != "" {
		return "operation " + op + " has slots on their way", nil
	}
	return "", nil
}

// holder names an operation with who began it, and when: the one to ask before it is resumed or aborted.
func holder(r *failover.Run) string {
	return fmt.Sprintf("%s %s by %s since %s", r.Plan.Kind, r.Plan.ID, shown(r.Plan.Who), time.UnixMilli(r.BegunMillis).UTC().Format(time.RFC3339))
}

func moving(m *slot.Map) string {
	for _, o := range m {
		if o.Op != "" {
			return o.Op
		}
	}
	return ""
}

// look asks the arbiter and every region.
func (c *contextFile) look(e *env, o *opened) ([]regionView, *slot.Map, error) {
	ctx, cancel := c.within(e.ctx)
	defer cancel()
	dep, err := o.arbiter.Deployment(ctx)
	if err != nil {
		return nil, nil, err
	}
	owners, err := o.arbiter.Owners(ctx)
	if err != nil {
		return nil, nil, err
	}
	a := c.asker(e, o)
	out := make([]regionView, len(dep.Regions))
	var all sync.WaitGroup
	for i, name := range dep.Regions {
		all.Go(func() { out[i] = a.view(ctx, name, owners) })
	}
	all.Wait()
	for i := range out {
		for _, w := range owners {
			if w.Lost != 0 && w.Lost.Region() == i+1 {
				out[i].Lost++
			}
		}
	}
	return out, owners, nil
}

// view asks all of a region's coordinators: each knows its own open transactions and the events of its own partitions.
func (a *asker) view(ctx context.Context, region string, owners *slot.Map) regionView {
	v := regionView{Region: region, State: "unreachable", Slots: map[slot.Status]int{}}
	for _, w := range owners {
		if w.Region == region {
			v.Slots[w.Status]++
		}
		if w.Region == region && w.Lost != 0 {
			v.Forced++
		}
	}
	bases := a.o.file.Regions[region].Admin
	answers, seen, errs := make([]server.RegionStatus, len(bases)), make([]coordinatorView, len(bases)), make([]error, len(bases))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var first sync.Once
	var all sync.WaitGroup
	for i, base := range bases {
		all.Go(func() {
			if seen[i], errs[i] = a.statusOf(ctx, base, &answers[i]); errs[i] == nil {
				a.o.heard.note(region, base)
				first.Do(func() { time.AfterFunc(silence, cancel) }) // the others are not waited for as long as a whole region
			}
		})
	}
	all.Wait()
	up := 0
	for i := range bases {
		if errs[i] == nil {
			up++
			v.add(&answers[i])
			v.Coordinators = append(v.Coordinators, seen[i])
		}
	}
	switch {
	case len(bases) == 0:
		v.Error = fmt.Sprintf("the regions file has no admin address of region %s", region)
	case up == len(bases):
		v.State = "up"
	case up > 0:
		v.State = fmt.Sprintf("up %d/%d", up, len(bases))
	}
	if err := errors.Join(errs...); err != nil {
		v.Error = err.Error()
	}
	return v
}

// hostOf is an admin address without its scheme.
func hostOf(base string) string {
	_, host, ok := strings.Cut(base, "://")
	if !ok {
		return base
	}
	return host
}

// add takes one more coordinator's answer. What they all know of the whole region is the first one's.
func (v *regionView) add(st *server.RegionStatus) {
	if v.Status == nil {
		v.Status = st
		return
	}
	v.Status.Open += st.Open
	v.Status.Unpublished += st.Unpublished
	v.Status.Held += st.Held
	v.Status.Diverged = append(v.Status.Diverged, st.Diverged...)
	v.Status.Unadopted = append(v.Status.Unadopted, st.Unadopted...)
	for n, why := range st.Unpublishable {
		if v.Status.Unpublishable == nil {
			v.Status.Unpublishable = map[int]string{}
		}
		v.Status.Unpublishable[n] = why
	}
	for peer, n := range st.Unacknowledged {
		if v.Status.Unacknowledged == nil {
			v.Status.Unacknowledged = map[string]uint64{}
		}
		v.Status.Unacknowledged[peer] += n
	}
}

type regionHistoryCmd struct {
	contextFile
	Output string `help:"table or json." enum:"table,json" default:"table" short:"o"`
}

// Run prints the audit.
func (c *regionHistoryCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *regionHistoryCmd) run(e *env, o *opened) error {
	ctx, cancel := c.within(e.ctx)
	defer cancel()
	con := &conduct.Conductor{Arbiter: o.arbiter}
	runs, err := con.Runs(ctx)
	if err != nil {
		return err
	}
	entries, chain := con.History(ctx)
	if c.Output == "json" {
		if err := json.NewEncoder(e.out).Encode(map[string]any{"runs": runs, "audit": entries}); err != nil {
			return err
		}
		return chain
	}
	w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "AT\tWHO\tACT\tOPERATION\tTEXT")
	for _, en := range entries {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", en.At, shown(en.Who), shown(en.Act), shown(en.Op), shown(cut(en.Text, 120)))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if chain != nil {
		return &failure{chain, "compare with the operators' own records: the audit was changed"}
	}
	fmt.Fprintf(e.out, "%d lines, the chain is whole\n", len(entries))
	return nil
}
