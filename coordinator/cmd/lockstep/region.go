package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"github.com/lockstep-tx/lockstep/coordinator/server"
	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/failover"
	"github.com/lockstep-tx/lockstep/region/failover/conduct"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/slot"
)

type regionCmd struct {
	Init      regionInitCmd      `cmd:"" help:"Create the deployment in the arbiter: its regions, and which one owns which slots first."`
	Status    regionStatusCmd    `cmd:"" help:"Show every region: its state, slots, open transactions, lag, and when it was last heard."`
	Preflight regionPreflightCmd `cmd:"" help:"Check whether slots can be moved; exit code 1 when not. Changes nothing."`
	Plan      regionPlanCmd      `cmd:"" help:"Print what a handover would do. Changes nothing."`
	Handover  regionHandoverCmd  `cmd:"" help:"Move slots to another region, under load."`
	Failback  regionFailbackCmd  `cmd:"" help:"Move slots back to the region that the deployment gave them first."`
	Drill     regionDrillCmd     `cmd:"" help:"Move slots there and back again, to practise."`
	Pause     regionPauseCmd     `cmd:"" help:"Let the operation stop at its next batch."`
	Resume    regionResumeCmd    `cmd:"" help:"Go on with the operation, also after the tool was killed."`
	Abort     regionAbortCmd     `cmd:"" help:"End the operation: what is on its way goes back, what has moved stays."`
	Verify    regionVerifyCmd    `cmd:"" help:"Write to slots of every region and read what it says of the others; exit code 1 when something is wrong."`
	History   regionHistoryCmd   `cmd:"" help:"Print every operation and the audit, whose chain is checked."`
}

type regionInitCmd struct {
	contextFile
	Regions []string `help:"Regions in the order of their indexes, which never changes; new ones go to the end. Defaults to those of the file, by name." placeholder:"NAME"`
}

// Run creates the deployment: the slots are spread evenly over the regions.
func (c *regionInitCmd) Run(e *env) error {
	o, err := c.open(e.ctx)
	if err != nil {
		return err
	}
	defer o.close()
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
	if err := o.arbiter.Init(ctx, names, time.Now(), func(n int) string { return names[n%len(names)] }); err != nil {
		return err
	}
	fmt.Fprintf(e.out, "the deployment has the regions %s and %d slots\n", strings.Join(names, ", "), slot.Count)
	return nil
}

// asker asks the regions' coordinators.
type asker struct {
	o      *opened
	client *http.Client
	token  string
}

func (c *contextFile) asker(e *env, o *opened) *asker {
	return &asker{o: o, client: &http.Client{Timeout: min(c.Timeout, 5*time.Second)}, token: e.getenv("LOCKSTEP_TOKEN")}
}

// ask tries a region's coordinators one after the other.
func (a *asker) ask(ctx context.Context, region, method, path string, out any) error {
	var errs []error
	for _, base := range a.o.file.Regions[region].Admin {
		if errs = append(errs, a.askOne(ctx, base, method, path, out)); errs[len(errs)-1] == nil {
			return nil
		}
	}
	if len(errs) == 0 {
		return fmt.Errorf("the regions file has no admin address of region %s", region)
	}
	return errors.Join(errs...)
}

func (a *asker) askOne(ctx context.Context, base, method, path string, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, base+path, nil)
	if err != nil {
		return err
	}
	if a.token != "" {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", base+path, resp.Status, cut(string(raw), 200))
	}
	return json.Unmarshal(raw, out)
}

// Reached is conduct.World's.
func (a *asker) Reached(ctx context.Context, region string, n int, seal *slot.Seal) bool {
	var out struct{ Reached bool }
	q := url.Values{"slot": {strconv.Itoa(n)}, "epoch": {fmt.Sprint(uint64(seal.Epoch))}, "seq": {fmt.Sprint(seal.Seq)}, "chain": {seal.Chain}}
	return a.ask(ctx, region, http.MethodGet, "/v1/region/reached?"+q.Encode(), &out) == nil && out.Reached
}

// Canary is conduct.World's.
func (a *asker) Canary(ctx context.Context, region string, n int) error {
	var out struct{}
	return a.ask(ctx, region, http.MethodPost, fmt.Sprintf("/v1/region/canary?slot=%d", n), &out)
}

