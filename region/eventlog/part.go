package eventlog

import (
	"fmt"
	"sync"

	"github.com/lockstep-tx/lockstep/coordinator/record"
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
	if !t.active {
		return // whoever publishes it finds them in the journal
	}
	for _, e := range events {
		n, seq := e.Slot, e.Head.Seq
		t.known[n] = max(t.known[n], seq)
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
