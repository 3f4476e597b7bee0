package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/status"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/coordinator/store/etcdstore"
	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// What the acts wait for at the most, and parts of the whole duration at which they begin, where those before are done.
const (
	quietLimit = 90 * time.Second

	killAt    = 0.15
	moveAt    = 0.25
	cutAt     = 0.40
	plantAt   = 0.48
	healAt    = 0.60
	loseAt    = 0.70
	loadEnds  = 0.95
	movedMost = 64 // slots

	// globalShare of the payments, of a hundred, are decided at the arbiter.
	globalShare = 10
)

// owners asks the arbiter who owns which slot.
func (d *demo) owners(ctx context.Context) (*slot.Map, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	cli, err := etcdstore.Connect(ctx, etcdstore.Cluster{Endpoints: d.world.arbiter[:arbiterMembers]})
	if err != nil {
		return nil, err
	}
	defer cli.Close()
	return arbiter.New(cli, nil).Owners(ctx)
}

func (d *demo) findHomes(ctx context.Context) (*slot.Map, error) {
	m, err := d.owners(ctx)
	if err == nil {
		d.load.settle(func(n int) string { return m[n].Region })
	}
	return m, err
}

// beginLoad starts to pay in every region.
func (d *demo) beginLoad(ctx context.Context) error {
	if _, err := d.findHomes(ctx); err != nil {
		return err
	}
	d.load.start(ctx, d.world.regions, globalShare)
	d.watch.start(ctx)
	d.act("from now on every region pays between wallets of all regions, at most %d payments/s each; %d in a hundred are decided at the arbiter (durability global)", d.cfg.Rate, globalShare)
	return d.until(ctx, killAt)
}

// moveSlots hands slots over while both regions pay, those of wallets among them.
func (d *demo) moveSlots(ctx context.Context) error {
	if err := d.until(ctx, moveAt); err != nil {
		return err
	}
	// A coordinator that has only just come back has not heard of the others yet, and the preflight would say no.
	if err := d.caughtUp(ctx); err != nil {
		return err
	}
	from, to := d.world.regions[0], d.world.regions[1]
	m, err := d.findHomes(ctx)
	if err != nil {
		return err
	}
	moving := d.load.slotsOf(from.name)
	moving = moving[:len(moving)/2]
	touched := len(moving)
	for n := range m {
		if len(moving) < movedMost && m[n].Region == from.name && !slices.Contains(d.load.slotsOf(from.name), n) {
			moving = append(moving, n)
		}
	}
	var list []string
	for _, n := range moving {
		list = append(list, strconv.Itoa(n))
	}
	before := d.load.made[to.name].Load() + d.load.made[from.name].Load()
	d.act("%d slots go from %s to %s under load, %d of them with wallets: lockstep region handover", len(moving), from.name, to.name, touched)
	d.watch.mark(from.name, "handover", "%d slots leave for %s", len(moving), to.name)
	out, err := d.lockstep(ctx, "region", "handover", "--context", d.world.context, "--from", from.name, "--to", to.name, "--slots", strings.Join(list, ","),
		"--pause", "200ms", "--max-lag", "30s", "--deadline", "20s", "--why", "lockstep demo")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "batch") || strings.HasPrefix(line, "handover") {
			d.tell("  %s", strings.TrimSpace(line))
		}
	}
	d.watch.mark(to.name, "handover", "%d slots have arrived from %s", len(moving), from.name)
	if m, err = d.findHomes(ctx); err != nil {
		return err
	}
	for _, n := range moving {
		if m[n].Region != to.name || m[n].Status != slot.Active {
			return fmt.Errorf("slot %d was handed over and is %s in %s", n, m[n].Status, m[n].Region)
		}
	}
	d.tell("  %d payments were made meanwhile", d.load.made[to.name].Load()+d.load.made[from.name].Load()-before)
	return nil
}

