package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/eventlog"
	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/slot"
)

const (
	// reachEvery is how often the owners are looked at for forced seals.
	reachEvery = 100 * time.Millisecond
	reachPause = 300 * time.Millisecond // after a slot could not be brought to its seal
)

// Returned has a slot of this region end where a forced seal says: what is past it leaves the journal for the divergence
// record (journal.Cut), and what this process publishes goes on after the seal. It gives the events that were past it,
// also when it is repeated. Durable on nil. The caller has closed the slot and appends nothing of the epoch any more. The
// publishers of the region's other processes hear of it within a second. The next epoch's events must not be appended before it.
// What the journal lacks of the chain up to the seal, because its disks are new, is had back from the other regions first.
func (s *Service) Returned(ctx context.Context, n int, seal slot.Seal) ([]record.Event, error) {
	if seal.Epoch.Region() != s.cfg.Index {
		return nil, fmt.Errorf("slot %d: the seal of epoch %d is not of this region, which has index %d", n, seal.Epoch, s.cfg.Index)
	}
	if err := s.regain(ctx, n, &seal); err != nil {
		return nil, err
	}
	events, err := s.cfg.Journal.Cut(ctx, n, seal)
	if err != nil {
		return nil, err
	}
	s.goBack(n, seal)
	if s.cfg.Cut != nil {
		s.cfg.Cut(s.cfg.Index, n, seal.Seq)
	}
	return events, nil
}

// regain brings what this journal has lost of an own chain back from the other regions, up to a forced seal: its disks are new,
// or of a backup. Everything up to such a seal is in another region's journal.
func (s *Service) regain(ctx context.Context, n int, seal *slot.Seal) error {
	there, err := s.cfg.Journal.Reached(ctx, n, seal)
	if there || errors.Is(err, journal.ErrContradicts) {
		return nil // Cut judges that
	}
	for after := uint64(0); err == nil && after < seal.Seq; {
		var events []record.Event
		if events, err = s.fillFrom(ctx, s.cfg.Index, nil, n, after); err != nil {
			break
		}
		events = slices.DeleteFunc(events, func(e record.Event) bool { return e.Head.Seq > seal.Seq })
		var res journal.Result
		if res, err = s.apply.Apply(ctx, journal.Batch{Origin: s.cfg.Index, Part: n % s.cfg.Partitions, Offset: -1, Events: events}); err != nil {
			break
		}
		have := uint64(0)
		for _, m := range res.Marks {
			have = m.Head.Seq
		}
		switch {
		case len(res.Stopped) > 0:
			err = errors.New(res.Stopped[0].Reason)
		case have <= after && res.Unsure != nil:
			err = res.Unsure
		case have <= after:
			err = fmt.Errorf("event %d waits for the other regions' events before it", after+1)
		}
		after = have
	}
	if err != nil {
		return fmt.Errorf("what this journal lacks of slot %d before event %d is not had back: %w", n, seal.Seq, err)
	}
	return nil
}

// goBack brings what is in memory of an own chain back to a cut.
func (s *Service) goBack(n int, seal slot.Seal) {
	s.pub.Back(boundOf(n, seal))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cuts[n].Epoch >= seal.Epoch {
		return
	}
	s.cuts[n] = seal
	for _, seqs := range s.acks {
		if seqs[n] > seal.Seq {
			seqs[n] = seal.Seq
		}
	}
}

func boundOf(n int, seal slot.Seal) eventlog.Bound {
	b := eventlog.Bound{Slot: n, Epoch: uint64(seal.Epoch)}
	b.Head.Seq = seal.Seq
	b.Head.Chain, _ = journal.ChainOf(seal) // it was checked when the chain was cut
	return b
}

