package eventlog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// source is a journal in memory. Decisions have bodies that only their chain knows.
type source struct {
	mu     sync.Mutex
	events map[int][]record.Event
	stored []Head
	reads  int
}

func (s *source) EventsAfter(_ context.Context, _, n int, after uint64, limit int) ([]record.Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	list := s.events[n]
	if after >= uint64(len(list)) {
		return nil, nil
	}
	return append([]record.Event{}, list[after:min(len(list), int(after)+limit)]...), nil
}

// add makes n events of a slot.
func (s *source) add(tag string, n int) []record.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.events == nil {
		s.events = map[int][]record.Event{}
	}
	at := slot.Of("{" + tag + "}")
	head := record.Head{}
	if have := s.events[at]; len(have) > 0 {
		head = have[len(have)-1].Head
	}
	for i := range n {
		e := record.Event{Slot: at, Kind: record.KindDecision, Gid: txn.Gid(fmt.Sprintf("{%s}:%d-%d", tag, head.Seq, i)), Epoch: 101, Body: []byte("body")}
		head = head.Next(e.Slot, e.Epoch, e.Kind, e.Gid, e.Body)
		e.Head = head
		s.events[at] = append(s.events[at], e)
	}
	list := s.events[at]
	return append([]record.Event{}, list[len(list)-n:]...)
}

func (s *source) config(k Kafka) PublisherConfig {
	return PublisherConfig{
		Kafka: k, Index: 1, Partitions: 2, Source: s, Poll: 50 * time.Millisecond,
		Load: func(context.Context) ([]Head, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return append([]Head{}, s.stored...), nil
		},
		Store: func(_ context.Context, heads []Head) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.stored = append(s.stored, heads...)
			return nil
		},
	}
}

func cluster(t *testing.T, opts ...kfake.Opt) (*kfake.Cluster, Kafka) {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, Kafka{Brokers: c.ListenAddrs(), Region: "east"}
}

func run(t *testing.T, p *Publisher) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = p.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return stop
}

// until reads a partition until ok; it gives all messages.
func until(t *testing.T, r *Reader, ok func(all []Message, c Chunk) bool) []Message {
	t.Helper()
	var all []Message
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); {
		c, err := r.Read(context.Background())
		if err != nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		all = append(all, c.Messages...)
		if ok(all, c) {
			return all
		}
	}
	t.Fatalf("it did not come; %d messages", len(all))
	return nil
}

func numbers(all []Message, n int) (seqs []uint64) {
	for _, m := range all {
		if m.Event != nil && m.Event.Slot == n {
			seqs = append(seqs, m.Event.Head.Seq)
		}
	}
	return seqs
}

// TestEveryBatchIsAcknowledgedByAllReplicas: kafka-go's zero value asks for no acknowledgement at all.
func TestEveryBatchIsAcknowledgedByAllReplicas(t *testing.T) {
	c, k := cluster(t)
	var mu sync.Mutex
	acks := map[int16]int{}
	c.ControlKey(0, func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		mu.Lock()
		defer mu.Unlock()
		acks[req.(*kmsg.ProduceRequest).Acks]++
		return nil, nil, false
	})
	s := &source{}
	s.add("a", 50)
	p := NewPublisher(s.config(k))
	run(t, p)
	n := slot.Of("{a}")
	r := NewReader(ReaderConfig{Kafka: k, Index: 1, Partition: n % 2, Partitions: 2})
	defer r.Close()
	until(t, r, func(all []Message, _ Chunk) bool { // an event and a heartbeat
		for _, m := range all {
			if m.Beat != nil && len(m.Beat.Heads) == 1 {
				return len(numbers(all, n)) == 50
			}
		}
		return false
	})
	mu.Lock()
	defer mu.Unlock()
	if len(acks) != 1 || acks[-1] < 2 {
		t.Fatalf("acks asked for: %v, not only -1 (all)", acks)
	}
}

