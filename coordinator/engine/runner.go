package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/coordinator/mutant"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Config of a Runner. Zero fields take the default given.
type Config struct {
	// Self is this process's announcement. ID must be unique per process start: a restarted process is another holder.
	Self Member
	// Limits of the core.
	Limits Limits
	// MemberTTL bounds how long a dead process keeps its slots. Defaults to 3 s.
	MemberTTL time.Duration
	// CommitTimeout bounds one batch's write; past it the outcome is unknown. Defaults to 8 s, longer than etcd's own
	// limit.
	CommitTimeout time.Duration
	// Committers is how many batches may be unanswered. Defaults to 1: what waits meanwhile makes the next batch larger,
	// which costs less than a second one under way (measured: 15 % less CPU per transaction on two cores).
	Committers int
	// JournalDelay is how long an event may wait for company on its way to the journal. Defaults to 200 ms, and with other
	// regions, which are behind by it, to 50 ms.
	JournalDelay time.Duration
	// KeepFinished is how long finished transactions stay visible. 0 means for ever.
	KeepFinished time.Duration
	// RouteTimeout bounds the search for a slot's holder: on machines that are overloaded a lease that ended and a slot that is read
	// take longer, and a client that is told to repeat adds to it. Defaults to 15 s.
	RouteTimeout time.Duration
	// Regions is what there is beyond this region; nil where there is one.
	Regions Regions
	// Log gets lifecycle and decisions; nil discards.
	Log *slog.Logger
	// Observer is told of what happens; nil for nobody.
	Observer Observer
}

