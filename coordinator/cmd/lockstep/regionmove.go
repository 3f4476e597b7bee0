package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/lockstep-tx/lockstep/region/failover"
	"github.com/lockstep-tx/lockstep/region/failover/conduct"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// moveFlags are those of every command that moves slots.
type moveFlags struct {
	contextFile
	Slots    string        `help:"Slots to move: 0-31,40. Defaults to all that --from owns; for failback, to those of them that --to had first." placeholder:"LIST"`
	Batch    int           `help:"Slots that move together." default:"32"`
	Deadline time.Duration `help:"How long a batch may take until it undoes itself." default:"10s"`
	Pause    time.Duration `help:"Rest between batches." default:"1s"`
	MaxLag   time.Duration `help:"Lag of the target above which nothing is moved." default:"5s"`
	Waive    []string      `help:"Preflight checks that may fail: lag, version, clock. What was waived is in the audit." placeholder:"NAME"`
	Why      string        `help:"Reason, for the audit: a ticket, a name." default:"not given"`
	Who      string        `help:"Who does it, for the audit. Defaults to the user."`
	DryRun   bool          `help:"Do every read and every check, and write nothing."`
}

// plan makes the plan of a move of the region's slots. first says who had each slot first, for a failback.
func (m *moveFlags) plan(owners *slot.Map, first *[slot.Count]string, kind failover.Kind, from, to string, hold time.Duration) (failover.Plan, error) {
	p := failover.Plan{
		ID: uuid.NewString()[:13], Kind: kind, From: from, To: to, Batch: m.Batch, DeadlineMillis: m.Deadline.Milliseconds(), PauseMillis: m.Pause.Milliseconds(),
		HoldMillis: hold.Milliseconds(), Who: whoOr(m.Who), Why: m.Why,
	}
	want, err := parseSlots(m.Slots)
	if err != nil {
		return p, usageError{err}
	}
	var foreign []int
	for n, o := range owners {
		switch {
		case o.Region != from || want != nil && !want[n]:
		case kind == failover.Failback && first[n] != to:
			foreign = append(foreign, n)
		default:
			p.Slots = append(p.Slots, n)
		}
	}
	if want != nil && len(foreign) > 0 {
		return p, &failure{usageError{fmt.Errorf("--slots: %s were not %s's first; leave them out, or hand them over", slotList(foreign), to)},
			fmt.Sprintf("lockstep region handover --from %s --to %s --slots %s %s", from, to, slotList(foreign), m.here())}
	}
	if len(foreign) > 0 && len(p.Slots) == 0 {
		return p, usageError{fmt.Errorf("slots: none of those that %s has were %s's first", from, to)}
	}
	if err := p.Check(); err != nil {
		return p, usageError{err}
	}
	return p, nil
}

// parseSlots reads 0-31,40; nil for "".
func parseSlots(text string) (map[int]bool, error) {
	if text == "" {
		return nil, nil
	}
	out := map[int]bool{}
	for part := range strings.SplitSeq(text, ",") {
		first, last, ranged := strings.Cut(strings.TrimSpace(part), "-")
		a, err := strconv.Atoi(first)
		b := a
		if err == nil && ranged {
			b, err = strconv.Atoi(last)
		}
		if err != nil || a < 0 || b >= slot.Count || b < a {
			return nil, fmt.Errorf("--slots: %q is no slot or range of 0 to %d", part, slot.Count-1)
		}
		for n := a; n <= b; n++ {
			out[n] = true
		}
	}
	return out, nil
}

// slotList writes slots, in order, as parseSlots reads them.
func slotList(slots []int) string {
	var parts []string
	for i := 0; i < len(slots); {
		j := i
		for j+1 < len(slots) && slots[j+1] == slots[j]+1 {
			j++
		}
		part := strconv.Itoa(slots[i])
		if j > i {
			part += "-" + strconv.Itoa(slots[j])
		}
		parts = append(parts, part)
		i = j + 1
	}
	return strings.Join(parts, ",")
}

// betweenFlags are moveFlags with the regions.
type betweenFlags struct {
	moveFlags
	From string `help:"Region that gives slots." required:""`
	To   string `help:"Region that takes them." required:""`
}

type regionPlanCmd struct{ betweenFlags }

// Run prints the plan.
func (c *regionPlanCmd) Run(e *env) error {
	c.DryRun = true
	return c.move(e, failover.Handover, c.From, c.To, 0)
}

type regionHandoverCmd struct{ betweenFlags }

// Run moves slots.
func (c *regionHandoverCmd) Run(e *env) error {
	return c.move(e, failover.Handover, c.From, c.To, 0)
}

type regionFailbackCmd struct {
	moveFlags
	From string `help:"Region that has the slots now." required:""`
	To   string `help:"Region that had them." required:""`
}

// Run moves slots back.
func (c *regionFailbackCmd) Run(e *env) error {
	return c.move(e, failover.Failback, c.From, c.To, 0)
}

