package sim

import (
	"container/heap"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"math/rand/v2"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Rules that can be switched off, to see that the simulator finds what follows. The product has no such switches.
type Rules struct {
	// CancelTried aborts, after a forced failover, what is known only by tries that stand (multi-region reference, 1.4).
	CancelTried bool
	// SpendEarly lets the copies of taken slots accept debits before everything up to the seal is applied and the loss worked off.
	SpendEarly bool
	// SealAtTarget seals at what the target has instead of the highest event in any reachable journal.
	SealAtTarget bool
	// ServeEarly serves taken slots before the target has everything up to the seal.
	ServeEarly bool
	// Unbarriered has participants carry out every call that comes, also the second time.
	Unbarriered bool
	// LastSealAlone serves a slot that was taken when the seal of the lost epoch is reached, whatever came before it.
	LastSealAlone bool
	// CutNothing leaves what a returned region has past the seal in its journal.
	CutNothing bool
}

// Mode of a run.
type Mode string

const (
	// Safety: faults come and go; in the end all of them heal, and everything ends.
	Safety Mode = "safety"
	// Liveness: from the script's end on what is broken stays so: a coordinator of each region, and a region that was taken from.
	// What the others begin must end all the same.
	Liveness Mode = "liveness"
)

// Options of a run beside its seed. The zero Options are a run in safety mode by the product's rules.
type Options struct {
	Mode  Mode
	Rules Rules
	// Script is what goes wrong; nil takes the seed's own.
	Script Script
	// Clients is how many transactions are begun. Defaults to 120.
	Clients int
	// Keep keeps the lines of the trace, not only their hash.
	Keep bool
}

// Result of a run.
type Result struct {
	Seed   uint64
	Script Script
	// Trace is the SHA-256 of every line, in hexadecimal; Lines are there where Options.Keep says so.
	Trace string
	Lines []string
	// Begun, Committed and Aborted count transactions, Events what happened, Millis the time that passed in the world.
	Begun, Committed, Aborted, Events int
	Millis                            int64
	// Moved and Taken count slots that changed their region by plan and by force; Doubts the transactions that were in doubt,
	// Returned what a lost region handed back.
	Moved, Taken, Doubts, Returned int
	// Err is the violation; nil when everything held.
	Err error
}

const (
	regionsCount = 3
	slotsInPlay  = 4
	epochStart   = 1_000_000_000 // ms; where the simulated clock begins
	loadMillis   = 12_000        // how long transactions are begun

	defaultClients = 120
)

// World is one run. Use Run.
type World struct {
	seed    uint64
	opt     Options
	rng     *rand.Rand
	now     int64
	queue   queue
	order   uint64
	healed  bool // nothing goes wrong any more
	drop    int  // of 100 messages, how many are lost or late
	trace   hash.Hash
	res     Result
	regions []*region
	arb     arbiter
	oper    operator
	clients []*client
	decided map[txn.Gid]bool // commit?
	// Of slots that were taken by force: that they were, and that their accounts may spend again in good order.
	forced, lifted [slotsInPlay]bool
	// settled are slots that a lost region had been given and never held: an operator says so, and ends what is in doubt of them.
	settled [slotsInPlay]bool
	// forgotten are aborts that a lost region alone knew, which nobody takes over: the gid may be begun anew.
	forgotten map[txn.Gid]bool
	promised  map[txn.Gid]bool // told decisions that a journal had which answered when their slot was taken: commit?
	err       error
}

// event is something that happens at a time; those of one time happen in the order in which they were asked for.
type event struct {
	at  int64
	seq uint64
	run func()
}

type queue []event

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Push and Pop serve container/heap.
func (q *queue) Push(x any) { *q = append(*q, x.(event)) }

// Pop is container/heap's.
func (q *queue) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = event{}
	*q = old[:len(old)-1]
	return e
}

var background = context.Background()

// after has something happen d milliseconds from now.
func (w *World) after(d int64, run func()) {
	w.order++
	heap.Push(&w.queue, event{w.now + max(0, d), w.order, run})
}

// every has something happen again and again.
func (w *World) every(d int64, run func()) {
	var again func()
	again = func() { run(); w.after(d, again) }
	w.after(d, again)
}

// fail ends the run.
func (w *World) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
		w.say("VIOLATION %v", w.err)
	}
}

// check ends the run on an error that no rule allows.
func (w *World) check(what string, err error) {
	if err != nil {
		w.fail("%s: %w", what, err)
	}
}