// TestNothingIsPassedThatIsNotAcknowledged: rule 3 of the recipe. The connection breaks after the broker has stored a
// batch, or before, or it refuses: the order holds, and what is repeated is the same.
func TestNothingIsPassedThatIsNotAcknowledged(t *testing.T) {
	c, k := cluster(t)
	n, count := slot.Of("{a}"), 0
	c.ControlKey(0, func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		if count++; count%3 == 1 {
			return nil, errors.New("the connection breaks"), true
		}
		if count%3 == 2 {
			res := req.ResponseKind().(*kmsg.ProduceResponse)
			for _, rt := range req.(*kmsg.ProduceRequest).Topics {
				st := kmsg.NewProduceResponseTopic()
				st.Topic, st.TopicID = rt.Topic, rt.TopicID
				for _, rp := range rt.Partitions {
					sp := kmsg.NewProduceResponseTopicPartition()
					sp.Partition, sp.ErrorCode = rp.Partition, 19 // NOT_ENOUGH_REPLICAS
					st.Partitions = append(st.Partitions, sp)
				}
				res.Topics = append(res.Topics, st)
			}
			return res, nil, true
		}
		return nil, nil, false
	})
	s := &source{}
	s.add("a", 50) // what is there before is read from the journal, what comes is told
	p := NewPublisher(s.config(k))
	run(t, p)
	go func() {
		for range 30 {
			p.Appended(s.add("a", 10))
			time.Sleep(10 * time.Millisecond)
		}
	}()
	r := NewReader(ReaderConfig{Kafka: k, Index: 1, Partition: n % 2, Partitions: 2})
	defer r.Close()
	all := until(t, r, func(all []Message, _ Chunk) bool {
		seqs := numbers(all, n)
		return len(seqs) > 0 && seqs[len(seqs)-1] == 350
	})
	highest := uint64(0)
	for _, seq := range numbers(all, n) {
		if seq > highest+1 {
			t.Fatalf("event %d came after %d", seq, highest)
		}
		highest = max(highest, seq)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) { // the last answer may be on its way
		head := p.Heads()
		if len(head) == 1 && head[0].Head.Seq == 350 && p.Unpublished() == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%v, %d unpublished", head, p.Unpublished())
		}
	}
}

func TestAPublisherGoesOnWhereTheLastOneWas(t *testing.T) {
	_, k := cluster(t)
	s := &source{}
	p := NewPublisher(s.config(k))
	stop := run(t, p)
	n := slot.Of("{a}")
	r := NewReader(ReaderConfig{Kafka: k, Index: 1, Partition: n % 2, Partitions: 2})
	defer r.Close()
	first := s.add("a", 5)
	p.Appended(first[3:]) // out of order, as journal batches may be
	p.Appended(first[:3])
	all := until(t, r, func(all []Message, _ Chunk) bool { return len(numbers(all, n)) >= 5 && p.Unpublished() == 0 })
	stop()
	s.add("a", 5)
	run(t, NewPublisher(s.config(k)))
	all = append(all, until(t, r, func(more []Message, _ Chunk) bool { return len(numbers(more, n)) >= 5 })...)
	if got := numbers(all, n); fmt.Sprint(got) != "[1 2 3 4 5 6 7 8 9 10]" {
		t.Fatal(got)
	}
}

// TestTheBacklogIsKnownWithoutABroker: also after a restart, when nobody has told of it.
func TestTheBacklogIsKnownWithoutABroker(t *testing.T) {
	s := &source{}
	for i, n := range []int{1, 2, 3, 7, 8, 1000, 1023} {
		s.add(fmt.Sprint("tag", i), n)
	}
	first := s.add("more", 10)[4]
	s.stored = []Head{{Slot: first.Slot, Head: first.Head}}
	p := NewPublisher(s.config(Kafka{Brokers: []string{"127.0.0.1:1"}, Region: "east"}))
	run(t, p)
	for end := time.Now().Add(5 * time.Second); p.Unpublished() != 2049; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d unpublished", p.Unpublished())
		}
	}
}

// TestTheBacklogIsKnownAlsoWhereItGrowsWhileItIsLookedAt: no process is told twice of what it appends.
func TestTheBacklogIsKnownAlsoWhereItGrowsWhileItIsLookedAt(t *testing.T) {
	s := &source{}
	s.add("tag", 600) // more than one look into the journal gives
	cfg := s.config(Kafka{Brokers: []string{"127.0.0.1:1"}, Region: "east"})
	grows := &growing{source: s}
	cfg.Source = grows
	p := NewPublisher(cfg)
	grows.then = func() { p.Appended(s.add("tag", 5)) }
	run(t, p)
	for end := time.Now().Add(5 * time.Second); p.Unpublished() != 605; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d unpublished, not 605", p.Unpublished())
		}
	}
}

// growing is a journal to which something is appended once it was seen that there is nothing after event 600.
type growing struct {
	*source
	once sync.Once
	then func()
}

