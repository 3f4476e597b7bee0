package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Do carries out a request: here when this process holds the slot, else at the holder, in one hop. It returns when
// what req.Want names is reached, an error refuses it, or ctx ends; in the last case the request may still take
// effect, and a repeat with the same gid is safe.
func (r *Runner) Do(ctx context.Context, req Request) (Reply, error) {
	n := slot.Of(string(req.Gid))
	deadline := time.Now().Add(r.cfg.RouteTimeout)
	for {
		if r.stopping.Load() {
			return Reply{}, ErrStopping
		}
		changed := r.changedChan()
		began := time.Now()
		rep, err := r.try(ctx, n, req)
		if !errors.Is(err, ErrNotHolder) {
			return rep, err
		}
		if req.Hops > 0 || (req.Border && !r.ours(n)) {
			return rep, err
		}
		req.Resent = true // whoever had it may have carried it out before the slot moved on
		if time.Since(began) > time.Second {
			deadline = time.Now().Add(r.cfg.RouteTimeout) // a holder had it until now: the search begins anew
		}
		left := time.Until(deadline)
		if left <= 0 {
			return Reply{}, fmt.Errorf("%w (slot %d)", ErrUnavailable, n)
		}
		r.wanted[n].Add(1)
		select {
		case <-changed:
		case <-r.movedChan():
		case <-time.After(min(left, 100*time.Millisecond)):
		case <-ctx.Done():
		}
		r.wanted[n].Add(-1)
		if ctx.Err() != nil {
			return Reply{}, context.Cause(ctx)
		}
	}
}

func (r *Runner) try(ctx context.Context, n int, req Request) (Reply, error) {
	if term := Term(r.held[n].Load()); term != 0 {
		rep, err := r.local(ctx, req)
		if err == nil && req.Event == nil && !rep.State.Phase.Decided() {
			// What is decided stays so, whoever asks. That nothing is decided only the holder knows, and one that was cut off does not
			// know that it is no more.
			err = r.stands(ctx, n, term)
		}
		return rep, err
	}
	if o, known := r.owner(n); r.regions != nil && known && !r.ours(n) {
		if req.Hops > 0 || req.Border {
			return Reply{}, ErrNotHolder
		}
		return r.abroad(ctx, n, o.Region, req)
	}
	view := r.view.Load()
	if req.Hops > 0 || view == nil || r.forward == nil || view.Holders[n] == "" || view.Holders[n] == r.cfg.Self.ID {
		return Reply{}, ErrNotHolder
	}
	for _, m := range view.Members {
		if m.ID == view.Holders[n] {
			req.Hops++
			if req.Patience > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, req.Patience, ErrWaitOver)
				defer cancel()
			}
			return r.ask(ctx, n, m, req)
		}
	}
	return Reply{}, ErrNotHolder
}

