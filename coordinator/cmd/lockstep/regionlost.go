package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/failover"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// regionFailoverCmd takes the slots of a region that is lost. It asks the arbiter and the regions that are left, and nobody else.
type regionFailoverCmd struct {
	contextFile
	From          string        `help:"Region that is lost." required:"" placeholder:"NAME"`
	To            string        `help:"Region that takes its slots." required:"" placeholder:"NAME"`
	FencedBy      string        `help:"How it is known that the lost region spends no more: power, network or quota." placeholder:"HOW"`
	MaySpend      bool          `help:"In place of --fenced-by: accept that the lost region may still spend."`
	ConfirmRegion string        `help:"The lost region's name once more: the consent to what is shown." placeholder:"NAME"`
	Plan          string        `help:"Hash of the plan that the consent is to, as --dry-run prints it. Where it is another one by now, nothing is done. any: whatever the plan is, for scripts." placeholder:"HASH"`
	AtRisk        string        `help:"What accounts of the lost region may spend until its return is worked off: block, limit or allow." enum:"block,limit,allow" default:"limit"`
	Cap           int64         `help:"With limit: how much each such account may spend, in minor units." placeholder:"AMOUNT"`
	Slots         string        `help:"Slots to take: 0-31,40. Defaults to all that the lost region owns." placeholder:"LIST"`
	OnSwitch      string        `help:"Command that moves outside traffic, run by sh once the slots are served, with LOCKSTEP_FROM and LOCKSTEP_TO; it is timed. Where it fails, or the tool is killed before it, region resume runs it again." placeholder:"CMD"`
	Answers       bool          `help:"Go on although a coordinator of the lost region answers." name:"although-it-answers"`
	Unsettled     bool          `help:"Go on although slots of --from were taken from another lost region, and that loss is not worked off." name:"although-unsettled"`
	Why           string        `help:"Reason, for the audit: a ticket, a name." default:"not given"`
	Who           string        `help:"Who does it, for the audit. Defaults to the user."`
	DryRun        bool          `help:"Show the exposure and the plan, and write nothing."`
	Scan          time.Duration `help:"How long surviving participants may take to say what stands there." default:"10s"`
}

// Run takes the slots.
func (c *regionFailoverCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *regionFailoverCmd) run(e *env, o *opened) error {
	if err := c.check(); err != nil {
		return err
	}
	sc := c.scene(e, o)
	if err := c.mayGo(o, sc); err != nil {
		return err
	}
	if n := unsettledOf(sc.owners, c.From); n > 0 && !c.Unsettled {
		return &failure{fmt.Errorf("%d slots of %s were taken by force from another region, and that loss is not worked off: a second one is told apart from the first by nobody but you", n, c.From), c.again("--although-unsettled --dry-run")}
	}
	x, err := c.expose(e, o, sc.owners, sc.views)
	if err != nil {
		return err
	}
	stranded, err := c.stranded(sc)
	if err != nil {
		return err
	}
	left, err := c.left(sc)
	if err != nil {
		return err
	}
	p, err := c.plan(sc.owners, x, append(left, stranded...))
	if err != nil {
		return err
	}
	x.print(e.out, c.From, c.To)
	if len(left) > 0 {
		fmt.Fprintf(e.out, "slots %s were taken for %s by an operation that has ended before they were served: this one goes on with them\n", slotList(left), c.To)
	}
	if len(stranded) > 0 {
		fmt.Fprintf(e.out, "slots %s came to %s by plan and their accounts did not: %s's copies of them become homes too, and what was held of them is held again as far as it is known\n",
			slotList(stranded), c.To, c.To)
	}
	evidence := string(c.evidence())
	if evidence == "" {
		evidence = "not said yet"
	}
	fmt.Fprintf(e.out, "plan %s: %d slots from %s to %s, accounts at risk: %s, fenced by: %s\n", p.Hash()[:16], len(p.Slots), c.From, c.To, riskText(p.Loss.Risk), evidence)
	m := c.moves()
	con := m.conductor(e, o)
	ctx, cancel := c.within(e.ctx)
	defer cancel()
	if err := con.Prepare(ctx, sc.owners); err != nil {
		return &failure{err, "lockstep arbiter --help  # a majority of its members must run"}
	}
	if err := c.consent(e, p); err != nil || c.DryRun {
		return err
	}
	if err := m.start(e.ctx, con, *p); err != nil {
		return err
	}
	return m.finish(e, o, con, p.ID)
}

// scene is what the arbiter and the regions say, before anything is refused or shown.
type scene struct {
	dep      arbiter.Deployment
	owners   *slot.Map
	under    string // the operation under way; "" for none
	voters   int    // members of the arbiter that vote
	from, to regionView
	views    map[string]regionExposure // what the regions that are left know of the lost one
	err      error                     // of the arbiter
}