func (g *growing) EventsAfter(ctx context.Context, origin, n int, after uint64, limit int) ([]record.Event, error) {
	list, err := g.source.EventsAfter(ctx, origin, n, after, limit)
	if n == slot.Of("{tag}") && after == 600 && limit == 1 && len(list) == 0 {
		defer g.once.Do(g.then)
	}
	return list, err
}

// TestABrokenChainIsNotPublished: it would stop the slot in every region.
func TestABrokenChainIsNotPublished(t *testing.T) {
	_, k := cluster(t)
	s := &source{}
	s.add("a", 5)
	n := slot.Of("{a}")
	s.events[n][3].Body = []byte("altered")
	cfg := s.config(k)
	cfg.Unread = func(context.Context) ([]int, error) { return []int{n}, nil }
	p := NewPublisher(cfg)
	run(t, p)
	r := NewReader(ReaderConfig{Kafka: k, Index: 1, Partition: n % 2, Partitions: 2})
	defer r.Close()
	until(t, r, func(all []Message, _ Chunk) bool { return len(numbers(all, n)) == 3 })
	for end := time.Now().Add(5 * time.Second); p.Broken()[n] == ""; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody is told")
		}
	}
	s.mu.Lock()
	s.events[n][3].Body = []byte("body") // repaired
	s.mu.Unlock()
	until(t, r, func(all []Message, _ Chunk) bool { return len(numbers(all, n)) == 2 })
	if len(p.Broken()) != 0 {
		t.Fatal(p.Broken())
	}
}

func TestAReaderSaysWhatItSkipped(t *testing.T) {
	c, k := cluster(t)
	if err := Ensure(context.Background(), k, 2, time.Hour); err != nil {
		t.Fatal(err)
	}
	client := &kafka.Client{Addr: kafka.TCP(k.Brokers...), Timeout: 5 * time.Second}
	write := func(count int) {
		t.Helper()
		var recs []kafka.Record
		for range count {
			recs = append(recs, kafka.Record{Key: kafka.NewBytes(beatKey), Value: kafka.NewBytes((&Beat{}).Encode())})
		}
		res, err := client.Produce(context.Background(), &kafka.ProduceRequest{Topic: Topic("east"), RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(recs...)})
		if err != nil || res.Error != nil {
			t.Fatal(res, err)
		}
	}
	write(20)
	reader := func(at int64) *Reader {
		r := NewReader(ReaderConfig{Kafka: k, Index: 1, Partitions: 2, Offset: at})
		t.Cleanup(r.Close)
		return r
	}
	noticed := func(r *Reader, want Notice) {
		t.Helper()
		until(t, r, func(_ []Message, c Chunk) bool { return c.Notice == want })
	}
	late := reader(0)
	until(t, late, func(all []Message, _ Chunk) bool { return len(all) == 20 })
	if err := c.DeleteRecords(Topic("east"), 0, 7); err != nil {
		t.Fatal(err)
	}
	noticed(reader(0), NoticeExpired)
	noticed(reader(90), NoticeRewound)
	if err := errors.Join(c.DeleteTopic(Topic("east")), c.CreateTopic(Topic("east"), 2, nil)); err != nil {
		t.Fatal(err)
	}
	noticed(late, NoticeRewound)
	write(8)
	slow := reader(5) // it had not read all of the old topic: its offset is within the new one
	slow.high = 20
	noticed(slow, NoticeRewound)
	if err := Ensure(context.Background(), k, 3, time.Hour); err == nil || !strings.Contains(err.Error(), "2 partitions") {
		t.Fatal(err)
	}
}

