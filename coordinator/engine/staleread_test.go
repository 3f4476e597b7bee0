package engine_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/clock"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/store/memstore"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// blind is a store whose changes nobody hears of after a while, and which may not answer.
type blind struct {
	engine.Store
	seen chan struct{} // closed: nothing is heard any more
	away chan struct{} // closed: it does not answer
}

func (b *blind) Watch(ctx context.Context) (<-chan engine.View, error) {
	in, err := b.Store.Watch(ctx)
	out := make(chan engine.View)
	go func() {
		defer close(out)
		for v := range in {
			select {
			case <-b.seen:
				continue
			default:
			}
			select {
			case out <- v:
			case <-ctx.Done():
			}
		}
	}()
	return out, err
}

func (b *blind) Commit(ctx context.Context, batch *engine.Batch) error {
	select {
	case <-b.away:
		<-ctx.Done()
		return context.Cause(ctx)
	default:
		return b.Store.Commit(ctx, batch)
	}
}

// TestWhoIsCutOffDoesNotSayThatNothingIsDecided: it held the slot, does not hear that another one took it, and by then the
// transaction may have been decided there.
func TestWhoIsCutOffDoesNotSayThatNothingIsDecided(t *testing.T) {
	ctx := t.Context()
	store := &blind{memstore.New(), make(chan struct{}), make(chan struct{})}
	calls := newFencing()
	r := engine.NewRunner(engine.Config{Self: engine.Member{ID: "a"}, JournalDelay: time.Millisecond, RouteTimeout: 200 * time.Millisecond}, store, memstore.NewJournal(), calls, nil, clock.New())
	rctx, cancel := context.WithCancel(context.Background())
	go func() { _ = r.Run(rctx) }()
	t.Cleanup(func() { cancel(); <-r.Done() })
	until(t, "it is ready", r.Ready)
	open, never := txn.Gid("{a}open"), txn.Gid("{a}never")
	if _, err := r.Do(ctx, engine.Request{Gid: open, Event: txn.Prepare{Spec: txn.Spec{Mode: txn.ModeTCC}}, Want: engine.WantAccepted}); err != nil {
		t.Fatal(err)
	}
	read := func(gid txn.Gid) (engine.Reply, error) {
		return r.Do(ctx, engine.Request{Gid: gid, Want: engine.WantAccepted})
	}
	for gid, phase := range map[txn.Gid]txn.Phase{open: txn.PhasePrepared, never: txn.PhaseNone} {
		if rep, err := read(gid); err != nil || rep.State.Phase != phase {
			t.Fatalf("%s before: %v, %v", gid, rep.State.Phase, err)
		}
	}
	close(store.seen)
	if _, err := store.Claim(ctx, "b", []int{slot.Of("a")}, nil); err != nil {
		t.Fatal(err)
	}
	for _, gid := range []txn.Gid{open, never} {
		if rep, err := read(gid); !errors.Is(err, engine.ErrUnavailable) {
			t.Errorf("%s, whose slot another one has: %v, %v", gid, rep.State.Phase, err)
		}
	}
	close(store.away)
	if rep, err := read(open); !errors.Is(err, engine.ErrUnavailable) {
		t.Errorf("the store does not answer: %v, %v", rep.State.Phase, err)
	}
}
