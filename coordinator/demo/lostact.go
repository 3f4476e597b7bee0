package demo

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/region/failover"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// The act of the lost region: what it waits for, and what its accounts may spend meanwhile.
const (
	// unheard is how long a region must be silent before the story calls it lost: the product's own limit for its lag.
	unheard = 3 * time.Second
	// atRiskCap is what an account of the lost region may spend until its return is worked off, in fen.
	atRiskCap = 200_000
	// aloneFor is how long the others go on without it, once its accounts pay again.
	aloneFor = 6 * time.Second
	// failbackBatch moves half of all slots at once: nobody waits longer for two batches than for sixteen.
	failbackBatch = 256
	probeLimit    = time.Second
)

// loss is what was measured while a region was lost.
type loss struct {
	region, heir                    *region
	killed                          time.Time
	detect, decide, switched, first time.Duration
	doubts                          map[string]bool // transactions that were in doubt, by gid
	resolved                        map[string]bool // committed in the lost region alone, and taken over
	slots, back                     int             // taken by force; moved back
	alone                           int64           // payments made without it
}

// loseRegion kills everything of the first region, and has the second take its slots by force.
func (d *demo) loseRegion(ctx context.Context) error {
	if err := d.until(ctx, loseAt); err != nil {
		return err
	}
	from, heir := d.world.regions[0], d.world.regions[1]
	d.loss = &loss{region: from, heir: heir, doubts: map[string]bool{}, resolved: map[string]bool{}}
	if _, err := d.findHomes(ctx); err != nil {
		return err
	}
	pids := from.pids()
	d.loss.killed = time.Now()
	if err := from.kill(); err != nil {
		return err
	}
	d.watch.mark(from.name, "lost", "everything of %s is killed: %s", from.name, pids)
	d.act("everything of %s is killed with SIGKILL: %s; its disks stay, and nobody knows what it decided last", from.name, pids)
	if err := d.detect(ctx); err != nil {
		return err
	}
	if err := d.consider(ctx); err != nil {
		return err
	}
	return d.takeOver(ctx)
}

// pids names a region's processes.
func (r *region) pids() string {
	parts := []string{fmt.Sprintf("coordinator %d", r.coord.pid())}
	for i, p := range r.procs {
		what := "broker"
		if i == len(r.procs)-1 {
			what = "wallets"
		}
		parts = append(parts, fmt.Sprintf("%s %d", what, p.pid()))
	}
	return strings.Join(parts, ", ")
}

// kill ends all of a region's processes at once.
func (r *region) kill() error {
	var g errgroup.Group
	for _, p := range append([]*process{r.coord.process}, r.procs...) {
		g.Go(p.kill)
	}
	return g.Wait()
}

// detect waits until the heir has not heard the lost region for too long.
func (d *demo) detect(ctx context.Context) error {
	l := d.loss
	err := d.poll(ctx, quietLimit, 50*time.Millisecond, func() (bool, error) {
		st, err := regionStatus(ctx, l.heir)
		if err != nil {
			return false, err
		}
		for _, o := range st.Origins {
			if o.Region == l.region.name && o.HeardMillis >= unheard.Milliseconds() {
				return true, nil
			}
		}
		return false, fmt.Errorf("%s does not miss %s", l.heir.name, l.region.name)
	})
	l.detect = time.Since(l.killed)
	if err == nil {
		d.tell("  %s has not heard %s for %v: noticed %d ms after the kill", l.heir.name, l.region.name, unheard, l.detect.Milliseconds())
	}
	return err
}

// failoverArgs are the command's, without consent.
func (d *demo) failoverArgs(more ...string) []string {
	return append([]string{"region", "failover", "--context", d.world.context, "--from", d.loss.region.name, "--to", d.loss.heir.name,
		"--at-risk", "limit", "--cap", strconv.Itoa(atRiskCap), "--fenced-by", "power", "--why", "lockstep demo"}, more...)
}

// consider shows what the operator has to consent to.
func (d *demo) consider(ctx context.Context) error {
	d.tell("  lockstep region failover --from %s --to %s --fenced-by power --at-risk limit --cap %d --dry-run says:", d.loss.region.name, d.loss.heir.name, atRiskCap)
	out, err := d.lockstep(ctx, d.failoverArgs("--dry-run")...)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	d.quote(out, "next:")
	return nil
}

