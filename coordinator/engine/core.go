package engine

import (
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/mutant"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Limits bound what one process takes on. Zero fields take the default given.
type Limits struct {
	// LiveMax bounds the unfinished transactions in memory. Defaults to 2,000,000.
	LiveMax int
	// UnsavedMax bounds the transactions that wait to be saved; begins are refused above it. Messages are refused at
	// half of it: the non-core goes first. Defaults to 20,000.
	UnsavedMax int
	// NoteDelayMillis is how long progress that nobody waits for may stay unsaved. Defaults to 500.
	NoteDelayMillis int64
	// DeleteDelayMillis is how long a finished record may stay in the store once the journal has it. Defaults to 200.
	DeleteDelayMillis int64
	// BatchOps bounds the guards and the writes of one batch, each. Defaults to 120 (etcd takes 128).
	BatchOps int
	// BatchBytes bounds a batch. Defaults to 1 MiB.
	BatchBytes int
}

// WithDefaults fills the zero fields.
func (l Limits) WithDefaults() Limits {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&l.LiveMax, 2_000_000)
	def(&l.UnsavedMax, 20_000)
	def(&l.BatchOps, 120)
	def(&l.BatchBytes, 1<<20)
	if l.NoteDelayMillis == 0 {
		l.NoteDelayMillis = 500
	}
	if l.DeleteDelayMillis == 0 {
		l.DeleteDelayMillis = 200
	}
	return l
}

// Filterer says whether the journal may know a gid: false is certain, true is not. Forget says that a slot was taken
// just now: its former holder may have written to the journal.
type Filterer interface {
	MaybeKnown(gid txn.Gid) bool
	Forget(slot int)
	// Added says that the gid may have been added; unlike MaybeKnown it does not ask whether the slot's answers are certain.
	Added(gid txn.Gid) bool
}

// Core is all transactions of the slots that one process holds. It is a plain struct without goroutines, clock or
// I/O: one goroutine calls it, tells it the time, and takes what is to be done from Drain. Not safe for concurrent
// use.
type Core struct {
	lim    Limits
	known  Filterer
	holder string
	slots  [slot.Count]*heldSlot
	timers timers
	seq    uint64 // of pending requests

	dirty   []*heldSlot // slots with unsaved transactions, in the order in which they became so
	unsaved int
	live    int
	notes   []*entry         // progress to be saved by and by, oldest first
	deletes []*entry         // finished and journaled, oldest first
	poison  map[txn.Gid]bool // records that cannot be read: nothing may begin under their gids
	shed    string           // why begins are refused; "" while they are not
	global  error            // why begins of global durability are refused; nil while they are not
	out     Output
}

// heldSlot is a slot that this process holds or is about to hold.
type heldSlot struct {
	n     int
	term  Term
	epoch uint64
	head  record.Head
	// ready: its records are read. Until then requests are parked.
	ready  bool
	parked []*pending
	// quiet: nothing begins, it is parked. still: nothing changes, everything is parked (see moving.go).
	quiet, still bool
	txs          map[txn.Gid]*entry
	// busy: a batch with this slot is unanswered. A slot is in at most one such batch.
	busy   bool
	queued bool // in Core.dirty
	unsent []*entry
	// generation of the slot's global decisions when it was taken; -1 where the arbiter was not heard. deciding counts the
	// decisions on their way there; removing holds new ones back, in held.
	generation int64
	deciding   int
	removing   bool
	held       []*entry
	// settling holds the requests whose answers a reload will give.
	settling []*pending
}

// entry is one transaction in memory.
type entry struct {
	tx      record.Tx
	slot    *heldSlot
	version int // of the state that must be saved
	saved   int // the version that is durable
	queued  bool
	noted   bool
	stored  bool // something of it may be in the store
	journal bool // the journal has its finish
	// arbitrated: the arbiter has this decision. asked: it is on its way there.
	arbitrated, asked bool
	deleted           bool // its delete is under way
	notedAt           int64
	gates             []gate
	waiting           []*pending
	timer             timer
}

