package seed

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Message is what stands in a topic: its key and when it came.
type Message struct {
	Key string
	At  time.Time
}

// beat is the key of what is no event.
const beat = "beat"

// Topic reads the events that stand in a partition of a region's topic, from its beginning to its end.
func Topic(ctx context.Context, broker, region string, partition int) ([]Message, error) {
	topic := "lockstep." + region
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {int32(partition): kgo.NewOffset().AtStart()}}))
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	start, end, err := ends(ctx, cl, topic, partition)
	if err != nil || start == end {
		return nil, err
	}
	var out []Message
	for next := start; next < end; {
		f := cl.PollFetches(ctx)
		if err := errors.Join(f.Err(), ctx.Err()); err != nil {
			return nil, err
		}
		f.EachRecord(func(r *kgo.Record) {
			if next = r.Offset + 1; string(r.Key) != beat {
				out = append(out, Message{string(r.Key), r.Timestamp})
			}
		})
	}
	return out, nil
}

// ends are a partition's first and last offsets.
func ends(ctx context.Context, cl *kgo.Client, topic string, partition int) (first, last int64, err error) {
	var got [2]int64
	for i, at := range []int64{-2, -1} {
		req := kmsg.NewPtrListOffsetsRequest()
		req.ReplicaID = -1
		t, p := kmsg.NewListOffsetsRequestTopic(), kmsg.NewListOffsetsRequestTopicPartition()
		p.Partition, p.Timestamp = int32(partition), at
		t.Topic, t.Partitions = topic, []kmsg.ListOffsetsRequestTopicPartition{p}
		req.Topics = append(req.Topics, t)
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return 0, 0, err
		}
		if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 || resp.Topics[0].Partitions[0].ErrorCode != 0 {
			return 0, 0, fmt.Errorf("the offsets of %s/%d: %+v", topic, partition, resp.Topics)
		}
		got[i] = resp.Topics[0].Partitions[0].Offset
	}
	return got[0], got[1], nil
}

// remove has a broker delete the records of a partition that stand before an offset; -1: all.
func remove(ctx context.Context, cl *kgo.Client, region string, partition int, before int64) error {
	req := kmsg.NewPtrDeleteRecordsRequest()
	t, p := kmsg.NewDeleteRecordsRequestTopic(), kmsg.NewDeleteRecordsRequestTopicPartition()
	p.Partition, p.Offset = int32(partition), before
	t.Topic, t.Partitions = "lockstep."+region, []kmsg.DeleteRecordsRequestTopicPartition{p}
	req.Topics, req.TimeoutMillis = append(req.Topics, t), 5000
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return err
	}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode != 0 {
				return fmt.Errorf("records of %s/%d are not deleted: error %d", t.Topic, p.Partition, p.ErrorCode)
			}
		}
	}
	return nil
}

// Truncate takes all records out of a partition of a region's topic (D22): what was published is not there any more. It gives the
// events that were there, and reads again that none of them is.
func Truncate(ctx context.Context, broker, region string, partition int) (gone []Message, err error) {
	gone, err = Topic(ctx, broker, region, partition)
	if err == nil && len(gone) == 0 {
		err = fmt.Errorf("no event stands in partition %d of %s: nothing was changed", partition, region)
	}
	if err != nil {
		return nil, err
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker))
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	if err := remove(ctx, cl, region, partition, -1); err != nil {
		return nil, err
	}
	is, err := Topic(ctx, broker, region, partition)
	there := map[string]bool{}
	for _, m := range is {
		there[m.Key] = true
	}
	for _, m := range gone {
		if there[m.Key] {
			return nil, fmt.Errorf("it is not there: event %x still stands in partition %d of %s", m.Key, partition, region)
		}
	}
	return gone, err
}
