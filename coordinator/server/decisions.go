package server

import (
	"context"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// decisionsEvery is how often global decisions are looked through that may be removed.
const decisionsEvery = 5 * time.Second

// forgetDecisions removes global decisions from the arbiter once their transactions have ended and every region's journal
// has the finish: until then somebody may have to read them.
func (s *Server) forgetDecisions(ctx context.Context) {
	tick := time.NewTicker(decisionsEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		holds := s.runner.LocalSlots()
		all, err := s.regions.arbiter.AllDecisions(ctx)
		if err != nil {
			if ctx.Err() == nil {
				s.log.Warn("the arbiter's decisions could not be read; they are removed later", "err", err)
			}
			continue
		}
		acks, err := s.journal.Acknowledged(ctx, s.regions.place.Index())
		if err != nil {
			s.log.Warn("what the peers have could not be read; decisions are removed later", "err", err)
			continue
		}
		for n, gids := range all {
			if holds(n) {
				s.forgetSlot(ctx, n, gids, acks)
			}
		}
	}
}

// everywhere says that every region's journal has the event of a chain, which is in this one: its origin may be the region
// that had the slot before.
func (s *Server) everywhere(n, origin int, seq uint64, acks map[int]map[int]uint64) bool {
	own := s.regions.place.Index()
	for i := range s.regions.place.Deployment().Regions {
		peer := i + 1
		if peer == own || peer == origin {
			continue
		}
		have := s.regions.replica.Has(peer, origin, n)
		if origin == own {
			have = max(have, acks[peer][n])
		}
		if have < seq {
			return false
		}
	}
	return true
}

// forgetSlot removes those of a slot's decisions that nobody needs any more.
func (s *Server) forgetSlot(ctx context.Context, n int, gids []string, acks map[int]map[int]uint64) {
	var done []txn.Gid
	for _, gid := range gids {
		tx, err := s.journal.Get(ctx, txn.Gid(gid))
		if err != nil || tx == nil || !tx.State.Phase.Finished() {
			continue
		}
		if s.everywhere(n, slot.Epoch(tx.FinishEpoch).Region(), tx.Finish.Seq, acks) && len(done) < 100 {
			done = append(done, txn.Gid(gid))
		}
	}
	if len(done) == 0 {
		return
	}
	if err := s.runner.ForgetDecisions(ctx, n, done); err != nil && ctx.Err() == nil {
		s.log.Warn("global decisions were not removed; it is tried again", "slot", n, "decisions", len(done), "err", err)
	}
}
