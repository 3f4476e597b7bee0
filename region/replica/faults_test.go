package replica

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/eventlog"
	"github.com/lockstep-tx/lockstep/region/journal/sample"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// puppet is a region whose Kafka the test writes itself, as a fault would have it. Its journal answers over HTTP.
type puppet struct {
	*area
	client *kafka.Client
}

func (d *deployment) puppet(name string) *puppet {
	a := d.region(name)
	a.shape = func(c *Config) { c.Mine = func(int) bool { return false } }
	return &puppet{area: a, client: &kafka.Client{Addr: kafka.TCP(a.brokers...), Timeout: 10 * time.Second}}
}

func (p *puppet) ensure() {
	p.d.t.Helper()
	eventually(p.d.t, "the topic is made", func() string {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := eventlog.Ensure(ctx, eventlog.Kafka{Brokers: p.brokers, Region: p.name}, 4, 0); err != nil {
			return err.Error()
		}
		return ""
	})
}

func key(n int, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, uint32(n)), seq)
}

// send writes one message.
func (p *puppet) send(n int, key, value []byte) {
	p.d.t.Helper()
	eventually(p.d.t, "a message is written", func() string {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		res, err := p.client.Produce(ctx, &kafka.ProduceRequest{
			Topic: eventlog.Topic(p.name), Partition: n % 4, RequiredAcks: kafka.RequireAll,
			Records: kafka.NewRecordReader(kafka.Record{Key: kafka.NewBytes(key), Value: kafka.NewBytes(value)}),
		})
		if err == nil {
			err = res.Error
		}
		if err != nil {
			return err.Error()
		}
		return ""
	})
}

func (p *puppet) events(events ...record.Event) {
	p.d.t.Helper()
	for i := range events {
		b, err := record.EncodeEvent(&events[i])
		if err != nil {
			p.d.t.Fatal(err)
		}
		p.send(events[i].Slot, key(events[i].Slot, events[i].Head.Seq), b)
	}
}

func (p *puppet) beat(heads ...eventlog.Head) {
	p.d.t.Helper()
	b := eventlog.Beat{At: time.Now().UnixMilli(), Heads: heads}
	p.send(heads[0].Slot, []byte("beat"), b.Encode())
}

// tagged makes payments of one slot.
func (a *area) tagged(tag string, from, n int) []engine.Row {
	rows := make([]engine.Row, n)
	for i := range rows {
		rows[i] = a.maker.Row(sample.Payment{Gid: txn.Gid(fmt.Sprintf("{%s}:%05d", tag, from+i)), BegunAt: begin})
	}
	return rows
}

// faulty makes a puppet and a sound region that pulls from it.
func faulty(d *deployment) (*puppet, *area) {
	east, west := d.puppet("east"), d.region("west")
	east.ensure()
	d.start()
	return east, west
}

func TestRepeatedAndReorderedEventsAreAppliedInOrder(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west := faulty(d)
		rows := append(east.tagged("a", 0, 12), east.tagged("b", 0, 12)...)
		events := eventsOf(rows)
		mixed := append(append([]record.Event{}, events...), events[:10]...)
		rand.Shuffle(len(mixed), func(x, y int) { mixed[x], mixed[y] = mixed[y], mixed[x] })
		east.events(mixed...) // the puppet's journal has nothing: no gap can be filled
		west.has(rows)
		west.quietly()
	})
}

func TestAGapIsFilledFromTheOriginsJournal(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west := faulty(d)
		rows := append(east.tagged("a", 0, 30), east.tagged("b", 0, 30)...)
		east.append(rows...)
		events := eventsOf(rows)
		var sent []record.Event
		for i, e := range events {
			if i < 3 || i > 9 && i%5 != 0 {
				sent = append(sent, e)
			}
		}
		east.events(sent[:len(sent)-1]...)
		last := rows[len(rows)-1]
		east.beat(eventlog.Head{Slot: last.Slot, Head: last.Finish}) // acknowledged, and lost at the end: only the heartbeat shows it
		west.has(rows)
		west.quietly()
	})
}