// scene asks everybody side by side, each question with a limit of its own: a region whose packets are dropped takes nothing of the
// arbiter's time, nor of the target's.
func (c *regionFailoverCmd) scene(e *env, o *opened) *scene {
	sc, a := &scene{}, c.asker(e, o)
	var all sync.WaitGroup
	all.Go(func() {
		ctx, cancel := context.WithTimeout(e.ctx, silence)
		defer cancel()
		sc.from = a.view(ctx, c.From, &slot.Map{})
	})
	all.Go(func() { sc.to = a.view(e.ctx, c.To, &slot.Map{}) })
	all.Go(func() { sc.views = c.viewsOf(e.ctx, a) })
	all.Go(func() { sc.err = c.ofArbiter(e, o, sc) })
	all.Wait()
	return sc
}

func (c *regionFailoverCmd) ofArbiter(e *env, o *opened, sc *scene) error {
	ctx, cancel := c.within(e.ctx)
	defer cancel()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { sc.dep, err = o.arbiter.Deployment(gctx); return err })
	g.Go(func() (err error) { sc.owners, err = o.arbiter.Owners(gctx); return err })
	g.Go(func() error {
		names, err := o.arbiter.Voters(gctx)
		sc.voters = len(names)
		return err
	})
	g.Go(func() (err error) { sc.under, err = c.underWay(e, o, &slot.Map{}); return err })
	err := g.Wait()
	if err != nil && !errors.Is(err, arbiter.ErrNoDeployment) {
		return &failure{err, "lockstep arbiter --help  # a majority of its members must run"}
	}
	return err
}

