package netproxy

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Shape is what a long or a thin line does to the bytes that go in one direction. The zero one does nothing. None of them loses or
// reorders anything: a connection's bytes come in their order, or not yet.
type Shape struct {
	// What is sent comes Delay later, and up to Jitter more.
	Delay, Jitter time.Duration
	// Rate is how many bytes a second come over the link, whatever the number of connections; 0: all that are sent.
	Rate int
	// Hold lets nothing come until the next shape: a link that is clogged.
	Hold bool
}

func (s Shape) plain() bool { return s == Shape{} }

const (
	// waitingMax is how many bytes of a connection may be on their way in one direction: its sender waits then.
	waitingMax = 1 << 20
	// portion is the time for which a thin line's bytes are let through at once.
	portion = 50 * time.Millisecond
)

// Shape has the bytes that go in one direction come as s says, those on their way included, over the connections that there are and
// those that come.
func (k *Link) Shape(d Direction, s Shape) error {
	if s.Delay < 0 || s.Jitter < 0 || s.Rate < 0 {
		return fmt.Errorf("shape %+v: nothing comes before it was sent", s)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.shapes[d], k.busy[d] = s, time.Time{}
	k.odd.Store(true)
	close(k.reshaped)
	k.reshaped = make(chan struct{})
	return nil
}

// shape gives the one of now, and what is closed when it is another.
func (k *Link) shape(d Direction) (Shape, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.shapes[d], k.reshaped
}

// line is one direction of a connection with bytes on their way. It is made with the first that do not pass at once.
type line struct {
	k     *Link
	p     *pair
	to    io.Writer
	d     Direction
	ended chan struct{}

	mu      sync.Mutex
	moved   sync.Cond // what waits has changed, or the line is broken
	waiting []onTheWay
	bytes   int
	err     error
}

type onTheWay struct {
	sent   time.Time
	chance float64 // of the jitter, drawn once
	b      []byte
}

// line gives the line of a direction of a pair; nil where bytes pass at once.
func (k *Link) line(p *pair, to io.Writer, d Direction) *line {
	s, _ := k.shape(d)
	p.lines.Lock()
	defer p.lines.Unlock()
	if p.line[d] == nil && !s.plain() && !p.closed {
		l := &line{k: k, p: p, to: to, d: d, ended: make(chan struct{})}
		l.moved.L = &l.mu
		p.line[d] = l
		k.wg.Go(l.run)
	}
	return p.line[d]
}

// put takes bytes over; it waits while too many are on their way.
func (l *line) put(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.bytes > waitingMax && l.err == nil {
		l.moved.Wait()
	}
	if l.err != nil {
		return 0, l.err
	}
	l.waiting = append(l.waiting, onTheWay{time.Now(), rand.Float64(), append([]byte(nil), b...)})
	l.bytes += len(b)
	l.moved.Broadcast()
	return len(b), nil
}

// drain waits until nothing is on its way any more.
func (l *line) drain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.waiting) > 0 && l.err == nil {
		l.moved.Wait()
	}
}

// end says that nothing will come any more. The line's goroutine ends.
func (l *line) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = net.ErrClosed
		close(l.ended)
	}
	l.moved.Broadcast()
}

// run lets what waits come when it is due.
func (l *line) run() {
	for {
		l.mu.Lock()
		for len(l.waiting) == 0 && l.err == nil {
			l.moved.Wait()
		}
		if l.err != nil {
			l.mu.Unlock()
			return
		}
		next := l.waiting[0]
		l.mu.Unlock()
		for rest := next.b; len(rest) > 0; {
			n, ok := l.due(next, len(rest))
			if !ok {
				return
			}
			if _, err := l.k.pass(l.p, l.to, l.d, rest[:n]); err != nil {
				l.end()
				l.p.close() // which ends its reader too
				return
			}
			rest = rest[n:]
		}
		l.mu.Lock()
		l.waiting, l.bytes = l.waiting[1:], l.bytes-len(next.b)
		l.moved.Broadcast()
		l.mu.Unlock()
	}
}

