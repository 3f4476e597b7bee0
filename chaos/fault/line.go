package fault

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/netproxy"
)

// Line makes the links between the regions long (N11) or thin (N12).
type Line struct {
	Title string
	// Shape of each direction of every link between the regions.
	Shape netproxy.Shape
	off   bool
}

// WAN is what a round trip over a continent and back takes: 80 to 250 ms.
func WAN() Fault {
	return Line{Title: "wan", Shape: netproxy.Shape{Delay: 40 * time.Millisecond, Jitter: 85 * time.Millisecond}}
}

// Thin is 256 kbit a second over each link.
func Thin() Fault {
	return Line{Title: "thin-line", Shape: netproxy.Shape{Rate: 256_000 / 8}}
}

// Name is the fault's.
func (l Line) Name() string { return l.Title }

// Available is always.
func (Line) Available(Env) error { return nil }

func (l Line) disabled() Fault { l.off = true; return l }

// Inject shapes the links, after it has measured them as they were.
func (l Line) Inject(ctx context.Context, e Env) (Active, error) {
	a := &shaped{l: l, severed: severed{what: "between the regions", e: e, links: e.Deployment.Links}}
	var err error
	if a.before, err = a.measure(ctx); err != nil || l.off {
		return a, err
	}
	for _, k := range a.links {
		for _, d := range []netproxy.Direction{netproxy.Forth, netproxy.Back} {
			if err := k.Shape(d, l.Shape); err != nil {
				return a, err
			}
		}
	}
	return a, nil
}

type shaped struct {
	severed
	l      Line
	before measured
}

// measured is what probes have seen over the links to the admin addresses: round trips of a small request, and the bytes a second of
// a large answer, of the fastest link.
type measured struct {
	least, most time.Duration
	rate        float64
}

// measure probes every link to an admin address, over connections of its own.
func (a *shaped) measure(ctx context.Context) (m measured, err error) {
	c := http.Client{Timeout: a.e.wait(20 * time.Second), Transport: &http.Transport{DisableCompression: true}}
	defer c.CloseIdleConnections()
	get := func(url string) (int64, time.Duration, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return 0, 0, err
		}
		began := time.Now()
		resp, err := c.Do(req)
		if err != nil {
			return 0, 0, err
		}
		defer resp.Body.Close()
		n, err := io.Copy(io.Discard, resp.Body)
		return n, time.Since(began), err
	}
	for _, k := range a.links {
		if !strings.HasSuffix(k.Counters().Route, "/admin") {
			continue
		}
		at := "http://" + k.Addr()
		for range 5 {
			_, took, err := get(at + "/healthz")
			if err != nil {
				return m, fmt.Errorf("probe of %s: %w", k.Counters().Route, err)
			}
			if m.least == 0 || took < m.least {
				m.least = took
			}
			m.most = max(m.most, took)
		}
		n, took, err := get(at + "/metrics")
		if err != nil {
			return m, fmt.Errorf("probe of %s: %w", k.Counters().Route, err)
		}
		m.rate = max(m.rate, float64(n)/took.Seconds())
	}
	return m, nil
}

// Effective wants round trips, or a throughput, as the shape says, which were others before.
func (a *shaped) Effective(ctx context.Context) (Evidence, error) {
	s := a.l.Shape
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		m, err := a.measure(ctx)
		ev := Evidence{fmt.Sprintf("probes between the regions took %v to %v (%v to %v before) there and back, and got %.0f bytes a second at most (%.0f before)",
			m.least.Round(time.Millisecond), m.most.Round(time.Millisecond), a.before.least.Round(time.Millisecond), a.before.most.Round(time.Millisecond), m.rate, a.before.rate),
			map[string]int64{"least_ms": m.least.Milliseconds(), "most_ms": m.most.Milliseconds(), "bytes_a_second": int64(m.rate)}}
		if s.Rate > 0 {
			return ev, m.rate > 0 && m.rate < 1.1*float64(s.Rate) && a.before.rate > 2*float64(s.Rate), err
		}
		return ev, m.least >= 2*s.Delay && m.most-m.least > s.Jitter/4 && a.before.least < 2*s.Delay, err
	})
}

func (a *shaped) plain() error {
	for _, k := range a.links {
		for _, d := range []netproxy.Direction{netproxy.Forth, netproxy.Back} {
			if err := k.Shape(d, netproxy.Shape{}); err != nil {
				return err
			}
		}
	}
	return nil
}

// Recover makes the links what they were.
func (a *shaped) Recover(context.Context) error { return a.plain() }