type regionStatusCmd struct {
	contextFile
	Output string `help:"table or json." enum:"table,json" default:"table" short:"o"`
}

// regionView is one region as status shows it.
type regionView struct {
	Region string               `json:"region"`
	State  string               `json:"state"` // up, unreachable
	Error  string               `json:"error,omitempty"`
	Slots  map[slot.Status]int  `json:"slots"`
	Status *server.RegionStatus `json:"status,omitempty"`
}

// Run shows the regions.
func (c *regionStatusCmd) Run(e *env) error {
	o, err := c.open(e.ctx)
	if err != nil {
		return err
	}
	defer o.close()
	views, owners, err := c.look(e, o)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return json.NewEncoder(e.out).Encode(views)
	}
	w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "REGION\tSTATE\tSLOTS\tOPEN\tLAG\tHEARD\tCOPIES LAG\tARBITER")
	next := ""
	for _, v := range views {
		slots := fmt.Sprint(v.Slots[slot.Active])
		for _, st := range []slot.Status{slot.Draining, slot.Sealed} {
			if v.Slots[st] > 0 {
				slots += fmt.Sprintf(" +%d %s", v.Slots[st], st)
			}
		}
		if v.Status == nil {
			fmt.Fprintf(w, "%s\t%s\t%s\t?\t?\t?\t?\t?\n", v.Region, v.State, slots)
			next = fmt.Sprintf("curl %s/readyz  # %s", o.file.Regions[v.Region].Admin[0], v.Error)
			continue
		}
		lag, heard := "", ""
		for _, or := range v.Status.Origins {
			lag += fmt.Sprintf("%s %d events %d ms ", or.Region, or.LagEvents, or.LagMillis)
			heard += fmt.Sprintf("%s %d ms ", or.Region, or.HeardMillis)
			if len(or.Stopped) > 0 {
				next = fmt.Sprintf("lockstep drift run --context %s  # slot %d of %s stopped: %s", c.Context, or.Stopped[0].Slot, or.Region, or.Stopped[0].Reason)
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%d\t%d ms\n", v.Region, v.State, slots, v.Status.Open, strings.TrimSpace(lag), strings.TrimSpace(heard), v.Status.ApplyLag, v.Status.ArbiterMillis)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if op := moving(owners); op != "" && next == "" {
		next = "lockstep region resume --context " + c.Context + "  # operation " + op + " is on its way, or its tool was killed"
	}
	if next != "" {
		fmt.Fprintln(e.out, "next:", next)
	}
	return nil
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
	var out []regionView
	for _, name := range dep.Regions {
		v := regionView{Region: name, State: "up", Slots: map[slot.Status]int{}}
		for _, w := range owners {
			if w.Region == name {
				v.Slots[w.Status]++
			}
		}
		st := &server.RegionStatus{}
		if err := a.ask(ctx, name, http.MethodGet, "/v1/region/status", st); err != nil {
			v.State, v.Error = "unreachable", err.Error()
		} else {
			v.Status = st
		}
		out = append(out, v)
	}
	return out, owners, nil
}

// moveFlags are those of every command that moves slots.
type moveFlags struct {
	contextFile
	Slots    string        `help:"Slots to move: 0-31,40. Defaults to all that --from owns." placeholder:"LIST"`
	Batch    int           `help:"Slots that move together." default:"32"`
	Deadline time.Duration `help:"How long a batch may take until it undoes itself." default:"10s"`
	Pause    time.Duration `help:"Rest between batches." default:"1s"`
	MaxLag   time.Duration `help:"Lag of the target above which nothing is moved." default:"5s"`
	Why      string        `help:"Reason, for the audit: a ticket, a name." default:"not given"`
	Who      string        `help:"Who does it, for the audit. Defaults to the user."`
	DryRun   bool          `help:"Do every read and every check, and write nothing."`
}

func (m *moveFlags) who() string {
	if m.Who != "" {
		return m.Who
	}
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}

// plan makes the plan of a move of the region's slots.
func (m *moveFlags) plan(owners *slot.Map, kind failover.Kind, from, to string, hold time.Duration) (failover.Plan, error) {
	p := failover.Plan{
		ID: uuid.NewString()[:13], Kind: kind, From: from, To: to, Batch: m.Batch, DeadlineMillis: m.Deadline.Milliseconds(), PauseMillis: m.Pause.Milliseconds(),
		HoldMillis: hold.Milliseconds(), Who: m.who(), Why: m.Why,
	}
	want, err := parseSlots(m.Slots)
	if err != nil {
		return p, usageError{err}
	}
	for n, o := range owners {
		if o.Region == from && (want == nil || want[n]) {
			p.Slots = append(p.Slots, n)
		}
	}
	if err := p.Check(); err != nil {
		return p, usageError{err}
	}
	return p, nil
}

// parseSlots reads 0-31,40; nil for "".
func parseSlots(text string) (map[int]bool, error) {
	if text == "" {
		return nil, nil
	}
	out := map[int]bool{}
	for part := range strings.SplitSeq(text, ",") {
		first, last, ranged := strings.Cut(strings.TrimSpace(part), "-")
		a, err := strconv.Atoi(first)
		b := a
		if err == nil && ranged {
			b, err = strconv.Atoi(last)
		}
		if err != nil || a < 0 || b >= slot.Count || b < a {
			return nil, fmt.Errorf("--slots: %q is no slot or range of 0 to %d", part, slot.Count-1)
		}
		for n := a; n <= b; n++ {
			out[n] = true
		}
	}
	return out, nil
}

// check is one preflight check.
type check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Text string `json:"text"`
}

