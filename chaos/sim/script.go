package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// Kind of a fault.
type Kind string

const (
	Crash    Kind = "crash"    // a coordinator dies with what it had in memory, and starts again
	Storm    Kind = "storm"    // messages are lost, late, or answered into nothing
	Cut      Kind = "cut"      // a region is cut off from the others and from the arbiter, and lives on
	Steal    Kind = "steal"    // a coordinator takes a slot that another one holds
	Handover Kind = "handover" // the operator moves a slot to a region
	Lose     Kind = "lose"     // a region is lost, and its slots are taken by force; later it returns
)

// Fault is one thing that goes wrong, with all that was drawn for it.
type Fault struct {
	Kind Kind
	// At and For are milliseconds of simulated time, from the start.
	At, For int64
	// Region, Node, Slot and To (a region) say where; Percent is a storm's strength. Alive: a lost region lives on behind a cut.
	Region, Node, Slot, To, Percent int
	Alive                           bool
}

func (f Fault) String() string {
	s := fmt.Sprintf("%6d ms %s", f.At, f.Kind)
	switch f.Kind {
	case Crash:
		s += fmt.Sprintf(" coordinator %d of region %d for %d ms", f.Node, f.Region, f.For)
	case Storm:
		s += fmt.Sprintf(" of %d %% for %d ms", f.Percent, f.For)
	case Cut:
		s += fmt.Sprintf(" region %d for %d ms", f.Region, f.For)
	case Steal:
		s += fmt.Sprintf(" slot %d by coordinator %d of region %d", f.Slot, f.Node, f.Region)
	case Handover:
		s += fmt.Sprintf(" slot %d to region %d", f.Slot, f.To)
	case Lose:
		s += fmt.Sprintf(" region %d for %d ms, its slots to region %d, alive %v", f.Region, f.For, f.To, f.Alive)
	}
	return s
}

// Script is what goes wrong in a run, in the order of its times.
type Script []Fault

func (s Script) String() string {
	var lines []string
	for _, f := range s {
		lines = append(lines, f.String())
	}
	return strings.Join(lines, "\n")
}

// Generate draws a seed's script. In every mode at most one region is lost.
func Generate(seed uint64, mode Mode) Script {
	rng := rand.New(rand.NewPCG(seed, 5))
	at := func() int64 { return 500 + rng.Int64N(loadMillis-1000) }
	s := Script{}
	for range rng.IntN(6) {
		s = append(s, Fault{Kind: Crash, At: at(), For: 100 + rng.Int64N(3000), Region: rng.IntN(regionsCount), Node: rng.IntN(2)})
	}
	for range rng.IntN(3) {
		s = append(s, Fault{Kind: Storm, At: at(), For: 300 + rng.Int64N(3000), Percent: 5 + rng.IntN(45)})
	}
	for range rng.IntN(2) {
		s = append(s, Fault{Kind: Cut, At: at(), For: 200 + rng.Int64N(4000), Region: rng.IntN(regionsCount)})
	}
	for range rng.IntN(4) {
		s = append(s, Fault{Kind: Steal, At: at(), Region: rng.IntN(regionsCount), Node: rng.IntN(2), Slot: rng.IntN(slotsInPlay)})
	}
	for range rng.IntN(4) {
		s = append(s, Fault{Kind: Handover, At: at(), Slot: rng.IntN(slotsInPlay), To: rng.IntN(regionsCount)})
	}
	if rng.IntN(3) > 0 {
		lost := rng.IntN(regionsCount)
		to := (lost + 1 + rng.IntN(regionsCount-1)) % regionsCount
		f := Fault{Kind: Lose, At: 2000 + rng.Int64N(loadMillis-5000), For: 4000 + rng.Int64N(10_000), Region: lost, To: to, Alive: rng.IntN(2) == 0}
		s = append(s, f)
		if rng.IntN(3) == 0 { // a slot had just come to it, from a region that nobody hears now
			third := regionsCount - lost - to
			s = append(s, Fault{Kind: Handover, At: f.At - 200 - rng.Int64N(1300), Slot: third, To: lost})
			s = append(s, Fault{Kind: Cut, At: f.At - rng.Int64N(900), For: 2500 + rng.Int64N(4000), Region: third})
		}
	}
	slices.SortStableFunc(s, func(a, b Fault) int { return int(a.At - b.At) })
	return s
}

// inject has a fault begin, and end.
func (w *World) inject(f Fault) {
	w.say("fault %s", f.String()[10:])
	switch f.Kind {
	case Crash:
		w.crash(f)
	case Storm:
		w.drop += f.Percent
		w.after(f.For, func() { w.drop -= f.Percent })
	case Cut:
		r := w.regions[f.Region]
		r.cuts++
		r.isolate()
		w.after(f.For, func() { r.cuts--; r.isolate() })
	case Steal:
		n := w.regions[f.Region].nodes[f.Node]
		if n.up && w.regions[f.Region].owners[f.Slot].Region == n.r.name {
			n.claim(f.Slot)
		}
	case Handover:
		w.oper.wanted = append(w.oper.wanted, f)
	case Lose:
		w.lose(f)
	}
}

func (w *World) crash(f Fault) {
	r := w.regions[f.Region]
	n := r.nodes[f.Node]
	if r.down || !n.up {
		return
	}
	n.die()
	w.after(f.For, func() {
		if !r.down && !n.dead {
			n.boot()
		}
	})
}

// lose takes a region away, or cuts it off for long, and has its slots taken by force.
func (w *World) lose(f Fault) {
	r := w.regions[f.Region]
	if f.Alive {
		r.cuts++
		r.isolate()
	} else {
		r.fall()
	}
	w.after(500+w.rng.Int64N(1500), func() { w.oper.wanted = append(w.oper.wanted, f) })
	w.after(f.For, func() {
		if w.opt.Mode == Liveness {
			return // it stays so
		}
		if f.Alive {
			r.cuts--
			r.isolate()
		} else {
			r.rise()
		}
	})
}

// heal is fair weather: what is broken for good in liveness mode stays so.
func (w *World) heal() {
	w.healed, w.drop = true, 0
	w.say("fair weather")
	for _, r := range w.regions {
		for i, n := range r.nodes {
			switch {
			case r.down:
			case w.opt.Mode == Liveness && i == 1:
				if n.dead = true; n.up {
					n.die()
				}
			case !n.up:
				n.boot()
			}
		}
	}
}
