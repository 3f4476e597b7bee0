// Package conduct carries out what package failover decides: it keeps an operation in the arbiter, observes the regions,
// and writes owners by compare-and-set.
//
// The law it keeps: one operation at a time holds the lock; every step is written before it is done, and every act is in
// the audit chain with who did it. Killed between any two of its writes it leaves what Resume goes on from.
//
// It is tested against a real arbiter, with the process ended after each of its steps.
package conduct

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/failover"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// The tables in the arbiter.
const (
	opTable    = "op"
	auditTable = "audit"
	lockKey    = "lock"
)

// Errors.
var (
	// ErrBusy: another operation holds the lock.
	ErrBusy = errors.New("another operation is under way")
	// ErrNone: there is no such operation.
	ErrNone = errors.New("there is no such operation")
	// ErrEnded: the operation has ended, and takes no change of status any more.
	ErrEnded = errors.New("the operation has ended")
	// ErrAtOnce: a forced failover takes all its slots at once and has no batch to stop at.
	ErrAtOnce = errors.New("a forced failover takes all its slots at once: there is no batch at which it could stop")
)

// World is what is asked and told beyond the arbiter.
type World interface {
	// Reached gives the slots, of those whose seals are given, that the region's journal has everything up to the seal of; none
	// where the region does not answer.
	Reached(ctx context.Context, region string, seals map[int]*slot.Seal) map[int]bool
	// Freeze makes every journal that answers, but that of the lost region, take no more of the slots' epochs, and gives each
	// slot's end: the highest valid event among them, as a forced seal. An error where the target does not answer, or two
	// journals contradict.
	Freeze(ctx context.Context, lost, target string, epochs map[int]slot.Epoch) (map[int]*slot.Seal, error)
	// Canary begins and aborts a transaction in the slot at the region, and says whether that went well. It is called for several
	// slots at once.
	Canary(ctx context.Context, region string, n int) error
}

// Conductor works at operations. Not safe for concurrent use.
type Conductor struct {
	Arbiter *arbiter.Arbiter
	World   World
	// Who does it, for the audit.
	Who string
	// Tell is called with each step's words; nil for nobody.
	Tell func(format string, args ...any)
	// Every is how often the regions are looked at. Defaults to 50 ms.
	Every time.Duration
	// After is called after every step's writes, for tests that end the process there, Looked whenever the owners are read again, for
	// tests that count; nil otherwise.
	After  func(step string)
	Looked func()

	rev    int64         // of the run that is worked at
	owners *slot.Map     // as they stand as far as is known without reading them again; nil: to be read
	begun  *failover.Run // what Start has written, until Drive takes it up
	dep    arbiter.Deployment
	last   *Entry // the audit's last line as far as is known, and its number; nil: to be read
	lines  int
	mu     sync.Mutex
	served map[int]bool
}

// Prepare reads what a new operation needs to know before it is consented to, when nothing waits for it yet: owners are those that
// the plan was made from, and belong to c afterwards. It is not needed; without it Start and Drive read as they go, from an arbiter that may be far
// away. Nothing that it has read is trusted: whatever is written names what it is written over.
func (c *Conductor) Prepare(ctx context.Context, owners *slot.Map) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { c.dep, err = c.Arbiter.Deployment(gctx); return err })
	g.Go(func() error { return c.readLast(gctx) })
	if err := g.Wait(); err != nil {
		return err
	}
	c.owners = owners
	return nil
}

// Start writes a new operation, its lock and its first line of the audit, all of it or nothing; ErrBusy names the operation
// that has the lock. One that was started before goes on from where it is. Durable on nil; nothing moves before Drive.
func (c *Conductor) Start(ctx context.Context, p failover.Plan, at time.Time) error {
	if err := p.Check(); err != nil {
		return err
	}
	run := failover.Run{Plan: p, Status: failover.Running, BegunMillis: at.UnixMilli()}
	value, err := json.Marshal(run)
	if err != nil {
		return err
	}
	line := c.line("start", fmt.Sprintf("%s of %d slots from %s to %s, plan %s: %s", p.Kind, len(p.Slots), p.From, p.To, p.Hash(), p.Why), p.ID, at)
	lock := arbiter.Row{Key: lockKey, Value: []byte(p.ID)}
	for {
		rev, err := c.record(ctx, line,
			arbiter.In{Table: opTable, Row: lock}, arbiter.In{Table: opTable, Row: arbiter.Row{Key: runKey(p.ID), Value: value}})
		if err == nil {
			c.rev, c.begun = rev, &run
			c.after("start")
			return nil
		}
		if !errors.Is(err, arbiter.ErrChanged) {
			return err
		}
		holder, err := c.Arbiter.Get(ctx, opTable, lockKey)
		if err != nil {
			return err
		}
		if holder.Rev != 0 && string(holder.Value) != p.ID {
			return fmt.Errorf("%w: %s", ErrBusy, holder.Value)
		}
		// Without a run the other operation has ended just now, or the lock alone is ours.
		lock.Rev = holder.Rev
		if _, err := c.Load(ctx, p.ID); !errors.Is(err, ErrNone) {
			return err
		}
	}
}