func (c Config) withDefaults() Config {
	if c.MemberTTL == 0 {
		c.MemberTTL = 3 * time.Second
	}
	if c.CommitTimeout == 0 {
		c.CommitTimeout = 8 * time.Second
	}
	if c.Committers == 0 {
		c.Committers = 1
	}
	if c.JournalDelay == 0 {
		c.JournalDelay = 200 * time.Millisecond
		if c.Regions != nil {
			c.JournalDelay = 50 * time.Millisecond
		}
	}
	if c.RouteTimeout == 0 {
		c.RouteTimeout = 15 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Observer == nil {
		c.Observer = nobody{}
	}
	return c
}

// Observer is told of what a Runner does. Its methods must return at once and are called from several goroutines.
type Observer interface {
	// Changed: a transition is durable.
	Changed(c Change)
	// Called: a branch call was answered; fails counts its failures in a row.
	Called(r CallResult, fails int)
	// Wrote: a batch was answered.
	Wrote(puts, deletes int, took time.Duration, v Verdict)
	// Journaled: rows reached the journal.
	Journaled(rows int, took time.Duration, err error)
	// Sampled: gauges, about once a second.
	Sampled(g Gauges)
}

// Gauges are what a Runner knows of itself.
type Gauges struct {
	Live, Unsaved, Slots, JournalBacklog, Stuck int
	Usage                                       Usage
}

type nobody struct{}

func (nobody) Changed(Change)                         {}
func (nobody) Called(CallResult, int)                 {}
func (nobody) Wrote(int, int, time.Duration, Verdict) {}
func (nobody) Journaled(int, time.Duration, error)    {}
func (nobody) Sampled(Gauges)                         {}

// Runner drives a Core: one goroutine owns it, others write batches, call branches and keep the journal. Its methods
// are safe for concurrent use. It does nothing before Run.
type Runner struct {
	cfg     Config
	store   Store
	journal Journal
	invoker Invoker
	forward Forwarder
	regions Regions // nil where there is one region
	clock   Clock
	known   *Known

	core                 *Core // owned by loop
	inbox                inbox
	batches              chan *Writing
	writing              int // owned by loop
	rows                 *rowQueue
	view                 atomic.Pointer[View]
	changed              chan struct{} // closed and replaced when the view or what we hold changes
	mu                   sync.Mutex    // guards changed
	claims               chan []int
	heldEpoch, purged    [slot.Count]atomic.Uint64
	working              works
	arrivals             queue                    // slots that arrive
	held                 [slot.Count]atomic.Int64 // the term of what is held, 0 for nothing; for routing: the core is the truth
	ready                atomic.Bool
	stopping             atomic.Bool
	saidEmpty            atomic.Int64 // unix seconds
	unadopted            atomic.Pointer[[]int]
	wanted               [slot.Count]atomic.Int32 // requests that wait for a slot to have a holder
	shedding             atomic.Bool
	building, buildAgain atomic.Bool
	open                 atomic.Int64 // transactions in memory, when they were last counted
	lifetime             context.Context
	done                 chan struct{}
}

// NewRunner makes a Runner. forward may be nil where the region has one coordinator.
func NewRunner(cfg Config, store Store, journal Journal, invoker Invoker, forward Forwarder, clock Clock) *Runner {
	cfg = cfg.withDefaults()
	r := &Runner{
		cfg: cfg, store: store, journal: journal, invoker: invoker, forward: forward, regions: cfg.Regions, clock: clock,
		known: NewKnown(), batches: make(chan *Writing, cfg.Committers), rows: newRowQueue(),
		changed: make(chan struct{}), claims: make(chan []int, slot.Count), lifetime: context.Background(), done: make(chan struct{}),
	}
	r.core = NewCore(cfg.Self.ID, cfg.Limits, r.known)
	r.inbox.signal = make(chan struct{}, 1)
	return r
}

// message is something for the goroutine that owns the core.
type message interface{ deliver(r *Runner, at int64) }

// inbox is an unbounded queue: what goes in is bounded by the requests and calls under way.
type inbox struct {
	mu     sync.Mutex
	queue  []message
	spare  []message
	signal chan struct{}
}

func (b *inbox) put(m message) {
	b.mu.Lock()
	b.queue = append(b.queue, m)
	first := len(b.queue) == 1
	b.mu.Unlock()
	if first {
		select {
		case b.signal <- struct{}{}:
		default:
		}
	}
}

func (b *inbox) take() []message {
	b.mu.Lock()
	q := b.queue
	b.queue = b.spare[:0]
	b.spare = nil
	b.mu.Unlock()
	return q
}

func (b *inbox) giveBack(q []message) {
	clear(q)
	b.mu.Lock()
	b.spare = q
	b.mu.Unlock()
}

func (p *pending) deliver(r *Runner, at int64) { r.core.Apply(at, p) }

type replied struct{ res CallResult }

func (m replied) deliver(r *Runner, at int64) {
	if r.regions != nil {
		owner, _ := r.owner(m.res.Call.AccountSlot)
		m.res = AfterLoss(m.res, owner)
	}
	r.core.Replied(at, m.res)
}

// do is a message that runs a function on the core's goroutine.
type do func(c *Core, at int64)

func (f do) deliver(r *Runner, at int64) { f(r.core, at) }

// Run drives the core until ctx ends, then gives its slots up. It returns nil after an orderly stop.
func (r *Runner) Run(ctx context.Context) error {
	defer close(r.done)
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	r.lifetime = inner
	g, gctx := errgroup.WithContext(inner)
	loopDone := make(chan struct{})
	g.Go(func() error { defer close(loopDone); return r.loop(gctx) })
	for range r.cfg.Committers {
		g.Go(func() error { r.commitLoop(gctx); return nil })
	}
	g.Go(func() error { r.journalLoop(gctx); return nil })
	g.Go(func() error { return r.own(ctx, gctx) })
	if r.regions != nil {
		g.Go(func() error { r.adoptions(gctx); return nil })
	}
	g.Go(func() error { r.sample(gctx); return nil })
	g.Go(func() error {
		select {
		case <-ctx.Done():
			r.drain()
			cancel()
		case <-gctx.Done():
		}
		return nil
	})
	err := g.Wait()
	r.stopping.Store(true)
	<-loopDone
	r.core.DropAll(ErrStopping)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Done is closed when Run has returned.
func (r *Runner) Done() <-chan struct{} { return r.done }

// loop owns the core.
func (r *Runner) loop(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	yielded := false
	for {
		q := r.inbox.take()
		at := r.clock.NowMillis()
		for _, m := range q {
			m.deliver(r, at)
		}
		busy := len(q) > 0
		r.inbox.giveBack(q)
		if busy && !yielded && r.writing == 0 && r.core.Unsaved() > 0 {
			// Let those who are about to send something run first: a batch of many costs hardly more than one of one.
			// It is a turn of the scheduler, not a wait.
			yielded = true
			runtime.Gosched()
			continue
		}
		yielded = false
		r.core.Expire(at)
		r.core.Flush(at)
		r.perform(at)
		r.feed(ctx)
		r.perform(at) // what was left out of a batch is for the arbiter, now and not when something else comes
		if busy {
			select {
			case <-r.inbox.signal:
				continue
			default:
			}
		}
		wait := time.Hour
		if next := r.core.NextWake(); next != 0 {
			wait = min(wait, max(0, time.Duration(next-at)*time.Millisecond))
		}
		timer.Reset(wait)
		select {
		case <-r.inbox.signal:
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// perform carries out what the core wants.
func (r *Runner) perform(at int64) {
	out := r.core.Drain()
	for _, c := range out.Calls {
		r.invoker.Start(c, r.called)
	}
	if len(out.Rows) > 0 {
		r.rows.put(out.Rows)
	}
	for _, ch := range out.Changes {
		r.cfg.Observer.Changed(ch)
		if ch.Phase.Finished() {
			r.cfg.Log.Debug("transaction ended", "gid", ch.Gid, "slot", ch.Slot, "mode", ch.Mode.String(), "phase", ch.Phase.String(), "reason", ch.Reason)
		}
	}
	for i := range out.Results {
		r.cfg.Observer.Called(out.Results[i].Result, out.Results[i].Fails)
	}
	for _, p := range out.Lookups {
		go r.lookup(p)
	}
	for _, d := range out.Decisions {
		go r.decide(d)
	}
	for _, n := range out.StaleSlots {
		r.cfg.Log.Warn("a participant has seen a newer epoch: the slot is read again", "slot", n)
		r.core.Settle(n)
		r.reclaim([]int{n})
	}
}

// called takes a call's result to the core.
func (r *Runner) called(res CallResult) { r.inbox.put(replied{res}) }

// lookup asks the journal for a gid that the core does not know.
func (r *Runner) lookup(p *pending) {
	ctx, cancel := context.WithTimeout(r.lifetime, 5*time.Second)
	defer cancel()
	tx, err := r.journal.Get(ctx, p.req.Gid)
	if err != nil {
		p.finish(answer{err: fmt.Errorf("ask the journal for %q: %w", string(p.req.Gid), err)})
		return
	}
	r.inbox.put(do(func(c *Core, at int64) { c.Found(at, p, tx) }))
}

// feed hands batches to the committers while they are free.
func (r *Runner) feed(ctx context.Context) {
	for r.writing < r.cfg.Committers {
		w := r.core.NextBatch()
		if w == nil {
			return
		}
		r.writing++
		select {
		case r.batches <- w:
		case <-ctx.Done():
			return
		}
	}
}

// commitLoop writes batches.
func (r *Runner) commitLoop(ctx context.Context) {
	for {
		select {
		case w := <-r.batches:
			r.commit(ctx, w)
		case <-ctx.Done():
			return
		}
	}
}

func (r *Runner) commit(ctx context.Context, w *Writing) {
	cctx, cancel := context.WithTimeoutCause(ctx, r.cfg.CommitTimeout, errors.New("commit timeout"))
	start := time.Now()
	if mutant.On(mutant.AckBeforeStore) {
		time.Sleep(mutant.StoreDelay)
	}
	err := r.store.Commit(cctx, &w.Batch)
	cancel()
	verdict := Durable
	var fenced []int
	var fe *FencedError
	switch {
	case err == nil:
	case errors.As(err, &fe):
		verdict, fenced = NotWritten, fe.Slots
		r.cfg.Log.Warn("slots were taken by another holder", "slots", len(fenced), "first", fenced)
	case errors.Is(err, ErrBusy):
		verdict = NotWritten
		r.cfg.Log.Warn("store is busy", "err", err)
		select { // definite: the same work is offered again after a breath
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	case errors.Is(err, ErrTooLarge):
		verdict = NotWritten
		r.cfg.Log.Error("a batch was refused as too large; it will be tried in parts", "puts", len(w.Batch.Puts), "err", err)
	default:
		verdict = Doubtful
		r.cfg.Log.Warn("a write is in doubt: its slots take new terms", "slots", len(w.slots), "err", err)
	}
	r.cfg.Observer.Wrote(len(w.Batch.Puts), len(w.Batch.Deletes), time.Since(start), verdict)
	tooLarge := errors.Is(err, ErrTooLarge)
	r.inbox.put(do(func(c *Core, at int64) {
		r.writing--
		c.Written(at, w, verdict, fenced)
		if tooLarge {
			c.lim.BatchOps = max(4, c.lim.BatchOps/2)
		}
		for _, n := range fenced {
			r.setHeld(n, 0)
		}
		if verdict == Doubtful {
			r.reclaim(w.Slots())
		}
	}))
}
