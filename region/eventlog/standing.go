package eventlog

import (
	"context"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/lockstep-tx/lockstep/coordinator/record"
)

// Lacking looks for events of a region's own chains in its topic, from what came to it at a time on, and takes out of want, by
// slot and number, those that stand there: what is left the topic lacks. It reads no further than to the last one wanted, and to
// the topic's end as it was at the beginning where one is not there. want is in the caller's hands again after an error too.
func Lacking(ctx context.Context, k Kafka, index, partitions int, since time.Time, want map[int]map[uint64]bool) error {
	left := make([]int, partitions)
	for n, seqs := range want {
		left[n%partitions] += len(seqs)
	}
	l := connect(k)
	defer l.close()
	for part, count := range left {
		if count == 0 {
			continue
		}
		from, end, err := l.offsetAt(ctx, part, since)
		if err != nil {
			return err
		}
		if err := lackingIn(ctx, ReaderConfig{Kafka: k, Index: index, Partition: part, Partitions: partitions, Offset: from}, end, count, want); err != nil {
			return err
		}
	}
	return nil
}

// offsetAt gives where the records since a time begin in a partition, and its end.
func (l *link) offsetAt(ctx context.Context, part int, since time.Time) (from, end int64, err error) {
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for _, ask := range [][]kafka.OffsetRequest{{kafka.FirstOffsetOf(part), kafka.LastOffsetOf(part)}, {kafka.TimeOffsetOf(part, since)}} {
		res, err := l.ListOffsets(cctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{l.topic: ask}})
		if err != nil {
			return 0, 0, fmt.Errorf("ask for the offsets of %s/%d: %w", l.topic, part, err)
		}
		for _, p := range res.Topics[l.topic] {
			switch {
			case p.Error != nil:
				return 0, 0, fmt.Errorf("ask for the offsets of %s/%d: %w", l.topic, part, p.Error)
			case len(ask) == 2:
				from, end = p.FirstOffset, p.LastOffset
			case len(p.Offsets) == 0:
				return end, end, nil // nothing has come since
			}
			for at := range p.Offsets {
				if at < 0 {
					return end, end, nil
				}
				from = max(from, at)
			}
		}
	}
	return from, end, nil
}

func lackingIn(ctx context.Context, cfg ReaderConfig, end int64, count int, want map[int]map[uint64]bool) error {
	r := NewReader(cfg)
	defer r.Close()
	for at := cfg.Offset; at < end && count > 0; {
		c, err := r.Read(ctx)
		if err != nil {
			return err
		}
		for i := range c.Messages {
			e := c.Messages[i].Event
			if e != nil && want[e.Slot][e.Head.Seq] {
				delete(want[e.Slot], e.Head.Seq)
				count--
			}
		}
		if at = c.Next; ctx.Err() != nil {
			return ctx.Err()
		}
		end = min(end, c.High) // what was there at the beginning may be gone
	}
	return nil
}

// Again publishes events of an own slot once more, as the journal has them, and says how many. Whoever has them drops them.
func (p *Publisher) Again(ctx context.Context, n int, seqs []uint64) (int, error) {
	sent := 0
	var batch []kafka.Record
	size, now := 0, time.Now()
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		if err := p.produce(ctx, n%p.cfg.Partitions, batch); err != nil {
			return fmt.Errorf("publish events of slot %d again: %w", n, err)
		}
		sent, batch, size = sent+len(batch), nil, 0
		return nil
	}
	for _, seq := range seqs {
		list, err := p.cfg.Source.EventsAfter(ctx, p.cfg.Index, n, seq-1, 1)
		if err != nil {
			return sent, err
		}
		if len(list) == 0 || list[0].Head.Seq != seq {
			return sent, fmt.Errorf("the journal has no event %d of slot %d", seq, n)
		}
		b, err := record.EncodeEvent(&list[0])
		if err != nil {
			return sent, fmt.Errorf("event %d of slot %d: %w", seq, n, err)
		}
		if size += len(b) + 128; size > batchBytes || len(batch) == batchEvents {
			if err := flush(); err != nil {
				return sent, err
			}
			size = len(b) + 128
		}
		batch = append(batch, kafka.Record{Time: now, Key: kafka.NewBytes(eventKey(n, seq)), Value: kafka.NewBytes(b)})
	}
	return sent, flush()
}
