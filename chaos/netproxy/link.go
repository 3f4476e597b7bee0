// Package netproxy is links between processes that can be cut and healed, made long or thin, clogged, and torn: TCP proxies, one
// for each address that one process knows of another.
//
// The law it keeps: what is sent after Cut has returned does not pass, in either direction, or in the one that CutOneWay names; it is counted as refused, so that a run can show that its fault bit; and a connection that a cut has touched never carries bytes again.
//
// It is tested over real connections: what is sent during a cut does not arrive, neither then nor after the healing.
package netproxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Way is what a cut does with what arrives.
type Way string

const (
	// Drop swallows it and answers nothing, like a broken cable: the sender finds out by its own deadline.
	Drop Way = "drop"
	// Refuse closes connections, like a router that says no.
	Refuse Way = "refuse"
)

// Direction is one of the two that bytes take over a link.
type Direction int

// The directions, as who connects sees them.
const (
	Forth Direction = iota // to the one that is connected to
	Back                   // its answers
)

// Route is one link: who connects to Listen reaches To.
type Route struct {
	Name, Listen, To string
	// Kafka has the addresses in Kafka's metadata replaced by Listen; else clients would go around the link.
	Kafka bool
	// Dial connects to To; nil: as this process does.
	Dial func(address string, limit time.Duration) (net.Conn, error)
}

// Counters say what a link did.
type Counters struct {
	Route  string `json:"route"`
	Listen string `json:"listen"`
	To     string `json:"to"`
	Cut    bool   `json:"cut"`
	Way    Way    `json:"way,omitempty"`
	// Accepted connections and Bytes carried; ended and refused connections and bytes that a cut swallowed.
	Accepted      uint64 `json:"accepted"`
	Bytes         uint64 `json:"bytes"`
	EndedConns    uint64 `json:"ended_conns"`
	RefusedConns  uint64 `json:"refused_conns"`
	RefusedBytes  uint64 `json:"refused_bytes"`
	OpenConns     int    `json:"open_conns"`
	DialFailed    uint64 `json:"dial_failed"`
	MetadataMoved uint64 `json:"metadata_moved,omitempty"` // answers of Kafka whose addresses were replaced
	// Torn connections; half-open ones, and those of them that were given up; answers to Produce that were not passed on.
	Torn       uint64 `json:"torn,omitempty"`
	HalfOpened uint64 `json:"half_opened,omitempty"`
	HalfLeft   uint64 `json:"half_left,omitempty"`
	Unproduced uint64 `json:"unproduced,omitempty"`
}

// Link is a running route. Safe for concurrent use.
type Link struct {
	route    Route
	listener net.Listener
	wg       sync.WaitGroup

	accepted, bytes, ended, refused, refusedBytes, dialFailed, moved atomic.Uint64
	tornConns, halfOpened, halfLeft, unproduced                      atomic.Uint64

	odd  atomic.Bool  // it was shaped or torn once: until then bytes pass without a look at how
	lose atomic.Int64 // answers to Produce that are to be lost

	mu       sync.Mutex
	way      Way // "" while whole
	shut     bool
	pairs    map[*pair]struct{}
	shapes   [2]Shape
	busy     [2]time.Time  // until when a thin line has something to carry
	reshaped chan struct{} // closed when shapes are others
	tear     int
	half     int
	came     uint64 // connections
}

// pair is one connection and its other side. doomed is set under the link's lock, once, and never taken back.
type pair struct {
	in, out net.Conn // out is nil for one that came during a cut
	doomed  atomic.Bool
	mute    [2]atomic.Bool // directions in which nothing passes any more
	half    bool           // it has no other side
	left    [2]atomic.Int64

	lines  sync.Mutex
	line   [2]*line // nil: bytes pass at once
	closed bool
}

// touched says that a cut has taken bytes out of it.
func (p *pair) touched() bool {
	return p.doomed.Load() || p.mute[Forth].Load() || p.mute[Back].Load()
}

