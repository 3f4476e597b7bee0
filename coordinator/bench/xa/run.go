package xa

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"github.com/go-resty/resty/v2"

	"github.com/lockstep-tx/lockstep/coordinator/bench/stats"
)

// Plan says what a bed goes through.
type Plan struct {
	Clients int
	WarmUp  time.Duration
	Window  time.Duration // of the phases normal and slow
	Slow    time.Duration // what one participant takes to answer
	Hang    time.Duration // how long it hangs
	Hanging int           // payments that it hangs on, each of another merchant and another buyer
}

// timeout is a payment's own: the coordinator aborts what was not submitted by then.
func (p Plan) timeout() time.Duration { return max(p.Hang+10*time.Second, 15*time.Second) }

// Phase is what one phase showed. Payments are the others: those that hang are not among them.
type Phase struct {
	Name      string
	PerSecond float64
	P99       time.Duration // of those that ended in the window and, with their age at its end, of those still open
	Open      int           // at the end of the window
	Failed    int           // over the whole phase
	FirstErr  error
	Seen      Seen
	Left      int // still held when everybody had been answered and the coordinator had had time
}

// Gone is what a coordinator that was killed under load left behind.
type Gone struct {
	Held     int // prepared transactions (XA) or holds (TCC) with it gone
	Locked   int // accounts that nobody else could use meanwhile
	Accounts int // of so many
	Left     int // still held after it had come back: a person's work
}

// Report is what a protocol showed on a server.
type Report struct {
	Protocol Protocol
	Phases   []Phase
	Gone     Gone
	Payments int // made, over all
}

// Coordinator is who the payments go through.
type Coordinator interface {
	URL() string                       // of DTM's HTTP API
	Kill()                             // returns when it has ended
	Restart(ctx context.Context) error // returns when it is ready
}

type payment struct {
	began, ended time.Time // ended is zero while it is open
	err          error
}

// runner drives one bed by one protocol.
type runner struct {
	bed         *Bed
	protocol    Protocol
	plan        Plan
	coordinator Coordinator
	made, tried atomic.Int64
}

// Run goes through the phases, kills the coordinator under load and lets it come back, does what is left to a person, and
// counts the money.
func (b *Bed) Run(ctx context.Context, protocol Protocol, c Coordinator, plan Plan, progress func(Phase)) (Report, error) {
	dtmcli.GetRestyClient().SetTransport(&http.Transport{
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 2048,
		IdleConnTimeout:     90 * time.Second,
	})
	r := &runner{bed: b, protocol: protocol, plan: plan, coordinator: c}
	report := Report{Protocol: protocol}
	for _, ph := range []struct {
		name    string
		window  time.Duration
		slow    time.Duration
		hanging int
	}{
		{"normal", plan.Window, 0, 0},
		{fmt.Sprintf("merchants answer in %s", plan.Slow), plan.Window, plan.Slow, 0},
		{fmt.Sprintf("merchants hang %s on %d", plan.Hang, plan.Hanging), plan.Hang, 0, plan.Hanging},
	} {
		b.merchants.slow.Store(int64(ph.slow))
		got, err := r.phase(ctx, ph.window, ph.hanging)
		b.merchants.slow.Store(0)
		if got.Name = ph.name; err != nil {
			return report, fmt.Errorf("%s: %w", ph.name, err)
		}
		report.Phases = append(report.Phases, got)
		progress(got)
	}
	var err error
	if report.Gone, err = r.gone(ctx); err != nil {
		return report, fmt.Errorf("the coordinator killed: %w", err)
	}
	report.Payments = int(r.made.Load())
	if protocol == XA {
		if err := b.finish(ctx, c.URL()); err != nil {
			return report, fmt.Errorf("finish what was left prepared: %w", err)
		}
	}
	return report, b.Count(ctx, report.Payments, int(r.tried.Load()))
}

// clients pay one after the other until they are told to stop.
type clients struct {
	stop   atomic.Bool
	mu     sync.Mutex
	all    []*payment // of the current window and of those open when it began
	ending sync.WaitGroup
}

func (r *runner) clients() *clients {
	c := &clients{}
	for range r.plan.Clients {
		c.ending.Go(func() {
			for !c.stop.Load() {
				p := &payment{began: time.Now()}
				c.mu.Lock()
				c.all = append(c.all, p)
				c.mu.Unlock()
				err := r.pay(rand.IntN(r.bed.buyers.n), rand.IntN(r.bed.merchants.n), 0)
				c.mu.Lock()
				p.ended, p.err = time.Now(), err
				c.mu.Unlock()
				if err != nil {
					time.Sleep(5 * time.Millisecond) // so that a dead coordinator is not hammered
				}
			}
		})
	}
	return c
}

// drained waits for the clients to end, which a lock that is never given back would prevent.
func (c *clients) drained(ctx context.Context, limit time.Duration) error {
	c.stop.Store(true)
	done := make(chan struct{})
	go func() { c.ending.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(limit):
		return fmt.Errorf("payments are still not answered after %s", limit)
	}
}