func TestAGapThatNobodyFillsSaysWhatIsMissing(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west := faulty(d)
		a, b := east.tagged("a", 0, 5), east.tagged("b", 0, 5)
		events := eventsOf(a)
		east.events(append(append([]record.Event{}, events[:4]...), events[7:]...)...)
		east.events(eventsOf(b)...)
		st := west.stoppedAt(east.area)
		if st.Slot != a[0].Slot || !st.Missing || st.Applied != 4 || !strings.Contains(st.Reason, "events 5 to 10 are missing") {
			t.Fatalf("%+v", st)
		}
		west.has(b)
		if !strings.Contains(west.logs.String(), "does not go on") {
			t.Fatal("no alarm in the log")
		}
		east.append(a...)
		west.has(a)
		west.quietly()
	})
}

func TestPoisonStopsOneSlotUntilItIsLetGoOn(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west := faulty(d)
		a, b := east.tagged("a", 0, 5), east.tagged("b", 0, 5)
		east.append(a...)
		events := eventsOf(a)
		east.events(events[:3]...)
		east.send(a[0].Slot, key(a[0].Slot, 4), []byte("rubbish"))
		east.send(a[0].Slot, []byte("?"), []byte("rubbish of no slot"))
		east.send(a[0].Slot, []byte("beat"), []byte("rubbish"))
		east.events(events[4:]...)
		east.events(eventsOf(b)...)
		st := west.stoppedAt(east.area)
		if st.Slot != a[0].Slot || st.Missing || st.Applied != 3 || !strings.Contains(st.Reason, "no event") {
			t.Fatalf("%+v", st)
		}
		west.has(b)
		if list, err := west.journal.Divergences(context.Background(), 5); err != nil || len(list) != 1 || string(list[0].Event) != "rubbish" {
			t.Fatal(list, err)
		}
		if got := series(t, west.service, "lockstep_replication_slot_lag_events"); len(got) != 1 || got[fmt.Sprintf("%s %d ", east.name, st.Slot)] == 0 {
			t.Fatalf("series of slots: %v", got)
		}
		if was, err := west.service.Unstop(context.Background(), east.index, st.Slot); !was || err != nil {
			t.Fatal(was, err)
		}
		west.has(a)
		west.quietly()
	})
}

func TestAReplacedHistoryStopsItsSlot(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west := faulty(d)
		a := east.tagged("a", 0, 3)
		east.events(eventsOf(a)...)
		west.has(a)
		other := &sample.Maker{Epoch: uint64(slot.Initial(east.index))}
		var forged []engine.Row
		for i := range 5 { // the region was made anew: the same slot begins again
			forged = append(forged, other.Row(sample.Payment{Gid: txn.Gid(fmt.Sprintf("{a}:again-%d", i)), BegunAt: begin}))
		}
		east.events(eventsOf(forged)...)
		if st := west.stoppedAt(east.area); st.Slot != a[0].Slot || !strings.Contains(st.Reason, "another chain") {
			t.Fatalf("%+v", st)
		}
	})
}

// TestEventsThatExpiredAreFilled: kafka-go's Reader would skip them in silence (reference/multi-region.md 3.2).
func TestEventsThatExpiredAreFilled(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west := faulty(d)
		first := east.tagged("a", 0, 4)
		east.append(first...)
		east.events(eventsOf(first)...)
		west.has(first)
		west.stop()
		rest := east.tagged("a", 4, 30)
		east.append(rest...)
		events := eventsOf(rest)
		east.events(events...)
		deleteRecords(t, east, rest[0].Slot%4, int64(len(events)))
		west.start()
		west.has(rest)
		west.quietly()
		if !strings.Contains(west.logs.String(), "what=expired") {
			t.Fatal("what expired was skipped in silence")
		}
	})
}

