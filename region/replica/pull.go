package replica

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/eventlog"
	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Bounds of a puller.
const (
	applyEvents = 1000   // of one SQL transaction
	laneEvents  = 1000   // of a slot that wait for an earlier one
	heldEvents  = 10_000 // of all slots of a partition
	takeEvents  = 2000   // read before they are applied
	// gapWait is how long a gap may fill by itself; the waits after a fill that gave nothing double to fillPauseMax.
	gapWait      = 200 * time.Millisecond
	fillPauseMax = 10 * time.Second
	fillsAtOnce  = 16
	// waitEvery is how often a lane that waits for a seal is looked at.
	waitEvery = 50 * time.Millisecond
	// idleWait: what the origin has told of for so long and what is not among all that Kafka has, Kafka lost; and after so
	// long without Kafka, its answers are not waited for.
	idleWait = 3 * time.Second
)

// puller reads one partition of one origin into the journal. One goroutine.
type puller struct {
	s      *Service
	o      *origin
	part   int
	reader *ahead
	lanes  map[int]*lane
	held   int
	// offset is where reading is to go on after what is in memory was applied; -1: it is noted already.
	offset int64
	repeat []record.Event // come again; they are compared with what is here
	poison []journal.Poison
	atEnd  bool      // all that Kafka has was read
	away   int       // reads in a row that failed
	since  time.Time // when the first of them began to fail
	unsure time.Time // when it was last said that the arbiter does not answer
}

// lane is one slot's chain on its way.
type lane struct {
	applied uint64
	promise uint64                  // the highest number that stood in Kafka before what was read last
	events  map[uint64]record.Event // above applied; of two epochs the later one's
	aside   []record.Event          // of an earlier epoch, with a number that a later one has too, until they are judged
	bounded uint64                  // the epoch up to which the journal has bound the chain
	gap     time.Time               // since when the next event is missing
	again   time.Time               // when to ask for it again
	waits   time.Time               // until when a seal is waited for before the next look
	fails   int
}

// pull runs a puller while the partition is this process's.
func (s *Service) pull(ctx context.Context, o *origin, part int) {
	fails := 0
	for ctx.Err() == nil {
		if !s.cfg.Mine(part) {
			rest(ctx, 200*time.Millisecond)
			continue
		}
		p := &puller{s: s, o: o, part: part, lanes: map[int]*lane{}, offset: -1}
		err := p.begin(ctx)
		for err == nil && ctx.Err() == nil && s.cfg.Mine(part) {
			err = p.step(ctx)
			fails = 0
		}
		if p.reader != nil {
			p.reader.close()
		}
		if err != nil && ctx.Err() == nil {
			fails++
			if fails == 1 || fails%20 == 0 {
				s.log.Warn("a partition of another region's events cannot be read or applied", "origin", o.peer.Name, "partition", part, "attempt", fails, "err", err)
			}
			rest(ctx, min(100*time.Millisecond<<min(fails-1, 5), 2*time.Second))
		}
	}
}

// begin reads where to go on. What an earlier puller held in memory is read again or filled.
func (p *puller) begin(ctx context.Context) error {
	offsets, err := p.s.cfg.Journal.Offsets(ctx, p.o.peer.Index)
	if err != nil {
		return err
	}
	marks, err := p.s.cfg.Journal.Marks(ctx)
	if err != nil {
		return err
	}
	var mine []journal.Mark
	for _, m := range marks {
		if m.Origin == p.o.peer.Index && m.Slot%p.s.cfg.Partitions == p.part {
			p.lane(m.Slot).applied = m.Head.Seq
			mine = append(mine, m)
		}
	}
	p.o.settled(mine)
	p.reader = readAhead(ctx, eventlog.NewReader(eventlog.ReaderConfig{
		Kafka: eventlog.Kafka{Brokers: p.o.peer.Brokers, TLS: p.o.peer.TLS, Region: p.o.peer.Name},
		Index: p.o.peer.Index, Partition: p.part, Partitions: p.s.cfg.Partitions, Offset: offsets[p.part],
	}))
	return nil
}

