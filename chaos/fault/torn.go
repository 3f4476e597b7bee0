package fault

import (
	"context"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/netproxy"
	"github.com/lockstep-tx/lockstep/chaos/seed"
)

const (
	tearAfter = 16 << 10 // bytes of a connection, at most
	halfOf    = 3        // each third connection is half open
)

// Torn resets connections between the regions in the middle of what is being sent, again and again, and leaves each third new one
// half open: accepted, with nobody at its other end (N15).
type Torn struct{ off bool }

// Name is the fault's.
func (Torn) Name() string { return "torn-and-half-open" }

// Available is always.
func (Torn) Available(Env) error { return nil }

func (t Torn) disabled() Fault { t.off = true; return t }

// Inject begins to tear.
func (t Torn) Inject(_ context.Context, e Env) (Active, error) {
	a := &tearing{severed: severed{what: "between the regions", e: e, links: e.Deployment.Links}}
	if !t.off {
		for _, k := range a.links {
			k.HalfOpen(halfOf)
			k.Tear(tearAfter)
		}
	}
	return a, nil
}

type tearing struct{ severed }

// Effective wants connections torn, and half-open ones that were given up: somebody's deadline has run out.
func (a *tearing) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(30*time.Second), func() (Evidence, bool, error) {
		var torn, half, left uint64
		for _, k := range a.links {
			c := k.Counters()
			torn, half, left = torn+c.Torn, half+c.HalfOpened, left+c.HalfLeft
		}
		return Evidence{fmt.Sprintf("%s: %d connections were reset in the middle of what was being sent; of %d that were half open %d were given up", a.what, torn, half, left),
			map[string]int64{"torn": int64(torn), "half_open": int64(half), "given_up": int64(left)}}, torn >= 20 && left >= 3, nil
	})
}

func (a *tearing) whole() {
	for _, k := range a.links {
		k.Tear(0)
		k.HalfOpen(0)
	}
}

// Recover ends it.
func (a *tearing) Recover(context.Context) error {
	a.carried = a.sum()
	a.whole()
	return nil
}

func (a *tearing) Cleanup() error { a.whole(); return nil }

// Unacknowledged has the first region's broker write what its coordinators publish, and loses every answer on its way back (N17): the
// publisher sends the same again, and must not give it other numbers.
type Unacknowledged struct{ off bool }

// Name is the fault's.
func (Unacknowledged) Name() string { return "produce-unacknowledged" }

// Available wants a link before the broker.
func (Unacknowledged) Available(e Env) error {
	if e.Deployment.Regions[0].BrokerLink == nil {
		return fmt.Errorf("there is no link before the broker of %s", e.Deployment.Regions[0].Name)
	}
	return nil
}

func (u Unacknowledged) disabled() Fault { u.off = true; return u }

// Inject begins to lose answers.
func (u Unacknowledged) Inject(_ context.Context, e Env) (Active, error) {
	a := &unheard{e: e, link: e.Deployment.Regions[0].BrokerLink}
	if !u.off {
		a.link.LoseProduced(1 << 20)
	}
	return a, nil
}

type unheard struct {
	e     Env
	link  *netproxy.Link
	twice int // events that stand in the topic more than once
	lost  uint64
}

// Effective wants answers lost, and events that the topic has twice since: they were written, and published again.
func (a *unheard) Effective(ctx context.Context) (Evidence, error) {
	r := a.e.Deployment.Regions[0]
	return until(ctx, a.e.wait(40*time.Second), func() (Evidence, bool, error) {
		a.lost, a.twice = a.link.Counters().Unproduced, 0
		ev := Evidence{What: "no answer was lost"}
		if a.lost == 0 {
			return ev, false, nil
		}
		for part := range seed.Partitions {
			all, err := seed.Topic(ctx, r.BrokerAddr, r.Name, part)
			if err != nil {
				return ev, false, err
			}
			seen := map[string]bool{}
			for _, m := range all {
				if seen[m.Key] {
					a.twice++
				}
				seen[m.Key] = true
			}
		}
		time.Sleep(200 * time.Millisecond) // reading all of it again and again would be a load of its own
		return Evidence{fmt.Sprintf("%d answers of %s's broker were lost; the topic has %d events more than once", a.lost, r.Name, a.twice),
			map[string]int64{"lost": int64(a.lost), "twice": int64(a.twice)}}, a.twice > 0, nil
	})
}

// Recover lets answers pass.
func (a *unheard) Recover(context.Context) error { a.link.LoseProduced(0); return nil }

// Recovered wants no more to be lost, and the broker to be heard.
func (a *unheard) Recovered(ctx context.Context) (Evidence, error) {
	before := a.link.Counters()
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		now := a.link.Counters()
		return Evidence{What: fmt.Sprintf("%d answers were lost in all, and %d bytes were carried since", now.Unproduced, now.Bytes-before.Bytes)}, now.Bytes > before.Bytes && now.Unproduced == before.Unproduced, nil
	})
}

func (a *unheard) Cleanup() error { return a.Recover(context.Background()) }