// close ends both sides; what is on its way is lost.
func (p *pair) close() {
	p.in.Close()
	if p.out != nil {
		p.out.Close()
	}
	p.lines.Lock()
	defer p.lines.Unlock()
	p.closed = true
	for _, l := range p.line {
		if l != nil {
			l.end()
		}
	}
}

const dialTimeout = 5 * time.Second

// Open listens and begins to carry.
func Open(r Route) (*Link, error) {
	l, err := net.Listen("tcp", r.Listen)
	if err != nil {
		return nil, fmt.Errorf("route %s: %w", r.Name, err)
	}
	if r.Dial == nil {
		r.Dial = func(address string, limit time.Duration) (net.Conn, error) {
			return net.DialTimeout("tcp", address, limit)
		}
	}
	k := &Link{route: r, listener: l, pairs: map[*pair]struct{}{}, reshaped: make(chan struct{})}
	k.route.Listen = l.Addr().String()
	k.wg.Go(k.accept)
	return k, nil
}

// Addr is where it listens.
func (k *Link) Addr() string { return k.route.Listen }

// Port is the TCP port of it.
func (k *Link) Port() int { return k.listener.Addr().(*net.TCPAddr).Port } // Open listens on TCP alone

func (k *Link) accept() {
	for {
		c, err := k.listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors, say
			continue
		}
		k.wg.Go(func() { k.serve(c) })
	}
}

// serve carries one connection until it ends.
func (k *Link) serve(in net.Conn) {
	p := &pair{in: in}
	way, ok := k.join(p)
	if !ok {
		in.Close()
		return
	}
	defer k.leave(p)
	if way != "" {
		k.refused.Add(1)
		p.doomed.Store(true)
		if way == Drop {
			k.swallow(p, in)
		}
		return
	}
	k.accepted.Add(1)
	if k.halved(p) {
		k.keepHalf(p)
		return
	}
	out, err := k.route.Dial(k.route.To, dialTimeout)
	if err != nil {
		k.dialFailed.Add(1)
		return
	}
	k.mu.Lock()
	p.out = out
	k.mu.Unlock()
	k.carry(p)
}

// join enters a connection; it says how the link is cut.
func (k *Link) join(p *pair) (Way, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.shut {
		return "", false
	}
	k.pairs[p] = struct{}{}
	return k.way, true
}

func (k *Link) leave(p *pair) {
	k.mu.Lock()
	delete(k.pairs, p)
	p.close()
	k.mu.Unlock()
}

// carry copies both ways until one side ends; then the other side ends too.
func (k *Link) carry(p *pair) {
	var asked *questions
	if k.route.Kafka {
		asked = &questions{}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer k.over(p, Forth)
		if asked != nil {
			asked.follow(k.gate(p, p.out, Forth), p.in)
		} else {
			k.copy(p, p.out, p.in, Forth)
		}
	})
	wg.Go(func() {
		defer k.over(p, Back)
		if asked != nil {
			asked.answer(k, k.gate(p, p.in, Back), p.out)
		} else {
			k.copy(p, p.in, p.out, Back)
		}
	})
	wg.Wait()
}

// over ends a pair one of whose sides has ended, once what is on its way from there has come; a doomed one that is to look alive
// stays until the healing.
func (k *Link) over(p *pair, from Direction) {
	p.lines.Lock()
	l := p.line[from]
	p.lines.Unlock()
	if l != nil {
		l.drain()
	}
	k.mu.Lock()
	hold := p.touched() && k.way == Drop && !k.shut
	k.mu.Unlock()
	if hold {
		return
	}
	p.close()
}

func (k *Link) copy(p *pair, to io.Writer, from io.Reader, d Direction) {
	// Errors end the connection, which is all that a network does with them.
	_, _ = io.CopyBuffer(k.gate(p, to, d), onlyReader{from}, make([]byte, 32<<10))
}

