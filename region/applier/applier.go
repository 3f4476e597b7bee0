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
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/mutant"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// OpWord is the word of the call: participants serve it at the confirm's path, with apply in confirm's place. HoldWord is that of
// a call that rebuilds what a try holds (ADR 9).
const (
	OpWord   = "apply"
	HoldWord = "hold"
)

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
	// Table gives the participants as they are known now, Owners the slots' owners; nil before either was heard of.
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
	busy    sync.Map // [2]int -> bool
	room    chan struct{}
	total   atomic.Uint64
	waiting atomic.Int64

	mu      sync.Mutex
	applied map[[2]int]uint64
	unnoted map[[2]int]uint64 // applied, and not noted in the journal
	cuts    map[[2]int]int    // how often a chain was taken back
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
	return &Applier{cfg: cfg, told: newTold(), room: make(chan struct{}, roundsAtOnce), applied: map[[2]int]uint64{}, unnoted: map[[2]int]uint64{}, cuts: map[[2]int]int{}}
}

const (
	roundsAtOnce = 64
	windowEvents = 1000
	windowMax    = 20_000
	// retriesAtOnce bounds the calls of a round that are made again; backOffMax is how long one waits for its next turn.
	retriesAtOnce = 200
	backOffMax    = 2 * time.Second
	// noteEvery is how often what is applied is noted. What was applied and not noted is applied again after a crash: a repeat.
	noteEvery = 250 * time.Millisecond
	// lookEvery is how often it is read what other processes have applied: their chains may become this one's.
	lookEvery = time.Second
)

// Applied counts the effects that were applied, Waiting the chains of which some were tried and are not yet.
func (a *Applier) Applied() uint64 { return a.total.Load() }
func (a *Applier) Waiting() int64  { return a.waiting.Load() }

// Lag is how many events of all chains are not applied yet, in whichever process.
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
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.applied[at]
}

// Have is how far a chain is applied to the copies here, as far as is known: 0 where nothing is.
func (a *Applier) Have(origin, n int) uint64 { return a.have([2]int{origin, n}) }

// note takes note of how far a chain is applied; it is written down soon.
func (a *Applier) note(at [2]int, seq uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.applied[at] = max(a.applied[at], seq)
	a.unnoted[at] = max(a.unnoted[at], seq)
}

// noteOf is note for a chain that is worked at; false where the chain was taken back since.
func (a *Applier) noteOf(w *work, seq uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cuts[w.at] != w.cuts {
		return false
	}
	a.applied[w.at] = max(a.applied[w.at], seq)
	a.unnoted[w.at] = max(a.unnoted[w.at], seq)
	return true
}

// Back says that a chain was cut in the journal (ADR 9) and ends at seq now: what comes after it under the same numbers is
// to be applied. It does not wait. A process that is not told finds out by what is noted in the journal, within a second.
func (a *Applier) Back(origin, n int, seq uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.back([2]int{origin, n}, seq)
}

// back is Back with a.mu held.
func (a *Applier) back(at [2]int, seq uint64) {
	a.told.drop(at, math.MaxUint64)
	a.cuts[at]++
	a.applied[at] = min(a.applied[at], seq)
	if have, ok := a.unnoted[at]; ok {
		a.unnoted[at] = min(have, seq)
	}
}

// look reads how far the chains are applied, also by others. What was noted and has gone back was cut.
func (a *Applier) look(ctx context.Context) error {
	applied, err := a.cfg.Journal.Applied(ctx)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for at, have := range a.applied {
		if _, open := a.unnoted[at]; !open && applied[at] < have {
			a.back(at, applied[at])
		}
	}
	for at, seq := range applied {
		a.applied[at] = max(a.applied[at], seq)
	}
	return nil
}

// Run applies until ctx ends. It begins when owners and participants are known: nobody is not the same as not known.
func (a *Applier) Run(ctx context.Context) {
	for ctx.Err() == nil {
		err := a.look(ctx)
		if err == nil {
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
		if a.cfg.Owners() != nil && a.cfg.Table() != nil {
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
					a.chain(ctx, at)
				})
			})
		}
		a.rest(ctx, a.cfg.Every)
	}
}

// notes notes what is applied, and reads what others have, until ctx has ended and no chain is worked at any more.
func (a *Applier) notes(ctx context.Context, ended <-chan struct{}) {
	tick := time.NewTicker(noteEvery)
	defer tick.Stop()
	looked := time.Now()
	for last := false; !last; {
		select {
		case <-tick.C:
		case <-ended:
			last = true
		}
		a.write(ctx)
		if !last && time.Since(looked) > lookEvery {
			looked = time.Now()
			if err := a.look(ctx); err != nil && ctx.Err() == nil {
				a.cfg.Log.Warn("what others have applied could not be read; trying again", "err", err)
			}
		}
	}
}

func (a *Applier) write(ctx context.Context) {
	a.mu.Lock()
	seqs := a.unnoted
	a.unnoted = map[[2]int]uint64{}
	a.mu.Unlock()
	if len(seqs) == 0 {
		return
	}
	nctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := a.cfg.Journal.SetApplied(nctx, seqs); err != nil {
		a.cfg.Log.Warn("what is applied could not be noted; trying again", "chains", len(seqs), "err", err)
		for at, seq := range seqs {
			if a.have(at) >= seq { // else it was cut meanwhile
				a.note(at, seq)
			}
		}
	}
}

