// Package failover decides how slots are moved: handover, failback and drill by plan are one state machine (ADR 8), taking
// them from a region that is lost is another one beside it (ADR 9). It
// imports the standard library and package slot alone: no clock, no I/O.
//
// The law it keeps: Next is a pure function of what is written in the arbiter and what was observed, so that a tool that
// was killed at any step goes on from what it finds. It gives a slot away only when the seal is written and the target has
// everything up to it; it never has more than one batch on its way.
//
// It is tested by every combination of observed states, and by a model in which steps are lost, repeated and interrupted.
// Source: multi-region reference, section 4.
package failover

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// Kind of an operation.
type Kind string

const (
	Handover Kind = "handover" // slots of From go to To
	Failback Kind = "failback" // the same, back to the region that had them before
	Drill    Kind = "drill"    // there, a hold time, and back again
	Forced   Kind = "failover" // From is lost, and nobody asks it
)

// Plan is what shall be done. It is hashed: consent is to this plan and no other.
type Plan struct {
	ID    string `json:"id"`
	Kind  Kind   `json:"kind"`
	From  string `json:"from"`
	To    string `json:"to"`
	Slots []int  `json:"slots"`
	// Batch is how many slots move together; DeadlineMillis how long a batch may take until it is undone, PauseMillis how
	// long to rest between batches, HoldMillis how long a drill stays away.
	Batch          int   `json:"batch"`
	DeadlineMillis int64 `json:"deadline_ms"`
	PauseMillis    int64 `json:"pause_ms"`
	HoldMillis     int64 `json:"hold_ms,omitempty"`
	// Loss is a forced failover's alone.
	Loss *Loss `json:"loss,omitempty"`
	// Who and Why stand in the audit.
	Who string `json:"who"`
	Why string `json:"why"`
}

// Defaults of a plan.
const (
	DefaultBatch    = 32
	DefaultDeadline = 10 * time.Second
)

// Check says what is wrong with a plan; nil when it is sound.
func (p *Plan) Check() error {
	switch {
	case p.Kind != Handover && p.Kind != Failback && p.Kind != Drill && p.Kind != Forced:
		return fmt.Errorf("kind: %q", p.Kind)
	case p.From == "" || p.To == "" || p.From == p.To:
		return fmt.Errorf("to: slots go from one region to another, not from %q to %q", p.From, p.To)
	case len(p.Slots) == 0:
		return fmt.Errorf("slots: region %s owns none of them", p.From)
	case p.Batch < 1 || p.Batch > slot.Count:
		return fmt.Errorf("batch: %d slots at once; 1 to %d are possible", p.Batch, slot.Count)
	case p.DeadlineMillis < 1000:
		return fmt.Errorf("deadline: %d ms is no time; a second at least", p.DeadlineMillis)
	case p.Who == "":
		return fmt.Errorf("who: nobody; the audit names who moved slots")
	}
	for i, n := range p.Slots {
		if n < 0 || n >= slot.Count || slices.Contains(p.Slots[:i], n) {
			return fmt.Errorf("slots: %d is no slot, or stands twice", n)
		}
	}
	return p.checkLoss()
}