// slotsOf lists the slots of the wallets whose home is in a region.
func (l *load) slotsOf(region string) []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []int
	for _, a := range l.accounts {
		if n := slot.Of(a); l.home[a] == region && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// cutLink cuts what is between the coordinators and brokers of all regions: each goes on with its own slots.
func (d *demo) cutLink(ctx context.Context) error {
	if err := d.until(ctx, cutAt); err != nil {
		return err
	}
	d.apartSince = time.Now().Add(-10 * time.Second) // what is planted is in payments that are young
	d.load.part(ctx)
	if _, err := d.world.chaos.ask(ctx, "cut"); err != nil {
		return err
	}
	d.watch.mark("", "cut", "the link between the regions is cut, both directions")
	d.act("the link between the regions is cut, both directions: replication, gap fill and requests that are handed on; the arbiter stays within reach")
	before := map[string]int64{}
	for _, r := range d.world.regions {
		before[r.name] = d.load.made[r.name].Load()
	}
	if err := d.askAcross(ctx); err != nil {
		return err
	}
	if err := d.until(ctx, plantAt); err != nil {
		return err
	}
	if err := d.plant(ctx); err != nil {
		return err
	}
	if err := d.until(ctx, healAt); err != nil {
		return err
	}
	for _, r := range d.world.regions {
		n := d.load.made[r.name].Load() - before[r.name]
		d.tell("  %s made %d payments on its own", r.name, n)
		if n == 0 {
			return fmt.Errorf("region %s made no payment while the link was cut", r.name)
		}
	}
	return nil
}

// askAcross asks each region for a payment of the next one's, and wants a no that says that it may be asked again.
func (d *demo) askAcross(ctx context.Context) error {
	var g errgroup.Group
	for i, r := range d.world.regions {
		far := d.world.regions[(i+1)%len(d.world.regions)]
		t := d.load.across(r, far)
		if t == nil {
			continue // no wallet has its home there
		}
		g.Go(func() error {
			before := time.Now()
			err := d.load.pay(ctx, r, t, client.Regional, acrossLimit)
			if err == nil {
				return fmt.Errorf("%s made payment %s, whose home %s is behind the cut", r.name, t.gid, far.name)
			}
			if !client.Retryable(err) {
				return fmt.Errorf("a payment of %s's asked of %s during the cut: the client is not told that it may try again: %w", far.name, r.name, err)
			}
			d.tell("  %s is asked for a payment of %s's, and fails after %d ms: %s: %.100s", r.name, far.name, time.Since(before).Milliseconds(), status.Code(err), status.Convert(err).Message())
			return nil
		})
	}
	return g.Wait()
}

// across makes up a payment of another region's.
func (l *load) across(r, far *region) *transferred {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, a := range l.accounts {
		if l.home[a] == far.name {
			t := &transferred{from: a, to: l.accounts[(i+1)%len(l.accounts)], amount: 1, region: r.name, at: time.Now()}
			t.gid = fmt.Sprintf("{%s}%s-%d", a, r.name, len(l.pays))
			l.pays = append(l.pays, t)
			return t
		}
	}
	return nil
}

// heal heals the link and waits until the regions have caught up.
func (d *demo) heal(ctx context.Context) error {
	links, err := d.world.chaos.ask(ctx, "heal")
	if err != nil {
		return err
	}
	var ended, refused, bytes uint64
	for _, k := range links {
		ended, refused, bytes = ended+k.EndedConns, refused+k.RefusedConns, bytes+k.RefusedBytes
	}
	if ended == 0 || bytes == 0 {
		return fmt.Errorf("the cut has not bitten: %d connections ended, %d refused, %d bytes refused", ended, refused, bytes)
	}
	d.watch.mark("", "heal", "the link is healed; it had ended %d connections and refused %d, with %d bytes", ended, refused, bytes)
	d.act("the link is healed; meanwhile it had ended %d connections, refused %d and swallowed %d bytes", ended, refused, bytes)
	before := time.Now()
	if err := d.caughtUp(ctx); err != nil {
		return err
	}
	d.watch.mark("", "caught up", "all regions have what the others decided meanwhile")
	d.tell("  the regions have caught up with each other %.1f s after the healing", time.Since(before).Seconds())
	d.load.apart.Store(false)
	return nil
}

// caughtUp waits until no region is more than a moment behind another.
func (d *demo) caughtUp(ctx context.Context) error {
	const moment = 2000 // ms
	deadline := time.Now().Add(quietLimit)
	for {
		behind := ""
		for _, r := range d.world.regions {
			st, err := regionStatus(ctx, r)
			switch {
			case err != nil:
				behind = err.Error()
			case worst(st) > moment:
				behind = fmt.Sprintf("%s is %d ms behind", r.name, worst(st))
			}
			if err != nil {
				continue
			}
			for _, o := range st.Origins {
				if o.HeardMillis < 0 || o.HeardMillis > 5*moment {
					behind = fmt.Sprintf("%s has not heard %s for %d ms", r.name, o.Region, o.HeardMillis)
				}
				for _, s := range o.Stopped {
					if !s.Missing {
						return fmt.Errorf("in %s slot %d of %s stands still: %s", r.name, s.Slot, o.Region, s.Reason)
					}
				}
			}
		}
		if behind == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %v %s", quietLimit, behind)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

var errNoVictim = errors.New("no payment was found that drift could be planted in")
