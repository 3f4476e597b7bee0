package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/lockstep-tx/lockstep/coordinator/record"
)

// Source is the region's journal, as far as a Publisher needs it.
type Source interface {
	// EventsAfter gives the events of the chain of (origin, slot) that follow the number after, without a gap, at most
	// limit.
	EventsAfter(ctx context.Context, origin, n int, after uint64, limit int) ([]record.Event, error)
}

// PublisherConfig of a Publisher.
type PublisherConfig struct {
	Kafka Kafka
	// Index of the region, Partitions of its topic.
	Index, Partitions int
	Source            Source
	// Load gives how far the slots were published, Store notes it; it may lag, publishing again is harmless.
	Load  func(ctx context.Context) ([]Head, error)
	Store func(ctx context.Context, heads []Head) error
	// Unread finds slots with events that Appended did not tell of. nil: there are none.
	Unread func(ctx context.Context) ([]int, error)
	// Bounds gives the chains that were cut in the journal; it is asked every second. nil: there are none.
	Bounds func(ctx context.Context) ([]Bound, error)
	// Live gives the region's counts for the heartbeats; Unpublished without the events that the journal has.
	Live func() Live
	// Mine says which partitions this process publishes. nil: all.
	Mine func(partition int) bool
	// Poll is how often Unread is asked; 0 means 500 ms.
	Poll time.Duration
	// Retention of the topic, where it has to be made; 0 means 7 days.
	Retention time.Duration
	// Sent is told of every batch that was acknowledged.
	Sent func(events int, took time.Duration)
	Log  *slog.Logger
}

// Publisher takes the own region's events to its Kafka. Run does the work; everything else is safe for concurrent use.
type Publisher struct {
	cfg   PublisherConfig
	link  *link
	parts []*part
	// failed says that something could not be published.
	failed chan struct{}
}

// Bounds of what waits in memory and of a batch. What finds no room is read from the journal.
const (
	pendingMax  = 4_000 // events of a partition
	batchEvents = 500
	batchBytes  = 900 << 10
	// beatEvery is how often a partition's heartbeat goes out; every beatsFull-th names all heads, the others those that
	// have changed.
	beatEvery = time.Second
	beatsFull = 30
	storeTime = 5 * time.Second
)

// NewPublisher makes one.
func NewPublisher(cfg PublisherConfig) *Publisher {
	if cfg.Poll == 0 {
		cfg.Poll = 500 * time.Millisecond
	}
	if cfg.Mine == nil {
		cfg.Mine = func(int) bool { return true }
	}
	if cfg.Sent == nil {
		cfg.Sent = func(int, time.Duration) {}
	}
	cfg.Log = logger(cfg.Log)
	p := &Publisher{cfg: cfg, link: connect(cfg.Kafka), failed: make(chan struct{}, 1)}
	for n := range cfg.Partitions {
		t := &part{n: n, signal: make(chan struct{}, 1), bounds: map[int]Bound{}}
		t.forget()
		p.parts = append(p.parts, t)
	}
	return p
}

// Appended tells of events that the journal has. Those of other origins are left out. It does not wait, and keeps the
// events' bodies until they are published or there are too many.
func (p *Publisher) Appended(events []record.Event) {
	byPart := map[*part][]record.Event{}
	for _, e := range events {
		if e.Origin() == p.cfg.Index {
			t := p.parts[e.Slot%len(p.parts)]
			byPart[t] = append(byPart[t], e)
		}
	}
	for t, list := range byPart {
		t.add(list)
		t.wake()
	}
}

// Unpublished is how many events of this process's partitions the journal is known to have that Kafka has not acknowledged.
func (p *Publisher) Unpublished() int {
	sum := 0
	for _, t := range p.parts {
		t.mu.Lock()
		for n, seq := range t.known {
			if have := t.heads[n].Seq; t.active && seq > have {
				sum += int(seq - have)
			}
		}
		t.mu.Unlock()
	}
	return sum
}

// Heads gives how far the slots of this process's partitions are published.
func (p *Publisher) Heads() []Head {
	var out []Head
	for _, t := range p.parts {
		t.mu.Lock()
		for n, h := range t.heads {
			if h.Seq > 0 {
				out = append(out, Head{n, h})
			}
		}
		t.mu.Unlock()
	}
	return out
}

// Behind gives how far the slots are published of which the journal is known to have more.
func (p *Publisher) Behind() []Head {
	var out []Head
	for _, t := range p.parts {
		t.mu.Lock()
		for n, seq := range t.known {
			if h := t.heads[n]; t.active && seq > h.Seq {
				out = append(out, Head{n, h})
			}
		}
		t.mu.Unlock()
	}
	return out
}

// Broken gives the slots that are not published since their next event does not continue the chain, with the reason.
func (p *Publisher) Broken() map[int]string {
	out := map[int]string{}
	for _, t := range p.parts {
		t.mu.Lock()
		maps.Copy(out, t.broken)
		t.mu.Unlock()
	}
	return out
}

