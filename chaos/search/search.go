// Package search looks at every state that one transaction can get into: two branches, two holders of its slot one after the
// other, a store whose answers may be lost, and a network that loses, repeats and reorders. What decides is the production core
// (txn.Step, txn.Reloaded, txn.Owed); the store, the participants and the network are small models here.
//
// The law it keeps: within its bounds nothing is left out, so a rule that nothing breaks here is not broken by order or loss
// alone. It is tested by switching rules off, one by one: each must be found, with the way that leads there. Time is abstract:
// whatever is due later may be due now, and the deadline may pass at any moment. Source: chaos reference, section 15; DESIGN,
// section 3.
package search

import (
	"fmt"
	"strings"
)

// Rules are what keeps the protocol safe; each can be switched off to see the search find it.
type Rules struct {
	// NoTerm: the store takes writes of a holder whose slot another one has taken.
	NoTerm bool
	// CallsFirst: branches are called before the write that the calls follow from is durable.
	CallsFirst bool
	// LostIsNo: a holder takes a write whose answer was lost for one that did not happen, and goes on.
	LostIsNo bool
	// NoTombstone: an empty cancel leaves nothing in the barrier that refuses the late try.
	NoTombstone bool
	// NoBarrier: a participant carries out every call as it comes.
	NoBarrier bool
}

// Bounds of the search: how often each thing may go wrong on one way.
type Bounds struct {
	Losses    int // calls that time out, and arrive late; answers that are lost
	Repeats   int // calls that arrive twice
	Refusals  int // tries that a participant refuses
	Takeovers int // how often the slot changes hands, the old holder asleep or gone
	Doubts    int // writes whose answer is lost
	// States bounds the search; it is an error to reach it.
	States int
}

// Result says what was looked at.
type Result struct {
	States, Steps int
	// Commits and Aborts are the ends that were reached.
	Commits, Aborts int
	// Broken is the first rule that was found broken, "" for none; Trace leads there from the beginning.
	Broken string
	Trace  []string
}

func (r *Result) String() string {
	text := fmt.Sprintf("%d states, %d steps, %d ends committed, %d aborted", r.States, r.Steps, r.Commits, r.Aborts)
	if r.Broken != "" {
		text += "\n" + r.Broken + "\n  " + strings.Join(r.Trace, "\n  ")
	}
	return text
}

// node is a state that was reached, and from where.
type node struct {
	from int
	by   string
}

// Run searches breadth first, so that a trace is a shortest one. It ends at the first broken rule. Beyond the rules of each
// state, every state must have a way to an end: nothing may be stuck.
func Run(rules Rules, b Bounds) (*Result, error) {
	res := &Result{}
	first := newWorld(rules, b)
	seen := map[[16]byte]int{first.key(): 0}
	nodes := []node{{-1, ""}}
	worlds := []*world{first}
	var back [][]int // from where each state was reached, for the ways to an end
	back = append(back, nil)
	var ends []int
	for at := 0; at < len(worlds); at++ {
		w := worlds[at]
		worlds[at] = nil // what follows from it is all that is needed
		if why := w.broken(); why != "" {
			res.Broken, res.Trace = why, trace(nodes, at)
			res.States = len(worlds)
			return res, nil
		}
		if w.ended() {
			ends = append(ends, at)
			if w.durable.Phase.Commit() {
				res.Commits++
			} else {
				res.Aborts++
			}
		}
		for _, next := range w.steps() {
			res.Steps++
			k := next.w.key()
			to, known := seen[k]
			if !known {
				to = len(worlds)
				if to >= b.States {
					return nil, fmt.Errorf("%d states were not enough", b.States)
				}
				seen[k] = to
				worlds, nodes, back = append(worlds, next.w), append(nodes, node{at, next.by}), append(back, nil)
			}
			back[to] = append(back[to], at)
		}
	}
	res.States = len(worlds)
	if stuck := unreached(back, ends); stuck >= 0 {
		res.Broken, res.Trace = "nothing leads from here to an end", trace(nodes, stuck)
	}
	return res, nil
}

// unreached gives a state from which no end can be reached, -1 for none.
func unreached(back [][]int, ends []int) int {
	ok := make([]bool, len(back))
	queue := ends
	for _, e := range ends {
		ok[e] = true
	}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		for _, from := range back[at] {
			if !ok[from] {
				ok[from] = true
				queue = append(queue, from)
			}
		}
	}
	for at, yes := range ok {
		if !yes {
			return at
		}
	}
	return -1
}

func trace(nodes []node, at int) (out []string) {
	for ; at > 0; at = nodes[at].from {
		out = append([]string{nodes[at].by}, out...)
	}
	return out
}
