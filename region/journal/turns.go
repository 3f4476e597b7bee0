package journal

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"slices"
	"sync"
	"time"
)

// turns shares SQL transactions between batches that come while one is being written: what a batch costs is mostly the
// transaction's end, and a partition's batch is small. Batches have slots of their own, so that they do not meet. One that
// cannot be written, as another process holds its watermarks, holds up the others for turnShared, and then no more.
type turns struct {
	mu      sync.Mutex
	waiting []*turn
	running bool
}

// turn is a batch that waits for a transaction.
type turn struct {
	ctx     context.Context
	w       *applying
	unknown map[int]bool
	done    chan error
}

const (
	turnsAtOnce = 16
	turnEvents  = 2000
	// turnEvery is the least time between the beginnings of two shared transactions that are not full: a transaction's end
	// costs as much as dozens of events in it. The first of a time waits for turnCompany: an origin's partitions are written
	// at one time, and come at one time but for some milliseconds.
	turnEvery   = 30 * time.Millisecond
	turnCompany = 6 * time.Millisecond
	// turnShared bounds what the others wait for, turnAlone the try of a batch that held them up.
	turnShared = 5 * time.Second
	turnAlone  = time.Minute
)

// take writes a batch, in company or alone. After ctx has ended it may be written all the same.
func (t *turns) take(ctx context.Context, w *applying, unknown map[int]bool) error {
	me := &turn{ctx: ctx, w: w, unknown: unknown, done: make(chan error, 1)}
	t.mu.Lock()
	t.waiting = append(t.waiting, me)
	if !t.running {
		t.running = true
		go t.run()
	}
	t.mu.Unlock()
	select {
	case err := <-me.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t *turns) run() {
	time.Sleep(turnCompany)
	for {
		began := time.Now()
		t.mu.Lock()
		if len(t.waiting) == 0 {
			t.running = false
			t.mu.Unlock()
			return
		}
		n, events := 0, 0
		for n < len(t.waiting) && n < turnsAtOnce && (n == 0 || events+len(t.waiting[n].w.b.Events) <= turnEvents) {
			events += len(t.waiting[n].w.b.Events)
			n++
		}
		some := slices.Clone(t.waiting[:n])
		t.waiting = slices.Delete(t.waiting, 0, n)
		t.mu.Unlock()
		if !together(some) {
			apart(some)
		}
		if n < turnsAtOnce && events < turnEvents {
			time.Sleep(turnEvery - time.Since(began))
		}
	}
}

// together writes several batches in one transaction, or a single one; false: each is to be written alone. Nothing was
// written, or the answer to the end of all was lost: a repeat finds them applied.
func together(some []*turn) bool {
	// Two processes that lock the same watermarks do so in one order.
	slices.SortStableFunc(some, func(x, y *turn) int {
		return cmp.Or(cmp.Compare(x.w.b.Origin, y.w.b.Origin), cmp.Compare(x.w.b.Part, y.w.b.Part))
	})
	for i := range some[1:] {
		if some[i].samePart(some[i+1]) {
			return false // the second is to see what the first has written
		}
	}
	parent := some[0].ctx
	if len(some) > 1 {
		parent = context.WithoutCancel(parent) // it is not the others' caller that has left
	}
	ctx, cancel := context.WithTimeout(parent, turnShared)
	defer cancel()
	err := write(ctx, some)
	if err != nil && (len(some) > 1 || errors.Is(ctx.Err(), context.DeadlineExceeded) && parent.Err() == nil) {
		return false
	}
	for _, one := range some {
		one.done <- err
	}
	return true
}

func (t *turn) samePart(o *turn) bool {
	return t.w.b.Origin == o.w.b.Origin && t.w.b.Part == o.w.b.Part
}

// apart writes each batch by itself, side by side but for those of one partition, and waits for none.
func apart(some []*turn) {
	for len(some) > 0 {
		n := 1
		for n < len(some) && some[n].samePart(some[0]) {
			n++
		}
		part := some[:n]
		some = some[n:]
		go func() {
			for _, one := range part {
				ctx, cancel := context.WithTimeout(one.ctx, turnAlone)
				one.done <- write(ctx, []*turn{one})
				cancel()
			}
		}()
	}
}

func write(ctx context.Context, some []*turn) error {
	j := some[0].w.a.j
	return j.retry(ctx, func(int) error {
		return j.inTx(ctx, func(tx *sql.Tx) error {
			for _, one := range some {
				one.w.reset(one.unknown)
				if err := one.w.run(ctx, tx); err != nil {
					return err
				}
			}
			return nil
		})
	})
}
