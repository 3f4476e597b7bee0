package fault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/netproxy"
	"github.com/lockstep-tx/lockstep/chaos/seed"
	"github.com/lockstep-tx/lockstep/chaos/tap"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// eventPhases are the points on the way of a decision's event from the first region to the other. Each kills once and
// says whether it caught an event there.
var eventPhases = []struct {
	name string
	kill func(a *swept, ctx context.Context, name string, limit time.Duration) (bool, error)
}{
	{"outbox-written", (*swept).outboxWritten},
	{"event-published", (*swept).eventPublished},
	{"event-received", (*swept).eventReceived},
	{"event-applied", (*swept).eventApplied},
}

const eventStep = 3 * time.Second // an event is expected to come one step further in this time

// links are those that events take.
func (a *swept) links() (out []*netproxy.Link) {
	if k := a.e.Deployment.Regions[0].BrokerLink; k != nil {
		out = append(out, k)
	}
	return append(out, a.fetch()...)
}

// fetch are the links by which the other region reads the first one's broker.
func (a *swept) fetch() (out []*netproxy.Link) {
	for _, k := range a.e.Deployment.Links {
		if k.Counters().Route == a.e.Deployment.Regions[1].Name+"-"+a.e.Deployment.Regions[0].Name+"/kafka" {
			out = append(out, k)
		}
	}
	return out
}

// decided waits for a transaction of the first region that is begun from now on and whose client is told that it is committed;
// "": there was none, and it is to be tried again.
func (a *swept) decided(ctx context.Context, limit time.Duration) (gid string, err error) {
	since := a.e.Log.Now()
	_, err = until(ctx, min(limit, a.e.wait(eventStep)), func() (Evidence, bool, error) {
		for _, op := range a.e.Log.Ops() {
			if op.Start > since && op.Outcome == history.OK && op.Value == history.Committed && op.Kind != history.Read && slot.Of(op.Gid)%2 == 0 {
				gid = op.Gid
				return Evidence{}, true, nil
			}
		}
		return Evidence{What: "nobody was told of a commit"}, false, nil
	})
	if errors.Is(err, ErrNoEffect) {
		return "", ctx.Err()
	}
	return gid, err
}

// has says whether a region's journal has a transaction.
func (a *swept) has(ctx context.Context, region int, gid string) (bool, error) {
	r := a.e.Deployment.Regions[region]
	all, _, err := check.ReadJournal(ctx, r.Name, r.Journal)
	return slices.ContainsFunc(all, func(d check.Decided) bool { return d.Gid == gid }), err
}

// comes waits until a region's journal has a transaction.
func (a *swept) comes(ctx context.Context, region int, gid string, limit time.Duration) (bool, error) {
	var unread error
	_, err := until(ctx, limit, func() (ev Evidence, ok bool, err error) {
		ok, err = a.has(ctx, region, gid)
		unread = err
		return ev, ok, err
	})
	if errors.Is(err, ErrNoEffect) {
		return false, errors.Join(unread, ctx.Err())
	}
	return err == nil, err
}

// cutting cuts links while f runs.
func cutting(links []*netproxy.Link, f func() error) error {
	for _, k := range links {
		if err := k.Cut(netproxy.Drop); err != nil {
			return err
		}
	}
	err := f()
	for _, k := range links {
		k.Heal()
	}
	return err
}

// outboxWritten: the decision and its event are in the region's journal, and its broker cannot be reached.
func (a *swept) outboxWritten(ctx context.Context, name string, limit time.Duration) (hit bool, err error) {
	err = cutting([]*netproxy.Link{a.e.Deployment.Regions[0].BrokerLink}, func() error {
		gid, err := a.decided(ctx, limit)
		if gid == "" {
			return err
		}
		own, err := a.comes(ctx, 0, gid, a.e.wait(eventStep))
		if err != nil || !own {
			return err
		}
		dead, err := a.kill(ctx, a.n, name)
		far, ferr := a.has(ctx, 1, gid)
		if !far {
			a.behind++
		}
		hit = dead && !far
		return errors.Join(err, ferr)
	})
	return hit, err
}

// eventPublished: the event is in the broker, and the other region cannot read it. That it was there shows when the region
// that had published it is dead, and the other gets it nevertheless.
func (a *swept) eventPublished(ctx context.Context, name string, limit time.Duration) (bool, error) {
	var gid string
	var dead, far bool
	var c Crash
	err := cutting(a.fetch(), func() (err error) {
		if gid, err = a.decided(ctx, limit); gid == "" {
			return err
		}
		time.Sleep(a.e.wait(300 * time.Millisecond)) // for the publisher
		if far, err = a.has(ctx, 1, gid); err != nil {
			return err
		}
		dead, c = a.end(a.n, name)
		return nil
	})
	if err != nil || c.Name == "" {
		return false, err
	}
	there, err := a.comes(ctx, 1, gid, a.e.wait(eventStep))
	return dead && !far && there, errors.Join(err, a.again(ctx, a.n, c))
}

// eventReceived: the other region has read the event, and its journal cannot be written: somebody else has its lock.
func (a *swept) eventReceived(ctx context.Context, name string, limit time.Duration) (hit bool, err error) {
	west := a.e.Deployment.Regions[1]
	db, _, err := seed.Open(ctx, west.Journal)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	tx, err := db.BeginTx(ctx, nil) // immediate: it takes the lock
	if err != nil {
		return false, fmt.Errorf("the lock of %s's journal: %w", west.Name, err)
	}
	locked := true
	unlock := func() error { locked = false; return tx.Rollback() }
	defer func() {
		if locked {
			err = errors.Join(err, unlock())
		}
	}()
	link := a.fetch()[0]
	before := link.Counters().Bytes
	gid, err := a.decided(ctx, limit)
	if gid == "" {
		return false, err
	}
	time.Sleep(a.e.wait(300 * time.Millisecond)) // for the way there
	read := link.Counters().Bytes - before
	dead, c := a.end(west.Coordinators[0], name)
	if err := unlock(); err != nil {
		return false, err
	}
	there, err := a.has(ctx, 1, gid)
	return dead && read > 0 && !there, errors.Join(err, a.again(ctx, west.Coordinators[0], c))
}

// eventApplied: the other region's journal has the event, its copy of the account has the effect, and the answer is lost.
func (a *swept) eventApplied(ctx context.Context, name string, limit time.Duration) (bool, error) {
	west := a.e.Deployment.Regions[1]
	trap := tap.NewTrap(true, func(c *tap.Call) bool { return c.Op == "apply" && c.Status == http.StatusOK })
	west.Tap.Arm(trap)
	defer west.Tap.Arm(nil)
	select {
	case c := <-trap.Caught():
		there, err := a.has(ctx, 1, c.Gid)
		if err != nil {
			trap.Let(true)
			return false, err
		}
		dead, err := a.kill(ctx, west.Coordinators[0], name)
		trap.Let(false)
		return dead && there, err
	case <-time.After(limit):
	case <-ctx.Done():
	}
	return false, ctx.Err()
}
