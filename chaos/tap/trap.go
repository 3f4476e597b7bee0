package tap

import (
	"context"
	"sync/atomic"
)

// Trap catches one call on its way, so that something can be done at a known point of a transaction. Make it with NewTrap;
// it may be set in several taps, and catches in one of them.
type Trap struct {
	match  func(*Call) bool
	after  bool
	taken  atomic.Bool
	caught chan Call
	let    chan bool
}

// NewTrap makes a trap for the first call that matches: before the participant is asked, or after it has answered, when the
// call has its status, and before the answer is passed on. match must not look at the tap.
func NewTrap(after bool, match func(*Call) bool) *Trap {
	return &Trap{match: match, after: after, caught: make(chan Call, 1), let: make(chan bool, 1)}
}

// Caught gives the call once there is one. It waits for Let, or for its caller to leave.
func (p *Trap) Caught() <-chan Call { return p.caught }

// Let says what becomes of the call: it goes on, or it is lost, with its answer where it has one. It may be called once.
func (p *Trap) Let(goOn bool) { p.let <- goOn }

// Arm sets a trap in place of the one that is set; nil takes it away. What is caught stays so.
func (t *Tap) Arm(p *Trap) {
	t.mu.Lock()
	t.trap = p
	t.mu.Unlock()
}

// spring stops a call that the trap is for; false: it is lost, which is written down.
func (t *Tap) spring(ctx context.Context, c Call, after bool) bool {
	t.mu.Lock()
	p := t.trap
	t.mu.Unlock()
	if p == nil || p.after != after || !p.match(&c) || !p.taken.CompareAndSwap(false, true) {
		return true
	}
	p.caught <- c
	select {
	case on := <-p.let:
		if on {
			return true
		}
	case <-ctx.Done(): // its caller is gone
	}
	c.Kind = Dropped
	if after {
		c.Kind = Lost
	}
	c.Start = t.now()
	c.End = c.Start
	t.write(c)
	return false
}
