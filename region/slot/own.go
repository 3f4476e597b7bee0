package slot

import (
	"encoding/hex"
	"fmt"
	"slices"
	"time"
)

// Epoch is the number that grows with every change of a slot's owner. Its last two digits are the owner's region index.
type Epoch uint64

// FirstEpoch is the epoch of a slot without an arbiter.
const FirstEpoch Epoch = 1

// RegionsMax bounds the regions of a deployment; their indexes are 1 to RegionsMax.
const RegionsMax = 99

// Region is the index of the region that the epoch belongs to.
func (e Epoch) Region() int { return int(e % 100) }

// Next is the first epoch above e that belongs to the region with the index given (1 to RegionsMax).
func (e Epoch) Next(region int) Epoch { return e - e%100 + 100 + Epoch(region) }

// Released is the epoch to which participants go when they release the slot's accounts: above e, below every Next of it.
func (e Epoch) Released() Epoch { return e - e%100 + 100 }

// Initial is the epoch of a slot that the arbiter gives to its first owner.
func Initial(region int) Epoch { return Epoch(0).Next(region) }

// Status is how a slot stands between regions. The texts are stored in the arbiter.
type Status string

const (
	// Active: the owner begins, decides and drives.
	Active Status = "active"
	// Draining: the owner finishes what is under way and begins nothing; To is to be the next owner.
	Draining Status = "draining"
	// Sealed: the owner has written the last event of the epoch; Seal says which.
	Sealed Status = "sealed"
	// Taken: the slot was taken from Lost's region by force, and is not served yet; Seal, once it is there, says where Lost
	// ends (ADR 9).
	Taken Status = "taken"
)

// Seal is the last event of an epoch of a slot. Chain is the event's, in lower-case hexadecimal.
type Seal struct {
	Epoch Epoch  `json:"epoch"`
	Seq   uint64 `json:"seq"`
	Chain string `json:"chain"`
	// Forced: the owner did not write it; the event may be of any kind, and Seq 0 where there was none. What the owner
	// numbered above it does not count (ADR 9).
	Forced bool `json:"forced,omitempty"`
}

// Reached says that a journal whose last event of the seal's origin has the number seq has everything up to the seal.
func (s *Seal) Reached(seq uint64) bool { return s == nil || seq >= s.Seq }

// Overtaken says that a seal among the slot's is nowhere to be reached: its owner wrote it, the move was undone, and then the
// region was lost and its chain ended below it. The forced seal stands for it.
func Overtaken(seals []Seal, s Seal) bool {
	return slices.ContainsFunc(seals, func(f Seal) bool {
		return f.Forced && f.Epoch > s.Epoch && f.Epoch.Region() == s.Epoch.Region() && f.Seq < s.Seq
	})
}

// SealOf makes a seal.
func SealOf(e Epoch, seq uint64, chain []byte) *Seal {
	return &Seal{Epoch: e, Seq: seq, Chain: hex.EncodeToString(chain)}
}

// Owner is what the arbiter says of one slot. The zero Owner says nothing: the slot was never given out.
type Owner struct {
	Region string `json:"region"`
	Epoch  Epoch  `json:"epoch"`
	Status Status `json:"status"`
	// To is the region that the slot is to go to, DeadlineMillis (unix) when the move undoes itself, Op the operation that
	// moves it; all three empty in Active.
	To             string `json:"to,omitempty"`
	DeadlineMillis int64  `json:"deadline,omitempty"`
	Op             string `json:"op,omitempty"`
	// Lost is the epoch that the slot was taken from by force, until what the lost region has of it is worked off; else 0.
	// Risk is what accounts may spend meanwhile (ADR 9).
	Lost Epoch `json:"lost,omitempty"`
	Risk Risk  `json:"risk,omitzero"`
	// Seal: in Sealed the end of Epoch; in Active the end of the epoch before, nil for the first owner. Its epoch's region
	// is where the slot came from.
	Seal *Seal `json:"seal,omitempty"`
}

// Policy is what the accounts of a slot may spend whose region was lost. The texts are on the wire of participants.
type Policy string

const (
	Block Policy = "block" // nothing
	Limit Policy = "limit" // up to Risk.Cap per account
	Allow Policy = "allow" // what their own limits say
)

// Risk is a policy with its cap, in minor units per account.
type Risk struct {
	Policy Policy `json:"policy"`
	Cap    int64  `json:"cap,omitempty"`
}

// Equal says that two owners say the same.
func (o Owner) Equal(p Owner) bool {
	if (o.Seal == nil) != (p.Seal == nil) || o.Seal != nil && *o.Seal != *p.Seal {
		return false
	}
	o.Seal, p.Seal = nil, nil
	return o == p
}

// Map is what is known of all slots. It may be old: it prompts, the compares prove.
type Map [Count]Owner

// Drain is the owner's slot on its way to another region. Error when it is not active.
func (o Owner) Drain(to, op string, deadline time.Time) (Owner, error) {
	if o.Status != Active {
		return o, fmt.Errorf("it is %s, not active", o.Status)
	}
	if o.Region == to {
		return o, fmt.Errorf("%s owns it already", to)
	}
	if o.Lost != 0 {
		return o, fmt.Errorf("it was taken by force, and what the lost region has of it is not worked off yet")
	}
	o.Status, o.To, o.Op, o.DeadlineMillis = Draining, to, op, deadline.UnixMilli()
	return o, nil
}

