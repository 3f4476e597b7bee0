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
// where something did not answer, and for as long as what is in it is on its way (Reconciler.StaleAfter at most, after which
// that is a finding itself).
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
			if rest, err = w.look(ctx, &at, to); err != nil {
				return err
			}
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

// look looks at one window and says how long to rest.
func (w *Watch) look(ctx context.Context, at *Checkpoint, to int64) (time.Duration, error) {
	from, begun, used := at.To, time.Now(), cpuTime()
	rep, err := w.Rec.Detect(ctx, from, to)
	if err != nil {
		rep.skip("%v", err)
	}
	if rep.Findings, err = Save(ctx, w.Arbiter, rep.Findings, time.Now()); err != nil {
		return 0, err
	}
	done := len(rep.Skipped) == 0 && (rep.Open == 0 || w.Rec.StaleAfter > 0 && time.Now().UnixMilli()-to > w.Rec.StaleAfter.Milliseconds())
	if done {
		// The findings are written before: one that is killed in between looks once more, and finds the same.
		at.To, at.At, at.Looks = to, time.Now().UnixMilli(), at.Looks+1
		if err := at.put(ctx, w.Arbiter); err != nil {
			return 0, err
		}
	}
	rest := w.rest(max(time.Since(begun), cpuTime()-used))
	if !done {
		rest = max(rest, idle)
	}
	if w.Looked != nil {
		w.Looked(rep, from, to, rest)
	}
	return rest, nil
}

// rest is how long to rest after so much work.
func (w *Watch) rest(busy time.Duration) time.Duration {
	return time.Duration(float64(busy) * (1 - w.Share) / w.Share)
}
