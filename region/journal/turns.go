package journal

import (
	"cmp"
	"context"
	"database/sql"
	"slices"
	"sync"
	"time"
)

// turns shares SQL transactions between batches that come while one is being written: what a batch costs is mostly the
// transaction's end, and a partition's batch is small. Batches have slots of their own, so that they do not meet.
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
	turnTime    = time.Minute
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
	for {
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
		if n == 1 || !together(some) {
			for _, one := range some {
				one.done <- write(one.ctx, []*turn{one})
			}
		}
	}
}

// together writes several batches in one transaction; false: nothing was written, and each is to be written alone, so that
// one that cannot be written holds up no other.
func together(some []*turn) bool {
	// Two processes that lock the same watermarks do so in one order.
	slices.SortFunc(some, func(x, y *turn) int {
		return cmp.Or(cmp.Compare(x.w.b.Origin, y.w.b.Origin), cmp.Compare(x.w.b.Part, y.w.b.Part))
	})
	for i := range some[1:] {
		if x, y := some[i].w.b, some[i+1].w.b; x.Origin == y.Origin && x.Part == y.Part {
			return false // the second is to see what the first has written
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(some[0].ctx), turnTime)
	defer cancel()
	if write(ctx, some) != nil {
		return false
	}
	for _, one := range some {
		one.done <- nil
	}
	return true
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
