package fault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/netspace"
)

// Shape is which of five members do not hear each other. The first one is the leader, the others are in an order that the seed draws.
type Shape struct {
	title string
	cuts  [][2]int
	// follow are the members that must have a leader while it is cut, lone those that must have none: they hear no majority, or nobody
	// who would vote for them while the leader is heard.
	follow, lone []int
	// deposes says that the leader is among those that have none.
	deposes bool
}

// Halves has the leader and one member on one side, three on the other (N4).
func Halves() Fault {
	return Partition{Shape: Shape{title: "arbiter-halves", cuts: [][2]int{{0, 2}, {0, 3}, {0, 4}, {1, 2}, {1, 3}, {1, 4}}, follow: []int{2, 3, 4}, lone: []int{0, 1}, deposes: true}}
}

// Bridge has two and two that do not hear each other, and one that hears all (N5).
func Bridge() Fault {
	return Partition{Shape: Shape{title: "arbiter-bridge", cuts: [][2]int{{0, 3}, {0, 4}, {1, 3}, {1, 4}}, follow: []int{0, 1, 2}, lone: []int{3, 4}}}
}

// Ring has each member hear its two neighbours: a majority, and each another one (N6).
func Ring() Fault {
	return Partition{Shape: Shape{title: "arbiter-majorities-ring", cuts: [][2]int{{0, 2}, {0, 3}, {1, 3}, {1, 4}, {2, 4}}, follow: []int{4, 0, 1}, lone: []int{2, 3}}}
}

// Partition cuts members of an arbiter of five from each other, by the kernel, while the regions reach all of them. Under the cut slots
// are handed over by the product's tool: a majority hears each other and has a leader, so it must be done.
type Partition struct {
	Shape Shape
	off   bool
}

// partitioned slots are handed over under the cut: those below that are the first region's.
const partitioned = 16

// Name is the fault's.
func (p Partition) Name() string { return p.Shape.title }

// Needs is why it cannot be had on this machine.
func (Partition) Needs() error {
	if err := netspace.Probe(); err != nil {
		return fmt.Errorf("root, network namespaces, veth and nf_tables are needed: %w", err)
	}
	return nil
}

// Available wants five members that can be cut from each other.
func (Partition) Available(e Env) error {
	if n := len(e.Deployment.Arbiter); n != 5 || e.Deployment.Hosts == nil {
		return fmt.Errorf("the arbiter has %d members, or no hosts of its own for them: five are wanted", n)
	}
	return nil
}

func (p Partition) disabled() Fault { p.off = true; return p }

// Inject draws who stands where, and cuts.
func (p Partition) Inject(ctx context.Context, e Env) (Active, error) {
	a := &parted{p: p, e: e, net: e.Deployment.Hosts, moved: moved{m: Moved{Slots: partitioned}, e: e}}
	first, leader, err := leads(ctx, e, e.Deployment.Arbiter)
	if err != nil {
		return a, err
	}
	a.term, a.order = leader.Term, []int{first}
	for _, i := range e.rand(51).Perm(len(e.Deployment.Arbiter)) {
		if i != first {
			a.order = append(a.order, i)
		}
	}
	a.since = e.Log.Now()
	if p.off {
		return a, nil
	}
	for _, c := range p.Shape.cuts {
		if err := a.net.Cut(a.order[c[0]], a.order[c[1]]); err != nil {
			return a, err
		}
	}
	return a, nil
}

type parted struct {
	p     Partition
	e     Env
	net   *netspace.Net
	order []int // who stands at which place of the shape: indexes of members
	term  uint64
	since int64
	moved moved
}

// dropped is in how many of the cut pairs packets were dropped in both directions, and how many in all.
func (a *parted) dropped() (pairs int, packets uint64, err error) {
	for _, c := range a.p.Shape.cuts {
		there, err := a.net.Dropped(a.order[c[0]], a.order[c[1]])
		if err != nil {
			return pairs, packets, err
		}
		back, err := a.net.Dropped(a.order[c[1]], a.order[c[0]])
		if err != nil {
			return pairs, packets, err
		}
		if there > 0 && back > 0 {
			pairs++
		}
		packets += there + back
	}
	return pairs, packets, nil
}

