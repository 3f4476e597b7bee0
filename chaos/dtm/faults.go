package dtm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/fault"
	"github.com/lockstep-tx/lockstep/chaos/netproxy"
	"github.com/lockstep-tx/lockstep/chaos/tap"
)

// deed is a fault of this system's: what is done, what shows that it was, and how it is undone.
type deed struct {
	name   string
	inject func(ctx context.Context, e fault.Env) error
	// proof gives what was seen, and whether that is enough; it is asked again until limit.
	proof func(ctx context.Context, e fault.Env) (fault.Evidence, bool, error)
	limit time.Duration
	undo  func(ctx context.Context, e fault.Env) error
	over  func(e fault.Env) bool // nil: at once
	tell  func() string          // more of what came of it; nil: nothing
	// crashes gives those that inject made one after the other; nil: none.
	crashes func() []fault.Crash
	off     bool
}

// Name is the fault's.
func (d *deed) Name() string { return d.name }

// Available is always.
func (*deed) Available(fault.Env) error { return nil }

// Inject does it.
func (d *deed) Inject(ctx context.Context, e fault.Env) (fault.Active, error) {
	a := &done{deed: d, e: e}
	if d.off {
		return a, nil
	}
	return a, d.inject(ctx, e)
}

type done struct {
	*deed
	e fault.Env
}

func (a *done) wait(d time.Duration) time.Duration {
	return time.Duration(float64(d) * max(1, a.e.Slow))
}

// Crashes are those that were made.
func (a *done) Crashes() []fault.Crash {
	if a.crashes == nil {
		return nil
	}
	return a.crashes()
}