// gate holds what waits for a version to be durable.
type gate struct {
	version int
	effects []gated
}

type gated struct {
	effect txn.Effect // nil for an error answer
	upTo   uint64     // answers reach the requests up to this one
	to     *pending
	err    error
}

// Output is what the core wants done. Drain hands it over.
type Output struct {
	Calls   []*Call
	Rows    []Row
	Lookups []*pending // ask the journal, then Apply again
	Changes []Change
	// Decisions go to the arbiter before they are saved.
	Decisions []Deciding
	// Results are calls that were answered, with how often the call has failed in a row.
	Results []CalledResult
	// StaleSlots answered "a newer epoch has been here".
	StaleSlots []int
}

// CalledResult is a call's result and its failures in a row.
type CalledResult struct {
	Result CallResult
	Fails  int
}

// Change is a transition that is durable, for logs and metrics.
type Change struct {
	Gid     txn.Gid
	Slot    int
	Mode    txn.Mode
	Phase   txn.Phase
	Reason  string
	BegunAt int64
	At      int64
	// Decided: the decision became durable with this change, not only the finish.
	Decided bool
}

// NewCore makes an empty core. known may be nil: then the journal is asked for every unknown gid.
func NewCore(holder string, lim Limits, known Filterer) *Core {
	return &Core{lim: lim.WithDefaults(), known: known, holder: holder}
}

// Drain gives what is to be done and forgets it.
func (c *Core) Drain() Output {
	out := c.out
	c.out = Output{}
	return out
}

// Live is the number of transactions in memory; Unsaved of those that wait to be saved.
func (c *Core) Live() int    { return c.live }
func (c *Core) Unsaved() int { return c.unsaved }

// Shed refuses begins from now on for the reason given; "" takes them again. What was begun is finished either way.
func (c *Core) Shed(why string) { c.shed = why }

// NoGlobal refuses begins of global durability from now on for the reason given; nil takes them again. What was begun waits for
// the arbiter.
func (c *Core) NoGlobal(why error) { c.global = why }

// globally says that an event begins a transaction of global durability.
func globally(ev txn.Event) bool {
	switch e := ev.(type) {
	case txn.Prepare:
		return e.Spec.Opt.Durability == txn.Global
	case txn.Execute:
		return e.Spec.Opt.Durability == txn.Global
	case txn.Submit:
		return e.Spec.Opt.Durability == txn.Global
	}
	return false
}

// Poison keeps everything from a gid whose record cannot be read: a begin would overwrite it.
func (c *Core) Poison(gid txn.Gid) {
	if c.poison == nil {
		c.poison = map[txn.Gid]bool{}
	}
	c.poison[gid] = true
}

// Holds says whether the slot's transactions are here and ready.
func (c *Core) Holds(n int) bool { return c.slots[n] != nil && c.slots[n].ready }

// Term gives the term of a slot that is held; false otherwise.
func (c *Core) Term(n int) (Term, bool) {
	if c.slots[n] == nil || !c.slots[n].ready {
		return 0, false
	}
	return c.slots[n].term, true
}