// due waits until bytes may come, and says how many of them; false: none ever.
func (l *line) due(w onTheWay, bytes int) (int, bool) {
	for {
		s, reshaped := l.k.shape(l.d)
		n, at := bytes, w.sent.Add(s.Delay+time.Duration(w.chance*float64(s.Jitter)))
		if s.Rate > 0 {
			n = min(n, max(1, int(float64(s.Rate)*portion.Seconds())))
			if thin := l.k.turn(l.d, n, s.Rate); thin.After(at) {
				at = thin
			}
		}
		timer := time.NewTimer(time.Until(at))
		if s.Hold {
			timer.Stop()
		}
		select {
		case <-timer.C:
			return n, true
		case <-reshaped: // the bytes go by the new shape
			timer.Stop()
		case <-l.ended:
			timer.Stop()
			return 0, false
		}
	}
}

// turn gives a connection its turn on a thin line: when n bytes have come over it.
func (k *Link) turn(d Direction, n, rate int) time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := time.Now(); k.busy[d].Before(now) {
		k.busy[d] = now
	}
	k.busy[d] = k.busy[d].Add(time.Duration(float64(n) / float64(rate) * 1e9))
	return k.busy[d]
}

// Waiting is how many bytes are on their way now.
func (k *Link) Waiting() (n uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for p := range k.pairs {
		p.lines.Lock()
		for _, l := range p.line {
			if l != nil {
				l.mu.Lock()
				n += uint64(l.bytes)
				l.mu.Unlock()
			}
		}
		p.lines.Unlock()
	}
	return n
}

// Tear ends each connection in the middle of what is being sent, with a reset, after one to so many bytes more in a direction; 0
// does no more of it. What comes to the other side is a frame's beginning.
func (k *Link) Tear(after int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tear = after
	k.odd.Store(true)
	for p := range k.pairs {
		p.left[Forth].Store(0)
		p.left[Back].Store(0)
	}
}

// torn says how many of b are still to come of a connection that is being torn: fewer than b has, in its middle.
func (k *Link) torn(p *pair, d Direction, b []byte) (n int, yes bool) {
	k.mu.Lock()
	after := k.tear
	k.mu.Unlock()
	if after == 0 {
		return len(b), false
	}
	left := p.left[d].Load()
	if left == 0 {
		left = int64(1 + rand.IntN(after))
	}
	if int64(len(b)) <= left { // to its very end would be no tear
		p.left[d].Store(max(1, left-int64(len(b))))
		return len(b), false
	}
	return int(left), true
}

// reset ends both sides at once, with nothing flushed.
func (p *pair) reset() {
	for _, c := range []net.Conn{p.in, p.out} {
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // it may have ended
		}
	}
	p.close()
}

// HalfOpen accepts every n-th connection that comes from now on and never opens its other side: it looks open to who has made it.
// 0 does no more of it, and ends those.
func (k *Link) HalfOpen(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.half = n
	for p := range k.pairs {
		if n == 0 && p.half {
			p.close()
		}
	}
}

// halved says whether a connection is to be half open.
func (k *Link) halved(p *pair) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.came++
	p.half = k.half > 0 && k.came%uint64(k.half) == 0
	return p.half
}

// keepHalf swallows what a half-open connection sends, until it is ended: by who has made it, which is counted, or by HalfOpen.
func (k *Link) keepHalf(p *pair) {
	k.halfOpened.Add(1)
	n, _ := io.CopyBuffer(io.Discard, onlyReader{p.in}, make([]byte, 4<<10)) // its end is what is waited for
	k.refusedBytes.Add(uint64(n))
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.half > 0 && !k.shut {
		k.halfLeft.Add(1)
	}
}

// LoseProduced keeps the next n answers to Kafka's Produce to itself: the broker has written, and the producer is not told. Only
// links of Kafka have any.
func (k *Link) LoseProduced(n int) { k.lose.Store(int64(n)) }
