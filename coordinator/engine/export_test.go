package engine

import (
	"context"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// ApplyForTest is Apply for tests outside the package: done gives the answer once it is there.
func (c *Core) ApplyForTest(at int64, req Request) (done func() (Reply, error, bool)) {
	a := c.Ask(at, req)
	return func() (Reply, error, bool) {
		rep, answered, err := a.Answer()
		return rep, err, answered
	}
}

// GidForTest is the gid that a lookup asks for.
func GidForTest(p *pending) txn.Gid { return p.Gid() }

// NewKnownForTest makes a filter for few gids, so that a simulation can afford many.
func NewKnownForTest(gids uint) *Known { return newKnown(gids) }

// UnsettledForTest is Written with Doubtful and without Settle: the rule that the simulation switches off.
func (c *Core) UnsettledForTest(w *Writing) {
	for i := range w.items {
		undo(&w.items[i])
	}
	for _, ws := range w.slots {
		ws.hs.busy = false
		c.queueSlot(ws.hs)
	}
}

// KnownForTest is the filter of a Runner.
func (r *Runner) KnownForTest() *Known { return r.known }

// ArriveForTest is what considering an older view does for a slot that has arrived meanwhile.
func (r *Runner) ArriveForTest(ctx context.Context, m Move) {
	r.working.begin(m.Slot)
	r.arrive(ctx, []Move{m})
}

// HeldForTest is the term that a slot is held under, 0 for none.
func (r *Runner) HeldForTest(n int) Term { return Term(r.held[n].Load()) }
