package fault

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Clock moves the clock of the first region's coordinators forward, and back again: C1 by what the seed says, C3 by an hour. A
// coordinator's clock starts from the machine's and goes on by itself, so that it never goes back while the process lives: it is moved
// forward by the debug address, and is back where it was in a process that is started anew. That is also why a strobe of the machine's
// clock has no way to it; C2 is of a database server's.
type Clock struct {
	Title string
	By    time.Duration // 0: as the seed says
	off   bool
}

// bumps are how far C1 goes.
var bumps = []time.Duration{11 * time.Millisecond, 110 * time.Millisecond, 1100 * time.Millisecond, 9 * time.Second, 72 * time.Second, 288 * time.Second}

// Name is the fault's.
func (c Clock) Name() string { return c.Title }

// Available wants coordinators whose clock can be moved.
func (Clock) Available(e Env) error {
	if !e.Deployment.Clocks() {
		return fmt.Errorf("the coordinators run without --debug-clock")
	}
	return nil
}

func (c Clock) disabled() Fault { c.off = true; return c }

// Inject moves the clocks forward.
func (c Clock) Inject(ctx context.Context, e Env) (Active, error) {
	a := &ahead{e: e, r: e.Deployment.Regions[0], by: c.By}
	if a.by == 0 {
		a.by = bumps[e.rand(1).IntN(len(bumps))]
	}
	var err error
	if a.before, err = a.offset(ctx, 0); err != nil || c.off {
		return a, err
	}
	for _, admin := range a.r.Admin {
		if err := post(ctx, "http://"+admin+"/debug/clock/advance?by="+a.by.String()); err != nil {
			return a, err
		}
	}
	a.since = e.Log.Now()
	return a, nil
}

func post(ctx context.Context, at string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		raw, err := io.ReadAll(resp.Body)
		return fmt.Errorf("%s: %s: %s (%w)", at, resp.Status, raw, err)
	}
	return nil
}

type ahead struct {
	e      Env
	r      *proc.Region
	by     time.Duration
	since  int64
	before time.Duration // by how much the clock differed then
	killed bool
}

// offsetOf is how many transactions an offset is read from.
const offsetOf = 8

// offset reads back by how much the region's clock is ahead: of the last transactions that were asked for since, when they say that
// they began, less when they were asked for. The least of them is nearest to it: each waited a while.
func (a *ahead) offset(ctx context.Context, since int64) (least time.Duration, err error) {
	ops, n := a.e.Log.Ops(), 0
	for i := len(ops) - 1; i >= 0 && ops[i].Start > since && n < offsetOf; i-- {
		op := &ops[i]
		if op.Kind != history.Execute || op.Outcome != history.OK || slot.Of(op.Gid)%2 != 0 {
			continue
		}
		asked := time.Now().Add(-time.Duration(a.e.Log.Now() - op.Start))
		for _, admin := range a.r.Admin {
			began, err := begun(ctx, admin, op.Gid)
			if err != nil {
				continue
			}
			if is := began.Sub(asked); n == 0 || is < least {
				least = is
			}
			n++
			break
		}
	}
	if n > 0 {
		return least, nil
	}
	return 0, fmt.Errorf("no transaction of %s was begun since that could be asked for", a.r.Name)
}

func begun(ctx context.Context, admin, gid string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin+"/v1/transaction?gid="+url.QueryEscape(gid), nil)
	if err != nil {
		return time.Time{}, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return time.Time{}, err
	}
	defer resp.Body.Close()
	var tx struct {
		BegunAt int64 `json:"begun_at"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&tx); err != nil || tx.BegunAt == 0 {
		return time.Time{}, fmt.Errorf("%s: %s says nothing of %s: %w", admin, resp.Status, gid, err)
	}
	return time.UnixMilli(tx.BegunAt), nil
}

// slack is how much later than it was asked for a transaction may begin.
const slack = 5 * time.Second

// Effective wants transactions that began, by the region's own word, so much later than they were asked for.
func (a *ahead) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		is, err := a.offset(ctx, a.since)
		time.Sleep(50 * time.Millisecond)
		return Evidence{fmt.Sprintf("transactions in %s begin %v after they were asked for, by its clock (%v before); it was moved by %v", a.r.Name, is.Round(time.Millisecond), a.before.Round(time.Millisecond), a.by),
			map[string]int64{"ahead_ms": is.Milliseconds()}}, a.since > 0 && is >= a.by && is < a.by+slack && a.before < a.by, err
	})
}

// Recover starts the coordinators anew, one after the other: their clock is the machine's then, and has gone back.
func (a *ahead) Recover(ctx context.Context) error {
	if a.since == 0 {
		return nil
	}
	for _, n := range a.r.Coordinators {
		n.Kill()
		if err := n.Start(ctx); err != nil {
			return err
		}
	}
	a.since, a.killed = a.e.Log.Now(), true
	return nil
}

// Recovered wants transactions to begin when they are asked for.
func (a *ahead) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		is, err := a.offset(ctx, a.since)
		time.Sleep(50 * time.Millisecond)
		return Evidence{What: fmt.Sprintf("%s's coordinators were started anew: transactions begin %v after they were asked for", a.r.Name, is.Round(time.Millisecond))}, a.killed && is < min(a.by, slack), err
	})
}

func (a *ahead) Cleanup() error { return nil }
