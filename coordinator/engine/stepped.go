package engine

import (
	"context"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// This file is what a driver needs that steps a Core and a region's moves in one goroutine, as the simulator does: the same
// functions that a Runner calls from its own.

// Asked is a request that was put to a Core.
type Asked struct{ p *pending }

// Ask is Apply for a driver without a Runner.
func (c *Core) Ask(at int64, req Request) *Asked {
	a := &Asked{&pending{req: req, done: make(chan answer, 1)}}
	c.Apply(at, a.p)
	return a
}

// Answer gives the answer once it is there; it never blocks. The error is the request's.
func (a *Asked) Answer() (rep Reply, answered bool, err error) {
	select {
	case got := <-a.p.done:
		return got.reply, true, got.err
	default:
		return Reply{}, false, nil
	}
}

// Gid is what a lookup asks for.
func (p *pending) Gid() txn.Gid { return p.req.Gid }

// NewKnownOf makes a filter for about so many gids: NewKnown's size is a server's.
func NewKnownOf(gids uint) *Known { return newKnown(gids) }

// Mover does, one after the other and with nothing else under way, what a Runner does for slots that leave, arrive, or were
// lost. It drives no Core: what it reads is to be held, what it seals is to be still.
type Mover struct{ r *Runner }

// NewMover makes a Mover over one region's store. regions is asked only by HandBack.
func NewMover(self string, store Store, regions Regions) *Mover {
	cfg := Config{Self: Member{ID: self}, Regions: regions}.withDefaults()
	return &Mover{&Runner{cfg: cfg, store: store, regions: regions, lifetime: context.Background()}}
}

// Seal gives the batches that carry what is live in a slot that is still, and close its epoch, in their order.
func (m *Mover) Seal(c *Core, n int) ([]*Batch, error) {
	cl, live, err := c.Leaving(n)
	if err != nil {
		return nil, err
	}
	return sealBatches(cl, live), nil
}

// Closed reads what a closed slot holds: rows and events for the journal, and its last event.
func (m *Mover) Closed(ctx context.Context, mv Move) (rows []Row, events []record.Event, head record.Head, err error) {
	in, err := m.r.closedSlot(ctx, mv)
	return in.rows, in.events, in.head, err
}

// Import brings what came with a slot into the store, in place of what the store has of it. It gives the claim and the records
// to be held. Killed at any point it is repeated from the start.
func (m *Mover) Import(ctx context.Context, cl Claim, owner slot.Owner, came *Arrival) (Claim, []*record.Tx, error) {
	in := &imported{cl: cl, owner: owner, came: came}
	if err := m.r.importSlot(ctx, in); err != nil {
		return cl, nil, err
	}
	if err := m.r.commitWithin(ctx, in.last); err != nil {
		return cl, nil, err
	}
	in.cl.Imported = uint64(owner.Seal.Epoch)
	return in.cl, in.txs, nil
}

// HandBack works off what this region has of a slot that was taken from it under the seal. ErrDiverged: not all of it is, and it
// is to be repeated.
func (m *Mover) HandBack(ctx context.Context, mv Move, seal *slot.Seal) error {
	return m.r.handBackOnce(ctx, mv, seal)
}
