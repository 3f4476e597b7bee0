package engine_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/clock"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/store/memstore"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// world is an arbiter in memory and what the regions do to it: every change compares what it is derived from.
type world struct {
	mu       sync.Mutex
	owners   *slot.Map
	changed  chan struct{}
	places   map[string]*place
	unsealed bool // no seal reaches the arbiter
	lost     bool // nothing that is carried arrives
	// decisions and generations are the arbiter's; eat, where it is set, says of a decision that its answer is lost, before
	// it is written.
	decisions   map[txn.Gid][]byte
	generations map[int]int64
	eat         func(engine.GlobalDecision) bool
}

// place is one region with its store and journal: the engine.Regions of its coordinators.
type place struct {
	*world
	name     string
	index    int
	away     error // why the arbiter does not answer
	store    *memstore.Store
	journal  *memstore.Journal
	released map[int]slot.Epoch
	adopted  map[int]slot.Epoch

	hangs atomic.Bool // a participant does not answer a release
	deaf  atomic.Bool // it has heard of owners, and not yet of the seals under which slots were taken

	// fleeting has a seal be there for every other reader only: the loss is settled in between.
	fleeting atomic.Bool
	told     [slot.Count]atomic.Int64

	rmu     sync.Mutex
	runners []*engine.Runner
	stop    func()
}

var _ engine.Regions = (*place)(nil)

func newWorld(names ...string) *world {
	w := &world{owners: &slot.Map{}, changed: make(chan struct{}), places: map[string]*place{}, decisions: map[txn.Gid][]byte{}, generations: map[int]int64{}}
	journal := memstore.NewJournal() // one for all: what is decided anywhere is known everywhere, at once
	for i, name := range names {
		w.places[name] = &place{world: w, name: name, index: i + 1, store: memstore.New(), journal: journal, released: map[int]slot.Epoch{}, adopted: map[int]slot.Epoch{}}
	}
	for n := range slot.Count {
		p := w.places[names[n%len(names)]]
		w.owners[n] = slot.Owner{Region: p.name, Epoch: slot.Initial(p.index), Status: slot.Active}
	}
	return w
}

func (w *world) change(n int, from, to slot.Owner) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.owners[n] == to {
		return nil
	}
	if w.owners[n] != from {
		return errors.New("it was changed by somebody else")
	}
	m := *w.owners
	m[n] = to
	w.owners = &m
	close(w.changed)
	w.changed = make(chan struct{})
	return nil
}

func (w *world) owner(n int) slot.Owner { return w.Owners()[n] }

func (w *world) Owners() *slot.Map {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.owners
}

func (w *world) Changed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

func (p *place) Self() string { return p.name }
func (p *place) Index() int   { return p.index }

func (p *place) Forward(ctx context.Context, region string, req engine.Request) (engine.Reply, error) {
	other := p.places[region]
	other.rmu.Lock()
	runners := other.runners
	other.rmu.Unlock()
	if len(runners) == 0 {
		return engine.Reply{}, engine.ErrNotHolder
	}
	return runners[rand.IntN(len(runners))].Do(ctx, req)
}

func (p *place) Generations(context.Context) (map[int]int64, error) { return nil, nil }

// Decide keeps G4: it compares the epoch, and the first decision stands.
func (p *place) Decide(_ context.Context, d engine.GlobalDecision) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if have, ok := p.decisions[d.Gid]; ok {
		return have, nil
	}
	if uint64(p.owners[d.Slot].Epoch) != d.Epoch || p.generations[d.Slot] != d.Generation {
		return nil, engine.ErrOutdated
	}
	if p.eat != nil && p.eat(d) {
		return nil, errors.New("the arbiter's answer was lost")
	}
	p.decisions[d.Gid] = d.Body
	return d.Body, nil
}

func (p *place) Remove(_ context.Context, n int, _ uint64, generation int64, gids []txn.Gid) (int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.generations[n] != generation {
		return 0, engine.ErrOutdated
	}
	for _, g := range gids {
		delete(p.decisions, g)
	}
	p.generations[n]++
	return p.generations[n], nil
}

func (p *place) Release(ctx context.Context, moves []engine.Move) error {
	if p.hangs.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range moves {
		p.released[m.Slot] = m.Owner.Epoch.Released()
	}
	return nil
}

func (p *place) Adopt(_ context.Context, moves []engine.Move) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range moves {
		p.adopted[m.Slot] = m.Owner.Epoch
	}
	return nil
}