// Recovered wants probes to be about as fast as before.
func (a *shaped) Recovered(ctx context.Context) (Evidence, error) {
	s := a.l.Shape
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		m, err := a.measure(ctx)
		ev := Evidence{What: fmt.Sprintf("probes between the regions take %v there and back, and get %.0f bytes a second", m.least.Round(time.Millisecond), m.rate)}
		return ev, m.least > 0 && (s.Rate > 0 || m.least < 2*s.Delay) && (s.Rate == 0 || m.rate > 2*float64(s.Rate)), err
	})
}

func (a *shaped) Cleanup() error { return a.plain() }

// Swizzle clogs the links between the regions one by one, and unclogs them in another order, both as the seed says (N19). Nothing is
// lost: it comes later, and not in the order in which it was sent over several links.
type Swizzle struct{ off bool }

// swizzleStep is how long each link is clogged before the next is, or unclogged.
const swizzleStep = 400 * time.Millisecond

// Name is the fault's.
func (Swizzle) Name() string { return "swizzle-clog" }

// Available is always.
func (Swizzle) Available(Env) error { return nil }

func (s Swizzle) disabled() Fault { s.off = true; return s }

// Inject clogs.
func (s Swizzle) Inject(ctx context.Context, e Env) (Active, error) {
	links := append([]*netproxy.Link(nil), e.Deployment.Links...)
	for _, r := range e.Deployment.Regions {
		if r.BrokerLink != nil {
			links = append(links, r.BrokerLink)
		}
	}
	rnd := e.rand(19)
	rnd.Shuffle(len(links), func(i, k int) { links[i], links[k] = links[k], links[i] })
	a := &swizzled{e: e, off: s.off, rnd: rnd, links: links, held: make([]uint64, len(links))}
	for _, k := range links {
		if s.off {
			break
		}
		if err := clog(k, true); err != nil {
			return a, err
		}
		time.Sleep(swizzleStep)
		a.look()
		if ctx.Err() != nil {
			return a, ctx.Err()
		}
	}
	return a, nil
}

func clog(k *netproxy.Link, hold bool) error {
	for _, d := range []netproxy.Direction{netproxy.Forth, netproxy.Back} {
		if err := k.Shape(d, netproxy.Shape{Hold: hold}); err != nil {
			return err
		}
	}
	return nil
}

type swizzled struct {
	e       Env
	off     bool
	rnd     *rand.Rand
	links   []*netproxy.Link
	held    []uint64 // bytes that each link kept back, at most
	before  uint64   // carried at the healing
	unclogs []string
}

func (a *swizzled) look() {
	for i, k := range a.links {
		a.held[i] = max(a.held[i], k.Waiting())
	}
}

func (a *swizzled) order() (out []string) {
	for _, k := range a.links {
		out = append(out, k.Counters().Route)
	}
	return out
}

// Effective wants bytes kept back on every link over which there is traffic: between the coordinators, and from each broker.
func (a *swizzled) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(10*time.Second), func() (Evidence, bool, error) {
		a.look()
		clogged, busy, sum := 0, 0, uint64(0)
		for i, k := range a.links {
			sum += a.held[i]
			if !strings.HasSuffix(k.Counters().Route, "/admin") { // nobody may have asked there
				if busy++; a.held[i] > 0 {
					clogged++
				}
			}
		}
		return Evidence{fmt.Sprintf("%d bytes were kept back, on %d of the %d links with traffic; clogged in the order %s", sum, clogged, busy, strings.Join(a.order(), ", ")),
			map[string]int64{"bytes": int64(sum), "links": int64(clogged)}}, !a.off && clogged == busy, nil
	})
}

func (a *swizzled) carried() (n uint64) {
	for _, k := range a.links {
		n += k.Counters().Bytes
	}
	return n
}

// Recover unclogs, in another order.
func (a *swizzled) Recover(ctx context.Context) error {
	a.before = a.carried()
	a.rnd.Shuffle(len(a.links), func(i, k int) { a.links[i], a.links[k] = a.links[k], a.links[i] })
	a.unclogs = a.order()
	for _, k := range a.links {
		if err := clog(k, false); err != nil {
			return err
		}
		time.Sleep(swizzleStep)
	}
	return ctx.Err()
}

// Recovered wants what was kept back to have come.
func (a *swizzled) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(15*time.Second), func() (Evidence, bool, error) {
		waiting := uint64(0)
		for _, k := range a.links {
			waiting += k.Waiting()
		}
		n := a.carried() - a.before
		return Evidence{What: fmt.Sprintf("unclogged in the order %s: %d bytes were carried since, %d are on their way", strings.Join(a.unclogs, ", "), n, waiting)}, n > 0 && waiting == 0, nil
	})
}

func (a *swizzled) Cleanup() error {
	for _, k := range a.links {
		if err := clog(k, false); err != nil {
			return err
		}
	}
	return nil
}
