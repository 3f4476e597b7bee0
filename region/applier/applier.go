// Package applier brings committed effects from the journal to the copies of accounts that this region's participants
// keep.
//
// The law it keeps: each finish of each chain is applied at every branch's participant here, whatever its home, until it
// has answered; the participant's barrier makes each take effect once (ADR 8). How far a chain is applied is written only
// when everything up to there is. One effect that cannot be applied holds up the number, not the others.
//
// It is tested over a journal in SQLite and participants that fail, refuse for a time, and hang.
package applier

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// OpWord is the word of the call: participants serve it at the confirm's path, with apply in confirm's place.
const OpWord = "apply"

// Journal is what is read and written; region/journal's.
type Journal interface {
	EventsAfter(ctx context.Context, origin, n int, after uint64, limit int) ([]record.Event, error)
	Get(ctx context.Context, gid txn.Gid) (*record.Tx, error)
	Applied(ctx context.Context) (map[[2]int]uint64, error)
	SetApplied(ctx context.Context, seqs map[[2]int]uint64) error
}

// Config of an Applier.
type Config struct {
	// Self is this region's name.
	Self    string
	Journal Journal
	Invoker engine.Invoker
	// Table gives the participants as they are known now, Owners the slots' owners (nil before the first).
	Table  func() *registry.Table
	Owners func() *slot.Map
	// Ends calls each for every chain that the journal has, with the number of its last event.
	Ends func(each func(origin, slot int, seq uint64))
	// Mine says whether this process applies a slot's chains, where several share the journal; nil: all.
	Mine func(slot int) bool
	// Every is how often the chains are looked at. Defaults to 100 ms.
	Every time.Duration
	Log   *slog.Logger
}

// Applier applies. Make it with New, then Run it.
type Applier struct {
	cfg     Config
	told    *told
	applied sync.Map // [2]int -> uint64
	busy    sync.Map // [2]int -> bool
	room    chan struct{}
	total   atomic.Uint64
	waiting atomic.Int64

	mu      sync.Mutex
	unnoted map[[2]int]uint64 // applied, and not noted in the journal
}

