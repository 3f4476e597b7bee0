package fault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/tap"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Lost kills everything of the first region, has the second one take its slots by force under load, and then brings the first one back
// with the disks that it had. It is over when what the lost region had is worked off, and its slots are home again by plan (O3-forced).
type Lost struct{ off bool }

// Name is the fault's.
func (Lost) Name() string { return "region-lost-and-returned" }

// Available is always.
func (Lost) Available(Env) error { return nil }

func (l Lost) disabled() Fault { l.off = true; return l }

// silence is how long the region has been silent when an operator takes its slots.
const silence = 3 * time.Second

// Inject kills, and takes.
func (l Lost) Inject(ctx context.Context, e Env) (Active, error) {
	a := newLost(l, e)
	if l.off {
		return a, nil
	}
	return a, a.lose(ctx)
}

func newLost(l Lost, e Env) *lost {
	return &lost{l: l, e: e, settled: map[string]bool{}, gone: &gone{f: Region().(Nodes), e: e, nodes: Region().(Nodes).Pick(e.Deployment), owned: int64(len(e.Log.Flying()))}}
}

// lose kills everything of the region, and has its slots taken.
func (a *lost) lose(ctx context.Context) error {
	for _, n := range a.gone.nodes {
		n.Kill()
	}
	a.dead = a.e.Log.Now()
	time.Sleep(a.e.wait(silence))
	return a.take(ctx)
}

// take runs the tool, kills it on its way, and has another one go on from what that one has written.
func (a *lost) take(ctx context.Context) error {
	act := []string{"failover", "--from", a.lost().Name, "--to", a.heir().Name, "--fenced-by", "power", "--at-risk", "block", "--plan", "any",
		"--confirm-region", a.lost().Name, "--why", "the suite has killed it"}
	tctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond+time.Duration(a.e.rand(43).Int64N(int64(a.e.wait(1200*time.Millisecond)))))
	defer cancel()
	if _, err := a.e.Deployment.Tool(tctx, append([]string{"region", act[0], "--context", a.heir().File}, act[1:]...)...); err == nil {
		return nil // it was faster
	}
	a.killed = true
	end, said := time.Now().Add(a.e.wait(30*time.Second)), ""
	for {
		// One that had written nothing has begun nothing, and there is nothing to resume.
		for _, args := range [][]string{{"resume"}, act} {
			out, err := a.e.Deployment.Tool(ctx, append([]string{"region", args[0], "--context", a.heir().File}, args[1:]...)...)
			if said = lastLine(out); err == nil {
				return nil
			}
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return errors.Join(fmt.Errorf("region failover: %s", said), ctx.Err())
		}
		time.Sleep(500 * time.Millisecond)
	}
}

type lost struct {
	l      Lost
	e      Env
	gone   *gone
	dead   int64 // when all of the region was
	killed bool  // the tool, on its way
	// settled are the transactions that only a person could settle.
	settled map[string]bool
}

func (a *lost) lost() *proc.Region { return a.e.Deployment.Regions[0] }
func (a *lost) heir() *proc.Region { return a.e.Deployment.Regions[1] }