func deleteRecords(t *testing.T, p *puppet, partition int, before int64) {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(p.brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	req := kmsg.NewPtrDeleteRecordsRequest()
	topic := kmsg.NewDeleteRecordsRequestTopic()
	topic.Topic = eventlog.Topic(p.name)
	part := kmsg.NewDeleteRecordsRequestTopicPartition()
	part.Partition, part.Offset = int32(partition), before
	topic.Partitions = append(topic.Partitions, part)
	req.Topics = append(req.Topics, topic)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, shard := range c.RequestSharded(ctx, req) {
		if shard.Err != nil {
			t.Fatal(shard.Err)
		}
		for _, tp := range shard.Resp.(*kmsg.DeleteRecordsResponse).Topics {
			for _, pp := range tp.Partitions {
				if pp.ErrorCode != 0 {
					t.Fatalf("delete records: code %d", pp.ErrorCode)
				}
			}
		}
	}
}

// TestATopicMadeAnewIsReadFromItsBeginning: shorter than where it was read, and longer (which no offset shows).
func TestATopicMadeAnewIsReadFromItsBeginning(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west := faulty(d)
		first := east.tagged("a", 0, 10)
		east.append(first...)
		east.events(eventsOf(first)...)
		west.has(first)
		for round, n := range []int{3, 40} {
			if round == 1 {
				west.stop() // it sees the topic again when that has outgrown the old one
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			topic := eventlog.Topic(east.name)
			if _, err := east.client.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{topic}}); err != nil {
				t.Fatal(err)
			}
			cancel()
			time.Sleep(1500 * time.Millisecond) // clients keep a topic's layout for a second
			east.ensure()
			rows := east.tagged("a", 100*(round+1), n)
			east.append(rows...)
			east.events(eventsOf(rows)...)
			if round == 1 {
				west.start()
			}
			west.has(rows)
			west.quietly()
		}
	})
}

// TestAThirdRegionWaitsForTheSeal: a slot goes from east to west; north has west's events first.
func TestAThirdRegionWaitsForTheSeal(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west, north := d.puppet("east"), d.puppet("west"), d.region("north")
		east.ensure()
		west.ensure()
		d.start()
		a := east.tagged("a", 0, 4)
		n, head := a[0].Slot, a[3].Finish
		seal := record.Event{Slot: n, Kind: record.KindSeal, Epoch: east.maker.Epoch, Head: head.Next(n, east.maker.Epoch, record.KindSeal, "", nil)}
		sealed := slot.SealOf(slot.Epoch(seal.Epoch), seal.Head.Seq, seal.Head.Chain[:])
		d.seals.add(n, *sealed)
		west.maker.Epoch = uint64(slot.Epoch(east.maker.Epoch).Next(west.index))
		b, c := west.tagged("a", 10, 4), west.tagged("c", 0, 4)
		west.events(eventsOf(b)...)
		west.events(eventsOf(c)...)
		if slot.Of("{a}:") == slot.Of("{c}:") {
			t.Fatal("the tags are of one slot")
		}
		north.has(c)
		eventually(t, "the slot waits", func() string {
			if st := north.originOf(west.area); st.Waiting != 1 || len(st.Stopped) != 0 || st.LagEvents == 0 {
				return fmt.Sprintf("%+v", st)
			}
			return ""
		})
		if _, err := north.service.Carried(context.Background(), n, sealed); err != engine.ErrNotYet {
			t.Fatal(err)
		}
		east.events(append(eventsOf(a), seal)...)
		north.has(a)
		north.has(b)
		north.quietly()
		if _, err := north.service.Carried(context.Background(), n, sealed); err != nil {
			t.Fatal(err)
		}
		late := east.tagged("a", 20, 1)[0]
		late.Decision = seal.Head.Next(n, late.DecisionEpoch, record.KindDecision, late.Gid, late.Closed)
		east.events(eventsOf([]engine.Row{sample.Decision(late)})...)
		if st := north.stoppedAt(east.area); !strings.Contains(st.Reason, "after the seal") {
			t.Fatalf("%+v", st)
		}
	})
}

// TestAThirdRegionFillsWhatTheOriginCannot: the origin is gone, another region has its events.
func TestAThirdRegionFillsWhatTheOriginCannot(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west, north := d.puppet("east"), d.region("west"), d.region("north")
		east.ensure()
		d.start()
		rows := east.tagged("a", 0, 10)
		north.stop()
		east.events(eventsOf(rows)...)
		west.has(rows)
		east.mux = http.NewServeMux()
		deleteRecords(t, east, rows[0].Slot%4, 12)
		north.start()
		north.has(rows)
	})
}