// New makes an Applier.
func New(cfg Config) *Applier {
	if cfg.Every == 0 {
		cfg.Every = 100 * time.Millisecond
	}
	if cfg.Mine == nil {
		cfg.Mine = func(int) bool { return true }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Applier{cfg: cfg, told: newTold(), room: make(chan struct{}, chainsAtOnce), unnoted: map[[2]int]uint64{}}
}

const (
	chainsAtOnce = 64
	windowEvents = 1000
	windowMax    = 20_000
	// noteEvery is how often what is applied is noted. What was applied and not noted is applied again after a crash: a repeat.
	noteEvery = 250 * time.Millisecond
)

// Applied counts the effects that were applied, Waiting those that were tried and are not yet.
func (a *Applier) Applied() uint64 { return a.total.Load() }
func (a *Applier) Waiting() int64  { return a.waiting.Load() }

// Lag is how many events of all chains are not applied yet.
func (a *Applier) Lag() uint64 {
	lag := uint64(0)
	a.cfg.Ends(func(origin, n int, seq uint64) {
		if have := a.have([2]int{origin, n}); seq > have {
			lag += seq - have
		}
	})
	return lag
}

func (a *Applier) have(at [2]int) uint64 {
	v, _ := a.applied.Load(at)
	seq, _ := v.(uint64)
	return seq
}

// Run applies until ctx ends.
func (a *Applier) Run(ctx context.Context) {
	for ctx.Err() == nil {
		applied, err := a.cfg.Journal.Applied(ctx)
		if err == nil {
			for at, seq := range applied {
				a.applied.Store(at, seq)
			}
			break
		}
		a.cfg.Log.Warn("what is applied could not be read; trying again", "err", err)
		a.rest(ctx, time.Second)
	}
	var wg, noter sync.WaitGroup
	chains := make(chan struct{})
	noter.Go(func() { a.notes(ctx, chains) })
	defer noter.Wait()
	defer func() { wg.Wait(); close(chains) }()
	for ctx.Err() == nil {
		if a.cfg.Owners() != nil {
			a.cfg.Ends(func(origin, n int, seq uint64) {
				at := [2]int{origin, n}
				if seq <= a.have(at) || !a.cfg.Mine(n) {
					return
				}
				if _, busy := a.busy.LoadOrStore(at, true); busy {
					return
				}
				wg.Go(func() {
					defer a.busy.Delete(at)
					select {
					case a.room <- struct{}{}:
						defer func() { <-a.room }()
						a.chain(ctx, at)
					case <-ctx.Done():
					}
				})
			})
		}
		a.rest(ctx, a.cfg.Every)
	}
}

// notes notes what is applied, until ctx has ended and no chain is worked at any more.
func (a *Applier) notes(ctx context.Context, ended <-chan struct{}) {
	tick := time.NewTicker(noteEvery)
	defer tick.Stop()
	for last := false; !last; {
		select {
		case <-tick.C:
		case <-ended:
			last = true
		}
		a.mu.Lock()
		seqs := a.unnoted
		a.unnoted = map[[2]int]uint64{}
		a.mu.Unlock()
		if len(seqs) == 0 {
			continue
		}
		nctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		err := a.cfg.Journal.SetApplied(nctx, seqs)
		cancel()
		if err != nil {
			a.cfg.Log.Warn("what is applied could not be noted; trying again", "chains", len(seqs), "err", err)
			a.mu.Lock()
			for at, seq := range seqs {
				a.unnoted[at] = max(a.unnoted[at], seq)
			}
			a.mu.Unlock()
		}
	}
}

func (a *Applier) rest(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// effect is one call that is owed for an event.
type effect struct {
	call *engine.Call
	done bool
}

// pending is one event whose effects are not all applied.
type pending struct {
	seq     uint64
	effects []*effect
}

func (p *pending) done() bool {
	for _, e := range p.effects {
		if !e.done {
			return false
		}
	}
	return true
}

// chain applies one chain until it has caught up. Effects that are refused wait for others: a debit for the credit that
// comes behind it; so the window grows while its beginning waits.
func (a *Applier) chain(ctx context.Context, at [2]int) {
	var window []*pending
	read, noted := a.have(at), a.have(at)
	for tries := 0; ctx.Err() == nil; tries++ {
		if len(window) < windowMax {
			events, err := a.next(ctx, at, read)
			if err != nil {
				a.complain(ctx, "the journal's events could not be read", at, err)
				return
			}
			for i := range events {
				p, err := a.effectsOf(ctx, at, &events[i])
				if err != nil {
					a.complain(ctx, "a transaction could not be read", at, err)
					return
				}
				window, read = append(window, p), events[i].seq
			}
		}
		a.call(ctx, window)
		for len(window) > 0 && window[0].done() {
			noted = window[0].seq
			window = window[1:]
		}
		if noted > a.have(at) {
			a.mu.Lock()
			a.unnoted[at] = noted
			a.mu.Unlock()
			a.applied.Store(at, noted)
			tries = 0
		}
		if len(window) == 0 {
			a.told.mu.Lock()
			a.told.forget(at, read) // what was read
			a.told.mu.Unlock()
			return
		}
		if tries == 20 {
			e := window[0].effects[0]
			a.cfg.Log.Warn("an effect is not applied to the copy; it is tried again", "gid", e.call.Gid, "branch", e.call.Branch, "url", e.call.URL, "origin", at[0], "slot", at[1])
		}
		a.waiting.Add(1)
		a.rest(ctx, min(time.Duration(1+tries)*50*time.Millisecond, 2*time.Second))
		a.waiting.Add(-1)
	}
}

func (a *Applier) complain(ctx context.Context, what string, at [2]int, err error) {
	if ctx.Err() == nil {
		a.cfg.Log.Warn(what+"; trying again", "origin", at[0], "slot", at[1], "err", err)
		a.rest(ctx, 500*time.Millisecond)
	}
}

// call makes the calls that are owed, all at once, and waits for their answers.
func (a *Applier) call(ctx context.Context, window []*pending) {
	var wg sync.WaitGroup
	for _, p := range window {
		for _, e := range p.effects {
			if e.done {
				continue
			}
			wg.Add(1)
			a.cfg.Invoker.Start(e.call, func(r engine.CallResult) {
				if r.Outcome == txn.Done {
					e.done = true
					a.total.Add(1)
				}
				wg.Done()
			})
		}
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		<-done // the invoker ends its calls with the process
	}
}

// next gives the events that follow a number without a gap, as they were told, or else from the journal.
func (a *Applier) next(ctx context.Context, at [2]int, after uint64) ([]toldEvent, error) {
	if list := a.told.after(at, after); len(list) > 0 {
		return list, nil
	}
	events, err := a.cfg.Journal.EventsAfter(ctx, at[0], at[1], after, windowEvents)
	list := make([]toldEvent, len(events))
	for i, e := range events {
		list[i] = toldEvent{seq: e.Head.Seq, gid: e.Gid, finish: e.Kind == record.KindFinish}
	}
	return list, err
}

// effectsOf gives the calls that an event owes here.
func (a *Applier) effectsOf(ctx context.Context, at [2]int, ev *toldEvent) (*pending, error) {
	p := &pending{seq: ev.seq}
	if !ev.finish {
		return p, nil
	}
	tx, err := a.transaction(ctx, ev)
	if err != nil || tx == nil || tx.Trimmed || tx.State.Phase != txn.PhaseCommitted || tx.State.Mode != txn.ModeTCC {
		return p, err
	}
	table := a.cfg.Table()
	for i := range tx.State.Branches {
		b := &tx.State.Branches[i]
		if c := a.effect(&tx.State, b, at[1], table); c != nil {
			p.effects = append(p.effects, &effect{call: c})
		}
	}
	return p, nil
}

func (a *Applier) transaction(ctx context.Context, ev *toldEvent) (*record.Tx, error) {
	if ev.closed == nil {
		return a.cfg.Journal.Get(ctx, ev.gid)
	}
	return record.FromParts(ev.closed, ev.progress, record.Head{}, record.Head{}, 0, 0)
}

// effect is the call that a confirmed branch owes here; nil where its participant keeps no copies.
func (a *Applier) effect(s *txn.State, b *txn.Branch, n int, table *registry.Table) *engine.Call {
	if b.Message || b.Confirm == "" || b.Two.Status != txn.OpDone {
		return nil
	}
	part, rest := table.Split(b.Confirm)
	if part == nil || part.Can == nil || !part.Can.Apply || part.Endpoints[a.cfg.Self] == "" {
		return nil
	}
	path, query, asks := strings.Cut(rest, "?")
	path, ok := strings.CutSuffix(path, "/confirm")
	if !ok {
		return nil
	}
	url := strings.TrimSuffix(part.Endpoints[a.cfg.Self], "/") + path + "/" + OpWord
	if asks {
		url += "?" + query
	}
	account := table.AccountSlot(b.Confirm, b.Account, b.Payload, n)
	return &engine.Call{
		Gid: s.Gid, Slot: n, Epoch: 1, Mode: s.Mode, Branch: b.ID, Op: txn.OpConfirm, OpWord: OpWord, URL: url, Protocol: s.Opt.Protocol,
		Payload: b.Payload, Headers: s.Opt.Headers, Timeout: s.RequestTimeout(), AccountSlot: account, AccountEpoch: 1,
	}
}
