package workload

import (
	"context"
	"slices"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/history"
)

// Operation is one operation of a load: as it was drawn and made, or as it is to be made again.
type Operation struct {
	// At is when it began, from the load's beginning.
	At     time.Duration `json:"at"`
	Lane   int           `json:"lane"`
	Kind   history.Kind  `json:"kind"`
	Gid    string        `json:"gid"` // of a read: what it asked for
	From   string        `json:"from,omitempty"`
	To     string        `json:"to,omitempty"`
	Amount int64         `json:"amount,omitempty"`
	Via    uint32        `json:"via"` // which of its region's coordinators is asked

	think time.Duration
}

// Made are the operations so far, in the order in which they began.
func (l *Load) Made() []Operation {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := slices.Clone(l.made)
	slices.SortStableFunc(out, func(a, b Operation) int { return int(a.At - b.At) })
	return out
}

// Began is when the load began, on the history's clock.
func (l *Load) Began() int64 { return l.began }

// Wait waits until all operations of a load that is made again have been made.
func (l *Load) Wait() { l.wg.Wait() }

// again makes the lane's operations of before, each at its time, or as soon after it as the one before has ended.
func (s *lane) again(ctx context.Context) {
	for _, p := range s.o.Made {
		if p.Lane != s.n {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(p.At - time.Duration(s.log.Now()-s.began)):
		}
		s.perform(&p)
	}
}