// bounds gives the cuts of the own chains, for the publisher.
func (s *Service) bounds(ctx context.Context) ([]eventlog.Bound, error) {
	cuts, err := s.cfg.Journal.Cuts(ctx, s.cfg.Index)
	if err != nil {
		return nil, err
	}
	var out []eventlog.Bound
	s.mu.Lock()
	for n, seal := range cuts {
		out = append(out, boundOf(n, seal))
		if s.cuts[n].Epoch < seal.Epoch {
			s.cuts[n] = seal
		}
	}
	s.mu.Unlock()
	return out, nil
}

// ofOurs leaves out what a peer has of an own chain past a cut that is not what the journal has: it has not heard of the cut.
func (s *Service) ofOurs(ctx context.Context, heads []eventlog.Head) []eventlog.Head {
	return slices.DeleteFunc(slices.Clone(heads), func(h eventlog.Head) bool {
		s.mu.Lock()
		seal, ok := s.cuts[h.Slot]
		s.mu.Unlock()
		if !ok || h.Head.Seq <= seal.Seq {
			return false
		}
		events, err := s.cfg.Journal.EventsAfter(ctx, s.cfg.Index, h.Slot, h.Head.Seq-1, 1)
		return err != nil || len(events) == 0 || events[0].Head != h.Head
	})
}

// cutsMade tells of chains that an Apply of this process has cut.
func (s *Service) cutsMade(cuts []journal.Cut) {
	for _, c := range cuts {
		o := s.origins[c.Origin]
		if o == nil {
			continue
		}
		s.log.Warn("this region had more of a slot than its forced seal; that was taken out of the journal, and is in the divergence record",
			"origin", o.peer.Name, "slot", c.Slot, "sealed at", c.Seal.Seq, "events", len(c.Events))
		s.m.diverged.WithLabelValues(o.peer.Name).Add(float64(len(c.Events)))
		o.sealed(c.Slot, &c.Seal)
		if s.cfg.Cut != nil {
			s.cfg.Cut(c.Origin, c.Slot, c.Seal.Seq)
		}
	}
}

// reach brings an origin's chains to the forced seals that the slots' owners have: it does not wait for the origin nor for
// its Kafka. Chains that are past a seal it cuts.
func (s *Service) reach(ctx context.Context, o *origin) {
	again := map[int]time.Time{} // by slot: when it is tried again
	read := func(ctx context.Context) error {
		marks, err := s.cfg.Journal.Marks(ctx)
		if err == nil {
			o.settled(slices.DeleteFunc(marks, func(m journal.Mark) bool { return m.Origin != o.peer.Index }))
		}
		return err
	}
	if !s.again(ctx, "read the watermarks", read) {
		return
	}
	for ; ctx.Err() == nil; rest(ctx, reachEvery) {
		owners := s.cfg.Owners()
		if owners == nil {
			continue
		}
		s.bindEnded(ctx, o, owners, again)
		var mu sync.Mutex
		var all sync.WaitGroup
		room := make(chan struct{}, fillsAtOnce)
		for n := range owners {
			own := &owners[n]
			if own.Epoch.Region() == o.peer.Index && own.Status != slot.Taken {
				o.began(n, uint64(own.Epoch))
			}
			seal := own.Seal
			mu.Lock()
			soon := time.Now().Before(again[n])
			mu.Unlock()
			if !s.boundTo(o, n, seal) || soon || o.boundedAt(n) >= uint64(seal.Epoch) && o.appliedOf(n) >= seal.Seq {
				continue
			}
			room <- struct{}{}
			all.Go(func() {
				defer func() { <-room }()
				if err := s.reachSlot(ctx, o, n, seal); err != nil && ctx.Err() == nil {
					s.log.Warn("a slot is not at its forced seal yet; trying again", "origin", o.peer.Name, "slot", n, "sealed at", seal.Seq, "applied", o.appliedOf(n), "err", err)
					mu.Lock()
					again[n] = time.Now().Add(reachPause)
					mu.Unlock()
				}
			})
		}
		all.Wait()
	}
}