func (p *place) Seal(_ context.Context, m engine.Move, seal *slot.Seal) error {
	if p.unsealed {
		return errors.New("the arbiter does not answer")
	}
	// The seal says that the accounts were released and that the journal has everything.
	p.mu.Lock()
	released := p.released[m.Slot]
	p.mu.Unlock()
	if released != m.Owner.Epoch.Released() {
		return errors.New("sealed before the accounts were released")
	}
	to, err := m.Owner.Close(seal)
	if err != nil {
		return err
	}
	return p.change(m.Slot, m.Owner, to)
}

func (p *place) Undo(_ context.Context, m engine.Move) error {
	to, err := m.Owner.Undo()
	if err != nil {
		return err
	}
	return p.change(m.Slot, m.Owner, to)
}

func (p *place) Arbiter() error { return p.away }

// Lost is what the owner says.
func (p *place) Lost(n int) *slot.Seal {
	if o := p.owner(n); o.Lost != 0 && o.Lost.Region() == p.index && !p.deaf.Load() {
		if p.fleeting.Load() && p.told[n].Add(1)%2 == 0 {
			return nil
		}
		return o.Seal
	}
	return nil
}

// Cut gives nothing: there is one journal for all here.
func (p *place) Cut(context.Context, engine.Move, *slot.Seal, []engine.Row, []record.Event) ([]record.Event, error) {
	return nil, nil
}

func (p *place) Returned(ctx context.Context, m engine.Move, tx *record.Tx) error {
	_, err := p.Forward(ctx, m.Owner.Region, engine.Request{Gid: tx.State.Gid, Event: engine.Returned{Tx: *tx}, Want: engine.WantAccepted, Border: true})
	var refused *txn.Error
	if errors.As(err, &refused) {
		return fmt.Errorf("%w: %w", engine.ErrDiverged, err)
	}
	return err
}

func (p *place) Settled(_ context.Context, m engine.Move) error {
	to, err := m.Owner.Settled()
	if err != nil {
		return err
	}
	return p.change(m.Slot, m.Owner, to)
}

// Arrivals has no own heads: a planned move's store goes on anyway, and under a forced seal these stores began with it.
func (p *place) Arrivals(_ context.Context, moves []engine.Move) ([]engine.Arrival, error) {
	out := make([]engine.Arrival, len(moves))
	for i, m := range moves {
		if p.lost {
			out[i].Err = engine.ErrNotYet
			continue
		}
		out[i].Err = errors.New("no such region")
		for _, from := range p.places {
			if from.index == m.Owner.Seal.Epoch.Region() {
				out[i] = engine.Arrival{Live: from.journal.Carried(m.Slot, uint64(m.Owner.Seal.Epoch))}
			}
		}
	}
	return out, nil
}

// join runs one more coordinator of the region.
func (p *place) join(t *testing.T, inv engine.Invoker) (run *engine.Runner, stop func()) {
	t.Helper()
	id := fmt.Sprintf("%s-%d", p.name, rand.Uint32())
	run = engine.NewRunner(engine.Config{Self: engine.Member{ID: id}, JournalDelay: time.Millisecond, Regions: p}, p.store, p.journal, inv, nil, clock.New())
	p.rmu.Lock()
	p.runners = []*engine.Runner{run}
	p.rmu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		if err := run.Run(ctx); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}()
	stop = func() { cancel(); <-run.Done() }
	p.stop = stop
	t.Cleanup(stop)
	until(t, id+" is ready", run.Ready)
	return run, stop
}

// move is the tool's part of a handover of one slot.
func (w *world) move(t *testing.T, n int, to string) {
	t.Helper()
	from := w.owner(n)
	d, err := from.Drain(to, "op", time.Now().Add(time.Minute))
	if err == nil {
		err = w.change(n, from, d)
	}
	if err != nil {
		t.Fatal(err)
	}
	until(t, fmt.Sprintf("slot %d is sealed", n), func() bool { return w.owner(n).Status == slot.Sealed })
	w.give(t, n, to)
}

