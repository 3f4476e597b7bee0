// Package place is a region's place among the others: it follows the arbiter, hands requests over borders, and moves slots'
// accounts at the region's participants. It is what the engine's coordinators ask (engine.Regions).
//
// The law it keeps: it only ever says what the arbiter said or a participant answered; where it does not know, it says so
// and changes nothing. Every step can be repeated.
//
// It is tested by two regions of real coordinators and participants around a real arbiter. Source: ADR 8.
package place

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/applier"
	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/failover/recovery"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/slot"
	"github.com/lockstep-tx/lockstep/region/topology"
)

// Config of a Place.
type Config struct {
	// Self is this region's name.
	Self     string
	Topology *topology.File
	Arbiter  *arbiter.Arbiter
	// Forward hands a request to a coordinator at a gRPC address.
	Forward engine.Forwarder
	// Arrivals is engine.Regions's, but for the own heads.
	Arrivals func(ctx context.Context, moves []engine.Move) ([]engine.Arrival, error)
	// Reached says whether this region's journal has everything up to a seal of a slot.
	Reached func(ctx context.Context, n int, seal *slot.Seal) (bool, error)
	// Cut is engine.Regions's, on the region's journal and what publishes it.
	Cut func(ctx context.Context, n int, seal slot.Seal, rows []engine.Row, events []record.Event) ([]record.Event, error)
	// CaughtUp is nil when the copies here have everything up to all seals of the region that a slot was taken from, and all
	// that was decided there and touches accounts of the slot.
	CaughtUp func(ctx context.Context, m engine.Move) error
	// Post posts the effects of all branches of a committed transaction to all copies that do not have them, from its record.
	// It may be repeated.
	Post func(ctx context.Context, tx *record.Tx) error
	// Cancel cancels all branches of an aborted transaction from its record, in the slot's epoch. It may be repeated.
	Cancel func(ctx context.Context, m engine.Move, tx *record.Tx) error
	// End ends a try by its name: op is confirm or cancel. It may be repeated.
	End func(ctx context.Context, m engine.Move, try recovery.Try, op txn.Op) error
	// Noted says that an operator has settled what diverges of a transaction, outside of it.
	Noted func(ctx context.Context, n int, gid txn.Gid) (bool, error)
	// Decided gives this region's own decision of a transaction that was past a forced seal, as its journal had it; nil where it had
	// none.
	Decided func(ctx context.Context, n int, gid txn.Gid) (*record.Tx, error)
	// Close notes that the divergences of a slot's events of an epoch and before are worked off.
	Close func(ctx context.Context, n int, epoch slot.Epoch) error
	// HTTP calls participants; nil is a client with a timeout of 10 s.
	HTTP *http.Client
	// Log gets what changes; nil discards.
	Log *slog.Logger
}

// Place is engine.Regions. Make it with New, then Run it. Safe for concurrent use.
type Place struct {
	cfg      Config
	index    int
	dep      arbiter.Deployment
	registry *registry.Registry
	owners   atomic.Pointer[slot.Map]
	heard    atomic.Int64 // unix milliseconds
	next     atomic.Uint64
	lost     atomic.Pointer[[slot.Count]*slot.Seal]

	mu       sync.Mutex
	changed  chan struct{}
	diverged map[txn.Gid]Diverged
}

var _ engine.Regions = (*Place)(nil)

// New asks the arbiter for the deployment: arbiter.ErrNoDeployment, or an error when this region is not part of it.
func New(ctx context.Context, cfg Config) (*Place, error) {
	if cfg.HTTP == nil {
		cfg.HTTP = &http.Client{Timeout: 10 * time.Second}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	dep, err := cfg.Arbiter.Deployment(ctx)
	if err != nil {
		return nil, err
	}
	index := dep.Index(cfg.Self)
	if index == 0 {
		return nil, fmt.Errorf("region: %q is not one of the deployment's regions %v", cfg.Self, dep.Regions)
	}
	return &Place{cfg: cfg, index: index, dep: dep, registry: registry.New(cfg.Arbiter, cfg.Log), changed: make(chan struct{}), diverged: map[txn.Gid]Diverged{}}, nil
}

// Run follows the arbiter until ctx ends.
func (p *Place) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { p.registry.Run(ctx) })
	wg.Go(func() { p.introduce(ctx) })
	wg.Go(func() { p.followLosses(ctx) })
	said := false
	p.cfg.Arbiter.Follow(ctx, func(m *slot.Map) {
		back := keepNewer(m, p.owners.Load())
		if back > 0 && !said {
			p.cfg.Log.Error("the arbiter says less than it has said before: it was restored from a backup; what was known stays; next: lockstep region restored --context FILE", "slots", back)
		}
		said = back > 0
		p.owners.Store(m)
		p.heard.Store(time.Now().UnixMilli())
		p.mu.Lock()
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
	}, func() { p.heard.Store(time.Now().UnixMilli()) })
	wg.Wait()
}

// keepNewer puts the owners that were known back into m where its epochs are lower, and counts them. Epochs only grow: an arbiter
// that says less is one of before, and has yet to be told what was seen since (region restored asks this process too).
func keepNewer(m, known *slot.Map) (back int) {
	if known == nil {
		return 0
	}
	for n := range m {
		if m[n].Epoch < known[n].Epoch {
			m[n] = known[n]
			back++
		}
	}
	return back
}

// Self is engine.Regions's.
func (p *Place) Self() string { return p.cfg.Self }

// Index is engine.Regions's.
func (p *Place) Index() int { return p.index }

// Deployment is what the arbiter said at the start.
func (p *Place) Deployment() arbiter.Deployment { return p.dep }

