package engine

import "github.com/lockstep-tx/lockstep/coordinator/txn"

// ApplyForTest is Apply for tests outside the package: done gives the answer once it is there.
func (c *Core) ApplyForTest(at int64, req Request) (done func() (Reply, error, bool)) {
	p := &pending{req: req, done: make(chan answer, 1)}
	c.Apply(at, p)
	return func() (Reply, error, bool) {
		select {
		case a := <-p.done:
			return a.reply, a.err, true
		default:
			return Reply{}, nil, false
		}
	}
}

// GidForTest is the gid that a lookup asks for.
func GidForTest(p *pending) txn.Gid { return p.req.Gid }

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
