package applier

import (
	"context"
	"sync"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// Bounds of what waits in memory. What finds no room is read from the journal.
const (
	toldEvents = 20_000
	toldBytes  = 64 << 20
)

// told are events that the journal has, as whoever made them durable told of them: reading each chain from the journal again
// costs more than all else that applying does. It may lose anything at any time.
type told struct {
	mu     sync.Mutex
	chains map[[2]int]map[uint64]toldEvent
	closed map[txn.Gid][]byte // the closed parts of decisions whose finish has not come
	events int
	bytes  int
}

// toldEvent is one event. Of a finish, closed is nil where its decision was not told.
type toldEvent struct {
	seq              uint64
	gid              txn.Gid
	finish           bool
	closed, progress []byte
}

func newTold() *told {
	return &told{chains: map[[2]int]map[uint64]toldEvent{}, closed: map[txn.Gid][]byte{}}
}

// Told tells of events that are durable in the journal, a transaction's decision before its finish. It does not wait, and
// keeps the bodies. What was not told, the applier reads.
func (a *Applier) Told(events []record.Event) {
	t := a.told
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range events {
		e := &events[i]
		if !a.cfg.Mine(e.Slot) {
			continue
		}
		if t.events >= toldEvents || t.bytes >= toldBytes {
			t.chains, t.closed, t.events, t.bytes = map[[2]int]map[uint64]toldEvent{}, map[txn.Gid][]byte{}, 0, 0
		}
		t.add(e)
	}
}

func (t *told) add(e *record.Event) {
	at := [2]int{e.Origin(), e.Slot}
	one := toldEvent{seq: e.Head.Seq, gid: e.Gid, finish: e.Kind == record.KindFinish}
	switch {
	case one.finish:
		one.closed, one.progress = t.closed[e.Gid], e.Body
		delete(t.closed, e.Gid)
		t.bytes += len(e.Body)
	case e.Kind == record.KindDecision:
		t.bytes += len(e.Body) - len(t.closed[e.Gid])
		t.closed[e.Gid] = e.Body
	}
	if t.chains[at] == nil {
		t.chains[at] = map[uint64]toldEvent{}
	}
	if _, ok := t.chains[at][one.seq]; !ok {
		t.chains[at][one.seq] = one
		t.events++
	}
}

// after takes the events that follow a number without a gap; none when they are to be read.
func (t *told) after(at [2]int, seq uint64) (out []toldEvent) {
	t.mu.Lock()
	defer t.mu.Unlock()
	chain := t.chains[at]
	for {
		e, ok := chain[seq+1]
		if !ok {
			break
		}
		out = append(out, e)
		seq++
	}
	t.forget(at, seq)
	return out
}

// drop drops the events up to a number: they were read.
func (t *told) drop(at [2]int, seq uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forget(at, seq)
}

// forget is drop with t.mu held.
func (t *told) forget(at [2]int, seq uint64) {
	chain := t.chains[at]
	for n, e := range chain {
		if n <= seq {
			delete(chain, n)
			t.events--
			t.bytes -= len(e.closed) + len(e.progress)
		}
	}
	if len(chain) == 0 {
		delete(t.chains, at)
	}
}

// next gives the events that follow a number without a gap, as they were told, or else from the journal.
func (a *Applier) next(ctx context.Context, at [2]int, after uint64) ([]toldEvent, error) {
	if list := a.told.after(at, after); len(list) > 0 {
		return list, nil
	}
	events, err := a.cfg.Journal.EventsAfter(ctx, at[0], at[1], after, windowEvents)
	list := make([]toldEvent, len(events))
	for i, e := range events {
		list[i] = toldEvent{seq: e.Head.Seq, gid: e.Gid, finish: e.Kind == record.KindFinish}
	}
	return list, err
}
