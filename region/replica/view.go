package replica

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/region/eventlog"
	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// origin is what is known of another region.
type origin struct {
	peer    Peer
	started time.Time

	mu    sync.Mutex
	slots [slot.Count]view
	heard time.Time // the last heartbeat or answer
	words words
	trust int               // which of AdminURLs answered last
	marks map[[2]int]uint64 // by origin and slot: how far its journal is
}

// view is how one chain of an origin stands.
type view struct {
	applied, head uint64
	behind        time.Time // since when it is known that there is more than what is applied
	stopped       string
	missing       string
	waiting       bool
	// epoch is the highest one of the origin that was heard of, bounded the one up to which the journal has bound the chain.
	epoch, bounded uint64
	// seal is the latest forced one of the origin that is known, where it has an epoch.
	seal slot.Seal
	told bool // that events diverge
}

// counts gives a number that the origin has told of, or the seal's where it is of what does not count any more: no epoch
// after the seal's is known of, so that whoever told it does not know of the seal.
func (v *view) counts(seq uint64) uint64 {
	if v.seal.Epoch > 0 && v.epoch <= uint64(v.seal.Epoch) {
		return min(seq, v.seal.Seq)
	}
	return seq
}

func (v *view) settle(now time.Time) {
	switch {
	case v.applied >= v.head:
		v.behind, v.missing, v.waiting = time.Time{}, "", false
	case v.behind.IsZero():
		v.behind = now
	}
}

// learn takes heads that an origin told of itself.
func (o *origin) learn(heads []eventlog.Head, live *eventlog.Live) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.heard = time.Now()
	if live != nil {
		o.words.learn(*live, o.heard)
	}
	for _, h := range heads {
		v := &o.slots[h.Slot]
		v.head = max(v.head, v.counts(h.Head.Seq))
		v.settle(o.heard)
	}
}

// settled takes watermarks as they are in the journal.
func (o *origin) settled(marks []journal.Mark) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	for _, m := range marks {
		v := &o.slots[m.Slot]
		if m.Bounded < v.bounded {
			continue // read before the chain was cut
		}
		if m.Bounded > v.bounded {
			v.bounded, v.applied = m.Bounded, 0
		}
		v.epoch = max(v.epoch, m.Epoch)
		v.applied, v.stopped = max(v.applied, m.Head.Seq), m.Stopped
		v.settle(now)
	}
}

// told takes how far a region's journal is with every origin's chains.
func (o *origin) told(heads map[int][]eventlog.Head) {
	marks := map[[2]int]uint64{}
	for index, list := range heads {
		for _, h := range list {
			marks[[2]int{index, h.Slot}] = h.Head.Seq
		}
	}
	o.mu.Lock()
	o.marks = marks
	o.mu.Unlock()
}

// Has is how far a peer's journal has a chain of any origin, as the peer said last; 0 where it has said nothing.
func (s *Service) Has(peer, index, n int) uint64 {
	o := s.origins[peer]
	if o == nil {
		return 0
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.marks[[2]int{index, n}]
}

func (o *origin) note(n int, waiting bool, missing string) {
	o.mu.Lock()
	o.slots[n].waiting, o.slots[n].missing = waiting, missing
	o.mu.Unlock()
}

// saw takes note of an event that was read, and says whether its chain is stopped.
func (o *origin) saw(n int, seq, epoch uint64) (stopped bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	v := &o.slots[n]
	v.epoch = max(v.epoch, epoch)
	if seq > v.head && !v.past(seq, epoch) {
		v.head = seq
		v.settle(time.Now())
	}
	return v.stopped != ""
}

func (v *view) past(seq, epoch uint64) bool {
	return v.seal.Epoch > 0 && epoch <= uint64(v.seal.Epoch) && seq > v.seal.Seq
}

// counts is view.counts; past says that an event comes after a forced seal that is known.
func (o *origin) counts(n int, seq uint64) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.slots[n].counts(seq)
}