// window counts the payments that ended between two moments.
func (c *clients) window(from, to time.Time) (ph Phase) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var took []time.Duration
	made := 0
	for _, p := range c.all {
		switch {
		case p.ended.IsZero() || p.ended.After(to):
			if p.began.Before(to) {
				ph.Open++
				took = append(took, to.Sub(p.began))
			}
		case p.ended.Before(from):
		case p.err == nil:
			made++
			took = append(took, p.ended.Sub(p.began))
		}
		if p.err != nil {
			ph.Failed++
			if ph.FirstErr == nil {
				ph.FirstErr = p.err
			}
		}
	}
	ph.PerSecond = float64(made) / to.Sub(from).Seconds()
	ph.P99 = stats.Percentile(took, 99)
	return ph
}

func (r *runner) phase(ctx context.Context, window time.Duration, hanging int) (Phase, error) {
	c := r.clients()
	wait(ctx, r.plan.WarmUp)
	var hangs sync.WaitGroup
	hung := make([]error, hanging)
	began := time.Now()
	for i := range hanging {
		hangs.Go(func() { hung[i] = r.pay(i%r.bed.buyers.n, i%r.bed.merchants.n, r.plan.Hang) })
	}
	stop, watched := make(chan struct{}), make(chan struct{})
	var seen Seen
	var watchErr error
	go func() { defer close(watched); seen, watchErr = r.bed.watch(ctx, r.protocol, stop) }()
	wait(ctx, window)
	ended := time.Now()
	// What hangs or waits is looked at to its end; the payments are those of the window.
	err := c.drained(ctx, r.plan.timeout()+time.Minute)
	close(stop)
	<-watched
	if err == nil {
		hangs.Wait()
	}
	if err := errors.Join(err, watchErr, ctx.Err()); err != nil {
		return Phase{}, err
	}
	ph := c.window(began, ended)
	ph.Seen = seen
	ph.FirstErr = errors.Join(append(hung, ph.FirstErr)...)
	if ph.Left, err = r.bed.left(ctx, r.protocol, r.plan.timeout()+20*time.Second); err == nil && r.protocol == XA {
		err = r.bed.finish(ctx, r.coordinator.URL()) // so that the next phase begins undisturbed
	}
	return ph, err
}

// gone kills the coordinator under load, looks, and lets it come back.
func (r *runner) gone(ctx context.Context) (g Gone, err error) {
	c := r.clients()
	wait(ctx, r.plan.WarmUp+time.Second)
	r.coordinator.Kill()
	c.stop.Store(true)
	wait(ctx, 2*time.Second) // for calls that were on their way
	held, err := r.bed.Held(ctx, r.protocol)
	if err != nil {
		return g, err
	}
	g.Held, g.Accounts = len(held), r.bed.buyers.n+r.bed.merchants.n
	if g.Locked, err = r.bed.Locked(ctx); err != nil {
		return g, err
	}
	if err := r.coordinator.Restart(ctx); err != nil {
		return g, err
	}
	if err := c.drained(ctx, r.plan.timeout()+time.Minute); err != nil {
		return g, err
	}
	g.Left, err = r.bed.left(ctx, r.protocol, r.plan.timeout()+time.Minute)
	return g, err
}

// pay makes one payment, unchanged with DTM's SDK, and waits for its second phase.
func (r *runner) pay(buyer, merchant int, hang time.Duration) (err error) {
	defer func() {
		if x := recover(); x != nil { // the SDK's way
			err = fmt.Errorf("panic in the SDK: %v", x)
		}
		if err == nil {
			r.made.Add(1)
		}
	}()
	r.tried.Add(1)
	b := r.bed
	from := order{Account: b.buyers.account(buyer), Minor: paymentMinor}
	to := order{Account: b.merchants.account(merchant), Minor: paymentMinor, Hang: hang}
	gid := fmt.Sprintf("%s%d", b.prefix, b.gids.Add(1))
	seconds := int64(r.plan.timeout().Seconds())
	if r.protocol == XA {
		return dtmcli.XaGlobalTransaction2(r.coordinator.URL(), gid, func(x *dtmcli.Xa) { x.WaitResult, x.TimeoutToFail = true, seconds },
			func(x *dtmcli.Xa) (*resty.Response, error) {
				if resp, err := x.CallBranch(from, "http://"+b.buyers.addr+"/xa"); err != nil {
					return resp, err
				}
				return x.CallBranch(to, "http://"+b.merchants.addr+"/xa")
			})
	}
	call := func(t *dtmcli.Tcc, o order, s *side) (*resty.Response, error) {
		base := "http://" + s.addr + "/tcc/"
		return t.CallBranch(o, base+"try", base+"confirm", base+"cancel")
	}
	return dtmcli.TccGlobalTransaction2(r.coordinator.URL(), gid, func(t *dtmcli.Tcc) { t.WaitResult, t.TimeoutToFail = true, seconds },
		func(t *dtmcli.Tcc) (*resty.Response, error) {
			if resp, err := call(t, from, b.buyers); err != nil {
				return resp, err
			}
			return call(t, to, b.merchants)
		})
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