func (p *puller) lane(n int) *lane {
	l := p.lanes[n]
	if l == nil {
		l = &lane{applied: p.o.appliedOf(n), events: map[uint64]record.Event{}}
		p.lanes[n] = l
	}
	return l
}

// step reads once and applies what can be applied. An error is of the journal: what is held in memory is given up.
func (p *puller) step(ctx context.Context) error {
	c, err := p.reader.next(ctx)
	switch {
	case err == nil:
		p.away = 0
		p.took(&c)
		for part := range slices.Chunk(c.Messages, takeEvents) {
			p.take(part)
			if err := p.applyAll(ctx); err != nil {
				return err
			}
		}
	case ctx.Err() != nil:
		return nil
	default:
		p.missed(ctx, err)
	}
	// What waits for a seal or was missing may go on also while Kafka is away.
	if err := p.applyAll(ctx); err != nil {
		return err
	}
	return p.fillAll(ctx)
}

// missed waits after Kafka did not answer: 100 ms, 200 ms … 1 s.
func (p *puller) missed(ctx context.Context, err error) {
	if p.away%20 == 0 {
		p.s.log.Warn("a partition of another region's events cannot be read", "origin", p.o.peer.Name, "partition", p.part, "attempt", p.away+1, "err", err)
	}
	rest(ctx, min(100*time.Millisecond<<min(p.away, 4), time.Second))
	if p.away++; p.away == 1 {
		p.since = time.Now()
	}
}

// took looks at how reading went.
func (p *puller) took(c *eventlog.Chunk) {
	name := p.o.peer.Name
	if c.Notice != "" {
		p.s.m.odd.WithLabelValues(name, string(c.Notice)).Inc()
		p.s.log.Warn("reading another region's events did not simply go on; what is missing is asked of it", "origin", name,
			"partition", p.part, "what", string(c.Notice), "next", c.Next, "end", c.High)
		p.offset = c.Next
	}
	p.atEnd = c.Next >= c.High
}

// take sorts what was read into the lanes.
func (p *puller) take(messages []eventlog.Message) {
	name := p.o.peer.Name
	for i := range messages {
		m := &messages[i]
		switch {
		case m.Event != nil:
			p.add(m.Event)
		case m.Beat != nil:
			p.o.learn(m.Beat.Heads, &m.Beat.Live)
			for _, h := range m.Beat.Heads {
				if h.Slot%p.s.cfg.Partitions == p.part {
					l := p.lane(h.Slot)
					l.promise = max(l.promise, p.o.counts(h.Slot, h.Head.Seq))
				}
			}
		case m.Poison.Slot < 0:
			p.s.m.odd.WithLabelValues(name, "unreadable").Inc()
			p.s.log.Error("a message that is of no slot was skipped", "origin", name, "partition", p.part, "offset", m.Offset, "reason", m.Poison.Reason)
		default:
			p.poison = append(p.poison, journal.Poison{Slot: m.Poison.Slot, Seq: m.Poison.Seq, Reason: m.Poison.Reason, Bytes: m.Poison.Bytes})
		}
		p.offset = m.Offset + 1
	}
}

// add holds an event until its turn; where there is no room, it is asked for later.
func (p *puller) add(e *record.Event) {
	l := p.lane(e.Slot)
	seq := e.Head.Seq
	if !p.o.past(e.Slot, seq, e.Epoch) {
		l.promise = max(l.promise, seq)
	}
	switch {
	case p.o.saw(e.Slot, seq, e.Epoch):
		p.s.m.dropped.WithLabelValues(p.o.peer.Name).Inc()
	case seq <= l.applied:
		p.repeat = append(p.repeat, *e)
	case l.has(seq) && l.events[seq].Epoch == e.Epoch:
		p.s.m.duplicates.WithLabelValues(p.o.peer.Name).Inc()
	case l.has(seq) && l.events[seq].Epoch > e.Epoch:
		p.putAside(l, *e)
	case l.has(seq):
		p.putAside(l, l.events[seq])
		l.events[seq] = *e
	case len(l.events) >= laneEvents && !l.has(l.applied+1) || p.held >= heldEvents:
	default:
		l.events[seq] = *e
		p.held++
	}
}