// quote prints what a command printed, but for lines that begin with one of but.
func (d *demo) quote(out string, but ...string) {
	for line := range strings.Lines(out) {
		skip := strings.TrimSpace(line) == ""
		for _, b := range but {
			skip = skip || strings.HasPrefix(line, b)
		}
		if !skip {
			d.tell("  | %.200s", strings.TrimRight(line, "\n"))
		}
	}
}

// takeOver has the slots taken, and times it from the tool's own record and from the first payment that works again.
func (d *demo) takeOver(ctx context.Context) error {
	l := d.loss
	probe := d.probe(ctx)
	defer probe.halt()
	out, err := d.lockstep(ctx, d.failoverArgs("--plan", "any", "--confirm-region", l.region.name)...)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	run, err := d.lastRun(ctx, failover.Forced)
	if err != nil {
		return err
	}
	if len(run.Batches) == 0 {
		return fmt.Errorf("the failover has ended without slots: %+v", run)
	}
	begun := time.UnixMilli(run.BegunMillis)
	l.slots, l.switched = len(run.Batches[0].Slots), time.UnixMilli(run.Batches[0].Given).Sub(begun)
	l.decide = begun.Sub(l.killed) - l.detect
	d.watch.mark(l.heir.name, "failover", "%d slots of %s are taken by force, and given %d ms after the consent", l.slots, l.region.name, l.switched.Milliseconds())
	d.quote(out[strings.LastIndex(out, "batch 1:"):], "next:")
	at, err := probe.wait(ctx)
	if err != nil {
		return err
	}
	l.first = at.Sub(begun)
	d.watch.mark(l.heir.name, "first success", "the first payment from an account of %s works again", l.region.name)
	d.load.leave(l.region.name)
	if _, err := d.findHomes(ctx); err != nil {
		return err
	}
	d.tell("  detect %d ms, decide %d ms, switch %d ms, first success %d ms after the consent: a payment from %s, an account of %s, is made in %s",
		l.detect.Milliseconds(), l.decide.Milliseconds(), l.switched.Milliseconds(), l.first.Milliseconds(), probe.from, l.region.name, l.heir.name)
	return d.goOn(ctx)
}