func runKey(id string) string { return "run/" + id }

// Load reads an operation; "" is the one that holds the lock. ErrNone when there is none.
func (c *Conductor) Load(ctx context.Context, id string) (failover.Run, error) {
	var r failover.Run
	if id == "" {
		row, err := c.Arbiter.Get(ctx, opTable, lockKey)
		if err != nil {
			return r, err
		}
		if row.Rev == 0 {
			return r, ErrNone
		}
		id = string(row.Value)
	}
	row, err := c.Arbiter.Get(ctx, opTable, runKey(id))
	if err != nil {
		return r, err
	}
	c.rev = row.Rev
	if row.Rev == 0 {
		return r, fmt.Errorf("%w: %s", ErrNone, id)
	}
	return r, json.Unmarshal(row.Value, &r)
}

// Runs lists every operation, oldest first.
func (c *Conductor) Runs(ctx context.Context) ([]failover.Run, error) {
	rows, err := c.Arbiter.List(ctx, opTable, "run/")
	if err != nil {
		return nil, err
	}
	out := make([]failover.Run, len(rows))
	for i := range rows {
		if err := json.Unmarshal(rows[i].Value, &out[i]); err != nil {
			return nil, fmt.Errorf("operation %s: %w", rows[i].Key, err)
		}
	}
	return out, nil
}

// save writes the run, and with it the audit's line of what is about to be done; nil for none.
func (c *Conductor) save(ctx context.Context, r failover.Run, line *Entry) error {
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	rev, err := c.record(ctx, line, arbiter.In{Table: opTable, Row: arbiter.Row{Key: runKey(r.Plan.ID), Value: value, Rev: c.rev}})
	if err != nil {
		return err
	}
	c.rev = rev
	c.after("save")
	return nil
}

// Set changes the status of an operation: pause, resume, abort. Where whoever drives it is faster it is read again, until
// the change is written. An ended one is left as it is: ErrEnded. A forced failover is not paused: ErrAtOnce, and nothing was
// written; what it has taken nobody serves until it goes on.
func (c *Conductor) Set(ctx context.Context, id string, to failover.Status, why string, at time.Time) (failover.Run, error) {
	return c.set(ctx, id, string(to), why, at, func(r *failover.Run) { r.Status = to })
}

// Leave aborts a forced failover whose target is gone too: what it has taken stays taken, for another one. Errors as Set's.
func (c *Conductor) Leave(ctx context.Context, id, why string, at time.Time) (failover.Run, error) {
	return c.set(ctx, id, "leave", why, at, func(r *failover.Run) { r.Status, r.Leave = failover.Aborting, true })
}

func (c *Conductor) set(ctx context.Context, id, act, why string, at time.Time, change func(*failover.Run)) (failover.Run, error) {
	for {
		r, err := c.Load(ctx, id)
		if err != nil {
			return r, err
		}
		if r.Status.Ended() {
			return r, fmt.Errorf("operation %s is %s already: %w", r.Plan.ID, r.Status, ErrEnded)
		}
		was := r.Status
		change(&r)
		if r.Status == failover.Paused && r.Plan.Kind == failover.Forced {
			return r, fmt.Errorf("operation %s: %w", r.Plan.ID, ErrAtOnce)
		}
		if was == failover.Aborting && r.Status != failover.Aborting {
			return r, fmt.Errorf("operation %s is being aborted; let it end", r.Plan.ID)
		}
		if r.Status == failover.Aborting {
			r.Failure = why
		}
		if err := c.save(ctx, r, c.line(act, why, r.Plan.ID, at)); !errors.Is(err, arbiter.ErrChanged) {
			return r, err
		}
	}
}

