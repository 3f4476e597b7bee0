package replica

import (
	"context"

	"github.com/lockstep-tx/lockstep/region/eventlog"
)

// ahead reads a partition while what was read before is being applied: with a long way to the broker, reading and applying
// in turns would add up. One answer is on its way at most beside the one that is worked at.
type ahead struct {
	out  chan gave
	end  context.CancelFunc
	done chan struct{}
}

// gave is what one read gave.
type gave struct {
	chunk eventlog.Chunk
	err   error
}

// readAhead begins; the reader is its own from now on.
func readAhead(ctx context.Context, r *eventlog.Reader) *ahead {
	rctx, end := context.WithCancel(ctx)
	a := &ahead{out: make(chan gave), end: end, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		defer r.Close()
		for rctx.Err() == nil {
			c, err := r.Read(rctx)
			select {
			case a.out <- gave{c, err}:
			case <-rctx.Done():
			}
		}
	}()
	return a
}

// next gives the next answer, in the order of the reads; an error of ctx when that has ended.
func (a *ahead) next(ctx context.Context) (eventlog.Chunk, error) {
	select {
	case x := <-a.out:
		return x.chunk, x.err
	case <-ctx.Done():
		return eventlog.Chunk{}, context.Cause(ctx)
	}
}

// close ends the reading and waits for it.
func (a *ahead) close() {
	a.end()
	<-a.done
}