// putAside holds an event whose number a later epoch has: most likely it is past a forced seal, which Apply knows.
func (p *puller) putAside(l *lane, e record.Event) {
	if len(l.aside) < laneEvents && !slices.ContainsFunc(l.aside, func(a record.Event) bool { return a.Head == e.Head }) {
		l.aside = append(l.aside, e)
		p.held++
	}
}

func (l *lane) has(seq uint64) bool {
	_, ok := l.events[seq]
	return ok
}

// applyAll applies what is next in all lanes, in SQL transactions of bounded size; the last one notes the offset.
func (p *puller) applyAll(ctx context.Context) error {
	for {
		b := journal.Batch{Origin: p.o.peer.Index, Part: p.part, Offset: -1, Events: p.repeat, Poison: p.poison}
		more, now := false, time.Now()
		for n, l := range p.lanes {
			if len(l.events)+len(l.aside) == 0 || now.Before(l.waits) || p.o.stopped(n) {
				continue
			}
			for _, e := range l.aside {
				b.Events = append(b.Events, e)
				if later, ok := l.events[e.Head.Seq]; ok {
					b.Events = append(b.Events, later) // by its epoch it is known that there is a seal
				}
			}
			seq := l.applied + 1
			for ; len(b.Events) < applyEvents; seq++ {
				e, ok := l.events[seq]
				if !ok {
					break
				}
				b.Events = append(b.Events, e)
			}
			b.Events = append(b.Events, p.pastSeal(n, l, seq)...)
			more = more || l.has(seq)
		}
		if !more {
			b.Offset = p.offset
		}
		if len(b.Events) == 0 && len(b.Poison) == 0 && b.Offset < 0 {
			return nil
		}
		progress, err := p.apply(ctx, b)
		if err != nil {
			return err
		}
		p.repeat, p.poison = nil, nil
		if !more {
			p.offset = -1
		}
		if !more || !progress {
			return nil
		}
	}
}

// apply applies one batch and takes note of what became of it.
func (p *puller) apply(ctx context.Context, b journal.Batch) (progress bool, err error) {
	res, err := p.s.apply.Apply(ctx, b)
	if err != nil {
		return false, err
	}
	name := p.o.peer.Name
	p.s.m.applied.WithLabelValues(name).Add(float64(res.Applied))
	p.s.m.duplicates.WithLabelValues(name).Add(float64(res.Duplicates))
	p.s.m.dropped.WithLabelValues(name).Add(float64(res.Dropped))
	now := time.Now().UnixMilli()
	for _, at := range res.DecidedAt {
		p.s.m.delay.WithLabelValues(name).Observe(float64(max(0, now-at)) / 1000)
	}
	for _, st := range res.Stopped {
		p.s.log.Error("a slot of another region is stopped; nothing more of it is applied until an operator lets it go on", "origin", name, "slot", st.Slot, "seq", st.Seq, "reason", st.Reason)
	}
	if res.Unsure != nil && time.Since(p.unsure) > 10*time.Second {
		p.unsure = time.Now()
		p.s.log.Warn("slots of another region wait: the arbiter does not say which seals there are", "origin", name, "slots", len(res.Waiting), "err", res.Unsure)
	}
	p.o.settled(res.Marks)
	p.diverged(&res)
	var durable []record.Event
	for _, m := range res.Marks {
		l := p.lane(m.Slot)
		p.bound(l, &m)
		progress = p.judged(l, m.Slot, &b, &res) || progress
		if m.Head.Seq > l.applied {
			for seq := l.applied + 1; seq <= m.Head.Seq; seq++ {
				e, ok := l.events[seq]
				if !ok {
					e, ok = latest(b.Events, m.Slot, seq)
				}
				if !ok {
					break
				}
				durable = append(durable, e)
			}
			l.applied, l.gap, l.again, l.fails = m.Head.Seq, time.Time{}, time.Time{}, 0
			progress = true
			p.o.note(m.Slot, false, "")
		}
		for seq := range l.events {
			if seq <= l.applied || m.Stopped != "" {
				delete(l.events, seq)
				p.held--
			}
		}
	}
	if p.s.cfg.Durable != nil && len(durable) > 0 {
		p.s.cfg.Durable(durable)
	}
	for _, n := range res.Waiting {
		p.lane(n).waits = time.Now().Add(waitEvery)
		p.o.note(n, true, "")
	}
	return progress, nil
}