// Apply takes a request. It is answered when what it waits for is reached, at once where it is refused.
func (c *Core) Apply(at int64, p *pending) {
	hs := c.slots[slot.Of(string(p.req.Gid))]
	switch {
	case hs == nil:
		p.finish(answer{err: ErrNotHolder})
		return
	case !hs.ready || hs.still || (hs.quiet && Begins(p.req.Event) && hs.txs[p.req.Gid] == nil):
		hs.parked = append(hs.parked, p)
		return
	}
	if c.poison[p.req.Gid] {
		p.finish(answer{err: fmt.Errorf("%w: the record of %q cannot be read; it is left as it is", ErrUnavailable, string(p.req.Gid))})
		return
	}
	if p.id == 0 {
		c.seq++
		p.id = c.seq
	}
	e := hs.txs[p.req.Gid]
	if e == nil && !(p.looked && p.lookedIn == hs.term) && (c.known == nil || c.known.MaybeKnown(p.req.Gid)) {
		p.lookedIn = hs.term
		c.out.Lookups = append(c.out.Lookups, p)
		return
	}
	if p.req.Event == nil {
		c.read(e, p)
		return
	}
	if e == nil {
		if mode, ok := begins(p.req.Event); ok {
			if err := c.admit(mode, p.req.Event); err != nil {
				p.finish(answer{err: err})
				return
			}
		}
		e = &entry{slot: hs}
		e.tx.State.Gid = p.req.Gid
	}
	switch ev := p.req.Event.(type) {
	case Adopt:
		c.adopt(at, e, p, ev)
		return
	case Returned:
		c.returned(at, e, p, &ev.Tx)
		return
	}
	c.step(at, e, stamp(p.req.Event, at, hs.epoch), p)
}

// read answers with what is there. What is not durable yet is not shown: the answer waits for it.
func (c *Core) read(e *entry, p *pending) {
	if e == nil {
		p.finish(answer{})
		return
	}
	if e.saved < e.version {
		g := e.lastGate()
		g.effects = append(g.effects, gated{to: p})
		return
	}
	p.finish(answer{reply: e.reply()})
}

func (e *entry) reply() Reply {
	tl := e.tx.Timeline
	tl.Attempts = tl.Attempts[:len(tl.Attempts):len(tl.Attempts)]
	return Reply{State: e.tx.State, Timeline: tl, Decision: e.tx.Decision, Finish: e.tx.Finish}
}

// Found answers a request whose gid the journal knows: it ended, and gets its old answer.
func (c *Core) Found(at int64, p *pending, tx *record.Tx) {
	hs := c.slots[slot.Of(string(p.req.Gid))]
	if hs == nil || !hs.ready {
		c.Apply(at, p)
		return
	}
	if p.lookedIn != hs.term {
		// The slot was another's meanwhile, who may have begun and ended the gid: the answer is too old.
		c.Apply(at, p)
		return
	}
	if tx != nil && !tx.State.Phase.Finished() && hs.txs[p.req.Gid] == nil {
		// The journal has the decision, and the store no record: it ended while the journal was asked, or the store
		// has lost it. Either way nothing may begin under this gid.
		p.finish(answer{err: fmt.Errorf("%w: the journal knows the decision of %q and the store has no record of it", ErrUnavailable, string(p.req.Gid))})
		return
	}
	if tx == nil && hs.txs[p.req.Gid] == nil && !p.again && c.known != nil && c.known.Added(p.req.Gid) {
		p.again = true // it may have ended and left the store while the journal was asked
		c.out.Lookups = append(c.out.Lookups, p)
		return
	}
	if tx == nil || hs.txs[p.req.Gid] != nil {
		p.looked = true
		c.Apply(at, p)
		return
	}
	rep := replyOf(tx)
	if p.req.Event == nil {
		p.finish(answer{reply: rep})
		return
	}
	switch ev := p.req.Event.(type) {
	case Adopt:
		p.finish(answer{reply: rep})
		return
	case Returned:
		if tx.Trimmed {
			tx.State.Branches = ev.Tx.State.Branches // the outcome alone is kept
		}
		p.finish(answer{reply: rep, err: differs(&tx.State, &ev.Tx.State)})
		return
	}
	_, _, err := txn.Step(tx.State, stamp(p.req.Event, at, hs.epoch))
	if p.req.Resent && answered(p.req.Event, &tx.State) {
		err = nil
	}
	p.finish(answer{reply: rep, err: err})
}

