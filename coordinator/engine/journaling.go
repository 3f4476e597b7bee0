package engine

import (
	"context"
	"sync"
	"time"

	"github.com/bits-and-blooms/bloom/v3"

	"github.com/lockstep-tx/lockstep/coordinator/mutant"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// rowQueue holds rows on their way to the journal, one per transaction: a finish takes the place of its decision.
type rowQueue struct {
	mu     sync.Mutex
	order  []txn.Gid
	rows   map[txn.Gid]Row
	since  map[txn.Gid]time.Time
	signal chan struct{}
	now    bool // flush without waiting for company
}

func newRowQueue() *rowQueue {
	return &rowQueue{rows: map[txn.Gid]Row{}, since: map[txn.Gid]time.Time{}, signal: make(chan struct{}, 1)}
}

func (q *rowQueue) put(rows []Row) {
	now := time.Now()
	q.mu.Lock()
	for _, row := range rows {
		if _, ok := q.rows[row.Gid]; !ok {
			q.order = append(q.order, row.Gid)
			q.since[row.Gid] = now
		}
		q.rows[row.Gid] = row
	}
	q.mu.Unlock()
	q.wake()
}

func (q *rowQueue) wake() {
	select {
	case q.signal <- struct{}{}:
	default:
	}
}

func (q *rowQueue) flushNow() {
	q.mu.Lock()
	q.now = true
	q.mu.Unlock()
	q.wake()
}

func (q *rowQueue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.order)
}

// take gives the rows whose turn it is: all when the oldest has waited long enough, at most limit. wait is how long
// to sleep when there is nothing yet.
func (q *rowQueue) take(delay time.Duration, limit int) (rows []Row, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.order) == 0 {
		return nil, time.Hour
	}
	if age := time.Since(q.since[q.order[0]]); age < delay && len(q.order) < limit && !q.now {
		return nil, delay - age
	}
	n := min(limit, len(q.order))
	for _, gid := range q.order[:n] {
		rows = append(rows, q.rows[gid])
		delete(q.rows, gid)
		delete(q.since, gid)
	}
	q.order = append(q.order[:0:0], q.order[n:]...)
	return rows, 0
}

// putBack returns rows that could not be written; what came since wins.
func (q *rowQueue) putBack(rows []Row) {
	q.mu.Lock()
	defer q.mu.Unlock()
	order := make([]txn.Gid, 0, len(rows)+len(q.order))
	for _, row := range rows {
		if _, ok := q.rows[row.Gid]; !ok {
			q.rows[row.Gid] = row
			q.since[row.Gid] = time.Now().Add(-time.Hour)
			order = append(order, row.Gid)
		}
	}
	q.order = append(order, q.order...)
}

const journalBatchRows = 1000

// journalLoop takes rows to the journal in batches. A record leaves the store only after the journal has it.
func (r *Runner) journalLoop(ctx context.Context) {
	for ctx.Err() == nil {
		rows, wait := r.rows.take(r.cfg.JournalDelay, journalBatchRows)
		if rows == nil {
			select {
			case <-r.rows.signal:
			case <-time.After(wait):
			case <-ctx.Done():
			}
			if wait == time.Hour {
				// The first row of a batch: give it company.
				select {
				case <-time.After(r.cfg.JournalDelay / 4):
				case <-ctx.Done():
				}
			}
			continue
		}
		if mutant.On(mutant.EventOnlyInMemory) {
			r.journaled(rows)
			time.Sleep(mutant.JournalDelay)
		}
		start := time.Now()
		actx, cancel := context.WithTimeout(ctx, 30*time.Second)
		err := r.journal.Append(actx, rows)
		cancel()
		r.cfg.Observer.Journaled(len(rows), time.Since(start), err)
		if err != nil {
			r.rows.putBack(rows)
			r.cfg.Log.Error("the journal takes no rows: finished transactions stay in the store", "rows", len(rows), "err", err)
			select {
			case <-time.After(500 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		r.journaled(rows)
	}
}

// journaled tells the core whose finish the journal has.
func (r *Runner) journaled(rows []Row) {
	var finished []txn.Gid
	for _, row := range rows {
		if row.Finish.Seq != 0 {
			r.known.Add(row.Gid)
			finished = append(finished, row.Gid)
		}
	}
	if len(finished) > 0 {
		r.inbox.put(do(func(c *Core, at int64) { c.Journaled(at, finished) }))
	}
}

// Known is a filter of the gids that the journal has: false is certain. A slot's answers are certain only once the
// journal was read after the slot was taken: until then everything in it may be known. Safe for concurrent use.
type Known struct {
	mu    sync.RWMutex
	built [slot.Count]bool
	gen   [slot.Count]uint64
	set   *bloom.BloomFilter
}

// knownGids sizes the filter: at this many gids about 1 % of the unknown ones cost a look into the journal.
const knownGids = 20_000_000

// NewKnown makes an empty filter that is built for no slot.
func NewKnown() *Known { return newKnown(knownGids) }

func newKnown(gids uint) *Known { return &Known{set: bloom.NewWithEstimates(gids, 0.01)} }

// Add makes a gid known.
func (k *Known) Add(gid txn.Gid) {
	k.mu.Lock()
	k.set.AddString(string(gid))
	k.mu.Unlock()
}

// MaybeKnown is false only for gids that the journal certainly does not have.
func (k *Known) MaybeKnown(gid txn.Gid) bool {
	n := slot.Of(string(gid))
	k.mu.RLock()
	defer k.mu.RUnlock()
	return !k.built[n] || k.set.TestString(string(gid))
}

// Added says that the gid may have been added.
func (k *Known) Added(gid txn.Gid) bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.set.TestString(string(gid))
}

// Forget says that slot n was taken just now: others may have written to the journal before.
func (k *Known) Forget(n int) {
	k.mu.Lock()
	k.built[n] = false
	k.gen[n]++
	k.mu.Unlock()
}

// Build reads the journal. Slots that were forgotten before it began and not since are certain when it returns nil.
func (k *Known) Build(ctx context.Context, j Journal) error {
	k.mu.RLock()
	gen := k.gen
	k.mu.RUnlock()
	if err := j.Gids(ctx, func(gid txn.Gid) { k.Add(gid) }); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for n := range k.built {
		if k.gen[n] == gen[n] && gen[n] > 0 {
			k.built[n] = true
		}
	}
	return nil
}

// buildKnown reads the journal's gids in the background. While that goes on, unknown gids are looked up one by one.
func (r *Runner) buildKnown(ctx context.Context) {
	if !r.building.CompareAndSwap(false, true) {
		r.buildAgain.Store(true)
		return
	}
	go func() {
		for {
			r.buildAgain.Store(false)
			start := time.Now()
			if err := r.known.Build(ctx, r.journal); err != nil && ctx.Err() == nil {
				r.cfg.Log.Warn("the journal's gids could not be read; unknown gids are looked up one by one", "err", err)
				select {
				case <-time.After(time.Second):
				case <-ctx.Done():
				}
				r.buildAgain.Store(true)
			} else if err == nil {
				r.cfg.Log.Debug("the journal's gids were read", "took", time.Since(start))
			}
			if ctx.Err() != nil {
				return
			}
			if !r.buildAgain.Load() {
				r.building.Store(false)
				if !r.buildAgain.Load() || !r.building.CompareAndSwap(false, true) {
					return
				}
			}
		}
	}()
}