func (a *Applier) rest(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// effect is what a branch owes here. call is nil while its participant, which it names, is not registered.
type effect struct {
	tx     *record.Tx
	branch int
	call   *engine.Call
	done   bool
	tries  int
	again  time.Time
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

// work is a chain that is worked at: the events read and not applied whole, oldest first.
type work struct {
	at     [2]int
	window []*pending
	read   uint64
	cuts   int // of the chain when it began
}

// chain applies one chain until it has caught up. Effects that are refused wait for others: a debit for the credit that
// comes behind it; so the window grows while its beginning waits.
func (a *Applier) chain(ctx context.Context, at [2]int) {
	w := &work{at: at}
	a.mu.Lock()
	w.read, w.cuts = a.applied[at], a.cuts[at]
	a.mu.Unlock()
	if !a.noteOf(w, w.read) { // also 0: what is not applied is not trimmed from then on
		return
	}
	for tries := 0; ctx.Err() == nil; tries++ {
		progress, err := a.round(ctx, w)
		if err != nil {
			if ctx.Err() == nil {
				a.cfg.Log.Warn("events could not be applied to the copies; trying again", "origin", at[0], "slot", at[1], "err", err)
				a.rest(ctx, 500*time.Millisecond)
			}
			return
		}
		if len(w.window) == 0 {
			a.told.drop(at, w.read)
			return
		}
		if progress {
			tries = 0
		}
		if tries == 20 {
			a.complain(w)
		}
		a.waiting.Add(1)
		a.rest(ctx, min(time.Duration(1+tries)*50*time.Millisecond, backOffMax))
		a.waiting.Add(-1)
	}
}

func (a *Applier) complain(w *work) {
	for _, e := range w.window[0].effects {
		if e.done {
			continue
		}
		b := &e.tx.State.Branches[e.branch]
		a.cfg.Log.Warn("an effect is not applied to the copy; it is tried again", "gid", e.tx.State.Gid, "branch", b.ID, "url", b.Confirm,
			"registered", e.call != nil, "origin", w.at[0], "slot", w.at[1], "events behind it", len(w.window)-1)
		return
	}
}

// round reads what is new of a chain, makes the calls whose turn it is, and notes how far it is. It alone takes room: a
// chain that waits keeps no other from its turn.
func (a *Applier) round(ctx context.Context, w *work) (progress bool, err error) {
	select {
	case a.room <- struct{}{}:
		defer func() { <-a.room }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if len(w.window) < windowMax {
		events, err := a.next(ctx, w.at, w.read)
		if err != nil {
			return false, err
		}
		for i := range events {
			p, err := a.effectsOf(ctx, w.at, &events[i])
			if err != nil {
				return false, err
			}
			w.window, w.read = append(w.window, p), events[i].seq
		}
	}
	if mutant.On(mutant.WatermarkTooEarly) && a.noteOf(w, w.read) {
		a.rest(ctx, mutant.ApplyDelay)
	}
	a.call(ctx, w)
	for len(w.window) > 0 && w.window[0].done() {
		if !a.noteOf(w, w.window[0].seq) {
			w.window = nil // the chain begins again where it was cut
			return true, nil
		}
		w.window, progress = w.window[1:], true
	}
	return progress, nil
}

// call makes the calls whose turn it is, all at once, and waits for their answers.
func (a *Applier) call(ctx context.Context, w *work) {
	var wg sync.WaitGroup
	now, retries := time.Now(), 0
	for _, p := range w.window {
		for _, e := range p.effects {
			if e.done || now.Before(e.again) || e.tries > 0 && retries >= retriesAtOnce {
				continue
			}
			if e.tries > 0 {
				retries++
			}
			e.again = now.Add(min(50*time.Millisecond<<min(e.tries, 10), backOffMax))
			e.tries++
			if e.tries > 1 || e.call == nil { // the participant may be registered otherwise by now
				if !a.effect(e, w.at[1]) {
					e.done = true
					continue
				}
				if e.call == nil {
					continue
				}
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
	wg.Wait() // the invoker ends its calls with the process
}

// effectsOf gives the calls that an event owes here.
func (a *Applier) effectsOf(ctx context.Context, at [2]int, ev *toldEvent) (*pending, error) {
	p := &pending{seq: ev.seq}
	if !ev.finish {
		return p, nil
	}
	tx, err := a.transaction(ctx, ev)
	if err != nil || tx == nil || tx.State.Phase != txn.PhaseCommitted || tx.State.Mode != txn.ModeTCC {
		return p, err
	}
	if tx.Trimmed {
		return p, fmt.Errorf("transaction %q: its body was trimmed before its effects were applied", string(ev.gid))
	}
	for i := range tx.State.Branches {
		if e := (&effect{tx: tx, branch: i}); a.effect(e, at[1]) {
			p.effects = append(p.effects, e)
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