// abroad hands a request to the region that owns the slot, as long as it does.
func (r *Runner) abroad(ctx context.Context, n int, region string, req Request) (Reply, error) {
	req.Border = true
	if req.Patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, req.Patience, ErrWaitOver)
		defer cancel()
	}
	ctx, moved := context.WithCancelCause(ctx)
	defer moved(nil)
	go func() {
		for {
			changed := r.regions.Changed()
			if o, _ := r.owner(n); o.Region != region {
				moved(ErrNotHolder)
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	rep, err := r.regions.Forward(ctx, region, req)
	if err != nil && errors.Is(context.Cause(ctx), ErrNotHolder) {
		return Reply{}, ErrNotHolder
	}
	return rep, err
}

// ask forwards a request to the slot's holder m, as long as it is the holder: one that sleeps has the request for as long
// as its lease runs and no longer.
func (r *Runner) ask(ctx context.Context, n int, m Member, req Request) (Reply, error) {
	ctx, moved := context.WithCancelCause(ctx)
	defer moved(nil)
	go func() {
		for {
			changed := r.changedChan()
			if v := r.view.Load(); v != nil && v.Holders[n] != m.ID {
				moved(ErrNotHolder)
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	rep, err := r.forward.Forward(ctx, m, req)
	if err != nil && errors.Is(context.Cause(ctx), ErrNotHolder) {
		return Reply{}, ErrNotHolder
	}
	return rep, err
}

// standsLimit bounds the question whether a term stands.
const standsLimit = 2 * time.Second

// stands asks the store whether a slot's term is the one given: ErrNotHolder when it is not, ErrUnavailable when nobody knows.
func (r *Runner) stands(ctx context.Context, n int, term Term) error {
	ctx, cancel := context.WithTimeout(ctx, standsLimit)
	defer cancel()
	err := r.store.Commit(ctx, &Batch{Guards: []Guard{{Slot: n, Term: term}}}) // it compares, and writes nothing
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrFenced):
		return ErrNotHolder
	}
	return fmt.Errorf("%w: whether slot %d is still held here the store does not say: %w", ErrUnavailable, n, err)
}

func (r *Runner) local(ctx context.Context, req Request) (Reply, error) {
	p := &pending{req: req, done: make(chan answer, 1)}
	r.inbox.put(p)
	var over <-chan time.Time
	if req.Patience > 0 {
		// A pooled timer, not a context: it is on the way of every request.
		t := patience.Get().(*time.Timer)
		t.Reset(req.Patience)
		defer func() { t.Stop(); patience.Put(t) }()
		over = t.C
	}
	select {
	case a := <-p.done:
		return a.reply, a.err
	case <-over:
		return Reply{}, ErrWaitOver
	case <-ctx.Done():
		return Reply{}, context.Cause(ctx)
	}
}

var patience = sync.Pool{New: func() any {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}}

// Ask runs f on the goroutine that owns the core and waits for it. f must not block.
func (r *Runner) Ask(ctx context.Context, f func(c *Core, at int64)) error {
	done := make(chan struct{})
	r.inbox.put(do(func(c *Core, at int64) { f(c, at); close(done) }))
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-r.lifetime.Done():
		return ErrStopping
	}
}

// Ready says that every slot of the region is held by a live coordinator, as far as this process knows, and that its
// own are read.
func (r *Runner) Ready() bool { return r.ready.Load() && !r.stopping.Load() }

// Accepts says that begins are taken: at least one slot is this region's, active and held by a live coordinator, the store has
// room, and this process is not on its way out.
func (r *Runner) Accepts() bool {
	v := r.view.Load()
	if v == nil || !r.Ready() || r.shedding.Load() {
		return false
	}
	live := map[string]bool{}
	for _, m := range v.Members {
		live[m.ID] = true
	}
	for n := range slot.Count {
		if live[v.Holders[n]] && r.Owns(n) {
			return true
		}
	}
	return false
}

// Epochs gives the highest epoch of each slot at which this process has held it, or knows of; 0 where it knows of none.
func (r *Runner) Epochs() (out [slot.Count]slot.Epoch) {
	for n := range out {
		out[n] = slot.Epoch(r.heldEpoch[n].Load())
		if o, known := r.owner(n); known {
			out[n] = max(out[n], o.Epoch)
		}
	}
	return out
}

// View is the latest view of the region's coordinators; nil before the first.
func (r *Runner) View() *View { return r.view.Load() }

func (r *Runner) changedChan() chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// broadcast wakes the requests that look for a holder.
func (r *Runner) broadcast() {
	r.mu.Lock()
	close(r.changed)
	r.changed = make(chan struct{})
	r.mu.Unlock()
}

// setHeld notes that a slot is held under the term given; 0 that it is not.
func (r *Runner) setHeld(n int, term Term) {
	if (r.held[n].Swap(int64(term)) != 0) != (term != 0) {
		r.broadcast()
	}
}

func (r *Runner) holds(n int) bool { return r.held[n].Load() != 0 }

// DropAll answers everybody who waits with err and forgets everything.
func (c *Core) DropAll(err error) {
	for n, hs := range c.slots {
		if hs == nil {
			continue
		}
		waiting := append(c.empty(hs, nil, nil), hs.parked...)
		for _, p := range append(waiting, hs.settling...) {
			p.finish(answer{err: err})
		}
		c.slots[n] = nil
	}
}

// Record gives a stored transaction as it stands for every coordinator: the record in the store or the journal's. It
// serves looking at transactions that another coordinator holds.
func (r *Runner) Record(ctx context.Context, gid txn.Gid) (*record.Tx, error) {
	value, err := r.store.Get(ctx, gid)
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", string(gid), err)
	}
	if value != nil {
		return record.Decode(value)
	}
	return r.journal.Get(ctx, gid)
}