// Close is a draining slot whose owner has written its last event. Error when it is not draining or the seal is of
// another epoch.
func (o Owner) Close(seal *Seal) (Owner, error) {
	if o.Status != Draining {
		return o, fmt.Errorf("it is %s, not draining", o.Status)
	}
	if seal == nil || seal.Epoch != o.Epoch {
		return o, fmt.Errorf("the seal is not of epoch %d", o.Epoch)
	}
	o.Status, o.Seal = Sealed, seal
	return o, nil
}

// Give is a sealed slot in its next owner's hands; index is the region's. Error when it is not sealed.
func (o Owner) Give(index int) (Owner, error) {
	if o.Status != Sealed {
		return o, fmt.Errorf("it is %s, not sealed", o.Status)
	}
	return Owner{Region: o.To, Epoch: o.Epoch.Next(index), Status: Active, Seal: o.Seal}, nil
}

// Take is a slot in another region's hands by force, whatever its state; index is the region's. Error when it has it.
func (o Owner) Take(to, op string, index int, risk Risk) (Owner, error) {
	if o.Region == to {
		return o, fmt.Errorf("%s owns it already", to)
	}
	lost := o.Epoch
	if o.Status == Taken {
		lost = o.Lost // who took it has begun nothing
	}
	t := Owner{Region: to, Epoch: o.Epoch.Next(index), Status: Taken, Op: op, Lost: lost, Risk: risk}
	if o.Status == Taken && o.Seal != nil && o.Seal.Epoch == lost {
		t.Seal = o.Seal // who took it before had found it. One that its owner had written may be nowhere to be reached
	}
	return t, nil
}

// Retake is a taken slot whose operation has ended before it was served, for another operation of the same region; index is the
// region's. Error when it is not taken, or op has it already.
func (o Owner) Retake(op string, index int, risk Risk) (Owner, error) {
	if o.Status != Taken || o.Op == op {
		return o, fmt.Errorf("it is %s by operation %q", o.Status, o.Op)
	}
	o.Epoch, o.Op, o.Risk = o.Epoch.Next(index), op, risk
	return o, nil
}

// Readopt is an active slot that came by plan from a region that is lost now, and whose accounts nobody can bring any more: as if it
// had been taken by force, at the end that its owner had written. index is the slot's region's. Error when it did not come so.
func (o Owner) Readopt(index int, risk Risk) (Owner, error) {
	if o.Status != Active || o.Lost != 0 || o.Seal == nil || o.Seal.Forced || o.Seal.Epoch.Region() == index {
		return o, fmt.Errorf("it did not come by plan from another region: %s, lost %d, seal %+v", o.Status, o.Lost, o.Seal)
	}
	seal := *o.Seal
	seal.Forced = true
	return Owner{Region: o.Region, Epoch: o.Epoch.Next(index), Status: Active, Lost: seal.Epoch, Risk: risk, Seal: &seal}, nil
}

// Bound says where the epoch ends that a taken slot was taken from. Error when it is not taken, or the seal is not of that epoch.
func (o Owner) Bound(seal *Seal) (Owner, error) {
	if o.Status != Taken {
		return o, fmt.Errorf("it is %s, not taken", o.Status)
	}
	if seal == nil || seal.Epoch != o.Lost {
		return o, fmt.Errorf("the seal is not of epoch %d", o.Lost)
	}
	o.Seal = seal
	return o, nil
}

// Serve is a taken slot whose owner has everything up to the seal. Error when it has no seal.
func (o Owner) Serve() (Owner, error) {
	if o.Status != Taken || o.Seal == nil {
		return o, fmt.Errorf("it is %s, seal %v", o.Status, o.Seal)
	}
	o.Status, o.Op = Active, ""
	return o, nil
}

// Settled is a slot of whose lost epoch everything is worked off. Error when it is not active.
func (o Owner) Settled() (Owner, error) {
	if o.Status != Active {
		return o, fmt.Errorf("it is %s, not active", o.Status)
	}
	o.Lost = 0 // Risk stays until nothing of the lost region is left anywhere: accounts are touched from slots of all kinds
	return o, nil
}

// Forced says that the slot's accounts and transactions came without a release: it was taken by force, and has not moved
// since.
func (o Owner) Forced() bool {
	return o.Lost != 0 || o.Seal != nil && o.Seal.Forced && o.Seal.Epoch != o.Epoch
}

// Undo gives a slot that is draining or sealed back to its owner, at a higher epoch. Error when it is active.
func (o Owner) Undo() (Owner, error) {
	if o.Status != Draining && o.Status != Sealed {
		return o, fmt.Errorf("it is %s", o.Status)
	}
	back := Owner{Region: o.Region, Epoch: o.Epoch.Next(o.Epoch.Region()), Status: Active, Seal: o.Seal}
	return back, nil
}