// TestAnEndThatGoesBackForAMomentIsNoRewind: a leader that has just been elected may tell a lower high watermark.
func TestAnEndThatGoesBackForAMomentIsNoRewind(t *testing.T) {
	c, k := cluster(t)
	s := &source{}
	s.add("a", 50)
	p := NewPublisher(s.config(k))
	run(t, p)
	n := slot.Of("{a}")
	r := NewReader(ReaderConfig{Kafka: k, Index: 1, Partition: n % 2, Partitions: 2})
	defer r.Close()
	until(t, r, func(all []Message, _ Chunk) bool { return len(numbers(all, n)) == 50 })
	answered := make(chan struct{})
	c.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		f := req.(*kmsg.FetchRequest)
		if len(f.Topics) == 0 || len(f.Topics[0].Partitions) == 0 {
			c.KeepControl()
			return nil, nil, false
		}
		defer close(answered)
		res := f.ResponseKind().(*kmsg.FetchResponse)
		topic, part := kmsg.NewFetchResponseTopic(), kmsg.NewFetchResponseTopicPartition()
		topic.Topic, topic.TopicID = f.Topics[0].Topic, f.Topics[0].TopicID
		part.Partition, part.HighWatermark, part.LastStableOffset, part.RecordBatches = f.Topics[0].Partitions[0].Partition, 9, 9, []byte{}
		topic.Partitions = append(topic.Partitions, part)
		res.Topics = append(res.Topics, topic)
		return res, nil, true
	})
	p.Appended(s.add("a", 5))
	more := until(t, r, func(all []Message, c Chunk) bool {
		if c.Notice != "" {
			t.Errorf("notice %q at %d", c.Notice, c.Next)
		}
		return len(numbers(all, n)) >= 5
	})
	<-answered
	if got := numbers(more, n); fmt.Sprint(got) != "[51 52 53 54 55]" {
		t.Fatalf("read after it: %v", got)
	}
}

func TestWhatIsNoEventIsPoisonOfItsSlot(t *testing.T) {
	e := (&source{}).add("a", 1)[0]
	n := e.Slot
	good, err := record.EncodeEvent(&e)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		key, value []byte
		index      int
		slot       int // of the poison; -2: it is an event
	}{
		"sound":             {eventKey(n, 1), good, 1, -2},
		"rubbish":           {eventKey(n, 1), []byte("x"), 1, n},
		"cut":               {eventKey(n, 1), good[:len(good)-1], 1, n},
		"another's key":     {eventKey(n, 2), good, 1, n},
		"another region's":  {eventKey(n, 1), good, 2, n},
		"no key":            {nil, good, 1, -1},
		"a wrong partition": {eventKey(n+1, 1), good, 1, -1},
		"a bad heartbeat":   {beatKey, []byte{1, 2}, 1, -1},
	} {
		m := decode(c.key, c.value, c.index, n%8, 8)
		switch {
		case c.slot == -2 && (m.Event == nil || m.Poison != nil):
			t.Errorf("%s: %+v", name, m.Poison)
		case c.slot != -2 && (m.Event != nil || m.Beat != nil || m.Poison == nil || m.Poison.Slot != c.slot || m.Poison.Reason == ""):
			t.Errorf("%s: %+v", name, m)
		}
	}
}

func FuzzBeat(f *testing.F) {
	f.Add((&Beat{At: 5, Live: Live{Open: 3, Unpublished: 2}, Heads: []Head{{Slot: 7, Head: record.Head{Seq: 9}}}}).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := DecodeBeat(b)
		if err != nil {
			return
		}
		again := h.Encode()
		if len(again) > len(b) || string(again) != string(b[:len(again)]) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}

func TestTheBrokerRefusesNonsense(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().(*net.TCPAddr).Port
	for _, addr := range []string{"nowhere", "127.0.0.1:x", "127.0.0.1:" + strconv.Itoa(taken)} {
		if err := RunBroker(context.Background(), BrokerConfig{Addr: addr, Dir: t.TempDir()}); err == nil {
			t.Errorf("%s is taken", addr)
		}
	}
}

// TestAPartitionThatGrowsAndGivesNothingIsSeen: reference/multi-region.md 3.2, mid-stream out of range.
func TestAPartitionThatGrowsAndGivesNothingIsSeen(t *testing.T) {
	r := NewReader(ReaderConfig{Kafka: Kafka{Brokers: []string{"127.0.0.1:1"}, Region: "east"}, Partitions: 1, Offset: 5})
	defer func() { r.Close() }()
	r.high = 9
	var c Chunk
	r.watch(&c, 5)
	if c.Notice != "" || r.idle.IsZero() {
		t.Fatal(c.Notice, r.idle)
	}
	r.idle = time.Now().Add(-2 * stallLimit)
	before := r.link
	r.watch(&c, 5)
	if c.Notice != NoticeStalled || r.link == before {
		t.Fatal("it goes on as if nothing were odd")
	}
	r.idle, r.next = time.Now().Add(-2*stallLimit), 6
	c = Chunk{}
	if r.watch(&c, 5); c.Notice != "" || !r.idle.IsZero() {
		t.Fatal("progress is taken for a stall")
	}
}