// admit says whether a transaction may begin.
func (c *Core) admit(mode txn.Mode, ev txn.Event) error {
	if c.global != nil && globally(ev) {
		return fmt.Errorf("%w: a decision of global durability cannot be written: %w; repeat the request, or ask for regional", ErrUnavailable, c.global)
	}
	limit := c.lim.UnsavedMax
	if mode == txn.ModeMsg {
		limit /= 2
	}
	switch {
	case c.shed != "":
		return &OverloadedError{Why: c.shed, RetryAfter: 5 * time.Second}
	case c.unsaved >= limit:
		return &OverloadedError{Why: "too many transactions wait to be saved", RetryAfter: time.Second}
	case c.live >= c.lim.LiveMax:
		return &OverloadedError{Why: "too many unfinished transactions", RetryAfter: 5 * time.Second}
	}
	return nil
}

// step runs one event through the transaction and books what follows. p is nil for events that nobody waits for.
func (c *Core) step(at int64, e *entry, ev txn.Event, p *pending) {
	before := e.tx.State.Phase
	t := trace(&e.tx.State, ev)
	next, effects, err := txn.Step(e.tx.State, ev)
	bent(&next)
	t.end(&next, effects, err)
	if err != nil {
		c.refuse(e, p, err)
		return
	}
	e.tx.State = next
	if before == txn.PhaseNone {
		e.slot.txs[next.Gid] = e
		c.live++
	}
	if p != nil {
		e.waiting = append(e.waiting, p)
	}
	c.perform(at, e, effects)
}

// refuse answers with an error. Where it speaks of a state that is not durable yet, it waits for that: a refusal
// because of a decision that a crash may undo would be a wrong answer.
func (c *Core) refuse(e *entry, p *pending, err error) {
	if p == nil {
		return
	}
	if p.req.Resent && answered(p.req.Event, &e.tx.State) {
		err = nil
	}
	if e.saved < e.version {
		g := e.lastGate()
		g.effects = append(g.effects, gated{to: p, err: err})
		return
	}
	p.finish(answer{reply: e.reply(), err: err})
}

// perform books effects: what stands behind an unfinished Save goes into the gate of its version.
func (c *Core) perform(at int64, e *entry, effects []txn.Effect) {
	for _, eff := range effects {
		switch eff.(type) {
		case txn.Save:
			e.version++
			e.gates = append(e.gates, gate{version: e.version})
			c.enqueue(e)
		case txn.Note:
			c.note(at, e)
		case txn.Wake:
			// The timer is set from the state below: an event that changes nothing emits no wake, and must not lose one.
		case txn.Invoke, txn.Answer:
			if _, answers := eff.(txn.Answer); e.saved < e.version && !(answers && mutant.On(mutant.AckBeforeStore)) {
				g := e.lastGate()
				g.effects = append(g.effects, gated{effect: eff, upTo: c.seq})
			} else {
				c.run(e, eff, c.seq)
			}
		}
	}
	c.timers.set(e, txn.NextWake(&e.tx.State))
}

func (e *entry) lastGate() *gate { return &e.gates[len(e.gates)-1] }

// Expire ticks every transaction whose wake is due.
func (c *Core) Expire(at int64) {
	for {
		e := c.timers.pop(at)
		if e == nil {
			return
		}
		c.step(at, e, txn.Tick{At: at, Epoch: e.slot.epoch}, nil)
		if e.timer.at != 0 && e.timer.at <= at {
			c.timers.set(e, at+1000) // due again at once, so this tick could not help it: let the others have their turn
		}
	}
}

// NextWake is the time of the earliest wake in unix milliseconds; 0 when there is none.
func (c *Core) NextWake() int64 {
	next := c.timers.next()
	if len(c.notes) > 0 {
		next = earlier(next, c.notes[0].notedAt+c.lim.NoteDelayMillis)
	}
	if len(c.deletes) > 0 {
		next = earlier(next, c.deletes[0].notedAt+c.lim.DeleteDelayMillis)
	}
	return next
}

func earlier(a, b int64) int64 {
	if a == 0 || b < a {
		return b
	}
	return a
}
