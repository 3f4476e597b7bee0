//go:build servers

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
)

// The broker takes what is written with all acknowledgements, in order, and gives it back from the beginning.
func TestKafkaGivesBackWhatItAcknowledged(t *testing.T) {
	addr := os.Getenv("LOCKSTEP_TEST_KAFKA_URL")
	if addr == "" {
		t.Fatal("LOCKSTEP_TEST_KAFKA_URL is not set: run the tests with make test, which starts the servers")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	topic := fmt.Sprintf("devctl-%d", os.Getpid())
	client := &kafkago.Client{Addr: kafkago.TCP(addr)}
	made, err := client.CreateTopics(ctx, &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{{Topic: topic, NumPartitions: 2, ReplicationFactor: 1}}})
	if err == nil {
		err = made.Errors[topic]
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := client.DeleteTopics(context.Background(), &kafkago.DeleteTopicsRequest{Topics: []string{topic}}); err != nil {
			t.Error(err)
		}
	}()
	w := &kafkago.Writer{Addr: kafkago.TCP(addr), Topic: topic, RequiredAcks: kafkago.RequireAll, BatchTimeout: time.Millisecond,
		Balancer: kafkago.BalancerFunc(func(kafkago.Message, ...int) int { return 1 })}
	const n = 50
	for i := range n {
		for {
			err := w.WriteMessages(ctx, kafkago.Message{Value: fmt.Appendf(nil, "%d", i)})
			if err == nil {
				break
			}
			if i > 0 || ctx.Err() != nil { // the first may come before the topic has its leader
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r := kafkago.NewReader(kafkago.ReaderConfig{Brokers: []string{addr}, Topic: topic, Partition: 1, MinBytes: 1, MaxBytes: 1 << 20})
	defer r.Close()
	for i := range n {
		m, err := r.ReadMessage(ctx)
		if err != nil || string(m.Value) != fmt.Sprint(i) || m.Offset != int64(i) {
			t.Fatalf("message %d: %q at offset %d, %v", i, m.Value, m.Offset, err)
		}
	}
}

// Nobody but this machine reaches it.
func TestKafkaListensOnLoopback(t *testing.T) {
	host, _, err := net.SplitHostPort(os.Getenv("LOCKSTEP_TEST_KAFKA_URL"))
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		t.Errorf("it listens at %q (%v)", host, err)
	}
}
