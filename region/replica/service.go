// Package replica is the replication of a region as a coordinator's process runs it: it publishes the own journal's events
// to the own Kafka, pulls every other region's events into the own journal, fills gaps from the origin's journal over HTTP,
// and knows at any time how far behind whom it is.
//
// The law it keeps: whatever Kafka does (loses, repeats, reorders, is truncated or made anew), the journal gets each chain
// whole and in order, or Status says which slot of which origin does not go on and what is missing; never in silence. One
// slot's trouble holds up no other.
//
// It composes region/eventlog and region/journal, which do not know each other. Nothing here writes to etcd: while a region
// is cut off, its backlog is in the peers' journals and Kafkas.
//
// It is tested with the embedded broker and SQLite, and with the tag servers against Apache Kafka, PostgreSQL and MariaDB,
// under injected faults.
package replica

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/eventlog"
	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Peer is another region.
type Peer struct {
	Name    string
	Index   int
	Brokers []string
	// TLS for its brokers; nil: none.
	TLS *tls.Config
	// AdminURLs are its coordinators' admin addresses, without a path: any one of them answers.
	AdminURLs []string
}

// Config of a Service.
type Config struct {
	// Region is the own region's name, Index its index.
	Region string
	Index  int
	// Journal is the region's; the Service takes its OnAppend.
	Journal *journal.Journal
	// Brokers are the own region's.
	Brokers []string
	TLS     *tls.Config
	// Partitions of every topic, the same in all regions and for ever; 0 means eventlog.Partitions.
	Partitions int
	// Retention of the own topic; 0 means 7 days.
	Retention time.Duration
	Peers     []Peer
	// HTTP calls the peers' admin addresses; TLS and tokens are its business. nil: http.DefaultTransport's.
	HTTP *http.Client
	// Seals gives all seals of a slot that the arbiter has, also those written just before. nil: there are none.
	Seals func(ctx context.Context, n int) ([]slot.Seal, error)
	// Owners gives the slots' owners as they are known, nil before they are heard of: where an owner has a forced seal of
	// another region, what is missing up to it is asked of all regions at once, and the chain is cut to it here (ADR 9). nil:
	// a forced seal is heard of by an event that follows it.
	Owners func() *slot.Map
	// Cut, where set, is told that this process found a chain past a forced seal in the journal, and that it ends at seq now:
	// what the copies are believed to have of it goes back. It must not wait.
	Cut func(origin, slot int, seq uint64)
	// Live counts this process's open transactions, and the decided or finished ones that the journal does not have, and says by
	// Member which process of the region this is: without that the peers take it for the only one. nil: none.
	Live func() eventlog.Live
	// Mine says which partitions this process publishes and pulls, where several share the journal; it may change at any
	// time, and two may think the same one theirs. nil: all.
	Mine func(partition int) bool
	// Shared: other processes append to the journal too, so that it is asked for their events often (100 ms, else 1 s).
	Shared bool
	// Durable, where set, is told of all events that this process has made durable in the journal, a transaction's decision
	// before its finish: the region's own as they are appended, and the others' as they are applied. It must not wait.
	Durable func(events []record.Event)
	// Registerer takes the metrics. nil: none.
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Service replicates. Make one with New, and run it with Run; everything else is safe for concurrent use.
type Service struct {
	cfg     Config
	log     *slog.Logger
	pub     *eventlog.Publisher
	origins map[int]*origin
	apply   *journal.Applier
	m       *metrics

	mu   sync.Mutex
	acks map[int]map[int]uint64 // by peer and slot: what it has of our chains
	cuts map[int]slot.Seal      // by slot: where our chains were cut last

	appended appended
}

// New makes one. From now on the journal tells it what is appended.
func New(cfg Config) (*Service, error) {
	if cfg.Partitions == 0 {
		cfg.Partitions = eventlog.Partitions
	}
	if cfg.Mine == nil {
		cfg.Mine = func(int) bool { return true }
	}
	if cfg.Live == nil {
		cfg.Live = func() eventlog.Live { return eventlog.Live{} }
	}
	if cfg.HTTP == nil {
		cfg.HTTP = &http.Client{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Service{cfg: cfg, log: cfg.Log, origins: map[int]*origin{}, acks: map[int]map[int]uint64{}, cuts: map[int]slot.Seal{}}
	for _, p := range cfg.Peers {
		if p.Index == cfg.Index || s.origins[p.Index] != nil || p.Index < 1 || p.Index > slot.RegionsMax {
			return nil, fmt.Errorf("peer %q has index %d, which is another region's or none", p.Name, p.Index)
		}
		s.origins[p.Index] = &origin{peer: p, started: time.Now()}
		s.acks[p.Index] = map[int]uint64{}
	}
	s.apply = cfg.Journal.Applier(journal.ApplyConfig{Own: cfg.Index, Seals: cfg.Seals})
	s.m = newMetrics(s)
	s.pub = eventlog.NewPublisher(s.publisher())
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(s.m); err != nil {
			return nil, fmt.Errorf("replication's metrics: %w", err)
		}
	}
	cfg.Journal.OnAppend(func(rows []engine.Row, events []record.Event) {
		all := append(eventsOf(rows), events...)
		for i := range all {
			s.appended.note(chainPart{all[i].Slot, all[i].Epoch}, all[i].Head.Seq)
		}
		s.pub.Appended(all)
		if cfg.Durable != nil {
			cfg.Durable(all)
		}
	})
	return s, nil
}

// eventsOf gives the events that rows hold.
func eventsOf(rows []engine.Row) []record.Event {
	out := make([]record.Event, 0, 2*len(rows))
	for i := range rows {
		r := &rows[i]
		if r.Decision.Seq != 0 {
			out = append(out, record.Event{Slot: r.Slot, Kind: record.KindDecision, Gid: r.Gid, Epoch: r.DecisionEpoch, Head: r.Decision, Body: r.Closed})
		}
		if r.Finish.Seq != 0 {
			out = append(out, record.Event{Slot: r.Slot, Kind: record.KindFinish, Gid: r.Gid, Epoch: r.FinishEpoch, Head: r.Finish, Body: r.Progress})
		}
	}
	return out
}

func (s *Service) publisher() eventlog.PublisherConfig {
	j, own := s.cfg.Journal, s.cfg.Index
	poll := time.Second
	if s.cfg.Shared {
		poll = 100 * time.Millisecond
	}
	return eventlog.PublisherConfig{
		Kafka: eventlog.Kafka{Brokers: s.cfg.Brokers, TLS: s.cfg.TLS, Region: s.cfg.Region},
		Index: own, Partitions: s.cfg.Partitions, Source: j, Live: s.cfg.Live, Mine: s.cfg.Mine, Poll: poll, Retention: s.cfg.Retention, Log: s.log,
		Load: func(ctx context.Context) ([]eventlog.Head, error) {
			marks, err := j.Published(ctx, own)
			heads := make([]eventlog.Head, len(marks))
			for i, m := range marks {
				heads[i] = eventlog.Head{Slot: m.Slot, Head: m.Head}
			}
			return heads, err
		},
		Store: func(ctx context.Context, heads []eventlog.Head) error {
			marks := make([]journal.Mark, len(heads))
			for i, h := range heads {
				marks[i] = journal.Mark{Origin: own, Slot: h.Slot, Head: h.Head}
			}
			return j.SetPublished(ctx, marks)
		},
		Bounds: s.bounds,
		Unread: func(ctx context.Context) ([]int, error) { return j.Unread(ctx, own) },
		Sent:   func(events int, took time.Duration) { s.m.published.Add(float64(events)) },
	}
}

// Run replicates until ctx ends. What is not reachable (Kafka, a peer, the journal) is tried again; nothing of it ends Run.
func (s *Service) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	if !s.again(ctx, "prepare the journal for replication", s.prepare) {
		return nil
	}
	all.Go(func() { _ = s.pub.Run(ctx) })
	for _, o := range s.origins {
		for p := range s.cfg.Partitions {
			all.Go(func() { s.pull(ctx, o, p) })
		}
		all.Go(func() { s.ask(ctx, o) })
		all.Go(func() { s.askEach(ctx, o) })
		if s.cfg.Owners != nil {
			all.Go(func() { s.reach(ctx, o) })
		}
	}
	all.Go(func() { s.refresh(ctx) })
	all.Go(func() { s.keepCuts(ctx) })
	return nil
}

// again repeats work until it succeeds: after 200 ms, 400 ms … 5 s. False: ctx ended.
func (s *Service) again(ctx context.Context, what string, work func(context.Context) error) bool {
	for n := 0; ctx.Err() == nil; n++ {
		err := work(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() == nil && n%20 == 0 {
			s.log.Error("replication waits", "to", what, "attempt", n+1, "err", err)
		}
		rest(ctx, min(200*time.Millisecond<<min(n, 5), 5*time.Second))
	}
	return false
}

func rest(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// prepare makes the rows that say how far is published and acknowledged: from now on Trim keeps what a peer lacks.
func (s *Service) prepare(ctx context.Context) error {
	marks := make([]journal.Mark, slot.Count)
	zero := map[int]uint64{}
	for n := range marks {
		marks[n] = journal.Mark{Origin: s.cfg.Index, Slot: n}
		zero[n] = 0
	}
	if err := s.cfg.Journal.SetPublished(ctx, marks); err != nil {
		return err
	}
	for index := range s.origins {
		if err := s.cfg.Journal.Acknowledge(ctx, s.cfg.Index, index, zero); err != nil {
			return err
		}
	}
	acks, err := s.cfg.Journal.Acknowledged(ctx, s.cfg.Index)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for index, seqs := range acks {
		if s.origins[index] == nil {
			s.log.Warn("the journal keeps events for a region that is no peer any more; if it is gone for good, forget it", "index", index)
			continue
		}
		s.acks[index] = seqs
	}
	return nil
}

// Carried gives the live records that came with a seal of another region, once the journal has reached the seal:
// engine.ErrNotYet before. An error says that the chains contradict.
func (s *Service) Carried(ctx context.Context, n int, seal *slot.Seal) ([][]byte, error) {
	reached, err := s.cfg.Journal.Reached(ctx, n, seal)
	if err != nil || seal == nil {
		return nil, err
	}
	if !reached {
		return nil, engine.ErrNotYet
	}
	return s.cfg.Journal.Carried(ctx, n, seal.Epoch)
}

// Unstop lets a chain go on after what stopped it was repaired; what is missing is asked of the origin. It says whether it
// was stopped.
func (s *Service) Unstop(ctx context.Context, origin, n int) (bool, error) {
	return s.cfg.Journal.Unstop(ctx, origin, n)
}
