package fault

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/proc"
)

// KillMember sends SIGKILL to the leader of the first region's etcd, or of the arbiter, and starts it again (P1).
type KillMember struct {
	Arbiter bool
	off     bool
}

// Name is the fault's.
func (k KillMember) Name() string {
	if k.Arbiter {
		return "kill-arbiter-leader"
	}
	return "kill-etcd-leader"
}

func (k KillMember) nodes(e Env) []*proc.Node {
	if k.Arbiter {
		return e.Deployment.Arbiter
	}
	return e.Deployment.Regions[0].Etcd
}

// Available wants three members.
func (k KillMember) Available(e Env) error {
	if n := len(k.nodes(e)); n < 3 {
		return fmt.Errorf("there are %d members: without one of them there is no majority", n)
	}
	return nil
}

func (k KillMember) disabled() Fault { k.off = true; return k }

// Inject finds the leader, and kills it.
func (k KillMember) Inject(ctx context.Context, e Env) (Active, error) {
	a := &headless{killed: killed{e: e, owned: int64(len(e.Log.Flying()))}, nodes: k.nodes(e)}
	i, leader, err := leads(ctx, e, a.nodes)
	if err != nil {
		return nil, err
	}
	a.n, a.leader, a.term = a.nodes[i], leader.ID, leader.Term
	if !k.off {
		a.n.Kill()
	}
	return a, nil
}

// leads is which of the nodes leads, and what it says.
func leads(ctx context.Context, e Env, nodes []*proc.Node) (int, check.Member, error) {
	for end := time.Now().Add(e.wait(5 * time.Second)); time.Now().Before(end); {
		all, err := check.ReadMembers(ctx, "", addresses(nodes))
		for i, m := range all {
			if err == nil && m.ID == m.Leader {
				return i, m, nil
			}
		}
	}
	return 0, check.Member{}, errors.New("no member says that it leads")
}

func addresses(nodes []*proc.Node) (out []string) {
	for _, n := range nodes {
		out = append(out, n.Addr)
	}
	return out
}

type headless struct {
	killed
	nodes  []*proc.Node
	leader uint64
	term   uint64
}

// others asks the members that live.
func (a *headless) others(ctx context.Context) (out []check.Member) {
	for _, n := range a.nodes {
		if n == a.n {
			continue
		}
		if m, err := check.ReadMembers(ctx, "", []string{n.Addr}); err == nil {
			out = append(out, m...)
		}
	}
	return out
}

// Effective wants the process reaped, and the others to follow another leader.
func (a *headless) Effective(ctx context.Context) (Evidence, error) {
	ev, err := a.killed.Effective(ctx)
	if err != nil {
		return ev, err
	}
	what := ev.What
	return until(ctx, a.e.wait(15*time.Second), func() (Evidence, bool, error) {
		follow, term := 0, uint64(0)
		for _, m := range a.others(ctx) {
			if m.Leader != 0 && m.Leader != a.leader && m.Term > a.term {
				follow, term = follow+1, m.Term
			}
		}
		return Evidence{fmt.Sprintf("%s; %d of the other members follow another leader, in term %d (%d before)", what, follow, term, a.term), map[string]int64{"in_flight": a.owned, "term": int64(term)}},
			follow == len(a.nodes)-1, nil
	})
}

// Recovered wants the member to have what the others have.
func (a *headless) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		all, err := check.ReadMembers(ctx, "", addresses(a.nodes))
		if err != nil {
			return Evidence{}, false, err
		}
		same := 0
		for _, m := range all {
			if m.Leader != 0 && m.Hash == all[0].Hash {
				same++
			}
		}
		return Evidence{What: fmt.Sprintf("%s runs, and %d of %d members have the same", a.n.Name, same, len(all))}, same == len(all), nil
	})
}
