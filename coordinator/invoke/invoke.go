// Package invoke calls branches: HTTP, gRPC and JSON-RPC as DTM's SDKs expect them.
//
// The law it keeps: an answer is Refused only when the participant said so in the protocol's own words. Everything
// else that is not a success, timeouts and lost connections included, is Unknown (G2). A destination that hangs takes
// none of the capacity of the others: each has its own bulkhead and breaker.
//
// It is tested against real servers that answer, refuse, hang and die. Source: DTM wire reference, sections 2.2 and 7.
package invoke

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// Config of an Invoker. Zero fields take the default given.
type Config struct {
	// InFlightMax bounds the calls under way to one destination. Defaults to 256.
	InFlightMax int
	// QueueMax bounds the calls that wait for one destination; more are deferred. Defaults to 100,000.
	QueueMax int
	// BreakerFails failures in a row open a destination's breaker; then one call a BreakerPause probes it. Defaults
	// to 20 and 1 s.
	BreakerFails int
	BreakerPause time.Duration
	// ResultBytesMax bounds the body of a forward call that is kept for later branches. Defaults to 16 KiB.
	ResultBytesMax int
	// Allow says which destinations may be called; nil is DefaultAllow.
	Allow *Allow
	// TLS is how https:// and grpcs:// addresses are called; nil means by the system's certificate authorities, without a
	// client certificate, from TLS 1.2 on.
	TLS *tls.Config
	// Resolve gives a call the address and the epoch of its account's home, on a copy of the call; nil leaves calls as they
	// are. An error makes the call Unknown.
	Resolve func(c *engine.Call) (*engine.Call, error)
	// Around runs each call, or each batch by its first member, and must call f; nil calls it. It labels profiles.
	Around func(c *engine.Call, f func())
	// Log gets Debug for each call; nil discards.
	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.InFlightMax == 0 {
		c.InFlightMax = 256
	}
	if c.QueueMax == 0 {
		c.QueueMax = 100_000
	}
	if c.BreakerFails == 0 {
		c.BreakerFails = 20
	}
	if c.BreakerPause == 0 {
		c.BreakerPause = time.Second
	}
	if c.ResultBytesMax == 0 {
		c.ResultBytesMax = 16 << 10
	}
	if c.Allow == nil {
		c.Allow = DefaultAllow()
	}
	if c.TLS == nil {
		c.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if c.Around == nil {
		c.Around = func(_ *engine.Call, f func()) { f() }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Invoker calls branches. Safe for concurrent use.
type Invoker struct {
	cfg   Config
	http  *caller
	grpc  *grpcPool
	mu    sync.Mutex
	dests map[string]*destination
	// lives are what calls hang on: one context for all of them would make its lock the busiest of the process.
	lives  [64]context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // calls
	idle   chan task
	idling atomic.Int32
	ended  chan struct{}
	end    sync.Once
}

var _ engine.Invoker = (*Invoker)(nil)

// New makes an Invoker. Close ends it.
func New(cfg Config) *Invoker {
	cfg = cfg.withDefaults()
	var lives [64]context.Context
	cancels := make([]context.CancelFunc, len(lives))
	for i := range lives {
		lives[i], cancels[i] = context.WithCancel(context.Background())
	}
	cancel := func() {
		for _, c := range cancels {
			c()
		}
	}
	dial := cfg.Allow.dialer(net.Dialer{Timeout: 3 * time.Second, KeepAlive: 15 * time.Second})
	return &Invoker{
		cfg: cfg, http: newCaller(dial, cfg.InFlightMax, cfg.TLS), grpc: newGRPCPool(dial, cfg.TLS), dests: map[string]*destination{}, lives: lives, cancel: cancel,
		idle: make(chan task), ended: make(chan struct{}),
	}
}

// Close ends every call under way with Unknown and waits for that.
func (v *Invoker) Close() {
	v.cancel()
	v.http.interrupt()
	v.wg.Wait()
	v.end.Do(func() { close(v.ended) })
	v.http.client.CloseIdleConnections()
	v.grpc.close()
}

// destination is one participant's address: its calls under way, those that wait, and its breaker.
type destination struct {
	mu       sync.Mutex
	running  int
	queue    []job
	fails    int
	openTill time.Time
	lanes    map[string]*lane // of a participant that takes batches
}

type job struct {
	call *engine.Call
	done func(engine.CallResult)
}

// Start is engine.Invoker's.
func (v *Invoker) Start(c *engine.Call, done func(engine.CallResult)) {
	if c.URL == "" {
		done(engine.CallResult{Call: c, Outcome: txn.Done, StartedAt: time.Now()})
		return
	}
	if v.cfg.Resolve != nil {
		at, err := v.cfg.Resolve(c)
		if err != nil {
			done(engine.CallResult{Call: c, Outcome: txn.Unknown, Text: err.Error(), StartedAt: time.Now()})
			return
		}
		c = at
	}
	d := v.destination(destinationOf(c))
	d.mu.Lock()
	now := time.Now()
	if wait := d.openTill.Sub(now); wait > 0 && d.fails >= v.cfg.BreakerFails {
		d.mu.Unlock()
		done(engine.CallResult{Call: c, Outcome: txn.Deferred, Text: "the destination's breaker is open", StartedAt: now, RetryAfter: wait + spread(c)})
		return
	}
	if d.fails >= v.cfg.BreakerFails {
		// Half open: this call probes, the others wait for what it finds.
		d.openTill = now.Add(v.cfg.BreakerPause)
	}
	if ln := d.lane(c); ln != nil {
		if len(ln.waiting) >= v.cfg.QueueMax {
			d.mu.Unlock()
			done(queueFull(c, now))
			return
		}
		ln.waiting = append(ln.waiting, job{c, done})
		v.launch(d, ln)
		d.mu.Unlock()
		return
	}
	d.mu.Unlock()
	v.startAlone(d, job{c, done})
}

// startAlone makes a call by itself, when the destination has room for it.
func (v *Invoker) startAlone(d *destination, j job) {
	d.mu.Lock()
	if d.running >= v.cfg.InFlightMax {
		if len(d.queue) >= v.cfg.QueueMax {
			d.mu.Unlock()
			j.done(queueFull(j.call, time.Now()))
			return
		}
		d.queue = append(d.queue, j)
		d.mu.Unlock()
		return
	}
	d.running++
	d.mu.Unlock()
	v.hand(task{d: d, j: j})
}

func queueFull(c *engine.Call, now time.Time) engine.CallResult {
	return engine.CallResult{Call: c, Outcome: txn.Deferred, Text: "the destination's queue is full", StartedAt: now, RetryAfter: time.Second + spread(c)}
}

// hand gives a task to a worker that has nothing to do, or to a new one.
func (v *Invoker) hand(t task) {
	v.wg.Add(1)
	select {
	case v.idle <- t:
	default:
		go v.worker(t)
	}
}

// task is a job and where it goes, or the batches of a lane.
type task struct {
	d    *destination
	j    job
	lane *lane
}

// idleMax bounds the workers that wait for a task. One that waits keeps the stack that its calls have grown, which is a
// twentieth of the work of a call.
const idleMax = 256

// worker works at tasks until enough others wait for the next one.
func (v *Invoker) worker(t task) {
	for {
		if t.lane != nil {
			v.workBatches(t.d, t.lane)
		} else {
			v.work(t.d, t.j)
		}
		if v.idling.Add(1) > idleMax {
			v.idling.Add(-1)
			return
		}
		select {
		case t = <-v.idle:
			v.idling.Add(-1)
		case <-v.ended:
			return
		}
	}
}

// spread gives calls that are deferred together different times to come back: up to half a second by their gid.
func spread(c *engine.Call) time.Duration {
	h := uint32(2166136261)
	for i := 0; i < len(c.Gid); i++ {
		h = (h ^ uint32(c.Gid[i])) * 16777619
	}
	return time.Duration(h%500) * time.Millisecond
}

func (v *Invoker) destination(key string) *destination {
	v.mu.Lock()
	defer v.mu.Unlock()
	d := v.dests[key]
	if d == nil {
		if len(v.dests) >= destinationsMax {
			v.sweep()
		}
		d = &destination{}
		v.dests[key] = d
	}
	return d
}

// destinationsMax bounds the destinations that are remembered; those that nobody calls make room.
const destinationsMax = 10_000

// sweep forgets destinations that are idle and sound; v.mu is held.
func (v *Invoker) sweep() {
	for key, d := range v.dests {
		d.mu.Lock()
		idle := d.running == 0 && len(d.queue) == 0 && d.fails == 0
		d.mu.Unlock()
		if idle {
			delete(v.dests, key)
		}
	}
}

// life is the context that a call hangs on.
func (v *Invoker) life(c *engine.Call) context.Context {
	return v.lives[c.Slot%len(v.lives)]
}

// destinationOf is the address part of a call's url.
func destinationOf(c *engine.Call) string {
	u := c.URL
	if i := strings.Index(u, "://"); i >= 0 {
		u = u[i+3:]
	}
	if i := strings.IndexAny(u, "/?#"); i >= 0 {
		u = u[:i]
	}
	return u
}

// work makes one call after another while some wait for the destination.
func (v *Invoker) work(d *destination, j job) {
	defer v.wg.Done()
	for {
		res := v.call(j.call)
		j.done(res)
		d.mu.Lock()
		d.book(v, res.Outcome == txn.Unknown)
		var deferred []job
		if d.fails >= v.cfg.BreakerFails {
			// What waits would wait for nothing: it comes back by its own timer.
			deferred, d.queue = d.queue, nil
		}
		if len(d.queue) == 0 {
			d.running--
			d.mu.Unlock()
			for _, q := range deferred {
				q.done(v.breakerOpen(q.call))
			}
			return
		}
		j = d.queue[0]
		d.queue[0] = job{}
		d.queue = d.queue[1:]
		d.mu.Unlock()
	}
}

func (v *Invoker) breakerOpen(c *engine.Call) engine.CallResult {
	return engine.CallResult{Call: c, Outcome: txn.Deferred, Text: "the destination's breaker is open", StartedAt: time.Now(), RetryAfter: v.cfg.BreakerPause + spread(c)}
}

// book counts a call or a batch for the breaker; d.mu is held.
func (d *destination) book(v *Invoker, failed bool) {
	if !failed {
		d.fails = 0
		return
	}
	d.fails++
	if d.fails >= v.cfg.BreakerFails {
		d.openTill = time.Now().Add(v.cfg.BreakerPause)
	}
}

var errCallTimeout = errors.New("the participant did not answer within the request timeout")

// call makes one call and says what is known after it.
func (v *Invoker) call(c *engine.Call) (res engine.CallResult) {
	start := time.Now()
	res = engine.CallResult{Call: c, StartedAt: start}
	defer func() {
		// A codec or a driver of somebody else may panic on odd input: nothing was learned then.
		if p := recover(); p != nil {
			res.Outcome, res.Text = txn.Unknown, fmt.Sprintf("panic while calling: %v", p)
		}
		res.Took = time.Since(start)
	}()
	ctx, cancel := context.WithTimeoutCause(v.life(c), c.Timeout, errCallTimeout)
	defer cancel()
	v.cfg.Around(c, func() {
		switch kindOf(c) {
		case kindHTTP:
			v.callHTTP(ctx, c, &res)
		case kindJSONRPC:
			v.callJSONRPC(ctx, c, &res)
		case kindGRPC:
			v.callGRPC(ctx, c, &res)
		}
	})
	if res.Outcome != txn.Unknown {
		awayFrom(&res)
		return res
	}
	if errors.Is(context.Cause(ctx), errCallTimeout) {
		res.Text = fmt.Sprintf("%v (%v)", errCallTimeout, c.Timeout)
	}
	return res
}

// awayFrom makes a call that came too early or too late for its account's home one that is made again soon, where the
// home will be known better; it is no failure. A stale call whose account's slot is the transaction's own is the engine's.
func awayFrom(res *engine.CallResult) {
	switch {
	case res.Outcome == txn.Deferred && res.RetryAfter == 0:
		res.RetryAfter = movedPause
	case res.Outcome == txn.Stale && res.Call.AccountEpoch != 0 && res.Call.AccountSlot != res.Call.Slot:
		res.Outcome, res.RetryAfter = txn.Deferred, 4*movedPause
	}
}

type kind uint8

const (
	kindHTTP kind = iota
	kindJSONRPC
	kindGRPC
)

// kindOf follows DTM's rule: an http url is HTTP, or JSON-RPC where the protocol says so and the url names a method;
// all else is gRPC, over TLS behind grpcs://, so that protocols may be mixed in one transaction.
func kindOf(c *engine.Call) kind {
	isHTTP := strings.HasPrefix(c.URL, "http://") || strings.HasPrefix(c.URL, "https://")
	switch {
	case isHTTP && c.Protocol == txn.ProtocolJSONRPC && strings.Contains(c.URL, "method"):
		return kindJSONRPC
	case isHTTP:
		return kindHTTP
	}
	return kindGRPC
}

// unknown books an error that says nothing of the participant's state; a refusal of the allow-list keeps its own text.
func unknown(res *engine.CallResult, err error) {
	res.Outcome = txn.Unknown
	var na *NotAllowedError
	if errors.As(err, &na) {
		res.Text = na.Error()
		return
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	res.Text = err.Error()
}