// leaders is whom each place of the shape follows, and in which term; 0 for nobody.
func (a *parted) leaders(ctx context.Context) (of, terms []uint64, err error) {
	for _, i := range a.order {
		m, err := check.ReadMembers(ctx, "", []string{a.e.Deployment.Arbiter[i].Addr})
		if err != nil {
			return nil, nil, err
		}
		of, terms = append(of, m[0].Leader), append(terms, m[0].Term)
	}
	return of, terms, nil
}

// shaped says whether those that are to have one leader have it, and those that are to have none have none.
func (a *parted) shaped(of, terms []uint64) bool {
	s := a.p.Shape
	first := s.follow[0]
	ok := of[first] != 0 && (terms[first] > a.term) == s.deposes
	for _, i := range s.follow {
		ok = ok && of[i] == of[first] && terms[i] == terms[first]
	}
	return ok && !slices.ContainsFunc(s.lone, func(i int) bool { return of[i] != 0 })
}

// Effective wants packets dropped in both directions of every pair that is cut, and the leaders that follow from the shape, both while
// decisions go on; and then slots to be handed over while it is cut.
func (a *parted) Effective(ctx context.Context) (Evidence, error) {
	ev, err := until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		pairs, packets, err := a.dropped()
		of, terms, lerr := a.leaders(ctx)
		if err = errors.Join(err, lerr); err != nil {
			return Evidence{}, false, err
		}
		decided := history.Rate(a.e.Log.Ops(), a.since+1e9, a.e.Log.Now())
		return Evidence{fmt.Sprintf("in %d of %d cut pairs the kernel dropped packets both ways, %d in all; %s; %.0f decisions a second since", pairs, len(a.p.Shape.cuts), packets, a.places(of, terms), decided),
			map[string]int64{"pairs": int64(pairs), "packets": int64(packets)}}, pairs == len(a.p.Shape.cuts) && a.shaped(of, terms) && decided > 0 && a.e.Log.Now() > a.since+3e9, nil
	})
	if err != nil {
		return ev, err
	}
	began := time.Now()
	if err := a.moved.handover(ctx, "east", "west"); err != nil {
		return ev, fmt.Errorf("under the cut, with a majority that has a leader (%s): %w", ev.What, err)
	}
	ev.What += fmt.Sprintf("; slots were handed over in %.1f s meanwhile", time.Since(began).Seconds())
	return ev, nil
}

// places tells who follows whom.
func (a *parted) places(of, terms []uint64) string {
	var out []string
	for place, i := range a.order {
		whom := "nobody"
		if of[place] != 0 {
			whom = fmt.Sprintf("%x", of[place])
		}
		out = append(out, fmt.Sprintf("%s follows %s in term %d", a.e.Deployment.Arbiter[i].Name, whom, terms[place]))
	}
	return strings.Join(out, ", ") + fmt.Sprintf(" (%s led in term %d)", a.e.Deployment.Arbiter[a.order[0]].Name, a.term)
}

// Recover heals, and moves the slots back.
func (a *parted) Recover(ctx context.Context) error {
	if err := a.Cleanup(); err != nil || a.p.off {
		return err
	}
	return a.moved.handover(ctx, "west", "east")
}

// Recovered wants all to follow one leader, and to have the same.
func (a *parted) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		all, err := check.ReadMembers(ctx, "", addresses(a.e.Deployment.Arbiter))
		if err != nil {
			return Evidence{}, false, err
		}
		same := 0
		for _, m := range all {
			if m.Leader != 0 && m.Leader == all[0].Leader && m.Hash == all[0].Hash {
				same++
			}
		}
		return Evidence{What: fmt.Sprintf("%d of %d members follow one leader, in term %d, and have the same; the slots are back", same, len(all), all[0].Term)}, same == len(all), nil
	})
}

// Cleanup heals.
func (a *parted) Cleanup() error {
	if a.net == nil {
		return nil
	}
	return a.net.Heal()
}