func (w *world) give(t *testing.T, n int, to string) {
	t.Helper()
	s := w.owner(n)
	g, err := s.Give(w.places[to].index)
	if err == nil {
		err = w.change(n, s, g)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// gidIn makes the i-th gid of a slot.
func gidIn(n, i int) txn.Gid {
	for k := 0; ; k++ {
		if tag := fmt.Sprintf("t%d", k); slot.Of(tag) == n {
			return txn.Gid(fmt.Sprintf("{%s}%d", tag, i))
		}
	}
}

func pay() txn.Spec {
	return txn.Spec{Mode: txn.ModeTCC, Digest: "d", Branches: []txn.Branch{
		{ID: "01", Try: "http://a/try", Confirm: "http://a/confirm", Cancel: "http://a/cancel"},
		{ID: "02", Try: "http://b/try", Confirm: "http://b/confirm", Cancel: "http://b/cancel"},
	}}
}

func TestARequestCrossesOneBorderToTheOwnerAndNeverBack(t *testing.T) {
	w := newWorld("east", "west")
	east, _ := w.places["east"].join(t, newFencing())
	west, _ := w.places["west"].join(t, newFencing())
	for n := range 4 {
		for _, at := range []*engine.Runner{east, west} {
			gid := gidIn(n, int(rand.Uint32()))
			rep, err := at.Do(t.Context(), engine.Request{Gid: gid, Event: txn.Execute{Spec: pay()}, Want: engine.WantFinished})
			if err != nil || rep.State.Phase != txn.PhaseCommitted || rep.State.Epoch != uint64(w.owner(n).Epoch) {
				t.Fatalf("slot %d: %+v, %v", n, rep.State, err)
			}
		}
	}
	// One that has crossed a border is not handed back over it, whatever the receiver believes.
	if _, err := east.Do(t.Context(), engine.Request{Gid: gidIn(1, 9), Event: txn.Execute{Spec: pay()}, Want: engine.WantFinished, Border: true}); !errors.Is(err, engine.ErrNotHolder) {
		t.Fatalf("%v", err)
	}
}

func TestASlotMovesWithItsLiveTransactions(t *testing.T) {
	const n = 6
	w := newWorld("east", "west")
	eastCalls, westCalls := newDesk(), newDesk()
	east, _ := w.places["east"].join(t, eastCalls)
	west, _ := w.places["west"].join(t, westCalls)
	ctx := t.Context()
	bare, registered, decided := gidIn(n, 1), gidIn(n, 2), gidIn(n, 3)
	prepare := func(gid txn.Gid) {
		if _, err := east.Do(ctx, engine.Request{Gid: gid, Event: txn.Prepare{Spec: txn.Spec{Mode: txn.ModeTCC}}, Want: engine.WantAccepted}); err != nil {
			t.Fatal(err)
		}
	}
	register := func(gid txn.Gid, at *engine.Runner) error {
		_, err := at.Do(ctx, engine.Request{Gid: gid, Event: txn.Register{Mode: txn.ModeTCC, Branch: txn.Branch{ID: "01", Confirm: "http://a/confirm", Cancel: "http://a/cancel"}}, Want: engine.WantAccepted})
		return err
	}
	for _, gid := range []txn.Gid{bare, registered, decided} {
		prepare(gid)
	}
	for _, gid := range []txn.Gid{registered, decided} {
		if err := register(gid, east); err != nil {
			t.Fatal(err)
		}
	}
	submit := func(gid txn.Gid, at *engine.Runner) error {
		_, err := at.Do(ctx, engine.Request{Gid: gid, Event: txn.Submit{Spec: txn.Spec{Mode: txn.ModeTCC}}, Want: engine.WantAccepted})
		return err
	}
	if err := submit(decided, east); err != nil {
		t.Fatal(err)
	}
	eastCalls.next(t, decided, txn.OpConfirm) // and is never answered here

	w.move(t, n, "west")
	until(t, "west holds the slot", func() bool { return holds(t, west, bare) })
	c := westCalls.next(t, decided, txn.OpConfirm)
	if c.Epoch != uint64(w.owner(n).Epoch) {
		t.Fatalf("confirmed in epoch %d, the slot is at %d", c.Epoch, w.owner(n).Epoch)
	}
	c.answer(txn.Done)
	if err := register(bare, east); err != nil { // through the old owner
		t.Fatalf("a prepare that was acknowledged before the move: %v", err)
	}
	for _, gid := range []txn.Gid{bare, registered} {
		if err := submit(gid, west); err != nil {
			t.Fatalf("%s was received under a clean seal and must be committed: %v", gid, err)
		}
		westCalls.next(t, gid, txn.OpConfirm).answer(txn.Done)
	}
	for _, gid := range []txn.Gid{bare, registered, decided} {
		until(t, string(gid)+" is committed", func() bool {
			rep, err := east.Do(ctx, engine.Request{Gid: gid, Want: engine.WantAccepted})
			return err == nil && rep.State.Phase == txn.PhaseCommitted
		})
	}
	until(t, "the source's records are purged", func() bool {
		left := 0
		_ = w.places["east"].store.Load(ctx, n, func(txn.Gid, []byte) error { left++; return nil })
		return left == 0
	})
	until(t, "the accounts are adopted", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.places["west"].adopted[n] == w.owners[n].Epoch
	})
}

// TestASlotThatHasArrivedIsNotTakenAgain: views and arrivals are considered side by side, and taking a slot anew repeats every call
// under way.
func TestASlotThatHasArrivedIsNotTakenAgain(t *testing.T) {
	const n = 6
	w := newWorld("east", "west")
	w.places["east"].join(t, newDesk())
	west, _ := w.places["west"].join(t, newDesk())
	w.move(t, n, "west")
	until(t, "west holds the slot", func() bool { return holds(t, west, gidIn(n, 1)) })
	term := west.HeldForTest(n)
	west.ArriveForTest(t.Context(), engine.Move{Slot: n, Owner: w.owner(n)})
	if again := west.HeldForTest(n); again != term {
		t.Fatalf("taken at term %d, and again at term %d", term, again)
	}
}

func TestAMoveThatTakesTooLongUndoesItselfAndNothingIsLost(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(*world)
		after slot.Status // where the move is stuck
	}{
		{"the arbiter does not hear of the seal", func(w *world) { w.unsealed = true }, slot.Draining},
		{"the target never gives", func(*world) {}, slot.Sealed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			const n = 8
			w := newWorld("east", "west")
			calls := newDesk()
			east, _ := w.places["east"].join(t, calls)
			ctx := t.Context()
			gid := gidIn(n, 1)
			if _, err := east.Do(ctx, engine.Request{Gid: gid, Event: txn.Prepare{Spec: txn.Spec{Mode: txn.ModeTCC}}, Want: engine.WantAccepted}); err != nil {
				t.Fatal(err)
			}
			tc.spoil(w)
			from := w.owner(n)
			d, _ := from.Drain("west", "op", time.Now().Add(700*time.Millisecond))
			if err := w.change(n, from, d); err != nil {
				t.Fatal(err)
			}
			begun := make(chan error, 1)
			go func() { // a begin meanwhile waits, and is answered
				_, err := east.Do(ctx, engine.Request{Gid: gidIn(n, 2), Event: txn.Prepare{Spec: txn.Spec{Mode: txn.ModeTCC}}, Want: engine.WantAccepted})
				begun <- err
			}()
			until(t, "the move is undone", func() bool { o := w.owner(n); return o.Status == slot.Active })
			if o := w.owner(n); o.Region != "east" || o.Epoch <= d.Epoch {
				t.Fatalf("undone to %+v", o)
			}
			if err := <-begun; err != nil {
				t.Fatalf("a begin while the slot was moving: %v", err)
			}
			if _, err := east.Do(ctx, engine.Request{Gid: gid, Event: txn.Register{Mode: txn.ModeTCC, Branch: txn.Branch{ID: "01", Confirm: "http://a/c", Cancel: "http://a/x"}}, Want: engine.WantAccepted}); err != nil {
				t.Fatal(err)
			}
			if _, err := east.Do(ctx, engine.Request{Gid: gid, Event: txn.Submit{Spec: txn.Spec{Mode: txn.ModeTCC}}, Want: engine.WantAccepted}); err != nil {
				t.Fatalf("a transaction from before the move: %v", err)
			}
			if c := calls.next(t, gid, txn.OpConfirm); c.Epoch != uint64(w.owner(n).Epoch) {
				t.Fatalf("confirmed in epoch %d", c.Epoch)
			}
			until(t, "the accounts are here again", func() bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.places["east"].adopted[n] == w.owners[n].Epoch
			})
		})
	}
}