func (o *origin) past(n int, seq, epoch uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.slots[n].past(seq, epoch)
}

// sealed takes note of a forced seal of the origin: what was told of beyond it is forgotten.
func (o *origin) sealed(n int, seal *slot.Seal) {
	if seal == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	v := &o.slots[n]
	if v.seal.Epoch >= seal.Epoch {
		return
	}
	v.seal = *seal
	v.head = v.counts(v.head)
	v.settle(time.Now())
}

// began takes note of an epoch of the origin that the arbiter knows.
func (o *origin) began(n int, epoch uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.slots[n].epoch = max(o.slots[n].epoch, epoch)
}

// boundedAt is the epoch up to which the journal is known to have bound a chain.
func (o *origin) boundedAt(n int) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.slots[n].bounded
}

// tellOnce is true the first time that events of a slot diverge.
func (o *origin) tellOnce(n int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	was := o.slots[n].told
	o.slots[n].told = true
	return !was
}

func (o *origin) stopped(n int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.slots[n].stopped != ""
}

// headOf is a chain's highest number that is known of, and since when more is known than is applied.
func (o *origin) headOf(n int) (head uint64, behind time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.slots[n].head, o.slots[n].behind
}

func (o *origin) appliedOf(n int) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.slots[n].applied
}

// refresh reads the watermarks every second: other processes move them, and an operator lets stopped slots go on.
func (s *Service) refresh(ctx context.Context) {
	for ctx.Err() == nil {
		marks, err := s.cfg.Journal.Marks(ctx)
		if err != nil && ctx.Err() == nil {
			s.log.Warn("the watermarks could not be read", "err", err)
		}
		by := map[int][]journal.Mark{}
		for _, m := range marks {
			by[m.Origin] = append(by[m.Origin], m)
		}
		for index, list := range by {
			if o := s.origins[index]; o != nil {
				o.settled(list)
			}
		}
		rest(ctx, time.Second)
	}
}

// Status is how replication stands.
type Status struct {
	Region string `json:"region"`
	Index  int    `json:"index"`
	// Open transactions of this region.
	Open int `json:"open"`
	// Unpublished events: decided or finished here, and not in Kafka.
	Unpublished int `json:"unpublished"`
	// Unacknowledged events by peer: published, and not yet in its journal as far as is known. With Unpublished it is the
	// exposure: what a loss of this region would leave unknown to the peer. Both, and Open, are this process's part of the
	// region: of its transactions, and of the partitions that it publishes.
	Unacknowledged map[string]uint64 `json:"unacknowledged"`
	// Unpublishable slots, whose next event in the journal does not continue its chain.
	Unpublishable map[int]string `json:"unpublishable,omitempty"`
	Origins       []OriginStatus `json:"origins"`
}

// OriginStatus is how the chains of another region stand here.
type OriginStatus struct {
	Region string `json:"region"`
	Index  int    `json:"index"`
	// HeardMillis is how long ago it was last heard of; -1: never.
	HeardMillis int64 `json:"heard_ms"`
	// LagEvents are known and not applied; LagMillis is since when the oldest of them is known, or since when nothing was
	// heard where that is more than 3 s.
	LagEvents uint64 `json:"lag_events"`
	LagMillis int64  `json:"lag_ms"`
	// Open and Unpublished are what the region's coordinators said last of themselves, summed up.
	Open        int `json:"open"`
	Unpublished int `json:"unpublished"`
	// Stopped slots, those included whose next event is nowhere to be had.
	Stopped []SlotStop `json:"stopped,omitempty"`
	// Waiting slots: their next event waits for the seal of another region.
	Waiting int `json:"waiting"`
	// Slots that have any events, by number.
	Slots []SlotStatus `json:"slots,omitempty"`
}