// preflight checks whether slots may go from one region to another.
func (m *moveFlags) preflight(e *env, o *opened, from, to string) ([]check, error) {
	views, owners, err := m.look(e, o)
	if err != nil {
		return nil, err
	}
	var out []check
	add := func(name string, ok bool, format string, args ...any) {
		out = append(out, check{name, ok, fmt.Sprintf(format, args...)})
	}
	add("arbiter", true, "it answers, %d slots have owners", slot.Count)
	add("operation", moving(owners) == "", "no other operation is under way (%q)", moving(owners))
	for _, v := range views {
		if v.Region != from && v.Region != to {
			continue
		}
		add("region "+v.Region, v.Status != nil, "a coordinator answers %s", v.Error)
		if v.Status == nil {
			continue
		}
		add("arbiter from "+v.Region, v.Status.ArbiterMillis >= 0 && v.Status.ArbiterMillis < 5000, "heard %d ms ago", v.Status.ArbiterMillis)
		for _, or := range v.Status.Origins {
			if v.Region == to && or.Region == from {
				add("lag", or.LagMillis <= m.MaxLag.Milliseconds() && or.HeardMillis >= 0, "%s is %d ms and %d events behind %s, heard %d ms ago; at most %v", to, or.LagMillis, or.LagEvents, from, or.HeardMillis, m.MaxLag)
				add("stopped slots", len(or.Stopped) == 0, "%d chains of %s are stopped in %s", len(or.Stopped), from, to)
			}
		}
	}
	ctx, cancel := m.within(e.ctx)
	defer cancel()
	t, err := registry.Load(ctx, o.arbiter)
	if err != nil {
		return nil, err
	}
	for _, p := range t.All() {
		can, err := probeAll(ctx, &p)
		add("participant "+p.Name, err == nil && can.Movable && p.Endpoints[to] != "", "%s (%v)", describe(&can), err)
	}
	return out, nil
}

func printChecks(e *env, checks []check) (ok bool) {
	ok = true
	for _, c := range checks {
		word := "ok  "
		if !c.OK {
			word, ok = "FAIL", false
		}
		fmt.Fprintf(e.out, "%s %s: %s\n", word, c.Name, strings.TrimSpace(c.Text))
	}
	return ok
}

type regionPreflightCmd struct {
	moveFlags
	From   string `help:"Region that gives slots." required:""`
	To     string `help:"Region that takes them." required:""`
	Output string `help:"table or json." enum:"table,json" default:"table" short:"o"`
}