// fencing answers every call with Done and counts what the barriers of both regions would refuse.
type fencing struct {
	mu    sync.Mutex
	seen  map[string]map[txn.Op]int // per gid and branch
	epoch map[int]uint64
}

func newFencing() *fencing {
	return &fencing{seen: map[string]map[txn.Op]int{}, epoch: map[int]uint64{}}
}

// Start is engine.Invoker's.
func (f *fencing) Start(c *engine.Call, done func(engine.CallResult)) {
	go func() {
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
		f.mu.Lock()
		outcome := txn.Done
		if c.Epoch < f.epoch[c.Slot] {
			outcome = txn.Stale
		} else {
			f.epoch[c.Slot] = c.Epoch
			key := string(c.Gid) + "/" + string(c.Branch)
			if f.seen[key] == nil {
				f.seen[key] = map[txn.Op]int{}
			}
			f.seen[key][c.Op]++
		}
		f.mu.Unlock()
		done(engine.CallResult{Call: c, Outcome: outcome})
	}()
}

// TestHandoverUnderLoadLosesAndAbortsNothing moves slots back and forth, with coordinators that die on the way, while
// clients of both regions pay: every payment that a client was told of is committed, and no branch hears two decisions.
func TestHandoverUnderLoadLosesAndAbortsNothing(t *testing.T) {
	w := newWorld("east", "west")
	f := newFencing() // one set of participants for both: a call of an old epoch is refused wherever it comes from
	for _, p := range w.places {
		p.join(t, f)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	committed := map[txn.Gid]bool{}
	for worker := range 8 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				gid := gidIn(rand.IntN(6), worker*1_000_000+i)
				p := w.places[[]string{"east", "west"}[rand.IntN(2)]]
				p.rmu.Lock()
				run := p.runners[0]
				p.rmu.Unlock()
				rctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
				rep, err := run.Do(rctx, engine.Request{Gid: gid, Event: txn.Execute{Spec: pay()}, Want: engine.WantDecided})
				stop()
				switch {
				case errors.Is(err, engine.ErrStopping) || errors.Is(err, engine.ErrNotHolder) || errors.Is(err, engine.ErrUnavailable):
				case err != nil:
					t.Errorf("%s: %v", gid, err)
				case !rep.State.Phase.Commit():
					t.Errorf("%s was %s: %s", gid, rep.State.Phase, rep.State.Reason)
				default:
					mu.Lock()
					committed[gid] = true
					mu.Unlock()
				}
			}
		})
	}
	moves := 40
	if testing.Short() {
		moves = 8
	}
	for i := range moves {
		n := rand.IntN(6)
		from, to := w.owner(n).Region, "west"
		if from == "west" {
			to = "east"
		}
		w.move(t, n, to)
		if i%10 == 7 { // a coordinator ends, another one takes its place
			p := w.places[from]
			p.stop()
			p.join(t, f)
		}
	}
	cancel()
	wg.Wait()
	if len(committed) < moves {
		t.Fatalf("only %d payments were decided: the load was not there", len(committed))
	}
	run := w.places["east"].runners[0]
	for gid := range committed {
		until(t, string(gid)+" is committed", func() bool {
			rep, err := run.Do(t.Context(), engine.Request{Gid: gid, Want: engine.WantAccepted})
			return err == nil && rep.State.Phase == txn.PhaseCommitted
		})
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, ops := range f.seen {
		if ops[txn.OpConfirm] > 0 && ops[txn.OpCancel] > 0 {
			t.Errorf("%s was confirmed and cancelled", key)
		}
	}
	t.Logf("%d payments over %d moves", len(committed), moves)
}

// TestAMoveIsOverByItsDeadlineAlsoWhereAParticipantHangs: what begins in the slot is not held up for longer.
func TestAMoveIsOverByItsDeadlineAlsoWhereAParticipantHangs(t *testing.T) {
	const n = 6
	w := newWorld("east", "west")
	east, _ := w.places["east"].join(t, newFencing())
	w.places["east"].hangs.Store(true)
	from := w.owner(n)
	d, err := from.Drain("west", "op", time.Now().Add(time.Second))
	if err == nil {
		err = w.change(n, from, d)
	}
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the move is undone", func() bool {
		o := w.owner(n)
		return o.Region == "east" && o.Status == slot.Active && o.Epoch > from.Epoch
	})
	rep, err := east.Do(t.Context(), engine.Request{Gid: gidIn(n, 1), Event: txn.Execute{Spec: pay()}, Want: engine.WantFinished})
	if err != nil || rep.State.Phase != txn.PhaseCommitted {
		t.Fatalf("a payment behind it: %+v, %v", rep.State, err)
	}
}