// stranded gives the slots that the target has by plan from the lost region, and whose accounts were released there and not adopted.
func (c *regionFailoverCmd) stranded(sc *scene) (out []int, err error) {
	want, err := parseSlots(c.Slots)
	if err != nil {
		return nil, usageError{err}
	}
	for _, n := range sc.to.Status.Unadopted {
		w := sc.owners[n]
		if w.Region == c.To && w.Status == slot.Active && w.Lost == 0 && w.Seal != nil && !w.Seal.Forced && sc.dep.Name(w.Seal.Epoch.Region()) == c.From && (want == nil || want[n]) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// left gives the slots that an operation which has ended took from the lost region for the target, and that nobody serves: it was aborted
// with --leave. No operation is under way when it is called.
func (c *regionFailoverCmd) left(sc *scene) (out []int, err error) {
	want, err := parseSlots(c.Slots)
	if err != nil {
		return nil, usageError{err}
	}
	for n, w := range sc.owners {
		if w.Region == c.To && w.Status == slot.Taken && sc.dep.Name(w.Lost.Region()) == c.From && (want == nil || want[n]) {
			out = append(out, n)
		}
	}
	return out, nil
}

// unsettledOf counts a region's slots that it serves after taking them by force, and whose loss is not worked off.
func unsettledOf(owners *slot.Map, region string) (n int) {
	for _, o := range owners {
		if o.Region == region && o.Lost != 0 && o.Status != slot.Taken {
			n++
		}
	}
	return n
}

func (c *regionFailoverCmd) moves() *moveFlags {
	return &moveFlags{contextFile: c.contextFile, Why: c.Why, Who: c.Who}
}

func (c *regionFailoverCmd) check() error {
	switch {
	case c.From == c.To:
		return usageError{fmt.Errorf("--to: it is the lost region itself")}
	case c.FencedBy != "" && c.MaySpend:
		return usageError{errors.New("--may-spend: it goes without --fenced-by")}
	case c.FencedBy != "" && !slices.Contains([]failover.Evidence{failover.Power, failover.Network, failover.Quota}, failover.Evidence(c.FencedBy)):
		return usageError{fmt.Errorf("--fenced-by: %q is none of power, network, quota", c.FencedBy)}
	case slot.Policy(c.AtRisk) == slot.Limit && c.Cap <= 0:
		return usageError{errors.New("--cap: --at-risk=limit wants the amount that an account may spend, in minor units; or say --at-risk=block")}
	case slot.Policy(c.AtRisk) != slot.Limit && c.Cap != 0:
		return usageError{fmt.Errorf("--cap: it goes with --at-risk=limit, not with %s", c.AtRisk)}
	}
	return nil
}

// evidence is what the flags say; "" where nothing was said.
func (c *regionFailoverCmd) evidence() failover.Evidence {
	if c.MaySpend {
		return failover.MaySpend
	}
	return failover.Evidence(c.FencedBy)
}

// mayGo refuses what the guards refuse whatever the consent says.
func (c *regionFailoverCmd) mayGo(o *opened, sc *scene) error {
	if sc.err != nil {
		return sc.err
	}
	for _, name := range []string{c.From, c.To} {
		if sc.dep.Index(name) == 0 {
			return usageError{fmt.Errorf("region %q is not one of %s", name, strings.Join(sc.dep.Regions, ", "))}
		}
	}
	if len(sc.dep.Regions) == 2 && sc.voters < 3 && c.MaySpend {
		return &failure{errors.New("--may-spend: two regions without a third failure domain (the arbiter has fewer than three members that vote): nobody but you can know that the other one is down"),
			c.again("--fenced-by power")}
	}
	if sc.from.Status != nil && !c.Answers {
		return &failure{fmt.Errorf("region %s answers (%s): it is not lost, and may still decide", c.From, sc.from.State), fmt.Sprintf("lockstep region handover --from %s --to %s %s", c.From, c.To, c.here())}
	}
	if sc.to.Status == nil {
		return &failure{fmt.Errorf("region %s does not answer: %s", c.To, cut(sc.to.Error, 200)), "curl " + firstAdmin(o, c.To) + "/readyz"}
	}
	if sc.under != "" {
		return &failure{errors.New(sc.under), "lockstep region resume " + c.here() + "  # or abort it"}
	}
	return nil
}

// plan makes the plan; the same slots and the same exposure make the same hash.
func (c *regionFailoverCmd) plan(owners *slot.Map, x *exposure, stranded []int) (*failover.Plan, error) {
	evidence := c.evidence()
	if evidence == "" && c.DryRun {
		evidence = failover.MaySpend
	}
	if evidence == "" {
		return nil, &failure{fmt.Errorf("--fenced-by: say how it is known that %s spends no more (power, network, quota), or accept with --may-spend that it may", c.From), c.again("--fenced-by power")}
	}
	return c.planOf(owners, x, evidence, stranded)
}

func (c *regionFailoverCmd) planOf(owners *slot.Map, x *exposure, evidence failover.Evidence, stranded []int) (*failover.Plan, error) {
	p := &failover.Plan{
		ID: uuid.NewString()[:13], Kind: failover.Forced, From: c.From, To: c.To, Batch: slot.Count, DeadlineMillis: 10_000, Who: whoOr(c.Who), Why: c.Why,
		Loss: &failover.Loss{Evidence: evidence, Risk: slot.Risk{Policy: slot.Policy(c.AtRisk), Cap: c.Cap}, Exposure: x.digest(), OnSwitch: c.OnSwitch},
	}
	want, err := parseSlots(c.Slots)
	if err != nil {
		return nil, usageError{err}
	}
	for n, w := range owners {
		if w.Region == c.From && (want == nil || want[n]) || slices.Contains(stranded, n) {
			p.Slots, p.Loss.Epochs = append(p.Slots, n), append(p.Loss.Epochs, w.Epoch)
		}
	}
	if err := p.Check(); err != nil {
		return nil, usageError{err}
	}
	return p, nil
}

// consent asks for what only the operator can say.
func (c *regionFailoverCmd) consent(e *env, p *failover.Plan) error {
	hash := p.Hash()[:16]
	consented := "--" + evidenceFlag(p.Loss.Evidence) + " --plan " + hash + " --confirm-region " + c.From
	switch {
	case c.DryRun:
		fmt.Fprintln(e.out, "nothing was written")
		next(e.out, c.again("--fenced-by power --plan "+hash+" --confirm-region "+c.From)+"  # or --may-spend in place of --fenced-by")
		return nil
	case c.Plan != "" && c.Plan != anyPlan && c.Plan != hash:
		return &failure{fmt.Errorf("--plan: it is %s by now, not %s: what is exposed has changed, and the consent is void; nothing was written", hash, c.Plan), c.again("--dry-run")}
	case c.ConfirmRegion != c.From:
		return &failure{fmt.Errorf("--confirm-region: %q; type the lost region's name to consent to what is shown; nothing was written", c.ConfirmRegion),
			c.again(consented)}
	case c.Plan == "":
		return &failure{fmt.Errorf("--plan: say which plan you consent to: this one is %s; nothing was written", hash), c.again(consented)}
	}
	return nil
}

// Defaults of flags, as their tags have them.
const (
	whyNot    = "not given"
	scanLimit = 10 * time.Second
)

// anyPlan consents to whatever the plan is.
const anyPlan = "any"

func evidenceFlag(ev failover.Evidence) string {
	if ev == failover.MaySpend {
		return "may-spend"
	}
	return "fenced-by " + string(ev)
}

// again is the command with other flags for the consent.
func (c *regionFailoverCmd) again(flags string) string {
	out := fmt.Sprintf("lockstep region failover --from %s --to %s --at-risk %s", c.From, c.To, c.AtRisk)
	if c.Cap != 0 {
		out += fmt.Sprintf(" --cap %d", c.Cap)
	}
	for _, f := range []struct{ name, value string }{{"slots", c.Slots}, {"on-switch", c.OnSwitch}, {"who", c.Who}} {
		if f.value != "" {
			out += " " + flagOf(f.name, f.value)
		}
	}
	if c.Why != whyNot {
		out += " " + flagOf("why", c.Why)
	}
	if c.Answers {
		out += " --although-it-answers"
	}
	if c.Unsettled && !strings.Contains(flags, "--although-unsettled") {
		out += " --although-unsettled"
	}
	if c.Scan != scanLimit {
		out += " --scan " + c.Scan.String()
	}
	return out + " " + c.here() + " " + flags
}

func riskText(r slot.Risk) string {
	if r.Policy == slot.Limit {
		return fmt.Sprintf("limit, %d per account", r.Cap)
	}
	return string(r.Policy)
}
