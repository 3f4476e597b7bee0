package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/region/arbiter"
)

// Watch looks for drift on and on, window after window, with a stated share of one core. How far it has looked is in the
// arbiter, so that whoever goes on begins there.
type Watch struct {
	Rec     *Reconciler
	Arbiter *arbiter.Arbiter
	// Renew gives, before each look, the reconciler with the regions, participants and owners as they are then; nil: Rec stays.
	Renew func(ctx context.Context) (*Reconciler, error)
	// Share of one core, above 0 and at most 1: after a look it rests until no more was used. What it uses is the time that
	// a look takes, or the CPU time of this process where that is more: the regions work for it while it waits.
	Share float64
	// Window is how much time of transactions one look has; Settle is how long what has finished is left alone.
	Window, Settle time.Duration
	// From is where it begins (unix ms) when nobody has looked before.
	From int64
	// Looked is called after each look; nil for nobody.
	Looked func(rep *Report, from, to int64, rest time.Duration)
}

// Checkpoint is how far everything was looked at.
type Checkpoint struct {
	To    int64  `json:"to"` // unix ms: what finished before it was judged
	At    int64  `json:"at"` // when that was
	Looks uint64 `json:"looks"`

	rev int64
}

const (
	watchTable = "drift-watch"
	watchKey   = "all"
	// idle is how long it rests at least where it could not go on.
	idle = time.Second
)

// LoadCheckpoint reads how far was looked; To is 0 where nobody has.
func LoadCheckpoint(ctx context.Context, a *arbiter.Arbiter) (Checkpoint, error) {
	var c Checkpoint
	row, err := a.Get(ctx, watchTable, watchKey)
	if err == nil && row.Rev != 0 {
		if err = json.Unmarshal(row.Value, &c); err != nil {
			err = fmt.Errorf("the checkpoint of drift: %w", err)
		}
	}
	c.rev = row.Rev
	return c, err
}

func (c *Checkpoint) put(ctx context.Context, a *arbiter.Arbiter) error {
	raw, err := json.Marshal(c)
	if err != nil {
		return err
	}
	rev, err := a.Put(ctx, watchTable, arbiter.Row{Key: watchKey, Value: raw, Rev: c.rev})
	if errors.Is(err, arbiter.ErrChanged) {
		return fmt.Errorf("somebody else looks for drift too: %w", err)
	}
	c.rev = rev
	return err
}

// Run looks until ctx ends, or looks times if that is positive. A window that was not wholly looked at is looked at again:
// where something did not answer, or what was found could not be written down, and for as long as what is in it is on its way
// (Reconciler.StaleAfter at most, after which that is a finding itself).
func (w *Watch) Run(ctx context.Context, looks int) error {
	if w.Share <= 0 || w.Share > 1 || w.Window <= 0 {
		return fmt.Errorf("a share of %v of one core and windows of %v: above 0, at most 1, and longer than nothing", w.Share, w.Window)
	}
	at, err := LoadCheckpoint(ctx, w.Arbiter)
	if err != nil {
		return err
	}
	if at.To == 0 {
		at.To = w.From
	}
	for n := 0; looks == 0 || n < looks; {
		from, to := at.To, min(at.To+w.Window.Milliseconds(), time.Now().Add(-w.Settle).UnixMilli())
		rest := idle
		if to > from {
			rest = w.look(ctx, &at, to)
			n++
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rest):
		}
	}
	return nil
}

// look looks at one window and says how long to rest. What fails is said in the report, and the window is looked at again: a
// watch that ended at the arbiter's first hiccup would be no watch.
func (w *Watch) look(ctx context.Context, at *Checkpoint, to int64) time.Duration {
	from, begun, used := at.To, time.Now(), cpuTime()
	rep := w.detect(ctx, from, to)
	done := len(rep.Skipped) == 0 && (rep.Open == 0 || w.Rec.StaleAfter > 0 && time.Now().UnixMilli()-to > w.Rec.StaleAfter.Milliseconds())
	if done {
		// The findings are written before: one that is killed in between looks once more, and finds the same.
		next := *at
		next.To, next.At, next.Looks = to, time.Now().UnixMilli(), at.Looks+1
		if err := next.put(ctx, w.Arbiter); err != nil {
			rep.skip("%v", err)
			done = false
			if next, err = LoadCheckpoint(ctx, w.Arbiter); err != nil { // where the other one is by now
				next = *at
			}
		}
		*at = next
	}
	rest := w.rest(max(time.Since(begun), cpuTime()-used))
	if !done {
		rest = max(rest, idle)
	}
	if w.Looked != nil && ctx.Err() == nil {
		w.Looked(rep, from, to, rest)
	}
	return rest
}

// detect looks at a window and writes down what it found, and what has ended by itself.
func (w *Watch) detect(ctx context.Context, from, to int64) *Report {
	if w.Renew != nil {
		rec, err := w.Renew(ctx)
		if err != nil {
			rep := &Report{}
			rep.skip("regions, participants and owners: %v", err)
			return rep
		}
		w.Rec = rec
	}
	rep, err := w.Rec.Detect(ctx, from, to)
	if err != nil {
		rep.skip("%v", err)
	}
	found, err := Save(ctx, w.Arbiter, rep.Findings, time.Now())
	if err != nil {
		rep.skip("what was found is not written down yet: %v", err)
		return rep
	}
	rep.Findings = found
	if _, err := w.Rec.Ended(ctx, w.Arbiter, time.Now()); err != nil {
		rep.skip("what may have ended by itself: %v", err)
	}
	return rep
}

// ResetCheckpoint has the next watch begin at a time (unix ms): what finished before it and was not looked at is not looked at.
func ResetCheckpoint(ctx context.Context, a *arbiter.Arbiter, to int64) error {
	at, err := LoadCheckpoint(ctx, a)
	if err != nil {
		return err
	}
	at.To, at.At = to, time.Now().UnixMilli()
	return at.put(ctx, a)
}

// rest is how long to rest after so much work.
func (w *Watch) rest(busy time.Duration) time.Duration {
	return time.Duration(float64(busy) * (1 - w.Share) / w.Share)
}
