package eventlog

import (
	"context"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
)

// Bound says that a slot's chain was cut in the journal (ADR 9): what has the epoch or an earlier one and a number above the
// head's is no longer in it, and the next epoch goes on after the head.
type Bound struct {
	Slot  int
	Epoch uint64
	Head  record.Head
}

// boundsEvery is how often the journal is asked for the cuts that other processes have made.
const boundsEvery = time.Second

// Back has a slot go on after a cut: what is published counts up to the bound. It may be told again; one that is known
// already changes nothing. What is on its way to Kafka may still get there. Safe for concurrent use.
func (p *Publisher) Back(b Bound) {
	t := p.parts[b.Slot%len(p.parts)]
	defer t.wake()
	t.mu.Lock()
	defer t.mu.Unlock()
	n := b.Slot
	if t.bounds[n].Epoch >= b.Epoch {
		return
	}
	t.bounds[n] = b
	if !t.active {
		return // begin finds it in the journal
	}
	if t.heads[n].Seq > b.Head.Seq {
		t.heads[n] = b.Head
		t.moved[n] = true
		delete(t.dirty, n)
	}
	t.known[n] = t.heads[n].Seq
	t.queued -= len(t.pending[n])
	delete(t.pending, n)
	delete(t.broken, n)
	t.read[n] = true
}

func (p *Publisher) bounds(ctx context.Context) ([]Bound, error) {
	if p.cfg.Bounds == nil {
		return nil, nil
	}
	return p.cfg.Bounds(ctx)
}

// past says that an event was cut off. The caller has the lock.
func (t *part) past(e *record.Event) bool {
	b, ok := t.bounds[e.Slot]
	return ok && e.Epoch <= b.Epoch && e.Head.Seq > b.Head.Seq
}