// goOn pays on without the lost region, and looks at what is in doubt.
func (d *demo) goOn(ctx context.Context) error {
	l := d.loss
	before := d.load.made[l.heir.name].Load()
	for until := time.Now().Add(aloneFor); time.Now().Before(until); {
		if err := d.findDoubts(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
	if l.alone = d.load.made[l.heir.name].Load() - before; l.alone == 0 {
		return fmt.Errorf("%s made no payment while %s was lost", l.heir.name, l.region.name)
	}
	d.tell("  %s made %d payments with the accounts of both; %d transactions of %s are in doubt: lockstep tx list --in-doubt", l.heir.name, l.alone, len(l.doubts), l.region.name)
	return nil
}

// probe is a payment from an account of the lost region, asked of the heir again and again until it is made.
type probe struct {
	from   string
	cancel context.CancelFunc
	wg     sync.WaitGroup
	at     time.Time
	err    error
}

func (d *demo) probe(ctx context.Context) *probe {
	ctx, cancel := context.WithCancel(ctx)
	p := &probe{cancel: cancel}
	t := d.load.across(d.loss.heir, d.loss.region)
	if t == nil {
		p.err = fmt.Errorf("no wallet has its home in %s", d.loss.region.name)
		return p
	}
	p.from = t.from
	p.wg.Go(func() {
		for ctx.Err() == nil {
			p.err = d.load.pay(ctx, d.loss.heir, t, client.Regional, probeLimit)
			switch {
			case p.err == nil && d.load.outcomeOf(t) == paid:
				p.at = time.Now()
				return
			case p.err == nil && d.load.outcomeOf(t) == notPaid: // its time was over before anybody could decide it
				t = d.load.across(d.loss.heir, d.loss.region)
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	return p
}

func (p *probe) halt() { p.cancel(); p.wg.Wait() }

// wait gives when the payment was made.
func (p *probe) wait(ctx context.Context) (time.Time, error) {
	done := make(chan struct{})
	go func() { p.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(quietLimit):
		p.halt()
	case <-ctx.Done():
		p.halt()
	}
	if p.at.IsZero() {
		return p.at, errors.Join(errors.New("no payment from an account of the lost region was made"), p.err)
	}
	return p.at, nil
}

// bringBack starts the lost region from its disks, and waits until its return is worked off.
func (d *demo) bringBack(ctx context.Context) error {
	l := d.loss
	before := time.Now()
	if err := l.region.revive(ctx, d.cfg.Lockstep); err != nil {
		return err
	}
	d.watch.mark(l.region.name, "return", "everything of %s starts again from its disks: %s", l.region.name, l.region.pids())
	d.act("%s returns from its disks (%s), and learns that its slots have another owner", l.region.name, l.region.pids())
	d.load.enter(l.region.name)
	err := d.poll(ctx, quietLimit, 200*time.Millisecond, func() (bool, error) {
		if err := errors.Join(d.findDoubts(ctx), d.adoptLate(ctx)); err != nil {
			return false, err
		}
		return d.worked(ctx)
	})
	if err != nil {
		return fmt.Errorf("the return of %s is not worked off: %w", l.region.name, err)
	}
	open, err := d.inDoubt(ctx)
	if err == nil && len(open) > 0 {
		err = fmt.Errorf("%d transactions are still in doubt after the return of %s, such as %s", len(open), l.region.name, open[0])
	}
	if err != nil {
		return err
	}
	d.watch.mark(l.region.name, "settled", "%d transactions had been in doubt, %d were taken over; nothing is left", len(l.doubts), len(l.resolved))
	d.tell("  worked off %.1f s after it began to start: %d in doubt, all of them settled; %d that it had committed alone, all of them taken over", time.Since(before).Seconds(), len(l.doubts), len(l.resolved))
	return d.failBack(ctx)
}

// revive starts all of a region's processes again.
func (r *region) revive(ctx context.Context, lockstep string) (err error) {
	for i, p := range r.procs {
		if r.procs[i], err = start(p.cmd.Path, p.log, p.cmd.Args[1:]...); err != nil {
			return err
		}
	}
	w := r.procs[len(r.procs)-1]
	if err := w.await(ctx, "the wallets of "+r.name, func() bool { return ok(ctx, r.wallet+"/healthz") }); err != nil {
		return err
	}
	c, err := r.coord.again(ctx, lockstep)
	if err == nil {
		r.coord = c
	}
	return err
}

// adoptLate takes over what the lost region had committed alone, as `lockstep region status` proposes: its clients were told.
func (d *demo) adoptLate(ctx context.Context) error {
	for _, r := range d.world.regions {
		st, err := regionStatus(ctx, r)
		if err != nil {
			return err
		}
		for _, x := range st.Diverged {
			if d.loss.resolved[string(x.Gid)] {
				continue
			}
			out, err := d.lockstep(ctx, "tx", "resolve", string(x.Gid), "--commit", "--reason", "its client was told that it is paid", "--admin-addr", r.addr.Admin)
			if err != nil {
				d.tell("  it is tried again: %v %.100s", err, out)
				continue
			}
			d.loss.resolved[string(x.Gid)] = true
			d.tell("  taken over: lockstep tx resolve %s --commit  # %s", x.Gid, x.Why)
		}
	}
	return nil
}

// worked says whether no slot has a loss any more.
func (d *demo) worked(ctx context.Context) (bool, error) {
	m, err := d.owners(ctx)
	if err != nil {
		return false, err
	}
	left := 0
	for _, o := range m {
		left += btoi(o.Lost != 0)
	}
	if left > 0 {
		return false, fmt.Errorf("%d slots have a loss that is not worked off", left)
	}
	return true, nil
}

// failBack gives the region its slots back.
func (d *demo) failBack(ctx context.Context) error {
	l := d.loss
	if err := d.caughtUp(ctx); err != nil {
		return err
	}
	out, err := d.lockstep(ctx, "region", "failback", "--context", d.world.context, "--from", l.heir.name, "--to", l.region.name, "--batch", strconv.Itoa(failbackBatch),
		"--pause", "100ms", "--max-lag", "60s", "--deadline", "20s", "--why", "lockstep demo")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	d.quote(out, "ok ", "plan ")
	m, err := d.findHomes(ctx)
	if err != nil {
		return err
	}
	for _, o := range m {
		l.back += btoi(o.Region == l.region.name && o.Status == slot.Active)
	}
	if l.back == 0 {
		return fmt.Errorf("%s has none of its slots back", l.region.name)
	}
	d.watch.mark(l.region.name, "failback", "%s has %d slots again", l.region.name, l.back)
	return nil
}
