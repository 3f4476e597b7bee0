package seed

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Partitions of a region's topic in the suite's deployments.
const Partitions = 4

// publishLimit is how long a broker may take for what is put into a topic.
const publishLimit = 10 * time.Second

// records reads what stands in a partition, whole; next is the offset after it.
func records(ctx context.Context, broker, topic string, partition int) (out []*kgo.Record, next int64, err error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {int32(partition): kgo.NewOffset().AtStart()}}))
	if err != nil {
		return nil, 0, err
	}
	defer cl.Close()
	start, end, err := ends(ctx, cl, topic, partition)
	if err != nil {
		return nil, 0, err
	}
	for next = start; next < end; {
		f := cl.PollFetches(ctx)
		if err := errors.Join(f.Err(), ctx.Err()); err != nil {
			return nil, 0, err
		}
		f.EachRecord(func(r *kgo.Record) {
			if next = r.Offset + 1; string(r.Key) != beat {
				out = append(out, r)
			}
		})
	}
	return out, next, nil
}

// Shuffle takes the events that stand in a partition of a region's topic out of it and puts each in again twice, in another order: what
// was in order comes out of it, and more than once. It says how many there were. What is published meanwhile stays.
func Shuffle(ctx context.Context, broker, region string, partition int, rnd *rand.Rand) (int, error) {
	topic := "lockstep." + region
	all, next, err := records(ctx, broker, topic, partition)
	if err != nil || len(all) == 0 {
		return 0, err
	}
	var again []*kgo.Record
	for range 2 {
		for _, r := range all {
			again = append(again, &kgo.Record{Topic: topic, Partition: int32(partition), Key: r.Key, Value: r.Value, Timestamp: r.Timestamp})
		}
	}
	rnd.Shuffle(len(again), func(i, k int) { again[i], again[k] = again[k], again[i] })
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, publishLimit)
	defer cancel()
	if err := remove(ctx, cl, region, partition, next); err != nil {
		return 0, err
	}
	return len(all), cl.ProduceSync(ctx, again...).FirstErr()
}

// Disorder counts, in a partition of a region's topic, the events that stand behind a later one of their slot, and those that stand
// there more than once.
func Disorder(ctx context.Context, broker, region string, partition int) (inverted, repeated int, err error) {
	all, err := Topic(ctx, broker, region, partition)
	highest, seen := map[uint32]uint64{}, map[string]bool{}
	for _, m := range all {
		if len(m.Key) != 12 {
			continue
		}
		slot, seq := binary.BigEndian.Uint32([]byte(m.Key)), binary.BigEndian.Uint64([]byte(m.Key[4:]))
		switch {
		case seen[m.Key]:
			repeated++
		case seq < highest[slot]:
			inverted++
		}
		seen[m.Key], highest[slot] = true, max(highest[slot], seq)
	}
	return inverted, repeated, err
}

// Poison puts a message into a region's topic that has an event's key and is none.
func Poison(ctx context.Context, broker, region string, slot int, seq uint64) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, publishLimit)
	defer cancel()
	key := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, uint32(slot)), seq)
	r := &kgo.Record{Topic: "lockstep." + region, Partition: int32(slot % Partitions), Key: key, Value: []byte("this is no event")}
	return cl.ProduceSync(ctx, r).FirstErr()
}

// Drop deletes a region's topic, as who had another use for its name.
func Drop(ctx context.Context, broker, region string) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker))
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, publishLimit)
	defer cancel()
	req := kmsg.NewPtrDeleteTopicsRequest()
	topic := "lockstep." + region
	t := kmsg.NewDeleteTopicsRequestTopic()
	t.Topic = &topic
	req.TopicNames, req.Topics, req.TimeoutMillis = []string{topic}, append(req.Topics, t), 5000
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return err
	}
	for _, t := range resp.Topics {
		if t.ErrorCode != 0 {
			return fmt.Errorf("topic %s is not deleted: error %d", topic, t.ErrorCode)
		}
	}
	return nil
}

// End is the offset after the last message of a partition of a region's topic.
func End(ctx context.Context, broker, region string, partition int) (int64, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker))
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, publishLimit)
	defer cancel()
	_, end, err := ends(ctx, cl, "lockstep."+region, partition)
	return end, err
}