// Run makes the topic if it is missing, also where it disappears later, and publishes until ctx ends. An error of Kafka or the journal is logged and work repeated: after 100 ms, 200 ms … 1 s.
func (p *Publisher) Run(ctx context.Context) error {
	defer p.link.close()
	var all sync.WaitGroup
	all.Go(func() { p.keep(ctx) })
	for _, t := range p.parts {
		all.Go(func() { p.publish(ctx, t) })
	}
	all.Go(func() { p.poll(ctx) })
	all.Wait()
	return nil
}

// poll notes how far events are published, and looks for what other processes have appended.
func (p *Publisher) poll(ctx context.Context) {
	tick := time.NewTicker(p.cfg.Poll)
	defer tick.Stop()
	var looked time.Time
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if err := p.store(ctx); err != nil {
			p.cfg.Log.Warn("how far events are published could not be noted", "err", err)
			continue
		}
		if time.Since(looked) > boundsEvery {
			looked = time.Now()
			bounds, err := p.bounds(ctx)
			if err != nil {
				p.cfg.Log.Warn("the journal could not be asked for the chains that were cut", "err", err)
			}
			for _, b := range bounds {
				p.Back(b)
			}
		}
		if p.cfg.Unread == nil {
			continue
		}
		slots, err := p.cfg.Unread(ctx)
		if err != nil {
			p.cfg.Log.Warn("the journal could not be asked for unpublished events", "err", err)
			continue
		}
		for _, n := range slots {
			t := p.parts[n%len(p.parts)]
			t.mu.Lock()
			if _, waits := t.pending[n][t.heads[n].Seq+1]; !waits {
				t.read[n] = true
			}
			t.mu.Unlock()
			t.wake()
		}
	}
}

// store notes how far all partitions are published.
func (p *Publisher) store(ctx context.Context) error {
	var heads []Head
	for _, t := range p.parts {
		t.mu.Lock()
		for n := range t.dirty {
			heads = append(heads, Head{n, t.heads[n]})
		}
		clear(t.dirty)
		t.mu.Unlock()
	}
	if len(heads) == 0 {
		return nil
	}
	slices.SortFunc(heads, func(a, b Head) int { return a.Slot - b.Slot })
	err := p.cfg.Store(ctx, heads)
	if err != nil {
		for _, h := range heads {
			t := p.parts[h.Slot%len(p.parts)]
			t.mu.Lock()
			t.dirty[h.Slot] = true
			t.mu.Unlock()
		}
	}
	return err
}

// publish is a partition's loop.
func (p *Publisher) publish(ctx context.Context, t *part) {
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	beats, fails := 0, 0
	for ctx.Err() == nil {
		sent, err := p.step(ctx, t)
		switch {
		case err != nil && ctx.Err() == nil:
			fails++
			if fails == 1 || fails%20 == 0 {
				p.cfg.Log.Warn("events could not be published; they wait in the journal", "partition", t.n, "attempt", fails, "err", err)
			}
			select {
			case p.failed <- struct{}{}:
			default:
			}
			pause(ctx, min(100*time.Millisecond<<min(fails-1, 4), time.Second))
			continue
		case err == nil:
			fails = 0
		}
		due := false
		if sent {
			select {
			case <-beat.C:
				due = true
			default:
			}
		} else {
			select {
			case <-t.signal:
			case <-beat.C:
				due = true
			case <-ctx.Done():
			}
		}
		if due {
			if err := p.beat(ctx, t, beats%beatsFull == 0); err != nil && ctx.Err() == nil {
				p.cfg.Log.Debug("a heartbeat could not be published", "partition", t.n, "err", err)
			} else {
				beats++
			}
		}
	}
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTime)
	defer cancel()
	if err := p.store(sctx); err != nil {
		p.cfg.Log.Warn("how far events are published could not be noted; some will be published again", "err", err)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// keep makes the topic, and makes it anew when it is gone: the broker's disk was lost. What stood in it the peers fill.
func (p *Publisher) keep(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		err := Ensure(ctx, p.cfg.Kafka, p.cfg.Partitions, p.cfg.Retention)
		if err == nil {
			n = -1
			select {
			case <-p.failed:
			case <-ctx.Done():
			}
		} else if n%30 == 0 && ctx.Err() == nil {
			p.cfg.Log.Warn("the topic could not be looked at or made", "attempt", n+1, "err", err)
		}
		pause(ctx, time.Second)
	}
}