// Owners is engine.Regions's.
func (p *Place) Owners() *slot.Map { return p.owners.Load() }

// Registry is the participants, kept up to date.
func (p *Place) Registry() *registry.Registry { return p.registry }

// Heard is when the arbiter last answered, in unix milliseconds; 0 never.
func (p *Place) Heard() int64 { return p.heard.Load() }

// arbiterSilence is how long the arbiter may be unheard, which is asked every second, until it is said to be away.
const arbiterSilence = 5 * time.Second

// Arbiter is engine.Regions's.
func (p *Place) Arbiter() error {
	if at := p.heard.Load(); at == 0 || time.Now().UnixMilli()-at > arbiterSilence.Milliseconds() {
		return fmt.Errorf("the arbiter was not heard for more than %v", arbiterSilence)
	}
	return nil
}

// Changed is engine.Regions's.
func (p *Place) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// Forward is engine.Regions's: any coordinator of the region will do, so that each attempt takes the next.
func (p *Place) Forward(ctx context.Context, region string, req engine.Request) (engine.Reply, error) {
	to := p.cfg.Topology.Regions[region].Grpc
	if len(to) == 0 {
		return engine.Reply{}, fmt.Errorf("%w: the regions file has no address for region %q", engine.ErrUnavailable, region)
	}
	addr := to[int(p.next.Add(1))%len(to)]
	return p.cfg.Forward.Forward(ctx, engine.Member{ID: region, GRPC: addr}, req)
}

// Generations is engine.Regions's.
func (p *Place) Generations(ctx context.Context) (map[int]int64, error) {
	return p.cfg.Arbiter.Generations(ctx)
}

// Decide is engine.Regions's.
func (p *Place) Decide(ctx context.Context, d engine.GlobalDecision) ([]byte, error) {
	if d.Generation < 0 { // the arbiter was not heard when the slot was taken: taking it again helps once it is
		if _, err := p.cfg.Arbiter.Generation(ctx, d.Slot); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: the arbiter was not heard when it was", engine.ErrOutdated)
	}
	stands, err := p.cfg.Arbiter.Decide(ctx, arbiter.Decision{Slot: d.Slot, Gid: string(d.Gid), Epoch: slot.Epoch(d.Epoch), Generation: d.Generation, Body: d.Body})
	if arbiter.Certain(err) {
		err = fmt.Errorf("%w: %w", engine.ErrOutdated, err)
	}
	return stands, err
}

// Remove is engine.Regions's.
func (p *Place) Remove(ctx context.Context, n int, epoch uint64, generation int64, gids []txn.Gid) (int64, error) {
	names := make([]string, len(gids))
	for i, g := range gids {
		names[i] = string(g)
	}
	return p.cfg.Arbiter.Remove(ctx, n, slot.Epoch(epoch), generation, names)
}

// Seal is engine.Regions's.
func (p *Place) Seal(ctx context.Context, m engine.Move, seal *slot.Seal) error {
	to, err := m.Owner.Close(seal)
	if err != nil {
		return err
	}
	return p.change(ctx, m, to)
}

// Undo is engine.Regions's.
func (p *Place) Undo(ctx context.Context, m engine.Move) error {
	to, err := m.Owner.Undo()
	if err != nil {
		return err
	}
	return p.change(ctx, m, to)
}

// change writes a slot's next owner. Where somebody else was faster, theirs stands and is soon heard of.
func (p *Place) change(ctx context.Context, m engine.Move, to slot.Owner) error {
	cctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err := p.cfg.Arbiter.Change(cctx, arbiter.Change{Slot: m.Slot, From: m.Owner, To: to})
	if errors.Is(err, arbiter.ErrChanged) {
		p.cfg.Log.Info("a slot's owner was changed by somebody else", "slot", m.Slot, "err", err)
		return nil
	}
	return err
}

// Resolve gives a branch call the address and the epoch of its account's home; see registry.Table.Resolve.
func (p *Place) Resolve(c *engine.Call) (*engine.Call, error) {
	if c.OpWord == applier.OpWord || c.OpWord == applier.HoldWord {
		return c, nil // to this region's copies, wherever the home is
	}
	m := p.owners.Load()
	if m == nil {
		return nil, errors.New("the slots' owners are not known yet")
	}
	table := p.registry.Table()
	if table == nil {
		return nil, errUnknown
	}
	t, err := table.Resolve(c.URL, c.Account, c.Payload, c.Slot, m)
	if err != nil {
		return nil, err
	}
	at := *c
	at.URL, at.AccountSlot, at.AccountEpoch = t.URL, t.Slot, uint64(t.Epoch)
	if path, posts := fromRecord(c, &t); posts && m[t.Slot].Forced() {
		at.URL, at.OpWord = path, applier.OpWord
	}
	if t.Slot == c.Slot {
		at.AccountEpoch = c.Epoch // what the holder was begun with; the arbiter's word may be newer
	}
	return &at, nil
}

// fromRecord gives the address where a confirm is posted from its record: what was tried in a region that was lost has no hold
// in the account's new home. It posts the hold where there is one, behind confirm's barrier key (ADR 9).
func fromRecord(c *engine.Call, t *registry.Target) (string, bool) {
	if c.Op != txn.OpConfirm || t.Participant == nil || t.Participant.Can == nil || !t.Participant.Can.Apply {
		return "", false
	}
	path, query, asks := strings.Cut(t.URL, "?")
	path, ok := strings.CutSuffix(path, "/confirm")
	if asks {
		query = "?" + query
	}
	return path + "/" + applier.OpWord + query, ok
}