type regionDrillCmd struct {
	betweenFlags
	Hold   time.Duration `help:"How long they stay there." default:"30s"`
	Forced bool          `help:"Take the slots by force, as if --from were lost, though it lives: it measures what would be lost, and how long it takes. Wants --slots."`
}

// Run moves slots there and back.
func (c *regionDrillCmd) Run(e *env) error {
	if c.Forced {
		return c.with(e, c.rehearse)
	}
	return c.move(e, failover.Drill, c.From, c.To, c.Hold)
}

// move checks, plans, and moves.
func (m *moveFlags) move(e *env, kind failover.Kind, from, to string, hold time.Duration) error {
	o, err := m.open(e.ctx)
	if err != nil {
		return err
	}
	defer o.close()
	p, err := m.planned(e, o, kind, from, to, hold)
	if err != nil {
		return err
	}
	checks, err := m.preflight(e, o, from, to, p.Slots)
	if err != nil {
		return err
	}
	p.Why = waivedWhy(p.Why, checks)
	ok := printChecks(e, checks)
	fmt.Fprintf(e.out, "plan %s: %s of %d slots from %s to %s in batches of %d; each is held for as long as its move takes, and undoes itself after %v; hash %s\n",
		p.ID, kind, len(p.Slots), from, to, p.Batch, m.Deadline, p.Hash()[:16])
	if !ok {
		return &failure{errors.New("the preflight failed; nothing was moved"), "lockstep region status " + m.here()}
	}
	if m.DryRun {
		fmt.Fprintln(e.out, "nothing was written")
		command := string(kind)
		if hold != 0 {
			command += " --hold " + hold.String()
		}
		next(e.out, m.again(command, from, to))
		return nil
	}
	c := m.conductor(e, o)
	if err := m.start(e.ctx, c, p); err != nil {
		return err
	}
	return m.finish(e, o, c, p.ID)
}

// again is the command without --dry-run.
func (m *moveFlags) again(command, from, to string) string {
	out := "lockstep region " + command
	for _, f := range []struct{ name, value, usual string }{
		{"from", from, ""}, {"to", to, ""}, {"slots", m.Slots, ""}, {"batch", strconv.Itoa(m.Batch), "32"}, {"deadline", m.Deadline.String(), "10s"}, {"pause", m.Pause.String(), "1s"},
		{"max-lag", m.MaxLag.String(), "5s"}, {"waive", strings.Join(m.Waive, ","), ""}, {"why", m.Why, whyNot}, {"who", m.Who, ""},
	} {
		if f.value != f.usual {
			out += " " + flagOf(f.name, f.value)
		}
	}
	return out + " " + m.here()
}

// planned reads what a plan is made of, and makes it.
func (m *moveFlags) planned(e *env, o *opened, kind failover.Kind, from, to string, hold time.Duration) (failover.Plan, error) {
	ctx, cancel := m.within(e.ctx)
	defer cancel()
	owners, err := o.arbiter.Owners(ctx)
	if err != nil {
		return failover.Plan{}, err
	}
	var first *[slot.Count]string
	if kind == failover.Failback {
		if first, err = o.arbiter.FirstOwners(ctx); err != nil {
			return failover.Plan{}, err
		}
	}
	return m.plan(owners, first, kind, from, to, hold)
}

// conductor is one whose world is an asker.
func (m *moveFlags) conductor(e *env, o *opened) *conduct.Conductor {
	return &conduct.Conductor{Arbiter: o.arbiter, World: m.asker(e, o), Who: whoOr(m.Who), Tell: func(format string, args ...any) {
		fmt.Fprintln(e.out, " ", shown(fmt.Sprintf(format, args...)))
	}}
}

// start writes a new operation. Where another one was faster it says whose that is.
func (m *moveFlags) start(ctx context.Context, c *conduct.Conductor, p failover.Plan) error {
	err := c.Start(ctx, p, time.Now())
	if err == nil {
		return nil
	}
	if errors.Is(err, conduct.ErrBusy) {
		if r, lerr := c.Load(ctx, ""); lerr == nil {
			err = fmt.Errorf("%w: %s, of %d slots from %s to %s", conduct.ErrBusy, holder(&r), len(r.Plan.Slots), r.Plan.From, r.Plan.To)
		}
	}
	return &failure{err, "lockstep region resume " + m.here() + "  # or abort it"}
}

// finish works at an operation until it ends or is paused, and says what is to be done then.
func (m *moveFlags) finish(e *env, o *opened, c *conduct.Conductor, id string) error {
	r, err := m.drive(e, c, id)
	if err != nil {
		return err
	}
	return m.ended(e, o, &r)
}