// step publishes one batch, the same until it is acknowledged. It says whether there was one.
func (p *Publisher) step(ctx context.Context, t *part) (bool, error) {
	if !p.cfg.Mine(t.n) {
		t.mu.Lock()
		t.active = false
		t.mu.Unlock()
		return false, nil
	}
	if err := p.begin(ctx, t); err != nil {
		return false, err
	}
	batch, err := p.collect(ctx, t)
	if err != nil || len(batch) == 0 {
		return false, err
	}
	records := make([]kafka.Record, len(batch))
	now := time.Now()
	for i := range batch {
		b, err := record.EncodeEvent(&batch[i])
		if err != nil {
			return false, fmt.Errorf("event %d of slot %d: %w", batch[i].Head.Seq, batch[i].Slot, err)
		}
		records[i] = kafka.Record{Time: now, Key: kafka.NewBytes(eventKey(batch[i].Slot, batch[i].Head.Seq)), Value: kafka.NewBytes(b)}
	}
	if err := p.produce(ctx, t.n, records); err != nil {
		for i := range batch { // nothing has moved: the next step begins with the first that is not acknowledged
			t.mustRead(batch[i].Slot)
		}
		return false, err
	}
	t.mu.Lock()
	for _, e := range batch {
		if t.past(&e) {
			continue // the chain was cut meanwhile; the peers know what to do with it
		}
		t.heads[e.Slot] = e.Head
		t.known[e.Slot] = max(t.known[e.Slot], e.Head.Seq)
		t.dirty[e.Slot], t.moved[e.Slot] = true, true
		if _, ok := t.pending[e.Slot][e.Head.Seq]; ok {
			delete(t.pending[e.Slot], e.Head.Seq)
			t.queued--
		}
	}
	t.mu.Unlock()
	p.cfg.Sent(len(batch), time.Since(now))
	return true, nil
}

// collect gives the next events of the partition, in the order of numbers in each slot.
func (p *Publisher) collect(ctx context.Context, t *part) ([]record.Event, error) {
	t.mu.Lock()
	todo := map[int]bool{}
	for n := range t.pending {
		todo[n] = true
	}
	for n := range t.read {
		todo[n] = true
	}
	t.mu.Unlock()
	var out []record.Event
	size := 0
	for n := range todo {
		if len(out) >= batchEvents {
			break
		}
		list, err := p.next(ctx, t, n, batchEvents-len(out))
		if err != nil {
			for i := range out {
				t.mustRead(out[i].Slot)
			}
			return nil, err
		}
		for _, e := range list {
			if size += len(e.Body) + 128; size > batchBytes && len(out) > 0 {
				t.mustRead(n)
				return out, nil
			}
			out = append(out, e)
		}
	}
	return out, nil
}

// next gives the events that follow what is published of a slot, from memory or else from the journal.
func (p *Publisher) next(ctx context.Context, t *part, n, limit int) ([]record.Event, error) {
	t.mu.Lock()
	head, read := t.heads[n], t.read[n]
	var out []record.Event
	for seq := head.Seq + 1; len(out) < limit && !read; seq++ {
		e, ok := t.pending[n][seq]
		if !ok {
			break
		}
		out = append(out, e)
	}
	if len(t.pending[n]) == 0 {
		delete(t.pending, n)
	}
	delete(t.read, n) // before reading: what is appended from now on is in memory
	t.mu.Unlock()
	if read {
		var err error
		if out, err = p.cfg.Source.EventsAfter(ctx, p.cfg.Index, n, head.Seq, limit); err != nil {
			t.mustRead(n)
			return nil, err
		}
		if len(out) == limit {
			t.mustRead(n) // there may be more
		}
		out = slices.DeleteFunc(out, func(e record.Event) bool { t.mu.Lock(); defer t.mu.Unlock(); return t.past(&e) })
		if len(out) > 0 {
			t.mu.Lock()
			t.known[n] = max(t.known[n], out[len(out)-1].Head.Seq)
			t.mu.Unlock()
		}
	}
	sound := t.sound(head, out)
	if len(sound) < len(out) {
		p.cfg.Log.Error("a slot is not published: an event in the journal does not continue its chain", "slot", n, "seq", out[len(sound)].Head.Seq)
	}
	return sound, nil
}

// errUnacknowledged: kafka-go answers nothing where no acknowledgement was asked for.
var errUnacknowledged = errors.New("the broker was not asked to acknowledge")

// produce writes one batch and waits for all replicas. Any error means: maybe written, also later.
func (p *Publisher) produce(ctx context.Context, partition int, records []kafka.Record) error {
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	res, err := p.link.Produce(cctx, &kafka.ProduceRequest{
		Topic: p.link.topic, Partition: partition, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(records...),
	})
	switch {
	case err != nil:
		return err
	case res == nil:
		return errUnacknowledged
	}
	return res.Error
}

// beat publishes a partition's heartbeat.
func (p *Publisher) beat(ctx context.Context, t *part, full bool) error {
	t.mu.Lock()
	active := t.active
	b := Beat{At: time.Now().UnixMilli()}
	var told []int
	for n, h := range t.heads {
		if h.Seq > 0 && (full || t.moved[n]) {
			b.Heads = append(b.Heads, Head{n, h})
			told = append(told, n)
		}
	}
	t.mu.Unlock()
	if !active {
		return nil
	}
	if p.cfg.Live != nil {
		b.Live = p.cfg.Live()
	}
	b.Unpublished += p.Unpublished()
	err := p.produce(ctx, t.n, []kafka.Record{{Time: time.Now(), Key: kafka.NewBytes(beatKey), Value: kafka.NewBytes(b.Encode())}})
	if err == nil {
		t.mu.Lock()
		for _, n := range told {
			delete(t.moved, n)
		}
		t.mu.Unlock()
	}
	return err
}
