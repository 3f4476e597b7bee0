package barrier

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Result of one member of a batch: as Do returns it.
type Result struct {
	Outcome Outcome
	Err     error
}

// ErrAlone is for a business function that must not share its transaction any longer, as one that was cut off and may
// still be writing: returned, wrapped, it has the batch rolled back and every member done by itself.
var ErrAlone = errors.New("the batch failed as a whole")

// Work is the business of a batch.
type Work struct {
	// One runs one member, by its index. It is as Do's business.
	One func(i int, tx *sql.Tx) error
	// Set says which members may run together in one call of All: those with the same number, from 0 up; -1 runs by itself.
	// nil is -1 for all.
	Set func(i int) int
	// All runs members of one set, or fails for all of them: then they run again one by one, and each gets its own answer.
	All func(set []int, tx *sql.Tx) error
}

// DoAll is DoWork where each member runs by itself.
func (b *Barrier) DoAll(ctx context.Context, within time.Duration, calls []*Call, business func(i int, tx *sql.Tx) error) []Result {
	return b.DoWork(ctx, within, calls, Work{One: business})
}

// DoWork runs many branch calls in one local transaction: all fences, then all barrier rows, then the business of the
// members that are new, under savepoints, so that a member that fails leaves nothing and the others stand. Where the
// transaction as a whole fails (the connection, a deadlock, the commit) every member is done again by itself: business may
// then run a second time for it, never after it was committed.
//
// within bounds each local transaction, of the batch and of a member by itself; 0 leaves it to ctx.
//
// The results are in the order of calls, each as Do gives it; what is durable is what it says. Calls for the same branch
// are done one after another. Source: DESIGN section 6; serves guarantee G5.
func (b *Barrier) DoWork(ctx context.Context, within time.Duration, calls []*Call, work Work) []Result {
	results := make([]Result, len(calls))
	var together, later []int
	type branchKey struct{ gid, branch string }
	taken := make(map[branchKey]bool, len(calls))
	for i, c := range calls {
		c.calls++
		if results[i].Err = b.admit(c); results[i].Err != nil {
			continue
		}
		if k := (branchKey{c.Gid, c.BranchID}); taken[k] {
			later = append(later, i)
		} else {
			taken[k] = true
			together = append(together, i)
		}
	}
	bounded := func() (context.Context, context.CancelFunc) {
		if within <= 0 {
			return ctx, func() {}
		}
		return context.WithTimeout(ctx, within)
	}
	if len(together) > 1 {
		// In one order, so that batches that overlap wait for each other in turn.
		slices.SortFunc(together, func(i, j int) int {
			return cmp.Or(strings.Compare(calls[i].Gid, calls[j].Gid), strings.Compare(calls[i].BranchID, calls[j].BranchID))
		})
		ctx, cancel := bounded()
		err := b.batch(ctx, calls, together, results, work)
		cancel()
		if err != nil {
			later = append(together, later...)
		}
	} else {
		later = append(together, later...)
	}
	for _, i := range later {
		calls[i].calls--
		ctx, cancel := bounded()
		results[i].Outcome, results[i].Err = b.Do(ctx, calls[i], func(tx *sql.Tx) error { return work.One(i, tx) })
		cancel()
	}
	return results
}

// batch does the calls at the indexes in together; an error means that nothing of it stands, or nobody knows.
func (b *Barrier) batch(ctx context.Context, calls []*Call, together []int, results []Result, work Work) error {
	tx, err := b.begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	own := make([]*Call, len(together))
	members := make([]member, len(together))
	for n, i := range together {
		own[n] = calls[i]
		members[n] = b.member(calls[i])
	}
	locks := b.locks(own...)
	f, err := b.dialect.enter(ctx, tx, locks, members)
	if err != nil {
		return err
	}
	var run []int
	for n, i := range together {
		r := &results[i]
		own[n].rule(f)
		r.Outcome, r.Err = b.judge(own[n], &members[n], f, &f.members[n])
		if r.Err == nil {
			if r.Outcome, err = b.mutate(ctx, tx, own[n], &members[n], &f.members[n], r.Outcome); err != nil {
				return err
			}
		}
		if r.Err == nil && r.Outcome == Done {
			run = append(run, i)
		}
	}
	w := &batchWork{b: b, tx: tx}
	if err := w.all(ctx, run, work, results); err != nil {
		return err
	}
	for n, i := range together {
		if results[i].Err != nil {
			results[i].Outcome = Unknown
			if err := b.forget(ctx, tx, &members[n], &f.members[n]); err != nil {
				return err
			}
		}
	}
	if err := b.touch(ctx, tx, f, own, func(n int) Outcome { return results[together[n]].Outcome }); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	b.saw(locks, f)
	return nil
}

// batchWork keeps the savepoint of a batch.
type batchWork struct {
	b    *Barrier
	tx   *sql.Tx
	open bool
}

// all runs the business of the members in run: sets first, then one by one what has no set or whose set failed.
func (w *batchWork) all(ctx context.Context, run []int, work Work, results []Result) error {
	sets := map[int][]int{}
	var order []int
	alone := run
	if work.Set != nil {
		alone = nil
		for _, i := range run {
			n := work.Set(i)
			if n < 0 {
				alone = append(alone, i)
				continue
			}
			if sets[n] == nil {
				order = append(order, n)
			}
			sets[n] = append(sets[n], i)
		}
	}
	for _, n := range order {
		if len(sets[n]) > 1 {
			failed, err := w.run(ctx, func() error { return work.All(sets[n], w.tx) })
			if err != nil {
				return err
			}
			if failed == nil {
				continue
			}
		}
		alone = append(alone, sets[n]...)
	}
	for _, i := range alone {
		var err error
		if results[i].Err, err = w.run(ctx, func() error { return work.One(i, w.tx) }); err != nil {
			return err
		}
	}
	if last := w.b.dialect.lastSavepoint(); w.open && last != "" {
		return w.b.dialect.savepoint(ctx, w.tx, last)
	}
	return nil
}

// run runs one member's or one set's business under a savepoint; failed is its own error, err the batch's.
func (w *batchWork) run(ctx context.Context, business func() error) (failed, err error) {
	next := "SAVEPOINT member"
	if w.open {
		next = "RELEASE SAVEPOINT member; SAVEPOINT member"
	}
	if err := w.b.dialect.savepoint(ctx, w.tx, next); err != nil {
		return nil, err
	}
	w.open = true
	failed = business()
	if failed == nil {
		return nil, nil
	}
	if errors.Is(failed, ErrAlone) || w.b.dialect.retryable(failed) {
		return nil, fmt.Errorf("%w: %w", ErrAlone, failed)
	}
	if err := w.b.dialect.savepoint(ctx, w.tx, "ROLLBACK TO SAVEPOINT member"); err != nil {
		return nil, err
	}
	return failed, nil
}

// forget takes back the rows that a member has written, where it came to nothing.
func (b *Barrier) forget(ctx context.Context, tx *sql.Tx, m *member, own *found) error {
	if own.first {
		if err := b.dialect.forget(ctx, tx, m.key, m.op); err != nil {
			return err
		}
	}
	if own.tombstone {
		return b.dialect.forget(ctx, tx, m.key, m.undone)
	}
	return nil
}