// Hash of the plan, in hexadecimal. Its ID is left out, and what only who does it says: who, why, and how it is known that the
// region is lost. What was shown and what is done are the same plan.
func (p *Plan) Hash() string {
	same := *p
	same.ID, same.Who, same.Why = "", "", ""
	if p.Loss != nil {
		loss := *p.Loss
		loss.Evidence = ""
		same.Loss = &loss
	}
	raw, err := json.Marshal(&same)
	if err != nil {
		panic(err) // texts and numbers
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// Status of a run.
type Status string

const (
	Running  Status = "running"
	Paused   Status = "paused"   // stands still at the next batch's boundary
	Aborting Status = "aborting" // what is on its way goes back; what has moved stays
	Aborted  Status = "aborted"
	Done     Status = "done"
)

// Ended says that nothing is left to do.
func (s Status) Ended() bool { return s == Aborted || s == Done }

// Run is an operation as it stands in the arbiter.
type Run struct {
	Plan   Plan   `json:"plan"`
	Status Status `json:"status"`
	// Back: a drill is on its way back.
	Back bool `json:"back,omitempty"`
	// Next is the index in Plan.Slots of the first slot of the batch that is on its way or comes next.
	Next int `json:"next"`
	// Attempts of the present batch; a batch that was undone is tried again, AttemptsMax times.
	Attempts int `json:"attempts"`
	// Batches that have moved.
	Batches []Batch `json:"batches,omitempty"`
	// Failure is why it was aborted; empty otherwise. BegunMillis and EndedMillis are unix.
	Failure string `json:"failure,omitempty"`
	// Leave: a forced failover that is aborted leaves what it has taken as it is, for another one: its target is gone too.
	Leave       bool  `json:"leave,omitempty"`
	BegunMillis int64 `json:"begun"`
	EndedMillis int64 `json:"ended,omitempty"`
	// RestUntilMillis is when the next batch may start.
	RestUntilMillis int64 `json:"rest_until,omitempty"`
	// StartedMillis is when the present batch was drained; 0 while none is on its way.
	StartedMillis int64 `json:"started,omitempty"`
	GivenMillis   int64 `json:"given,omitempty"`
}

// Batch is one batch that has moved: when it was frozen, given to its new owner, and first served there (unix ms).
type Batch struct {
	Slots  []int `json:"slots"`
	Frozen int64 `json:"frozen"`
	Given  int64 `json:"given"`
	Served int64 `json:"served"`
}

// AttemptsMax bounds how often a batch is tried.
const AttemptsMax = 3

// Direction is from where to where the present batch goes.
func (r *Run) Direction() (from, to string) {
	if r.Back {
		return r.Plan.To, r.Plan.From
	}
	return r.Plan.From, r.Plan.To
}

// Current is the present batch's slots.
func (r *Run) Current() []int {
	if r.Next >= len(r.Plan.Slots) {
		return nil
	}
	return r.Plan.Slots[r.Next:min(len(r.Plan.Slots), r.Next+r.Plan.Batch)]
}

// All is every slot that the next step may be about: the present batch's, and of a forced failover the plan's.
func (r *Run) All() []int {
	if r.Plan.Kind == Forced {
		return r.Plan.Slots
	}
	return r.Current()
}

// Observed is what was read before a step.
type Observed struct {
	AtMillis int64
	Owners   *slot.Map
	// Reached says whether the target's journal has everything up to a slot's seal.
	Reached func(n int) bool
	// Serves says whether the target has served a request in the slot since it was given. Answered is when the last answer to
	// that question came, which may be long after AtMillis; nil: AtMillis.
	Serves   func(n int) bool
	Answered func() int64
}

// served is when it was known that the target serves.
func (o *Observed) served() int64 {
	if o.Answered == nil {
		return o.AtMillis
	}
	return o.Answered()
}

// Act is what a step asks for.
type Act uint8

const (
	// Wait: nothing to do but to look again soon.
	Wait Act = iota
	// Drain the slots of Step.Slots, with the deadline Step.DeadlineMillis.
	Drain
	// Give them to their new owner.
	Give
	// Undo them.
	Undo
	// Save: only the run has changed.
	Save
	// Finish: the run has ended.
	Finish
	// Take slots from a lost region.
	Take
	// Bind freezes the journals for taken slots, and writes the highest valid event as the seal.
	Bind
	// Serve lets the owner of taken slots begin.
	Serve
)

func (a Act) String() string {
	return [...]string{"wait", "drain", "give", "undo", "save", "finish", "take", "bind", "serve"}[a]
}

// Step is what is to be done next: Run as it is to be written first, then Act on Slots.
type Step struct {
	Run            Run
	Act            Act
	Slots          []int
	DeadlineMillis int64
	Why            string
}

// Next says what is to be done.
func Next(r Run, o Observed) Step {
	if r.Status.Ended() {
		return Step{Run: r, Act: Finish}
	}
	if r.Plan.Kind == Forced {
		return nextForced(r, o)
	}
	from, to := r.Direction()
	var active, moving, sealed, there, astray []int
	for _, n := range r.Current() {
		w := o.Owners[n]
		switch {
		case w.Region == to && w.Status == slot.Active:
			there = append(there, n)
		case w.Region == from && w.Status == slot.Active:
			active = append(active, n)
		case w.Region == from && w.Status == slot.Draining && w.Op == r.Plan.ID:
			moving = append(moving, n)
		case w.Region == from && w.Status == slot.Sealed && w.Op == r.Plan.ID:
			sealed = append(sealed, n)
		default:
			astray = append(astray, n)
		}
	}
	switch {
	case len(astray) > 0:
		return abort(r, o, fmt.Sprintf("slot %d is in other hands: %+v", astray[0], o.Owners[astray[0]]))
	case r.Status == Aborting && len(moving)+len(sealed) > 0:
		return Step{Run: r, Act: Undo, Slots: append(moving, sealed...), Why: r.Failure}
	case r.Status == Aborting:
		r.Status, r.EndedMillis = Aborted, o.AtMillis
		return Step{Run: r, Act: Finish}
	case len(r.Current()) == 0:
		return endOf(r, o)
	case len(moving) > 0:
		return Step{Run: r, Act: Wait, Why: "slots come to rest"}
	case len(sealed) > 0:
		return pass(r, o, sealed, Give, "the target catches up")
	case len(active) > 0:
		return begin(r, o, active)
	}
	return arrived(r, o, there)
}

// begin starts a batch, or what is left of one that was undone by its deadline.
func begin(r Run, o Observed, active []int) Step {
	if r.StartedMillis != 0 { // it was under way, and came back
		if r.Attempts >= AttemptsMax {
			return abort(r, o, fmt.Sprintf("a batch was undone %d times: slots %v do not come to rest or do not arrive in time", r.Attempts, active))
		}
		r.StartedMillis, r.GivenMillis, r.RestUntilMillis = 0, 0, o.AtMillis+1000
		return Step{Run: r, Act: Save, Why: "a batch was undone by its deadline; it is tried again"}
	}
	if r.Status == Paused {
		return Step{Run: r, Act: Wait, Why: "paused"}
	}
	if o.AtMillis < r.RestUntilMillis {
		return Step{Run: r, Act: Wait, Why: "rests between batches"}
	}
	r.StartedMillis, r.Attempts = o.AtMillis, r.Attempts+1
	return Step{Run: r, Act: Drain, Slots: active, DeadlineMillis: o.AtMillis + r.Plan.DeadlineMillis}
}

// pass lets the target have what it has everything of, by the act given.
func pass(r Run, o Observed, slots []int, act Act, waits string) Step {
	var ready []int
	for _, n := range slots {
		if o.Reached(n) {
			ready = append(ready, n)
		}
	}
	if len(ready) == 0 {
		return Step{Run: r, Act: Wait, Why: waits}
	}
	if r.GivenMillis == 0 {
		r.GivenMillis = o.AtMillis
	}
	return Step{Run: r, Act: act, Slots: ready}
}

// arrived ends a batch when the target serves all of it.
func arrived(r Run, o Observed, there []int) Step {
	for _, n := range there {
		if !o.Serves(n) {
			return Step{Run: r, Act: Wait, Why: "the target takes the slots"}
		}
	}
	if r.StartedMillis != 0 {
		r.Batches = append(slices.Clone(r.Batches), Batch{Slots: r.Current(), Frozen: r.StartedMillis, Given: max(r.GivenMillis, r.StartedMillis), Served: o.served()})
	}
	r.Next += len(r.Current())
	r.StartedMillis, r.GivenMillis, r.Attempts = 0, 0, 0
	r.RestUntilMillis = o.AtMillis + r.Plan.PauseMillis
	return Step{Run: r, Act: Save, Why: "a batch has arrived"}
}

func endOf(r Run, o Observed) Step {
	if r.Plan.Kind == Drill && !r.Back {
		r.Back, r.Next, r.RestUntilMillis = true, 0, o.AtMillis+r.Plan.HoldMillis
		return Step{Run: r, Act: Save, Why: "the drill goes back"}
	}
	r.Status, r.EndedMillis = Done, o.AtMillis
	return Step{Run: r, Act: Finish}
}

func abort(r Run, o Observed, why string) Step {
	if r.Status == Aborting {
		// What is in other hands stays there; what is ours goes back.
		r.Status, r.EndedMillis = Aborted, o.AtMillis
		return Step{Run: r, Act: Finish, Why: why}
	}
	r.Status, r.Failure = Aborting, why
	return Step{Run: r, Act: Save, Why: why}
}