// boundTo says whether a seal is a forced one of the origin, and its chain this process's to bring there.
func (s *Service) boundTo(o *origin, n int, seal *slot.Seal) bool {
	return seal != nil && seal.Forced && seal.Epoch.Region() == o.peer.Index && s.cfg.Mine(n%s.cfg.Partitions)
}

// bindEnded binds together the chains that are at their forced seals already, which after a loss nearly all are: one by one they would
// keep the journal from the payments that wait for their slots. What it cannot bind is reachSlot's, and where that fails too, it is left
// until again.
func (s *Service) bindEnded(ctx context.Context, o *origin, owners *slot.Map, again map[int]time.Time) {
	seals := map[int]slot.Seal{}
	for n := range owners {
		if seal := owners[n].Seal; s.boundTo(o, n, seal) && o.boundedAt(n) < uint64(seal.Epoch) && o.appliedOf(n) == seal.Seq && !time.Now().Before(again[n]) {
			o.sealed(n, seal)
			seals[n] = *seal
		}
	}
	if len(seals) < 2 {
		return
	}
	bound, err := s.cfg.Journal.Bind(ctx, o.peer.Index, seals)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("chains that end at their forced seals could not be bound together; each is bound by itself", "origin", o.peer.Name, "chains", len(seals), "err", err)
		}
		return
	}
	var marks []journal.Mark
	for _, n := range bound {
		seal := seals[n]
		marks = append(marks, journal.Mark{Origin: o.peer.Index, Slot: n, Epoch: uint64(seal.Epoch), Head: boundOf(n, seal).Head, Bounded: uint64(seal.Epoch)})
	}
	o.settled(marks)
}

// reachSlot brings one chain to a forced seal, or as far as it can.
func (s *Service) reachSlot(ctx context.Context, o *origin, n int, seal *slot.Seal) error {
	o.sealed(n, seal)
	for o.appliedOf(n) < seal.Seq {
		after := o.appliedOf(n)
		events, err := s.fill(ctx, o, n, after)
		if err != nil {
			return err
		}
		events = slices.DeleteFunc(events, func(e record.Event) bool { return o.past(n, e.Head.Seq, e.Epoch) })
		res, err := s.apply.Apply(ctx, journal.Batch{Origin: o.peer.Index, Part: n % s.cfg.Partitions, Offset: -1, Events: events})
		if err != nil {
			return err
		}
		s.m.filled.WithLabelValues(o.peer.Name).Add(float64(len(events)))
		s.m.applied.WithLabelValues(o.peer.Name).Add(float64(res.Applied))
		o.settled(res.Marks)
		s.cutsMade(res.Cuts)
		if s.cfg.Durable != nil && res.Applied > 0 {
			have := o.appliedOf(n)
			s.cfg.Durable(slices.DeleteFunc(events, func(e record.Event) bool { return e.Head.Seq > have }))
		}
		switch {
		case o.appliedOf(n) > after:
		case len(res.Stopped) > 0:
			return fmt.Errorf("it is stopped: %s", res.Stopped[0].Reason)
		case res.Unsure != nil:
			return res.Unsure
		default: // the seals of a frozen chain are asked for the second time that it is met
			rest(ctx, waitEvery)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if o.stopped(n) {
				return fmt.Errorf("it is stopped")
			}
		}
	}
	// Also where nothing is past it: from now on every process of the region knows by the watermark that the chain is bound.
	past, err := s.cfg.Journal.Cut(ctx, n, *seal)
	if err != nil {
		return err
	}
	o.settled([]journal.Mark{{Origin: o.peer.Index, Slot: n, Epoch: uint64(seal.Epoch), Head: boundOf(n, *seal).Head, Bounded: uint64(seal.Epoch)}})
	if len(past) > 0 {
		s.cutsMade([]journal.Cut{{Origin: o.peer.Index, Slot: n, Seal: *seal, Events: past}})
	}
	return nil
}