// Run checks.
func (c *regionPreflightCmd) Run(e *env) error {
	o, err := c.open(e.ctx)
	if err != nil {
		return err
	}
	defer o.close()
	checks, err := c.preflight(e, o, c.From, c.To)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		if err := json.NewEncoder(e.out).Encode(checks); err != nil {
			return err
		}
		if slices.ContainsFunc(checks, func(c check) bool { return !c.OK }) {
			return errors.New("the preflight failed")
		}
		return nil
	}
	if !printChecks(e, checks) {
		return &failure{errors.New("the preflight failed"), "lockstep region status --context " + c.Context}
	}
	return nil
}

type regionPlanCmd struct {
	moveFlags
	From string `help:"Region that gives slots." required:""`
	To   string `help:"Region that takes them." required:""`
}

// Run prints the plan.
func (c *regionPlanCmd) Run(e *env) error {
	c.DryRun = true
	return c.move(e, failover.Handover, c.From, c.To, 0)
}

type regionHandoverCmd struct {
	moveFlags
	From string `help:"Region that gives slots." required:""`
	To   string `help:"Region that takes them." required:""`
}

// Run moves slots.
func (c *regionHandoverCmd) Run(e *env) error {
	return c.move(e, failover.Handover, c.From, c.To, 0)
}

type regionFailbackCmd struct {
	moveFlags
	From string `help:"Region that has the slots now." required:""`
	To   string `help:"Region that had them." required:""`
}

// Run moves slots back.
func (c *regionFailbackCmd) Run(e *env) error {
	return c.move(e, failover.Failback, c.From, c.To, 0)
}

type regionDrillCmd struct {
	moveFlags
	From string        `help:"Region that gives slots." required:""`
	To   string        `help:"Region that takes them." required:""`
	Hold time.Duration `help:"How long they stay there." default:"30s"`
}

// Run moves slots there and back.
func (c *regionDrillCmd) Run(e *env) error {
	return c.move(e, failover.Drill, c.From, c.To, c.Hold)
}

// move checks, plans, and moves.
func (m *moveFlags) move(e *env, kind failover.Kind, from, to string, hold time.Duration) error {
	o, err := m.open(e.ctx)
	if err != nil {
		return err
	}
	defer o.close()
	ctx, cancel := m.within(e.ctx)
	owners, err := o.arbiter.Owners(ctx)
	cancel()
	if err != nil {
		return err
	}
	p, err := m.plan(owners, kind, from, to, hold)
	if err != nil {
		return err
	}
	checks, err := m.preflight(e, o, from, to)
	if err != nil {
		return err
	}
	ok := printChecks(e, checks)
	fmt.Fprintf(e.out, "plan %s: %s of %d slots from %s to %s in batches of %d; each is held for as long as its move takes, and undoes itself after %v; hash %s\n",
		p.ID, kind, len(p.Slots), from, to, p.Batch, m.Deadline, p.Hash()[:16])
	if !ok {
		return &failure{errors.New("the preflight failed; nothing was moved"), "lockstep region status --context " + m.Context}
	}
	if m.DryRun {
		fmt.Fprintln(e.out, "nothing was written")
		return nil
	}
	c := m.conductor(e, o)
	if err := c.Start(e.ctx, p, time.Now()); err != nil {
		return &failure{err, "lockstep region resume --context " + m.Context + "  # or abort it"}
	}
	return m.drive(e, c, p.ID)
}

func (m *moveFlags) conductor(e *env, o *opened) *conduct.Conductor {
	return &conduct.Conductor{Arbiter: o.arbiter, World: m.asker(e, o), Who: m.who(), Tell: func(format string, args ...any) {
		fmt.Fprintf(e.out, "  "+format+"\n", args...)
	}}
}

// drive works at an operation and reports how it ended.
func (m *moveFlags) drive(e *env, c *conduct.Conductor, id string) error {
	r, err := c.Drive(e.ctx, id)
	if err != nil {
		return &failure{fmt.Errorf("the operation stands still: %w", err), "lockstep region resume --context " + m.Context}
	}
	for i, b := range r.Batches {
		fmt.Fprintf(e.out, "batch %d: %d slots; switched after %d ms, first success after %d ms\n", i+1, len(b.Slots), b.Given-b.Frozen, b.Served-b.Frozen)
	}
	moved := 0
	for _, b := range r.Batches {
		moved += len(b.Slots)
	}
	fmt.Fprintf(e.out, "%s %s: %s, %d slots moved in %d ms\n", r.Plan.Kind, r.Plan.ID, r.Status, moved, max(r.EndedMillis, r.BegunMillis)-r.BegunMillis)
	if r.Status == failover.Aborted {
		return &failure{fmt.Errorf("it was aborted: %s", r.Failure), "lockstep region status --context " + m.Context}
	}
	if r.Status == failover.Paused {
		fmt.Fprintf(e.out, "next: lockstep region resume --context %s\n", m.Context)
	}
	return nil
}