// missing says whether the next event of a lane should be here and is not.
func (p *puller) missing(n int, l *lane, now time.Time) bool {
	if l.has(l.applied+1) || p.o.stopped(n) {
		return false
	}
	if max(l.promise, p.lost(n, now)) <= l.applied {
		l.gap = time.Time{}
		return false
	}
	if l.gap.IsZero() {
		l.gap = now
	}
	return now.Sub(l.gap) >= gapWait && !now.Before(l.again)
}

// lost is the number up to which Kafka should have a slot's events, by the origin's word alone: it tells only of what Kafka
// has acknowledged. 0 while they may still come.
func (p *puller) lost(n int, now time.Time) uint64 {
	if p.away == 0 && !p.atEnd || p.away > 0 && now.Sub(p.since) <= idleWait {
		return 0
	}
	head, behind := p.o.headOf(n)
	if behind.IsZero() || now.Sub(behind) <= idleWait {
		return 0
	}
	return head
}

// fillAll asks for what is missing and applies it: also of slots of which nothing ever came.
func (p *puller) fillAll(ctx context.Context) error {
	now := time.Now()
	for n := p.part; n < slot.Count; n += p.s.cfg.Partitions {
		if p.lanes[n] == nil && p.lost(n, now) > 0 {
			p.lane(n)
		}
	}
	var (
		mu  sync.Mutex
		all sync.WaitGroup
		got []record.Event
	)
	asked := 0
	for n, l := range p.lanes {
		if asked == fillsAtOnce {
			break
		}
		if !p.missing(n, l, now) {
			continue
		}
		asked++
		after := l.applied
		all.Go(func() {
			events, err := p.s.fill(ctx, p.o, n, after)
			if err != nil {
				p.unfilled(ctx, n, l, err)
				return
			}
			mu.Lock()
			got = append(got, events...)
			mu.Unlock()
		})
	}
	all.Wait()
	if len(got) == 0 {
		return nil
	}
	p.s.m.filled.WithLabelValues(p.o.peer.Name).Add(float64(len(got)))
	p.s.log.Info("events missing in Kafka were taken from a region's journal", "origin", p.o.peer.Name, "partition", p.part, "events", len(got))
	for _, e := range got {
		if l := p.lane(e.Slot); e.Slot%p.s.cfg.Partitions == p.part && e.Head.Seq > l.applied && !l.has(e.Head.Seq) {
			l.events[e.Head.Seq] = e
			p.held++
		}
	}
	return p.applyAll(ctx)
}

// unfilled notes that nobody has what is missing, or that nobody answers; it is asked for again later.
func (p *puller) unfilled(ctx context.Context, n int, l *lane, err error) {
	if ctx.Err() != nil {
		return
	}
	l.fails++
	l.again = time.Now().Add(min(500*time.Millisecond<<min(l.fails, 6), fillPauseMax))
	head, _ := p.o.headOf(n)
	last := max(l.promise, head)
	text := fmt.Sprintf("events %d to %d are missing in Kafka, and no region gives them: %v", l.applied+1, last, err)
	p.o.note(n, false, text)
	if l.fails == 1 || l.fails%20 == 0 {
		p.s.m.odd.WithLabelValues(p.o.peer.Name, "gap_unfilled").Inc()
		p.s.log.Error("a slot of another region does not go on", "origin", p.o.peer.Name, "slot", n, "reason", text)
	}
}
