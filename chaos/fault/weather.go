package fault

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/netdrop"
	"github.com/lockstep-tx/lockstep/chaos/netproxy"
)

// Weather is what long lines do between the regions.
type Weather struct {
	Title string
	// OneWay swallows what the second region would hear from the first (N9).
	OneWay bool
	// Flap cuts and heals again and again, 0.5 to 3 s each, as the seed says (N10); with Refuse the connections are reset instead of
	// starved, ten times a second (N13).
	Flap, Refuse bool
	// Loss is the share of packets, in percent, that the kernel drops (N20).
	Loss uint32
	off  bool
}

// Name is the fault's.
func (w Weather) Name() string { return w.Title }

// Needs is why it cannot be had on this machine.
func (w Weather) Needs() error {
	if w.Loss == 0 {
		return nil
	}
	if err := netdrop.ProbeLoss(); err != nil {
		return fmt.Errorf("CAP_NET_ADMIN and numgen of nf_tables are needed: %w", err)
	}
	return nil
}

// Available is always.
func (Weather) Available(Env) error { return nil }

func (w Weather) disabled() Fault { w.off = true; return w }

// Inject begins.
func (w Weather) Inject(ctx context.Context, e Env) (Active, error) {
	a := &stormy{w: w, severed: severed{what: "between the regions", e: e, links: e.Deployment.Links}}
	a.bytes, a.conns = a.refused()
	a.ended = a.torn()
	switch {
	case w.off:
	case w.Loss > 0:
		return a, a.lose()
	case w.OneWay:
		east, west := e.Deployment.Regions[0].Name, e.Deployment.Regions[1].Name
		for _, k := range a.links {
			switch route := k.Counters().Route; {
			case strings.HasPrefix(route, east+"-"):
				k.CutOneWay(netproxy.Forth)
			case strings.HasPrefix(route, west+"-"):
				k.CutOneWay(netproxy.Back)
			}
		}
	default:
		fctx, stop := context.WithCancel(ctx)
		a.stop = stop
		a.done.Go(func() { a.flap(fctx) })
	}
	return a, nil
}

type stormy struct {
	severed
	w     Weather
	table *netdrop.Table
	stop  context.CancelFunc
	done  sync.WaitGroup
	ended uint64

	mu    sync.Mutex
	flaps int
}

func (a *stormy) torn() (n uint64) {
	for _, k := range a.links {
		c := k.Counters()
		n += c.EndedConns + c.RefusedConns
	}
	return n
}

func (a *stormy) lose() (err error) {
	if a.table, err = netdrop.Open(); err != nil {
		return err
	}
	for _, k := range a.links {
		if err := a.table.Lose(k.Port(), a.w.Loss); err != nil {
			return err
		}
	}
	return nil
}

// flap cuts and heals until it is stopped; the draws are the seed's.
func (a *stormy) flap(ctx context.Context) {
	rnd := a.e.rand(10)
	wait := func() bool {
		d := 500*time.Millisecond + time.Duration(rnd.Int64N(int64(2500*time.Millisecond)))
		if a.w.Refuse {
			d = 50 * time.Millisecond
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(d):
			return true
		}
	}
	way := netproxy.Drop
	if a.w.Refuse {
		way = netproxy.Refuse
	}
	for ctx.Err() == nil {
		for _, k := range a.links {
			if err := k.Cut(way); err != nil {
				return // it names no way: Effective sees no flap
			}
		}
		wait()
		a.severed.heal()
		a.mu.Lock()
		a.flaps++
		a.mu.Unlock()
		wait()
	}
}

// Effective wants what the weather did to bytes, connections or packets.
func (a *stormy) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		if a.w.Loss > 0 {
			var n uint64
			var err error
			if a.table != nil {
				n, err = a.table.Dropped()
			}
			return Evidence{fmt.Sprintf("the kernel lost %d packets between the regions", n), map[string]int64{"packets": int64(n)}}, n >= 20, err
		}
		b, _ := a.refused()
		torn := a.torn() - a.ended
		a.mu.Lock()
		flaps := a.flaps
		a.mu.Unlock()
		ev := Evidence{fmt.Sprintf("between the regions %d bytes were swallowed and %d connections ended or refused, in %d cuts that were healed", b-a.bytes, torn, flaps),
			map[string]int64{"bytes": int64(b - a.bytes), "conns": int64(torn), "cuts": int64(flaps)}}
		if a.w.OneWay {
			return ev, b > a.bytes, nil
		}
		return ev, flaps >= 3 && torn > 0, nil
	})
}

// Recover ends it.
func (a *stormy) Recover(ctx context.Context) error {
	if err := a.Cleanup(); err != nil {
		return err
	}
	return a.severed.Recover(ctx)
}

// Cleanup ends it.
func (a *stormy) Cleanup() error {
	if a.stop != nil {
		a.stop()
	}
	a.done.Wait()
	a.severed.heal()
	if a.table != nil {
		return a.table.Close()
	}
	return nil
}
