package barrier

import (
	"fmt"
	"slices"

	"github.com/lockstep-tx/lockstep/participants/mutant"
)

// admit refuses what no database needs to be asked about.
func (b *Barrier) admit(call *Call) error { return call.admit(b.options.AllowUnfenced) }

func (call *Call) admit(allowUnfenced bool) error {
	if err := call.validate(); err != nil {
		return err
	}
	if !call.Apply && !call.Fence.given() && coordinatorOnly(call.TransType, call.Op) && !allowUnfenced {
		return fmt.Errorf("%w: barrier %s: a %s comes from a coordinator and carries Lockstep-Slot and Lockstep-Epoch", ErrUnfenced, call, call.Op)
	}
	return nil
}

// Entry is what the barrier of another store needs to know of one barrier call.
type Entry struct {
	BarrierID string   // 01, 02 …: which of the handler's calls it is
	Undone    string   // the op whose row this one writes too, if it is not there; "" if none
	Rival     string   // the op whose row this op and its opposites take turns on; "" if none
	Opposites []string // the ops of which none may have been here
	Fences    []Fence  // what the call is checked against, its transaction's first; epoch 0 where it carries none
}

// Enter counts a barrier call on c, as Do does, and checks all that no database needs to be asked about. Errors:
// ErrInvalid, ErrUnfenced. It is for barriers of other stores, such as package redisbarrier.
func (c *Call) Enter(allowUnfenced bool) (Entry, error) {
	c.calls++
	if err := c.admit(allowUnfenced); err != nil {
		return Entry{}, err
	}
	return Entry{fmt.Sprintf("%02d", c.calls), undoes(c.Op), rivalOf(c.Op), opposites(c.Op), c.fences()}, nil
}

// fences are those that a call is checked against: of its transaction and, where it is another one, of its account.
func (c *Call) fences() []Fence {
	own := Fence{Slot: SlotOf(c.Gid), Epoch: c.Fence.Epoch}
	if (c.Apply || c.Named) && c.Account.Slot != own.Slot {
		return []Fence{own, {Slot: c.Account.Slot}}
	}
	if c.Account.given() && c.Account != own {
		return []Fence{own, c.Account}
	}
	return []Fence{own}
}

// locks are the fence rows that calls need, in the order of the slots: everybody locks in that order, so that no two
// transactions wait for each other.
func (b *Barrier) locks(calls ...*Call) []lock {
	var locks []lock
	for _, c := range calls {
		for _, f := range c.fences() {
			i, found := slices.BinarySearchFunc(locks, f.Slot, func(l lock, s int) int { return l.slot - s })
			if !found {
				locks = slices.Insert(locks, i, lock{slot: f.Slot})
			}
			locks[i].epoch = max(locks[i].epoch, f.Epoch)
		}
	}
	for i := range locks {
		// A row begins at epoch 1 and never falls: what is not above what was seen needs no raising.
		locks[i].exclusive = locks[i].epoch > max(1, b.seen[locks[i].slot].Load())
	}
	return locks
}

// saw remembers what a committed transaction found and raised.
func (b *Barrier) saw(locks []lock, f *facts) {
	for _, l := range locks {
		epoch := f.fences[l.slot].epoch
		if l.exclusive {
			epoch = max(epoch, l.epoch)
		}
		for {
			old := b.seen[l.slot].Load()
			if epoch <= old || b.seen[l.slot].CompareAndSwap(old, epoch) {
				break
			}
		}
	}
}

// member is the row that a call wants; call.calls has been counted.
func (b *Barrier) member(call *Call) member {
	m := member{
		key:       key{call.Gid, call.BranchID, fmt.Sprintf("%02d", call.calls)},
		transType: call.TransType, op: call.Op, reason: call.Op, undone: undoes(call.Op), rival: rivalOf(call.Op),
	}
	m.needRows = m.undone != "" || m.rival != ""
	return m
}

// judge says what a call is by what the database holds: enter has written its rows.
func (b *Barrier) judge(call *Call, m *member, f *facts, own *found) (Outcome, error) {
	if err := b.judgeFences(call, m, f, own); err != nil {
		return Unknown, err
	}
	if own.first && !m.needRows {
		return Done, nil
	}
	switch {
	case call.Op == OpMsg: // not first
		return Unknown, fmt.Errorf("%w: barrier %s: the message was prepared before or has been decided", ErrDuplicate, call)
	case m.undone != "":
		for _, op := range opposites(call.Op) {
			if _, ok := own.rows[op]; ok {
				return Unknown, fmt.Errorf("%w: barrier %s: %s of this branch has been here", ErrContradiction, call, op)
			}
		}
		if own.tombstone {
			return Empty, nil
		}
	case m.rival != "":
		for _, op := range opposites(call.Op) {
			if _, ok := own.rows[op]; ok {
				return Unknown, fmt.Errorf("%w: barrier %s: found the tombstone of a %s", ErrContradiction, call, op)
			}
		}
	case own.rows[call.Op] != call.Op: // a try or action whose row a cancel wrote
		if mutant.On(mutant.NoSuspensionCheck) {
			return Done, nil
		}
		return Unknown, fmt.Errorf("%w: barrier %s: too late, %s has been here", ErrRefused, call, own.rows[call.Op])
	}
	if own.first {
		return Done, nil
	}
	return Repeated, nil
}

// judgeFences compares the call's epochs with the fence rows as they were before this transaction.
func (b *Barrier) judgeFences(call *Call, m *member, f *facts, own *found) error {
	for i, fence := range call.fences() {
		row := f.fences[fence.Slot]
		switch {
		case call.Apply:
		case !fence.given() && row.copied && fence.Slot == call.account():
			return fmt.Errorf("%w: barrier %s: slot %d has its home elsewhere", ErrStale, call, fence.Slot)
		case fence.given() && fence.Epoch < row.epoch && !mutant.On(mutant.NoFencing):
			return fmt.Errorf("%w: barrier %s: slot %d is at epoch %d, the call has %d", ErrStale, call, fence.Slot, row.epoch, fence.Epoch)
		case row.copied && fence.Slot == call.account():
			return fmt.Errorf("%w: barrier %s: slot %d at epoch %d", ErrMoved, call, fence.Slot, row.epoch)
		case fence.Epoch > row.epoch && fence.Epoch <= max(1, b.seen[fence.Slot].Load()):
			// The row was set back, as by a restored backup: the lock that was asked for is not the one that raises it.
			b.seen[fence.Slot].Store(row.epoch)
			return fmt.Errorf("barrier %s: the fence row of slot %d went back to epoch %d; repeat the call", call, fence.Slot, row.epoch)
		}
		if i == 0 {
			if err := b.judgeFloor(call, m, own, row.floor); err != nil {
				return err
			}
		}
	}
	return nil
}

// judgeFloor refuses what is so old that its barrier rows may have been cleaned: nobody could tell a repeat from the
// first. Rows that are there decide themselves.
func (b *Barrier) judgeFloor(call *Call, m *member, own *found, floor int64) error {
	if b.options.GidTime == nil || floor == 0 {
		return nil
	}
	ms, ok := b.options.GidTime(call.Gid)
	if !ok || ms > floor {
		return nil
	}
	mine := 0
	if own.first {
		mine++
	}
	if own.tombstone {
		mine++
	}
	if len(own.rows) > mine || !own.first {
		return nil
	}
	if m.undone == "" && m.rival == "" {
		return fmt.Errorf("%w: barrier %s: older than the rows that are kept", ErrRefused, call)
	}
	return fmt.Errorf("barrier %s: older than the rows that are kept, and none is left; an operator must look", call)
}
