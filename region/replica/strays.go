package replica

import (
	"context"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// This file keeps a cut (journal.Cut) where another process of the region made it: this one may have slept over it with rows in its
// hands, and have appended them afterwards. What comes past a cut so is taken out again.

// straysEvery is how often it is looked whether what was appended is past a cut.
const straysEvery = time.Second

// chainPart is what an epoch has of an own slot's chain.
type chainPart struct {
	slot  int
	epoch uint64
}

// appended notes the highest numbers that this process has appended to own chains since they were looked at.
type appended struct {
	mu   sync.Mutex
	last map[chainPart]uint64
}

func (a *appended) note(part chainPart, seq uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last == nil {
		a.last = map[chainPart]uint64{}
	}
	a.last[part] = max(a.last[part], seq)
}

func (a *appended) take() map[chainPart]uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := a.last
	a.last = nil
	return out
}

// keepCuts takes what is past cuts out again until ctx ends: at the start whatever is there, then what this process appends.
func (s *Service) keepCuts(ctx context.Context) {
	if !s.again(ctx, "look for what is past the cuts", s.oldStrays) {
		return
	}
	tick := time.NewTicker(straysEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if parts := s.appended.take(); len(parts) > 0 {
			if err := s.cutAgain(ctx, parts); err != nil && ctx.Err() == nil {
				s.log.Warn("what was appended past a cut is not taken out yet; trying again", "err", err)
			}
		}
	}
}

// oldStrays takes out what is past the cuts, whoever appended it: its process may have ended before it looked.
func (s *Service) oldStrays(ctx context.Context) error {
	past, err := s.cfg.Journal.PastCuts(ctx, s.cfg.Index)
	for n, seal := range past {
		if err == nil {
			err = s.takeOut(ctx, n, seal)
		}
	}
	return err
}

func (s *Service) takeOut(ctx context.Context, n int, seal slot.Seal) error {
	s.log.Warn("events were appended past a cut: their coordinator had not heard of it; they are taken out", "slot", n, "epoch", seal.Epoch, "cut", seal.Seq)
	_, err := s.Returned(ctx, n, seal)
	return err
}

// cutAgain repeats the cuts that parts of chains are past. Parts for which that fails stay noted.
func (s *Service) cutAgain(ctx context.Context, parts map[chainPart]uint64) error {
	cuts, err := s.cfg.Journal.Cuts(ctx, s.cfg.Index)
	for part, seq := range parts {
		seal, ok := cuts[part.slot]
		if err == nil && (!ok || part.epoch > uint64(seal.Epoch) || seq <= seal.Seq) {
			continue
		}
		if err == nil {
			err = s.takeOut(ctx, part.slot, seal)
		}
		if err != nil {
			s.appended.note(part, seq)
		}
	}
	return err
}
