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

// forgetSlot removes those of a slot's decisions that nobody needs any more.
func (s *Server) forgetSlot(ctx context.Context, n int, gids []string, acks map[int]map[int]uint64) {
	var done []txn.Gid
	for _, gid := range gids {
		tx, err := s.journal.Get(ctx, txn.Gid(gid))
		if err != nil || tx == nil || !tx.State.Phase.Finished() || slot.Epoch(tx.FinishEpoch).Region() != s.regions.place.Index() {
			continue
		}
		everywhere := true
		for i := range s.regions.place.Deployment().Regions {
			if peer := i + 1; peer != s.regions.place.Index() && acks[peer][n] < tx.Finish.Seq {
				everywhere = false
			}
		}
		if everywhere && len(done) < 100 {
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