// drive works at an operation and reports how it ended.
func (m *moveFlags) drive(e *env, c *conduct.Conductor, id string) (failover.Run, error) {
	r, err := c.Drive(e.ctx, id)
	if err != nil {
		return r, &failure{fmt.Errorf("the operation stands still: %w", err), "lockstep region resume " + m.here()}
	}
	moved := 0
	for i, b := range r.Batches {
		fmt.Fprintf(e.out, "batch %d: %d slots; switched after %d ms, first success after %d ms\n", i+1, len(b.Slots), b.Given-b.Frozen, b.Served-b.Frozen)
		moved += len(b.Slots)
	}
	fmt.Fprintf(e.out, "%s %s: %s, %d slots moved in %d ms%s\n", r.Plan.Kind, r.Plan.ID, r.Status, moved, max(r.EndedMillis, r.BegunMillis)-r.BegunMillis, writtenTo(c, &r))
	if r.Plan.Loss != nil && r.Status == failover.Done {
		return r, m.onSwitch(e, c, &r.Plan)
	}
	return r, nil
}

// writtenTo says in how many of the slots that have moved a canary was served, by this process: of a forced failover's not in all.
func writtenTo(c *conduct.Conductor, r *failover.Run) string {
	a, ok := c.World.(*asker)
	if !ok {
		return ""
	}
	moved, written := 0, 0
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, b := range r.Batches {
		moved += len(b.Slots)
		for _, n := range b.Slots {
			if a.written[n] {
				written++
			}
		}
	}
	if moved == 0 {
		return ""
	}
	return fmt.Sprintf("; %d of %d slots were written to", written, moved)
}

// ended says what is to be done after an operation.
func (m *moveFlags) ended(e *env, o *opened, r *failover.Run) error {
	then := "lockstep region verify " + m.here()
	if r.Plan.Kind == failover.Forced && len(r.Batches) > 0 {
		then = "lockstep tx list --in-doubt --admin-addr " + hostOf(firstAdmin(o, r.Plan.To))
	} else if r.Status == failover.Aborted {
		then = "lockstep region status " + m.here()
	}
	switch r.Status {
	case failover.Aborted:
		return &failure{fmt.Errorf("it was aborted: %s", cut(r.Failure, 300)), then}
	case failover.Paused:
		then = "lockstep region resume " + m.here()
	case failover.Done, failover.Running, failover.Aborting:
	}
	next(e.out, then)
	return nil
}

type regionPauseCmd struct{ moveFlags }

// Run pauses.
func (c *regionPauseCmd) Run(e *env) error { return c.set(e, failover.Paused, false) }

type regionResumeCmd struct{ moveFlags }

// Run resumes.
func (c *regionResumeCmd) Run(e *env) error { return c.set(e, failover.Running, false) }

type regionAbortCmd struct {
	moveFlags
	Leave bool `help:"Of a forced failover whose target is gone too: leave what it has taken as it is, for another failover, from the target to the next region."`
}

// Run aborts.
func (c *regionAbortCmd) Run(e *env) error {
	return c.set(e, failover.Aborting, c.Leave)
}

// set changes the status of the operation that is under way, and goes on with it where it can.
func (m *moveFlags) set(e *env, to failover.Status, leave bool) error {
	o, err := m.open(e.ctx)
	if err != nil {
		return err
	}
	defer o.close()
	c := m.conductor(e, o)
	r, err := c.Load(e.ctx, "")
	if errors.Is(err, conduct.ErrNone) && to == failover.Running {
		return m.switchOn(e, o, c)
	}
	if errors.Is(err, conduct.ErrNone) {
		return &failure{errors.New("no operation is under way"), "lockstep region history " + m.here()}
	}
	if err != nil {
		return err
	}
	if m.DryRun {
		fmt.Fprintf(e.out, "operation %s is %s and would be %s; nothing was written\n", r.Plan.ID, r.Status, to)
		command := map[failover.Status]string{failover.Paused: "pause", failover.Running: "resume", failover.Aborting: "abort"}[to]
		if leave {
			command += " --leave"
		}
		next(e.out, m.again(command, "", ""))
		return nil
	}
	if r.Status != failover.Aborting || to != failover.Running {
		write := func() (failover.Run, error) { return c.Set(e.ctx, r.Plan.ID, to, m.Why, time.Now()) }
		if leave {
			write = func() (failover.Run, error) { return c.Leave(e.ctx, r.Plan.ID, m.Why, time.Now()) }
		}
		set, err := write()
		switch {
		case errors.Is(err, conduct.ErrEnded) && to != failover.Running:
			// Its tool may have been killed before it let the lock go.
			_, err := m.drive(e, c, r.Plan.ID)
			return errors.Join(&failure{fmt.Errorf("operation %s was %s before it could be %s", r.Plan.ID, set.Status, to), "lockstep region history " + m.here()}, err)
		case errors.Is(err, conduct.ErrAtOnce):
			return &failure{fmt.Errorf("%w; abort takes no more slots and ends what was begun", err), "lockstep region abort " + m.here()}
		case err != nil && !errors.Is(err, conduct.ErrEnded):
			return &failure{err, "lockstep region resume " + m.here()}
		}
	}
	if to == failover.Paused {
		fmt.Fprintf(e.out, "operation %s stops at its next batch\n", r.Plan.ID)
		next(e.out, "lockstep region resume "+m.here())
		return nil
	}
	return m.finish(e, o, c, r.Plan.ID)
}