// say writes a line into the trace.
func (w *World) say(format string, args ...any) {
	line := fmt.Sprintf("%7d ", w.now-epochStart) + fmt.Sprintf(format, args...)
	w.trace.Write([]byte(line))
	w.trace.Write([]byte{'\n'})
	if w.opt.Keep {
		w.res.Lines = append(w.res.Lines, line)
	}
}

// chance is true so many times of a hundred, while things go wrong.
func (w *World) chance(percent int) bool {
	return w.rng.IntN(100) < percent && !w.healed
}

// lag is how long something takes inside a region; far is how long between two.
func (w *World) lag() int64 { return 1 + w.rng.Int64N(6) }
func (w *World) far() int64 { return 15 + w.rng.Int64N(30) }

// between is how long a message takes from one region to another, or inside one.
func (w *World) between(a, b int) int64 {
	if a == b {
		return w.lag()
	}
	return w.far()
}

// reach says that a message gets from region a to region b.
func (w *World) reach(a, b int) bool {
	x, y := w.regions[a], w.regions[b]
	return !x.down && !y.down && (a == b || !x.cut && !y.cut)
}

// arbited says that region r reaches the arbiter.
func (w *World) arbited(r *region) bool { return !r.down && !r.cut }

// Run runs one seed.
func Run(seed uint64, opt Options) Result {
	if opt.Mode == "" {
		opt.Mode = Safety
	}
	if opt.Clients == 0 {
		opt.Clients = defaultClients
	}
	if opt.Script == nil {
		opt.Script = Generate(seed, opt.Mode)
	}
	w := &World{
		seed: seed, opt: opt, rng: rand.New(rand.NewPCG(seed, 3)), now: epochStart, trace: sha256.New(), decided: map[txn.Gid]bool{}, promised: map[txn.Gid]bool{}, forgotten: map[txn.Gid]bool{},
	}
	w.res.Seed, w.res.Script = seed, opt.Script
	w.arb.decisions = map[txn.Gid][]byte{}
	for i := range regionsCount {
		w.regions = append(w.regions, newRegion(w, i))
	}
	for n := range slotsInPlay {
		r := w.regions[n%regionsCount]
		w.arb.owners[n] = slot.Owner{Region: r.name, Epoch: slot.Initial(r.index()), Status: slot.Active}
		for _, b := range w.regions {
			b.bank.fences[n] = fenceRow{epoch: uint64(w.arb.owners[n].Epoch), home: b == r}
		}
	}
	w.start()
	w.run()
	w.res.Trace = hex.EncodeToString(w.trace.Sum(nil))
	w.res.Millis, w.res.Err = w.now-epochStart, w.err
	return w.res
}

// start arms everything that goes on by itself.
func (w *World) start() {
	for _, r := range w.regions {
		w.after(int64(r.at), r.converge)
		w.every(250, r.converge)
		w.every(300, r.fill)
		for _, n := range r.nodes {
			w.every(100, n.tick)
		}
	}
	w.every(200, w.operate)
	for i := range w.opt.Clients {
		w.after(w.rng.Int64N(loadMillis), func() { w.begin(i) })
	}
	for _, f := range w.opt.Script {
		w.after(f.At, func() { w.inject(f) })
	}
}

// settleMillis is how long everything may take to end once nothing goes wrong any more: a few rounds of the longest back-off,
// and where clocks are wrong by ten minutes twice that.
const settleMillis = 240_000

// run takes events until everything has ended, or should have.
func (w *World) run() {
	heal := w.now + loadMillis + 3000
	for _, f := range w.opt.Script {
		heal = max(heal, epochStart+f.At+f.For+1000)
	}
	w.step(func() bool { return w.now >= heal })
	if w.err != nil {
		return
	}
	w.heal()
	limit, looked := w.now+settleMillis, int64(0)
	if w.skewed() {
		limit += 4 * wrongMost
	}
	w.step(func() bool {
		if w.now-looked < 500 {
			return w.now > limit
		}
		looked = w.now
		return w.open() == "" || w.now > limit
	})
	if why := w.open(); why != "" && w.err == nil {
		w.fail("not everything ended within %d s of fair weather (G8): %s", (limit-heal)/1000, why)
	}
	if w.err == nil {
		w.audit()
	}
}

// step takes events until done says so or something is violated.
func (w *World) step(done func() bool) {
	for w.err == nil && len(w.queue) > 0 && !done() {
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		w.res.Events++
		e.run()
	}
}
