package eventlog

import (
	"context"
	"fmt"
	"sync"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// part is one partition. Its loop alone moves heads.
type part struct {
	n      int
	signal chan struct{}

	mu      sync.Mutex
	active  bool
	heads   map[int]record.Head             // published
	known   map[int]uint64                  // the highest number seen in the journal
	pending map[int]map[uint64]record.Event // told by Appended
	queued  int
	read    map[int]bool   // slots to be read from the journal
	dirty   map[int]bool   // heads that Store does not have
	moved   map[int]bool   // heads that no heartbeat has told
	broken  map[int]string // slots whose next event does not continue the chain
	bounds  map[int]Bound  // the cuts that are known; never forgotten
}

func (t *part) forget() {
	t.heads, t.known = map[int]record.Head{}, map[int]uint64{}
	t.pending, t.queued = map[int]map[uint64]record.Event{}, 0
	t.read, t.dirty, t.moved, t.broken = map[int]bool{}, map[int]bool{}, map[int]bool{}, map[int]string{}
}

func (t *part) wake() {
	select {
	case t.signal <- struct{}{}:
	default:
	}
}

func (t *part) add(events []record.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range events {
		n, seq := e.Slot, e.Head.Seq
		if t.past(&e) {
			continue
		}
		t.known[n] = max(t.known[n], seq) // also while begin looks how far the journal is
		if !t.active {
			continue // whoever publishes it finds them in the journal
		}
		if seq <= t.heads[n].Seq || t.read[n] {
			continue
		}
		if t.queued >= pendingMax {
			t.queued -= len(t.pending[n])
			delete(t.pending, n)
			t.read[n] = true
			continue
		}
		if t.pending[n] == nil {
			t.pending[n] = map[uint64]record.Event{}
		}
		if _, ok := t.pending[n][seq]; !ok {
			t.pending[n][seq] = e
			t.queued++
		}
	}
}

// mustRead has a slot read from the journal: what was taken from there was not published.
func (t *part) mustRead(n int) {
	t.mu.Lock()
	t.read[n] = true
	t.mu.Unlock()
}

// sound gives the events up to the first that does not continue the chain: that one would stop the slot everywhere.
func (t *part) sound(head record.Head, events []record.Event) []record.Event {
	for i := range events {
		e := &events[i]
		if !e.Follows(head) {
			t.mu.Lock()
			t.broken[e.Slot] = fmt.Sprintf("event %d in the journal does not continue the chain", e.Head.Seq)
			t.queued -= len(t.pending[e.Slot])
			delete(t.pending, e.Slot)
			t.mu.Unlock()
			return events[:i]
		}
		head = e.Head
	}
	if len(events) > 0 {
		t.mu.Lock()
		delete(t.broken, events[0].Slot)
		t.mu.Unlock()
	}
	return events
}

// begin reads how far a partition is published and how far it is to go, when this process has just got it.
func (p *Publisher) begin(ctx context.Context, t *part) error {
	t.mu.Lock()
	active := t.active
	t.mu.Unlock()
	if active {
		return nil
	}
	bounds, err := p.bounds(ctx)
	if err != nil {
		return err
	}
	heads, err := p.cfg.Load(ctx) // after the cuts were read: it is of a time after them
	if err != nil {
		return err
	}
	published := map[int]record.Head{}
	for _, h := range heads {
		published[h.Slot] = h.Head
	}
	t.mu.Lock()
	t.forget()
	for _, b := range bounds {
		if b.Slot%len(p.parts) == t.n && t.bounds[b.Slot].Epoch < b.Epoch {
			t.bounds[b.Slot] = b
		}
	}
	t.mu.Unlock()
	for n := t.n; n < slot.Count; n += len(p.parts) {
		tail, err := p.tail(ctx, n, published[n].Seq)
		if err != nil {
			return err
		}
		t.mu.Lock()
		t.heads[n], t.known[n], t.read[n] = published[n], max(t.known[n], tail), true
		t.mu.Unlock()
	}
	t.mu.Lock()
	t.active = true
	t.mu.Unlock()
	return nil
}

// tail finds the last event of a slot in the journal by a few looks, however many there are after from: the chain has no
// gaps, but for what is being appended right now.
func (p *Publisher) tail(ctx context.Context, n int, from uint64) (uint64, error) {
	var err error
	has := func(seq uint64) bool {
		var list []record.Event
		if err == nil {
			list, err = p.cfg.Source.EventsAfter(ctx, p.cfg.Index, n, seq-1, 1)
		}
		return err == nil && len(list) == 1
	}
	last, stride := from, uint64(1)
	for has(last + stride) {
		last += stride
		stride *= 2
	}
	for stride /= 2; stride > 0; stride /= 2 {
		if has(last + stride) {
			last += stride
		}
	}
	return last, err
}