// tool calls lockstep region until it succeeds: one that was refused, or undid what it did, is to be called again.
func (a *lost) tool(ctx context.Context, limit time.Duration, act string, args ...string) (string, error) {
	end := time.Now().Add(a.e.wait(limit))
	for {
		out, err := a.e.Deployment.Tool(ctx, append([]string{"region", act, "--context", a.heir().File}, args...)...)
		if err == nil {
			return out, nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return out, errors.Join(fmt.Errorf("region %s: %s", act, out), err)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// Effective wants all of the region away, and the heir's wallets to have ended branches of accounts whose home was there, in an epoch
// of the heir's.
func (a *lost) Effective(ctx context.Context) (Evidence, error) {
	if a.l.off {
		return Evidence{}, fmt.Errorf("%w: no region was killed", ErrNoEffect)
	}
	return until(ctx, a.e.wait(15*time.Second), func() (Evidence, bool, error) {
		killed, err := a.gone.Effective(ctx)
		ended := int64(0)
		for _, c := range a.heir().Tap.Calls() {
			if a.heirs(&c) {
				ended++
			}
		}
		return Evidence{fmt.Sprintf("%s; the tool was killed on its way: %v; %s has ended %d branches in slots that it took by force", killed.What, a.killed, a.heir().Name, ended),
			map[string]int64{"away": killed.Counts["away"], "in_flight": a.gone.owned, "ended_by_the_heir": ended}}, ended > 0, err
	})
}

// heirs says that a call was made by the heir for a slot that was the lost region's, and was done.
func (a *lost) heirs(c *tap.Call) bool {
	return c.Status == 200 && c.Op != "try" && c.Op != "apply" && c.Slot%2 == 0 && slot.Epoch(c.Epoch).Region() == 2
}

// Recover starts the region on its disks, waits until what it had is worked off, and takes its slots home by plan.
func (a *lost) Recover(ctx context.Context) error {
	if a.l.off {
		return nil
	}
	if err := a.gone.Recover(ctx); err != nil {
		return err
	}
	if _, err := until(ctx, a.e.wait(60*time.Second), func() (Evidence, bool, error) {
		serr := a.settle(ctx)
		n, err := a.forced(ctx)
		return Evidence{What: fmt.Sprintf("%d slots were taken by force and are not worked off", n)}, n == 0, errors.Join(serr, err)
	}); err != nil {
		return err
	}
	_, err := a.tool(ctx, 60*time.Second, "failback", "--from", a.heir().Name, "--to", a.lost().Name, "--batch", "256", "--deadline", "30s", "--max-lag", "30s", "--why", "it is back")
	return err
}

// settle does for each transaction that the two regions do not agree on what the product proposes, as an operator who pastes it.
func (a *lost) settle(ctx context.Context) error {
	out, err := a.e.Deployment.Tool(ctx, "region", "divergence", "list", "--context", a.heir().File, "-o", "json")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	var list struct {
		Transactions []struct{ Gid, Waits, Next string }
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	for _, t := range list.Transactions {
		if t.Waits == "" || t.Next == "" || a.settled[t.Gid] {
			continue
		}
		if out, err := a.e.Deployment.Paste(ctx, strings.Replace(t.Next, "REASON", "as-its-client-was-told", 1)); err != nil {
			return fmt.Errorf("%s: %w: %s", t.Next, err, out)
		}
		a.settled[t.Gid] = true
	}
	return nil
}

// forced is how many of the heir's slots were taken by force and are not worked off.
func (a *lost) forced(ctx context.Context) (int, error) {
	out, err := a.e.Deployment.Tool(ctx, "region", "status", "--context", a.heir().File, "-o", "json")
	if err != nil {
		return 0, err
	}
	var views []struct {
		Region string
		Forced int
	}
	if err := json.Unmarshal([]byte(out), &views); err != nil {
		return 0, err
	}
	for _, v := range views {
		if v.Region == a.heir().Name {
			return v.Forced, nil
		}
	}
	return 0, fmt.Errorf("the status names no region %s: %s", a.heir().Name, out)
}

// Recovered wants nothing in doubt at the heir.
func (a *lost) Recovered(ctx context.Context) (Evidence, error) {
	if a.l.off {
		return Evidence{}, nil
	}
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		open := 0
		for _, r := range a.e.Deployment.Regions {
			n, err := a.inDoubt(ctx, r)
			if err != nil {
				return Evidence{}, false, err
			}
			open += n
		}
		return Evidence{fmt.Sprintf("the region is back, what it had is worked off, %d of it as its clients had been told, and its slots are home; %d transactions are in doubt", len(a.settled), open),
			map[string]int64{"settled": int64(len(a.settled)), "in_doubt": int64(open)}}, open == 0, nil
	})
}

// inDoubt counts the transactions of a lost region that a region knows no decision of.
func (a *lost) inDoubt(ctx context.Context, r *proc.Region) (int, error) {
	out, err := a.e.Deployment.Tool(ctx, "tx", "list", "--in-doubt", "--admin-addr", r.Admin[0], "-o", "json")
	var list struct{ Transactions []json.RawMessage }
	if err == nil {
		err = json.Unmarshal([]byte(out), &list)
	}
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	return len(list.Transactions), nil
}

// Cleanup has nothing to take away.
func (a *lost) Cleanup() error { return nil }

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
