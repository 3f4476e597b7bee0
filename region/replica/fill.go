package replica

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
)

// hedgeAfter is how long the origin is waited for before the other regions are asked too.
const hedgeAfter = 500 * time.Millisecond

// fill asks for the events of an origin's chain that follow a number: the origin, and if it says nothing for a while, does not
// have them, or has not been heard of lately, all other regions side by side. The first that has any is taken.
func (s *Service) fill(ctx context.Context, o *origin, n int, after uint64) ([]record.Event, error) {
	return s.fillFrom(ctx, o.peer.Index, o, n, after)
}

// fillFrom is fill of the chain of an index; first is asked first, nil: all other regions at once.
func (s *Service) fillFrom(ctx context.Context, index int, first *origin, n int, after uint64) ([]record.Event, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	q := url.Values{
		"origin": {strconv.Itoa(index)}, "slot": {strconv.Itoa(n)}, "after": {strconv.FormatUint(after, 10)}, "limit": {strconv.Itoa(fillEvents)},
	}
	path := "/v1/region/events?" + q.Encode()
	type said struct {
		events []record.Event
		err    error
	}
	answers := make(chan said, len(s.origins))
	ask := func(from *origin) {
		b, err := s.get(ctx, from, path)
		var a said
		if a.err = err; err == nil {
			a.events, a.err = decodeEvents(b)
		}
		if a.err == nil && len(a.events) == 0 {
			a.err = fmt.Errorf("the journal of region %s does not have event %d", from.peer.Name, after+1)
		}
		answers <- a
	}
	waiting, others := 0, false
	askOthers := func() {
		if others {
			return
		}
		others = true
		for _, other := range s.origins {
			if other != first {
				waiting++
				go ask(other)
			}
		}
	}
	patience := time.Duration(0)
	if first != nil {
		go ask(first)
		waiting, patience = 1, first.patience()
	} else {
		askOthers()
	}
	hedge := time.NewTimer(patience)
	defer hedge.Stop()
	var errs []error
	for waiting > 0 {
		select {
		case a := <-answers:
			waiting--
			if a.err == nil {
				return a.events, nil
			}
			errs = append(errs, a.err)
			askOthers()
		case <-hedge.C:
			askOthers()
		}
	}
	return nil, errors.Join(errs...)
}

// patience is how long a region is waited for before others are asked: not at all where it was not heard of lately.
func (o *origin) patience() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	if time.Since(o.heard) > quiet {
		return 0
	}
	return hedgeAfter
}
