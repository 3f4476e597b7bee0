// Package eventlog carries events from a region to the others by Kafka: a topic per origin region, lockstep.<region>,
// partition = slot modulo the number of partitions, which never changes.
//
// The law it keeps: Kafka is a pipe that may lose, repeat and reorder, and nothing here promises more. A Publisher writes
// each slot's events in the order of their numbers, one batch in flight per partition, acknowledged by all replicas, and
// never goes past one that is not acknowledged; it repeats, so that events come more than once. A Reader is pinned to a
// partition, belongs to no consumer group and says what it skipped. Whoever applies the events compares numbers and chains.
//
// kafka-go's low-level calls are used, one request for one batch: its Writer hides retries and a queue, its Reader skips
// expired offsets in silence (reference/multi-region.md 3).
//
// It is tested against the embedded broker (RunBroker) and, with the tag servers, against Apache Kafka, by region/replica's
// suite and its own.
package eventlog

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"
)

// Retention of a topic where nothing else is configured.
const Retention = 7 * 24 * time.Hour

// Partitions of a topic where nothing else is configured.
const Partitions = 4

// Topic is the topic of an origin region.
func Topic(region string) string { return "lockstep." + region }

// Named limits of calls. A call's context always has a deadline: kafka-go frees a connection by nothing else.
const (
	callTimeout = 6 * time.Second // half of it is what the broker is told
	dialTimeout = 3 * time.Second
	fetchWait   = 250 * time.Millisecond
	fetchBytes  = 4 << 20 // a larger batch comes all the same, alone
	eventBytes  = 4 << 20 // the largest message that a topic takes
)

// Kafka says where a region's brokers are.
type Kafka struct {
	Brokers []string
	// TLS, where set, is used for all connections.
	TLS *tls.Config
	// Region whose topic is meant.
	Region string
}

// link is a client for one topic.
type link struct {
	*kafka.Client
	topic string
	end   context.CancelFunc
}

func connect(k Kafka) *link {
	ctx, end := context.WithCancel(context.Background())
	topic := Topic(k.Region)
	return &link{topic: topic, end: end, Client: &kafka.Client{
		Addr: kafka.TCP(k.Brokers...), Timeout: callTimeout,
		Transport: &kafka.Transport{
			DialTimeout: dialTimeout, IdleTimeout: 30 * time.Second, MetadataTTL: time.Second, MetadataTopics: []string{topic},
			ClientID: "lockstep", TLS: k.TLS, Context: ctx,
		},
	}}
}

func (l *link) close() {
	l.end()
	l.Transport.(*kafka.Transport).CloseIdleConnections()
}

// Ensure makes the topic of a region if it is missing. A topic with another number of partitions is an error: slots would
// be looked for in the wrong one.
//
// Settings: as many replicas as there are brokers, at most 3; min.insync.replicas 2 where there are 3; no unclean leader
// election; records expire (retention; 0 means 7 days) and are never compacted.
func Ensure(ctx context.Context, k Kafka, partitions int, retention time.Duration) error {
	l := connect(k)
	defer l.close()
	if retention == 0 {
		retention = Retention
	}
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	meta, err := l.Metadata(cctx, &kafka.MetadataRequest{Topics: []string{l.topic}})
	if err != nil {
		return fmt.Errorf("topic %s: %w", l.topic, err)
	}
	have := 0
	for _, t := range meta.Topics {
		if t.Name == l.topic && t.Error == nil {
			have = len(t.Partitions)
		}
	}
	if have == 0 {
		if err := l.create(cctx, partitions, min(3, len(meta.Brokers)), retention); err != nil {
			return fmt.Errorf("make topic %s: %w", l.topic, err)
		}
		return nil
	}
	if have != partitions {
		return fmt.Errorf("topic %s has %d partitions, not %d: their number is fixed for ever; configure %d, or delete the topic on all sides", l.topic, have, partitions, have)
	}
	return nil
}

func (l *link) create(ctx context.Context, partitions, replicas int, retention time.Duration) error {
	insync := 1
	if replicas >= 3 {
		insync = 2
	}
	res, err := l.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{
		Topic: l.topic, NumPartitions: partitions, ReplicationFactor: replicas,
		ConfigEntries: []kafka.ConfigEntry{
			{ConfigName: "cleanup.policy", ConfigValue: "delete"},
			{ConfigName: "retention.ms", ConfigValue: strconv.FormatInt(retention.Milliseconds(), 10)},
			{ConfigName: "min.insync.replicas", ConfigValue: strconv.Itoa(insync)},
			{ConfigName: "unclean.leader.election.enable", ConfigValue: "false"},
			{ConfigName: "max.message.bytes", ConfigValue: strconv.Itoa(eventBytes)},
		},
	}}})
	if err != nil {
		return err
	}
	if err := res.Errors[l.topic]; err != nil && !errors.Is(err, kafka.TopicAlreadyExists) {
		return err
	}
	return nil
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