type regionPauseCmd struct{ moveFlags }

// Run pauses.
func (c *regionPauseCmd) Run(e *env) error { return c.set(e, failover.Paused) }

type regionResumeCmd struct{ moveFlags }

// Run resumes.
func (c *regionResumeCmd) Run(e *env) error { return c.set(e, failover.Running) }

type regionAbortCmd struct{ moveFlags }

// Run aborts.
func (c *regionAbortCmd) Run(e *env) error { return c.set(e, failover.Aborting) }

// set changes the status of the operation that is under way, and goes on with it where it can.
func (m *moveFlags) set(e *env, to failover.Status) error {
	o, err := m.open(e.ctx)
	if err != nil {
		return err
	}
	defer o.close()
	c := m.conductor(e, o)
	r, err := c.Load(e.ctx, "")
	if errors.Is(err, conduct.ErrNone) {
		return &failure{errors.New("no operation is under way"), "lockstep region history --context " + m.Context}
	}
	if err != nil {
		return err
	}
	if m.DryRun {
		fmt.Fprintf(e.out, "operation %s is %s and would be %s; nothing was written\n", r.Plan.ID, r.Status, to)
		return nil
	}
	if !r.Status.Ended() && !(r.Status == failover.Aborting && to == failover.Running) {
		if _, err := c.Set(e.ctx, r.Plan.ID, to, m.Why, time.Now()); err != nil && !errors.Is(err, arbiter.ErrChanged) {
			return err
		}
	}
	if to == failover.Paused {
		fmt.Fprintf(e.out, "operation %s stops at its next batch\nnext: lockstep region resume --context %s\n", r.Plan.ID, m.Context)
		return nil
	}
	return m.drive(e, c, r.Plan.ID)
}

type regionVerifyCmd struct {
	contextFile
	Slots int `help:"How many slots of each region are written to." default:"8"`
}

// Run writes to every region and reads what each says of the others.
func (c *regionVerifyCmd) Run(e *env) error {
	o, err := c.open(e.ctx)
	if err != nil {
		return err
	}
	defer o.close()
	views, owners, err := c.look(e, o)
	if err != nil {
		return err
	}
	var checks []check
	a := c.asker(e, o)
	for _, v := range views {
		wrote, failed := 0, error(nil)
		for n, w := range owners {
			if w.Region == v.Region && w.Status == slot.Active && wrote < c.Slots && failed == nil {
				wrote++
				failed = a.Canary(e.ctx, v.Region, n)
			}
		}
		checks = append(checks, check{"writes in " + v.Region, failed == nil, fmt.Sprintf("%d slots (%v)", wrote, failed)})
		if v.Status == nil {
			continue
		}
		for _, or := range v.Status.Origins {
			checks = append(checks, check{fmt.Sprintf("%s hears %s", v.Region, or.Region), or.HeardMillis >= 0 && or.HeardMillis < 10_000 && len(or.Stopped) == 0,
				fmt.Sprintf("%d ms ago, %d events behind, %d chains stopped", or.HeardMillis, or.LagEvents, len(or.Stopped))})
		}
	}
	if !printChecks(e, checks) {
		return &failure{errors.New("something is wrong"), "lockstep region status --context " + c.Context}
	}
	return nil
}

type regionHistoryCmd struct {
	contextFile
	Output string `help:"table or json." enum:"table,json" default:"table" short:"o"`
}

// Run prints the audit.
func (c *regionHistoryCmd) Run(e *env) error {
	o, err := c.open(e.ctx)
	if err != nil {
		return err
	}
	defer o.close()
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
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", en.At, en.Who, en.Act, en.Op, cut(en.Text, 120))
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
