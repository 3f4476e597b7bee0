package engine

import (
	"context"
	"errors"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// ErrNotYet: what was asked for is on its way.
var ErrNotYet = errors.New("it has not arrived yet")

// ErrOutdated: the slot is at another epoch, or decisions of it were removed since it was taken.
var ErrOutdated = errors.New("the slot was changed since it was taken")

// ErrDiverged: the lost region and the new owner say different things of a transaction, or one says nothing.
var ErrDiverged = errors.New("the lost region and the owner of the slot differ")

// GlobalDecision is a decision for the arbiter. Body is the closed part of the record, with the decision in it.
type GlobalDecision struct {
	Slot       int
	Gid        txn.Gid
	Epoch      uint64
	Generation int64
	Body       []byte
}

// Move is a slot that leaves this region or comes to it.
type Move struct {
	Slot  int
	Owner slot.Owner
}

// Regions is what a Runner knows of the other regions and asks of them (ADR 8). Safe for concurrent use.
type Regions interface {
	// Self is the name of this region, Index its index.
	Self() string
	Index() int
	// Owners is the latest known ownership, nil before the first; it may be old. The map is read-only.
	Owners() *slot.Map
	// Changed gives a channel that is closed when Owners has changed.
	Changed() <-chan struct{}
	// Forward hands a request to a coordinator of another region, which does not hand it on over a border. Errors as
	// Forwarder's.
	Forward(ctx context.Context, region string, req Request) (Reply, error)
	// Release makes this region's participants give up the accounts of slots that are draining. nil: all of them have, and
	// refuse the epoch of before from now on. It may be repeated.
	Release(ctx context.Context, moves []Move) error
	// Adopt makes this region's participants take the accounts of slots that this region owns, wherever they were released.
	// nil: all of them have. It may be repeated.
	Adopt(ctx context.Context, moves []Move) error
	// Arbiter is nil while the arbiter answers, and else why not.
	Arbiter() error
	// Generations gives, by slot, the number that every removal of global decisions changes; slots without one are left out.
	Generations(ctx context.Context) (map[int]int64, error)
	// Decide writes a global decision if none stands, and gives the one that stands. ErrOutdated: nothing was written, and
	// the slot must be taken again. Any other error: nobody knows, and the same call settles it.
	Decide(ctx context.Context, d GlobalDecision) ([]byte, error)
	// Remove takes decisions away whose transactions have ended and are in every region's journal, and gives the slot's new
	// generation. On an error the slot must be taken again.
	Remove(ctx context.Context, n int, epoch uint64, generation int64, gids []txn.Gid) (int64, error)
	// Seal tells the arbiter that the owner's epoch has ended. Nothing happens where it says so already.
	Seal(ctx context.Context, m Move, seal *slot.Seal) error
	// Undo gives a slot back to this region whose move took too long.
	Undo(ctx context.Context, m Move) error
	// Arrivals gives what came with slots under the seals of their owners, in the order of the moves. All are asked for at
	// once: the arbiter may be far away.
	Arrivals(ctx context.Context, moves []Move) ([]Arrival, error)
	// Lost gives the last seal under which a slot was taken from this region by force, as far as is known; nil where there was
	// none.
	Lost(n int) *slot.Seal
	// Cut makes copies of the accounts here of a slot that was taken from this region, brings what the store has of it into
	// the own journal, takes all that is past the seal out of it again, and gives that: the decisions and finishes that do
	// not count. It may be repeated, and gives the same: nothing gets into a journal that was cut.
	Cut(ctx context.Context, m Move, seal *slot.Seal, rows []Row, events []record.Event) ([]record.Event, error)
	// Returned hands the slot's owner a transaction as this region left it when it was lost. ErrDiverged: it was not taken
	// over, and an operator has to settle it.
	Returned(ctx context.Context, m Move, tx *record.Tx) error
	// Settled tells the arbiter that nothing of the slot's lost epoch is left to be worked off.
	Settled(ctx context.Context, m Move) error
}

// Arrival is what came with a slot under a seal.
type Arrival struct {
	// Live are the live records that came with a seal of another region. Under a forced seal they are those that are decided
	// and not finished, and those that are in doubt.
	Live [][]byte
	// Own is the end of this region's own last epoch of the slot before: where its chain goes on. Zero where there was none.
	Own record.Head
	// Err is ErrNotYet until this region's journal has reached the seal; then nothing else counts.
	Err error
}

// owner is what is known of a slot's owner; without regions everything is ours at the epoch that stands.
func (r *Runner) owner(n int) (o slot.Owner, known bool) {
	if r.regions == nil {
		return slot.Owner{Status: slot.Active}, true
	}
	m := r.regions.Owners()
	if m == nil {
		return slot.Owner{}, false
	}
	return m[n], m[n].Epoch != 0
}

// ours says that this region owns the slot, as far as is known.
func (r *Runner) ours(n int) bool {
	o, known := r.owner(n)
	return known && (r.regions == nil || o.Region == r.regions.Self())
}

// epochOf is the epoch at which a slot is to be taken; 0 as it stands.
func (r *Runner) epochOf(n int) uint64 {
	o, _ := r.owner(n)
	return uint64(o.Epoch)
}

// cameFrom says that the slot came from another region under a seal: what it brought must be in the store before it is
// held, also where it is to leave again already.
func (r *Runner) cameFrom(o slot.Owner) bool {
	return r.regions != nil && o.Seal != nil && o.Seal.Epoch != o.Epoch && o.Seal.Epoch.Region() != r.regions.Index()
}

// Owns says whether this region owns the slot now, as far as is known: newGid gives ids of such slots.
func (r *Runner) Owns(n int) bool {
	o, known := r.owner(n)
	return known && r.ours(n) && o.Status == slot.Active
}

// lostPause is how long a try waits whose answer does not count any more.
const lostPause = 100 * time.Millisecond

// AfterLoss gives the result of a call as it counts, where owner is the latest known one of the account's slot. That a home holds
// something which was lost before its answer came is not an answer: whoever rebuilds holds may have been told without
// it (ADR 9). The try is made again, at the new home.
func AfterLoss(res CallResult, owner slot.Owner) CallResult {
	c := res.Call
	if res.Outcome != txn.Done || c.Op != txn.OpTry || c.Mode != txn.ModeTCC || c.AccountEpoch == 0 || !owner.Forced() || uint64(owner.Epoch) <= c.AccountEpoch {
		return res
	}
	res.Outcome, res.RetryAfter, res.Text = txn.Deferred, lostPause, "the account's home was lost before its answer came"
	return res
}