// Drive works at an operation until it ends, is paused at a boundary, or ctx ends; it may be called again by anybody.
func (c *Conductor) Drive(ctx context.Context, id string) (failover.Run, error) {
	if c.Every == 0 {
		c.Every = 50 * time.Millisecond
	}
	c.served = map[int]bool{}
	said := ""
	var r failover.Run
	if c.begun != nil && c.begun.Plan.ID == id {
		r = *c.begun
	} else {
		c.owners = nil
	}
	c.begun = nil
	for {
		// After a write of ours what stands is known; a write over something else is refused, and then it is read again.
		known := c.owners != nil
		if !known {
			var err error
			if r, c.owners, err = c.look(ctx, id); err != nil {
				return r, err
			}
		}
		id = r.Plan.ID
		s := failover.Next(r, c.observe(ctx, r))
		if s.Why != "" && s.Why != said && c.Tell != nil {
			c.Tell("%s", s.Why)
		}
		said = s.Why
		if s.Act == failover.Wait {
			c.owners = nil
			switch {
			case known:
				continue
			case r.Status == failover.Paused && r.StartedMillis == 0:
				return r, nil
			}
			select {
			case <-time.After(c.Every):
				continue
			case <-ctx.Done():
				return r, context.Cause(ctx)
			}
		}
		var err error
		r, err = c.perform(ctx, s)
		switch {
		case errors.Is(err, arbiter.ErrChanged): // a region was faster, or an operator; what stands now decides
			c.owners = nil
		case err != nil:
			return r, err
		case r.Status.Ended():
			return r, c.end(ctx, r)
		}
	}
}

// observe is what Next asks about, at the regions where it asks.
func (c *Conductor) observe(ctx context.Context, r failover.Run) failover.Observed {
	_, to := r.Direction()
	owners := c.owners
	reached := sync.OnceValue(func() map[int]bool {
		seals := map[int]*slot.Seal{}
		for _, n := range r.All() {
			if s := owners[n].Seal; s != nil {
				seals[n] = s
			}
		}
		return c.World.Reached(ctx, to, seals)
	})
	return failover.Observed{
		AtMillis: time.Now().UnixMilli(), Answered: func() int64 { return time.Now().UnixMilli() }, Owners: owners,
		Reached: func(n int) bool { return owners[n].Seal != nil && reached()[n] },
		Serves:  sampled(r, func(n int) bool { return c.serves(ctx, to, n) }),
	}
}

// look reads the operation, which somebody may have paused or aborted, and the owners.
func (c *Conductor) look(ctx context.Context, id string) (r failover.Run, owners *slot.Map, err error) {
	if c.Looked != nil {
		c.Looked()
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { r, err = c.Load(gctx, id); return err })
	g.Go(func() (err error) { owners, err = c.Arbiter.Owners(gctx); return err })
	return r, owners, g.Wait()
}

// together asks of all slots side by side as soon as the answer for one of them is wanted: a region may be far away.
func together(slots []int, ask func(n int) bool) func(n int) bool {
	answers := sync.OnceValue(func() map[int]bool {
		out := make([]bool, len(slots))
		var g errgroup.Group
		g.SetLimit(AsksAtOnce)
		for i, n := range slots {
			g.Go(func() error { out[i] = ask(n); return nil })
		}
		_ = g.Wait() // it has only nil errors
		yes := map[int]bool{}
		for i, n := range slots {
			yes[n] = out[i]
		}
		return yes
	})
	return func(n int) bool { return answers()[n] }
}

// canariesMost bounds the slots of a forced failover that are written to: half of a deployment's slots at once would keep the
// target from the payments that wait for it, and slots that arrive together are served together.
const canariesMost = 64

// sampled is together for as many of a forced failover's slots, evenly spread, and for all of another one's batch.
func sampled(r failover.Run, ask func(n int) bool) func(n int) bool {
	slots := r.All()
	if r.Plan.Kind == failover.Forced {
		every := (len(slots) + canariesMost - 1) / canariesMost
		var some []int
		for i := 0; i < len(slots); i += every {
			some = append(some, slots[i])
		}
		slots = some
	}
	answer := together(slots, ask)
	return func(n int) bool { return !slices.Contains(slots, n) || answer(n) }
}

// AsksAtOnce bounds the questions under way to a region.
const AsksAtOnce = 32

// serves asks once more only where the answer was no.
func (c *Conductor) serves(ctx context.Context, region string, n int) bool {
	c.mu.Lock()
	yes := c.served[n]
	c.mu.Unlock()
	if yes {
		return true
	}
	cctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	yes = c.World.Canary(cctx, region, n) == nil
	c.mu.Lock()
	defer c.mu.Unlock()
	c.served[n] = yes
	return yes
}

// changesAtOnce keeps a change under etcd's 128 operations.
const changesAtOnce = 20

