package fault

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockstep-tx/lockstep/chaos/netproxy"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Compacted cuts the first of a region's two coordinators off from its etcd until the other has taken its slots; kills the
// other and starts it again, so that it takes its own slots anew; and has etcd drop all history up to then: the watch that the first
// goes on with asks for changes that are gone, and that nobody makes again (S3).
type Compacted struct{ off bool }

// Name is the fault's.
func (Compacted) Name() string { return "compaction-under-a-watcher" }

// Available wants a region with two coordinators.
func (Compacted) Available(e Env) error { return paired(e, 0) }

func (c Compacted) disabled() Fault { c.off = true; return c }

// Inject cuts.
func (c Compacted) Inject(_ context.Context, e Env) (Active, error) {
	r := e.Deployment.Regions[0]
	a := &forgotten{e: e, n: r.Coordinators[0], etcd: r.Etcd[0].Addr, heir: r.Admin[1], before: held(r.Admin[1]), links: r.EtcdLinks[0], off: c.off}
	for _, k := range a.links {
		if c.off {
			break
		}
		if err := k.Cut(netproxy.Drop); err != nil {
			return a, err
		}
	}
	return a, nil
}

type forgotten struct {
	e         Env
	n         *proc.Node
	etcd      string
	heir      string
	before    float64
	links     []*netproxy.Link
	off       bool
	compacted int64
	told      int
}

// Effective wants the slots taken over, and then the history gone.
func (a *forgotten) Effective(ctx context.Context) (Evidence, error) {
	// A region owns half of all slots first.
	ev, err := until(ctx, a.e.wait(15*time.Second), func() (Evidence, bool, error) {
		now := held(a.heir)
		return Evidence{What: fmt.Sprintf("the other coordinator holds %v slots, %v before", now, a.before), Counts: map[string]int64{"taken": int64(now)}}, now > a.before && now == slot.Count/2, nil
	})
	if err != nil {
		return ev, err
	}
	other := a.e.Deployment.Regions[0].Coordinators[1]
	other.Kill()
	if err := other.Start(ctx); err != nil {
		return ev, err
	}
	taken := ev.Counts["taken"]
	if ev, err = until(ctx, a.e.wait(15*time.Second), func() (Evidence, bool, error) {
		now := held(a.heir)
		return Evidence{What: fmt.Sprintf("the other coordinator took %v slots, was killed, and holds %v since it was started again", taken, now)}, now >= float64(taken), nil
	}); err != nil {
		return ev, err
	}
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{a.etcd}, DialTimeout: 5 * time.Second})
	if err != nil {
		return ev, err
	}
	defer cli.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	got, err := cli.Get(ctx, "x")
	if err != nil {
		return ev, err
	}
	if _, err := cli.Compact(ctx, got.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		return ev, fmt.Errorf("compact at %d: %w", got.Header.Revision, err)
	}
	// Another connection is told that the past is gone.
	if _, err := cli.Get(ctx, "x", clientv3.WithRev(got.Header.Revision-1)); err == nil {
		return ev, fmt.Errorf("%w: revision %d can still be read", ErrNoEffect, got.Header.Revision-1)
	}
	a.compacted = got.Header.Revision
	ev.What += fmt.Sprintf(", and etcd has no history before revision %d", a.compacted)
	return ev, nil
}

func (a *forgotten) heal() {
	for _, k := range a.links {
		k.Heal()
	}
}

// Recover heals.
func (a *forgotten) Recover(context.Context) error { a.heal(); return nil }

// Recovered wants the coordinator to have been told that its watch's past is gone.
func (a *forgotten) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		log, err := os.ReadFile(a.n.Log())
		a.told = bytes.Count(log, []byte("required revision has been compacted"))
		return Evidence{What: fmt.Sprintf("%s was told %d times that its watch's past is gone", a.n.Name, a.told), Counts: map[string]int64{"told": int64(a.told)}}, a.told > 0, err
	})
}

// Relisted is how many watches lost their past.
func (a *forgotten) Relisted() int { return a.told }

// Cleanup heals.
func (a *forgotten) Cleanup() error { a.heal(); return nil }