// onlyReader hides ReadFrom and WriteTo, by which bytes would pass uncounted.
type onlyReader struct{ io.Reader }

// gate is a writer that lets bytes pass while the pair is whole, and counts them.
func (k *Link) gate(p *pair, to io.Writer, d Direction) io.Writer { return &gate{k, p, to, d} }

type gate struct {
	k  *Link
	p  *pair
	to io.Writer
	d  Direction
}

// Write is io.Writer's. What a cut refuses counts as written: its sender does not learn of it.
func (g *gate) Write(b []byte) (int, error) {
	if !g.k.odd.Load() {
		return g.k.pass(g.p, g.to, g.d, b)
	}
	if l := g.k.line(g.p, g.to, g.d); l != nil {
		return l.put(b)
	}
	return g.k.pass(g.p, g.to, g.d, b)
}

// pass lets bytes come to the other side, or what is left of them.
func (k *Link) pass(p *pair, to io.Writer, d Direction, b []byte) (int, error) {
	if p.doomed.Load() || p.mute[d].Load() {
		k.refusedBytes.Add(uint64(len(b)))
		return len(b), nil
	}
	upTo, torn := len(b), false
	if k.odd.Load() {
		upTo, torn = k.torn(p, d, b)
	}
	n, err := to.Write(b[:upTo])
	k.bytes.Add(uint64(n))
	if torn && err == nil {
		k.tornConns.Add(1)
		p.reset()
		return n, errTorn
	}
	return n, err
}

var errTorn = errors.New("the connection was torn")

// swallow reads what a connection sends during a cut.
func (k *Link) swallow(p *pair, from io.Reader) {
	_, _ = io.CopyBuffer(k.gate(p, io.Discard, Forth), onlyReader{from}, make([]byte, 4<<10)) // ends with the healing
}

// Cut lets nothing pass from now on. The connections that are there are lost.
func (k *Link) Cut(way Way) error {
	if way != Drop && way != Refuse {
		return fmt.Errorf("way %q: %s or %s", way, Drop, Refuse)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.way = way
	for p := range k.pairs {
		if !p.doomed.Swap(true) {
			k.ended.Add(1)
		}
		if way == Refuse {
			p.close()
		}
	}
	return nil
}

// CutOneWay swallows what goes in one direction from now on, over the connections that there are; what goes the other way
// passes. No new connection comes about: its handshake goes both ways.
func (k *Link) CutOneWay(d Direction) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.way = Drop
	for p := range k.pairs {
		if !p.touched() {
			k.ended.Add(1)
		}
		p.mute[d].Store(true)
	}
}

// Heal lets new connections pass; those of the cut are closed.
func (k *Link) Heal() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.way = ""
	for p := range k.pairs {
		if p.touched() {
			p.close()
		}
	}
}

// Counters give what it did so far.
func (k *Link) Counters() Counters {
	k.mu.Lock()
	way, open := k.way, len(k.pairs)
	k.mu.Unlock()
	return Counters{
		Route: k.route.Name, Listen: k.route.Listen, To: k.route.To, Cut: way != "", Way: way, Accepted: k.accepted.Load(), Bytes: k.bytes.Load(),
		EndedConns: k.ended.Load(), RefusedConns: k.refused.Load(), RefusedBytes: k.refusedBytes.Load(), OpenConns: open, DialFailed: k.dialFailed.Load(),
		MetadataMoved: k.moved.Load(), Torn: k.tornConns.Load(), HalfOpened: k.halfOpened.Load(), HalfLeft: k.halfLeft.Load(), Unproduced: k.unproduced.Load(),
	}
}

// Close ends everything. It may be called twice.
func (k *Link) Close() error {
	k.mu.Lock()
	k.shut = true
	for p := range k.pairs {
		p.close()
	}
	k.mu.Unlock()
	err := k.listener.Close()
	k.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