// SlotStop is a chain that does not go on.
type SlotStop struct {
	Slot    int    `json:"slot"`
	Applied uint64 `json:"applied"`
	Reason  string `json:"reason"`
	// Missing: it is not stopped, and goes on by itself when the missing events can be had.
	Missing bool `json:"missing,omitempty"`
}

// SlotStatus is one chain of an origin.
type SlotStatus struct {
	Slot      int    `json:"slot"`
	Applied   uint64 `json:"applied"`
	Head      uint64 `json:"head"`
	LagMillis int64  `json:"lag_ms"`
	Waiting   bool   `json:"waiting,omitempty"`
}

// quiet is how long an origin may say nothing.
const quiet = 3 * time.Second

// Status tells how everything stands. It asks nobody.
func (s *Service) Status() Status {
	live := s.cfg.Live()
	st := Status{
		Region: s.cfg.Region, Index: s.cfg.Index, Open: live.Open, Unpublished: live.Unpublished + s.pub.Unpublished(),
		Unpublishable: s.pub.Broken(), Unacknowledged: map[string]uint64{},
	}
	heads := s.pub.Heads()
	s.mu.Lock()
	for index, o := range s.origins {
		sum := uint64(0)
		for _, h := range heads {
			if !s.cfg.Mine(h.Slot % s.cfg.Partitions) {
				continue // whoever publishes it now counts it
			}
			if have := s.acks[index][h.Slot]; h.Head.Seq > have {
				sum += h.Head.Seq - have
			}
		}
		st.Unacknowledged[o.peer.Name] = sum
	}
	s.mu.Unlock()
	for _, o := range s.origins {
		st.Origins = append(st.Origins, o.status())
	}
	slices.SortFunc(st.Origins, func(a, b OriginStatus) int { return cmp.Compare(a.Index, b.Index) })
	return st
}

func (o *origin) status() OriginStatus {
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	live := o.words.sum()
	out := OriginStatus{Region: o.peer.Name, Index: o.peer.Index, HeardMillis: -1, Open: live.Open, Unpublished: live.Unpublished}
	silent := now.Sub(o.started)
	if !o.heard.IsZero() {
		silent = now.Sub(o.heard)
		out.HeardMillis = silent.Milliseconds()
	}
	if silent > quiet {
		out.LagMillis = silent.Milliseconds()
	}
	for n := range o.slots {
		v := &o.slots[n]
		if v.head == 0 && v.applied == 0 && v.stopped == "" {
			continue
		}
		one := SlotStatus{Slot: n, Applied: v.applied, Head: max(v.head, v.applied), Waiting: v.waiting}
		out.LagEvents += one.Head - one.Applied
		if !v.behind.IsZero() {
			one.LagMillis = now.Sub(v.behind).Milliseconds()
			out.LagMillis = max(out.LagMillis, one.LagMillis)
		}
		if v.waiting {
			out.Waiting++
		}
		switch {
		case v.stopped != "":
			out.Stopped = append(out.Stopped, SlotStop{Slot: n, Applied: v.applied, Reason: v.stopped})
		case v.missing != "":
			out.Stopped = append(out.Stopped, SlotStop{Slot: n, Applied: v.applied, Reason: v.missing, Missing: true})
		}
		out.Slots = append(out.Slots, one)
	}
	return out
}

// Ends calls each for every chain that the journal has anything of, the own ones too, with the number of its last event
// there as far as is known.
func (s *Service) Ends(each func(origin, slot int, seq uint64)) {
	for _, h := range s.pub.Heads() {
		each(s.cfg.Index, h.Slot, h.Head.Seq)
	}
	for index, o := range s.origins {
		for _, sl := range o.status().Slots {
			if sl.Applied > 0 {
				each(index, sl.Slot, sl.Applied)
			}
		}
	}
}

// Behind gives how far the own region's chains are published of which its journal has more: what follows is told to nobody yet, the
// copies here included.
func (s *Service) Behind() []eventlog.Head { return s.pub.Behind() }