// perform writes the run, and then what it asks for. On nil c.owners are what it has made of them.
func (c *Conductor) perform(ctx context.Context, s failover.Step) (failover.Run, error) {
	owners := c.owners
	var line *Entry
	if len(s.Slots) > 0 {
		line = c.line(s.Act.String(), fmt.Sprintf("slots %v", s.Slots), s.Run.Plan.ID, time.Now())
	}
	if err := c.save(ctx, s.Run, line); err != nil {
		return s.Run, err
	}
	_, to := s.Run.Direction()
	if s.Act == failover.Give && c.dep.Index(to) == 0 {
		var err error
		if c.dep, err = c.Arbiter.Deployment(ctx); err != nil {
			return s.Run, err
		}
	}
	var seals map[int]*slot.Seal
	if s.Act == failover.Take && c.dep.Index(to) == 0 || s.Act == failover.Bind {
		var err error
		if seals, err = c.prepareForced(ctx, s, owners); err != nil {
			return s.Run, err
		}
	}
	var changes []arbiter.Change
	for _, n := range s.Slots {
		from := owners[n]
		var next slot.Owner
		var err error
		switch s.Act {
		case failover.Drain:
			c.mu.Lock()
			c.served[n] = false
			c.mu.Unlock()
			next, err = from.Drain(to, s.Run.Plan.ID, time.UnixMilli(s.DeadlineMillis))
		case failover.Give:
			next, err = from.Give(c.dep.Index(from.To))
		case failover.Undo:
			next, err = from.Undo()
		case failover.Take:
			if from.Region == to && from.Status == slot.Taken {
				next, err = from.Retake(s.Run.Plan.ID, c.dep.Index(to), s.Run.Plan.Loss.Risk)
			} else if from.Region == to {
				next, err = from.Readopt(c.dep.Index(to), s.Run.Plan.Loss.Risk)
			} else {
				next, err = from.Take(to, s.Run.Plan.ID, c.dep.Index(to), s.Run.Plan.Loss.Risk)
			}
		case failover.Bind:
			next, err = from.Bound(seals[n])
		case failover.Serve:
			next, err = from.Serve()
		case failover.Wait, failover.Save, failover.Finish:
			err = fmt.Errorf("%s names slots", s.Act)
		}
		if err != nil {
			return s.Run, fmt.Errorf("%s slot %d: %w", s.Act, n, err)
		}
		changes = append(changes, arbiter.Change{Slot: n, From: from, To: next})
	}
	// A tool that slept between the two writes is not to do what was aborted meanwhile.
	under := arbiter.In{Table: opTable, Row: arbiter.Row{Key: runKey(s.Run.Plan.ID), Rev: c.rev}}
	var g errgroup.Group
	for part := range slices.Chunk(changes, changesAtOnce) {
		g.Go(func() error { return c.Arbiter.ChangeUnder(ctx, under, part...) })
	}
	if err := g.Wait(); err != nil {
		return s.Run, err
	}
	if len(changes) > 0 {
		after := *owners
		for _, ch := range changes {
			after[ch.Slot] = ch.To
		}
		c.owners = &after
		c.after(s.Act.String())
	}
	return s.Run, nil
}

// prepareForced learns what the next step of a forced failover is made of: the region's index, or the slots' seals.
func (c *Conductor) prepareForced(ctx context.Context, s failover.Step, owners *slot.Map) (seals map[int]*slot.Seal, err error) {
	if s.Act == failover.Take {
		c.dep, err = c.Arbiter.Deployment(ctx)
		return nil, err
	}
	if c.dep.Index(s.Run.Plan.To) == 0 {
		if c.dep, err = c.Arbiter.Deployment(ctx); err != nil {
			return nil, err
		}
	}
	// By the region that is lost, which need not be the one that had them last: that one may have died before it served them.
	lost := map[string]map[int]slot.Epoch{}
	for _, n := range s.Slots {
		name := c.dep.Name(owners[n].Lost.Region())
		if lost[name] == nil {
			lost[name] = map[int]slot.Epoch{}
		}
		lost[name][n] = owners[n].Lost
	}
	seals = map[int]*slot.Seal{}
	for name, epochs := range lost {
		some, err := c.World.Freeze(ctx, name, s.Run.Plan.To, epochs)
		if err != nil {
			return nil, err
		}
		maps.Copy(seals, some)
	}
	return seals, nil
}

// end lets the lock go.
func (c *Conductor) end(ctx context.Context, r failover.Run) error {
	if err := c.Audit(ctx, string(r.Status), r.Failure, r.Plan.ID, time.Now()); err != nil {
		return err
	}
	lock, err := c.Arbiter.Get(ctx, opTable, lockKey)
	if err != nil || lock.Rev == 0 || string(lock.Value) != r.Plan.ID {
		return err
	}
	return c.Arbiter.Delete(ctx, opTable, lockKey, lock.Rev)
}

func (c *Conductor) after(step string) {
	if c.After != nil {
		c.After(step)
	}
}
