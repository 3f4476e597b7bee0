package eventlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/segmentio/kafka-go"
)

// ReaderConfig of a Reader.
type ReaderConfig struct {
	Kafka Kafka
	// Index of the origin region.
	Index int
	// Partition of Partitions in all.
	Partition, Partitions int
	// Offset to begin at. It is a hint: what is missing before it is seen by whoever applies.
	Offset int64
}

// Notice says that reading did not simply go on.
type Notice string

const (
	// NoticeExpired: the offset wanted is below the first one kept. What was between is not in Kafka any more.
	NoticeExpired Notice = "expired"
	// NoticeRewound: the partition ends before where it ended or before the offset wanted: it was truncated or made anew.
	// Reading begins at its first record.
	NoticeRewound Notice = "rewound"
	// NoticeStalled: the partition grows and gives nothing. The connections are made anew.
	NoticeStalled Notice = "stalled"
)

// Chunk is what one call of Read gave.
type Chunk struct {
	Messages []Message
	// Next is the offset after the last message; High is the partition's end.
	Next, High int64
	Notice     Notice // empty: nothing is odd
}

// Reader reads a partition of an origin's topic. For one goroutine.
type Reader struct {
	cfg  ReaderConfig
	link *link
	next int64
	high int64 // the highest end seen
	idle time.Time
}

// stallLimit is how long a partition may be longer than what it gives.
const stallLimit = 5 * time.Second

// NewReader makes one; nothing is connected before Read.
func NewReader(cfg ReaderConfig) *Reader {
	return &Reader{cfg: cfg, link: connect(cfg.Kafka), next: max(0, cfg.Offset)}
}

// Close frees its connections.
func (r *Reader) Close() { r.link.close() }

// Read waits at most 250 ms for messages and gives those that there are, in the order of offsets; none is no error. After
// an error, the topic missing included, it may be called again.
func (r *Reader) Read(ctx context.Context) (Chunk, error) {
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	res, err := r.link.Fetch(cctx, &kafka.FetchRequest{
		Topic: r.link.topic, Partition: r.cfg.Partition, Offset: r.next, MinBytes: 1, MaxBytes: fetchBytes, MaxWait: fetchWait,
	})
	if err != nil {
		return Chunk{}, fmt.Errorf("read %s/%d: %w", r.link.topic, r.cfg.Partition, err)
	}
	switch {
	case errors.Is(res.Error, kafka.OffsetOutOfRange):
		return r.outOfRange(cctx)
	case res.Error != nil:
		return Chunk{}, fmt.Errorf("read %s/%d at %d: %w", r.link.topic, r.cfg.Partition, r.next, res.Error)
	case res.HighWatermark < r.high:
		return r.outOfRange(cctx)
	}
	r.high = res.HighWatermark
	c := Chunk{High: r.high}
	from := r.next
	if err := r.collect(res.Records, &c); err != nil && len(c.Messages) == 0 {
		return Chunk{}, fmt.Errorf("read %s/%d at %d: %w", r.link.topic, r.cfg.Partition, r.next, err)
	}
	c.Next = r.next
	r.watch(&c, from)
	return c, nil
}

// collect reads the records of a fetch. A batch may begin before the offset asked for.
func (r *Reader) collect(records kafka.RecordReader, c *Chunk) error {
	for {
		rec, err := records.ReadRecord()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		key, kerr := kafka.ReadAll(rec.Key)
		value, verr := kafka.ReadAll(rec.Value)
		for _, b := range []kafka.Bytes{rec.Key, rec.Value} {
			if b != nil {
				_ = b.Close()
			}
		}
		if err := errors.Join(kerr, verr); err != nil {
			return err
		}
		if rec.Offset < r.next {
			continue
		}
		m := decode(key, value, r.cfg.Index, r.cfg.Partition, r.cfg.Partitions)
		m.Offset, m.Time = rec.Offset, rec.Time
		c.Messages = append(c.Messages, m)
		r.next = rec.Offset + 1
	}
}

// watch sees a partition that is longer than what it gives.
func (r *Reader) watch(c *Chunk, from int64) {
	switch {
	case r.next > from || r.next >= r.high:
		r.idle = time.Time{}
	case r.idle.IsZero():
		r.idle = time.Now()
	case time.Since(r.idle) > stallLimit:
		r.idle = time.Time{}
		r.link.close()
		r.link = connect(r.cfg.Kafka)
		c.Notice = NoticeStalled
	}
}

// outOfRange finds where to go on where the offset or the partition's end is not what was expected.
func (r *Reader) outOfRange(ctx context.Context) (Chunk, error) {
	res, err := r.link.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{
		r.link.topic: {kafka.FirstOffsetOf(r.cfg.Partition), kafka.LastOffsetOf(r.cfg.Partition)},
	}})
	if err != nil {
		return Chunk{}, fmt.Errorf("ask for the offsets of %s/%d: %w", r.link.topic, r.cfg.Partition, err)
	}
	for _, p := range res.Topics[r.link.topic] {
		if p.Partition != r.cfg.Partition {
			continue
		}
		if p.Error != nil {
			return Chunk{}, fmt.Errorf("ask for the offsets of %s/%d: %w", r.link.topic, r.cfg.Partition, p.Error)
		}
		// A new leader may tell a lower end for a moment, until it has heard of its followers: nothing was lost.
		if p.FirstOffset <= r.next && r.next <= p.LastOffset && p.LastOffset >= r.high {
			r.high = p.LastOffset
			return Chunk{Next: r.next, High: r.high}, nil
		}
		notice := NoticeRewound
		if r.next < p.FirstOffset && p.LastOffset >= r.high {
			notice = NoticeExpired
		}
		r.next, r.high = p.FirstOffset, p.LastOffset
		return Chunk{Next: r.next, High: r.high, Notice: notice}, nil
	}
	return Chunk{}, fmt.Errorf("ask for the offsets of %s/%d: the broker said nothing of it", r.link.topic, r.cfg.Partition)
}
