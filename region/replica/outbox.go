package replica

import (
	"context"
	"time"

	"github.com/lockstep-tx/lockstep/region/eventlog"
)

// Lacking is eventlog.Lacking of the own topic.
func (s *Service) Lacking(ctx context.Context, since time.Time, want map[int]map[uint64]bool) error {
	return eventlog.Lacking(ctx, eventlog.Kafka{Brokers: s.cfg.Brokers, TLS: s.cfg.TLS, Region: s.cfg.Region}, s.cfg.Index, s.cfg.Partitions, since, want)
}

// Keeps is for how long the own topic keeps what was published.
func (s *Service) Keeps() time.Duration {
	if s.cfg.Retention == 0 {
		return eventlog.Retention
	}
	return s.cfg.Retention
}

// PublishAgain publishes events of an own slot once more.
func (s *Service) PublishAgain(ctx context.Context, n int, seqs []uint64) (int, error) {
	return s.pub.Again(ctx, n, seqs)
}