// Effective waits for the proof.
func (a *done) Effective(ctx context.Context) (fault.Evidence, error) {
	for end := time.Now().Add(a.wait(a.limit)); ; {
		ev, ok, err := a.proof(ctx, a.e)
		if ok && err == nil {
			return ev, nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return ev, errors.Join(fmt.Errorf("%w within %v: %s", fault.ErrNoEffect, a.wait(a.limit), ev.What), err, ctx.Err())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Recover undoes it.
func (a *done) Recover(ctx context.Context) error { return a.undo(ctx, a.e) }

// Recovered waits for it to be over.
func (a *done) Recovered(ctx context.Context) (fault.Evidence, error) {
	const limit = 20 * time.Second
	for end := time.Now().Add(a.wait(limit)); a.over != nil && !a.over(a.e); {
		if time.Now().After(end) || ctx.Err() != nil {
			return fault.Evidence{What: a.name + " is not over"}, errors.Join(fault.ErrNoEffect, ctx.Err())
		}
		time.Sleep(20 * time.Millisecond)
	}
	what := a.name + " is over"
	if a.tell != nil {
		what += "; " + a.tell()
	}
	return fault.Evidence{What: what}, nil
}

// Cleanup is the end of the deployment, which is this scenario's own.
func (a *done) Cleanup() error { return nil }

// habit switches an unusual behaviour of clients on, and wants to have seen it need times.
func habit(name string, on *atomic.Bool, count *atomic.Int64, need int64, limit time.Duration) *deed {
	return &deed{name: name, limit: limit,
		inject: func(context.Context, fault.Env) error { on.Store(true); return nil },
		proof: func(context.Context, fault.Env) (fault.Evidence, bool, error) {
			n := count.Load()
			return fault.Evidence{What: fmt.Sprintf("%s: %d, %d are wanted", name, n, need), Counts: map[string]int64{"seen": n}}, n >= need, nil
		},
		undo: func(context.Context, fault.Env) error { on.Store(false); return nil },
	}
}

func (s *System) submitTwice() *deed {
	return habit("submits sent twice", &s.hab.twice, &s.hab.twices, 300, 40*time.Second) // on boltdb few of them meet the first pass at the wrong moment
}

func (s *System) registerLate() *deed {
	return habit("branches registered as the time runs out", &s.hab.overdue, &s.hab.refusedLate, 6, 40*time.Second)
}

func (s *System) countedGids() *deed {
	return habit("gids that begin as others do", &s.hab.counted, &s.hab.prefixes, 100, 15*time.Second)
}

// cut severs links, and wants need bytes or connections to have been refused on each.
func cut(name string, links []*netproxy.Link, way func(*netproxy.Link) error, need uint64) *deed {
	refused := func() (low uint64) {
		for i, k := range links {
			if c := k.Counters(); i == 0 || c.RefusedBytes+c.RefusedConns < low {
				low = c.RefusedBytes + c.RefusedConns
			}
		}
		return low
	}
	return &deed{name: name, limit: 10 * time.Second,
		inject: func(context.Context, fault.Env) error {
			var err error
			for _, k := range links {
				err = errors.Join(err, way(k))
			}
			return err
		},
		proof: func(context.Context, fault.Env) (fault.Evidence, bool, error) {
			n := refused()
			return fault.Evidence{What: fmt.Sprintf("%s: at least %d bytes and connections refused on each link", name, n), Counts: map[string]int64{"refused": int64(n)}}, n >= need, nil
		},
		undo: func(context.Context, fault.Env) error {
			for _, k := range links {
				k.Heal()
			}
			return nil
		},
	}
}

// cutWallet: the servers cannot reach one participant, everybody else can (N7).
func (s *System) cutWallet() *deed {
	return cut("servers cut off from one participant", s.branch[1:], func(k *netproxy.Link) error { return k.Cut(netproxy.Drop) }, 1)
}

// inARow puts some short cuts before the one that lasts: it is the requests under way at the beginning of each that meet it in
// their midst.
func inARow(d *deed, links []*netproxy.Link) *deed {
	const (
		shortCuts = 8
		shortFor  = 100 * time.Millisecond
		between   = 400 * time.Millisecond
	)
	last := d.inject
	d.inject = func(ctx context.Context, e fault.Env) error {
		for range shortCuts {
			if err := last(ctx, e); err != nil {
				return err
			}
			time.Sleep(shortFor)
			for _, k := range links {
				k.Heal()
			}
			time.Sleep(between)
		}
		return last(ctx, e)
	}
	return d
}

// cutStore: the servers cannot reach their store, whose connections are refused.
func (s *System) cutStore() *deed {
	links := []*netproxy.Link{s.store}
	return inARow(cut("servers cut off from their store", links, func(k *netproxy.Link) error { return k.Cut(netproxy.Refuse) }, 20), links)
}

// loseAnswers: what clients send arrives at the servers, and no answer comes back. It is over when DTM has refused an abort that
// followed a submit whose answer was lost.
func (s *System) loseAnswers() *deed {
	d := inARow(cut("the servers' answers lost", s.clients, func(k *netproxy.Link) error { k.CutOneWay(netproxy.Back); return nil }, 200), s.clients)
	d.over = func(fault.Env) bool { return s.hab.abortsRefused.Load() > 0 }
	d.tell = func() string {
		return fmt.Sprintf("aborts that followed a submit without an answer: %d refused, %d taken", s.hab.abortsRefused.Load(), s.hab.abortsTaken.Load())
	}
	return d
}

// sulk: both participants refuse a share of confirms and cancels.
func (s *System) sulk() *deed {
	set := func(ctx context.Context, share string) error {
		for _, r := range s.d.Regions {
			if err := s.post(ctx, "http://"+r.Wallet.Addr+"/sulk?share="+share, nil); err != nil {
				return err
			}
		}
		return nil
	}
	return &deed{name: "confirms and cancels answered 409, 425 and 500", limit: 15 * time.Second,
		inject: func(ctx context.Context, _ fault.Env) error { return set(ctx, "0.3") },
		proof: func(context.Context, fault.Env) (fault.Evidence, bool, error) {
			ev, enough := fault.Evidence{What: "confirms and cancels refused", Counts: map[string]int64{}}, true
			for _, code := range []int{http.StatusConflict, http.StatusTooEarly, http.StatusInternalServerError} {
				n := 0
				for _, r := range s.d.Regions {
					n += r.Tap.Count(func(c *tap.Call) bool { return c.Op != "try" && c.Status == code })
				}
				ev.What += fmt.Sprintf(", %d with %d", n, code)
				ev.Counts[fmt.Sprint(code)], enough = int64(n), enough && n >= 10
			}
			return ev, enough, nil
		},
		undo: func(ctx context.Context, _ fault.Env) error { return set(ctx, "0") },
	}
}

// pause stops the first server, and wants the second to have ended transactions that the first had been asked for: then both
// have held the same ones (P4).
func (s *System) pause() *deed {
	var owned []string
	first := s.servers[0]
	return &deed{name: "one of two servers paused", limit: 40 * time.Second,
		inject: func(_ context.Context, e fault.Env) error {
			if err := first.Signal(syscall.SIGSTOP); err != nil {
				return err
			}
			for _, op := range e.Log.Flying() {
				if op.Region == s.d.Regions[0].Name {
					owned = append(owned, op.Gid)
				}
			}
			return nil
		},
		proof: func(ctx context.Context, _ fault.Env) (fault.Evidence, bool, error) {
			state, err := first.State()
			if err != nil {
				return fault.Evidence{}, false, err
			}
			n := 0
			for _, gid := range owned {
				if v, qerr := s.query(ctx, s.direct[1:], gid); qerr == nil && v.ended() {
					n++
				}
			}
			return fault.Evidence{What: fmt.Sprintf("%s is in state %c; the other server ended %d of the %d transactions that it was asked for", first.Name, state, n, len(owned)),
				Counts: map[string]int64{"taken_over": int64(n)}}, state == 'T' && n > 0, nil
		},
		undo: func(context.Context, fault.Env) error { return first.Signal(syscall.SIGCONT) },
		over: func(fault.Env) bool { st, err := first.State(); return err == nil && st != 'T' },
	}
}

// killStore kills the store's server, and starts it again on what it has kept.
func (s *System) killStore() *deed {
	return &deed{name: "the store killed", limit: 5 * time.Second,
		inject: func(context.Context, fault.Env) error { s.engine.Kill(); return nil },
		proof: func(context.Context, fault.Env) (fault.Evidence, bool, error) {
			dead := !s.engine.Alive() && s.engine.Refuses()
			return fault.Evidence{What: fmt.Sprintf("%s (pid %d) reaped and its port refuses: %v", s.engine.Name, s.engine.PID(), dead)}, dead, nil
		},
		undo: func(ctx context.Context, _ fault.Env) error { return s.engine.Start(ctx) },
		over: func(fault.Env) bool { return s.engine.Alive() && !s.engine.Refuses() },
	}
}

// phases are the points of a transaction at which all servers are killed: op and after as tap.NewTrap has them.
var phases = []struct {
	name, op string
	after    bool
}{
	{"a try is answered", "try", true},
	{"the first confirm is sent", "confirm", false},
	{"a confirm is done and its answer lost", "confirm", true},
	{"a cancel is sent", "cancel", false},
	{"a cancel is done and its answer lost", "cancel", true},
}

// killAtPhases kills all servers at each phase, and starts them again (P2).
func (s *System) killAtPhases() *deed {
	var crashes []fault.Crash
	var missed []string
	return &deed{name: "servers killed at each phase", limit: time.Second,
		inject: func(ctx context.Context, e fault.Env) error {
			for _, p := range phases {
				trap := tap.NewTrap(p.after, func(c *tap.Call) bool { return c.Op == p.op && (!p.after || c.Status == http.StatusOK) })
				c, hit, err := s.killAt(ctx, e, trap, p.name)
				if crashes = append(crashes, c); err != nil {
					return err
				}
				if !hit {
					missed = append(missed, p.name)
				}
			}
			return nil
		},
		proof: func(context.Context, fault.Env) (fault.Evidence, bool, error) {
			return fault.Evidence{What: fmt.Sprintf("%d servers reaped, and their ports refused, at %d of %d phases; missed: %q", len(s.servers), len(phases)-len(missed), len(phases), missed),
				Counts: map[string]int64{"crashes": int64(len(crashes))}}, len(crashes) == len(phases) && len(missed) == 0, nil
		},
		undo:    func(context.Context, fault.Env) error { return nil },
		crashes: func() []fault.Crash { return crashes },
	}
}

// killAt waits for a call, kills every server, loses the call and starts them again.
func (s *System) killAt(ctx context.Context, e fault.Env, trap *tap.Trap, name string) (c fault.Crash, hit bool, err error) {
	arm := func(t *tap.Trap) {
		for _, r := range s.d.Regions {
			r.Tap.Arm(t)
		}
	}
	arm(trap)
	defer arm(nil)
	select {
	case <-trap.Caught():
		defer trap.Let(false)
	case <-time.After(10 * time.Second):
		return c, false, nil
	case <-ctx.Done():
		return c, false, ctx.Err()
	}
	c = fault.Crash{Name: "kill at: " + name, At: e.Log.Now()}
	hit = true
	for _, n := range s.servers {
		n.Kill()
		hit = hit && !n.Alive() && n.Refuses()
	}
	for _, n := range s.servers {
		if err := n.Start(ctx); err != nil {
			return c, hit, err
		}
	}
	c.Back = e.Log.Now()
	return c, hit, nil
}

// switched off, a fault does nothing, which must be noticed.
func disabled(f fault.Fault) fault.Fault {
	if d, ok := f.(*deed); ok {
		off := *d
		off.off = true
		return &off
	}
	return fault.Disabled{Fault: f}
}
