package fault

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/tap"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Outside is liveness mode (N18): nothing comes to the first of a region's two coordinators any more, for good. What it sends still
// arrives, its lease is not renewed, and nobody heals that. The healthy core is everybody else: it must take the slots over, end every
// transaction that had been begun, and go on deciding. A fault that always heals hides what waits for the healing.
type Outside struct{ off bool }

const (
	progressLimit = 20 * time.Second
	progressFor   = 3 * time.Second
	// coreShare of the decisions of before are wanted: a quarter of all clients ask the one that is outside, and wait for it.
	coreShare = 0.3
)

// Name is the fault's.
func (Outside) Name() string { return "permanent-outside-a-healthy-core" }

// Available wants a region with two coordinators.
func (Outside) Available(e Env) error { return paired(e, 0) }

func (o Outside) disabled() Fault { o.off = true; return o }

// Inject cuts, for good.
func (o Outside) Inject(_ context.Context, e Env) (Active, error) {
	r := e.Deployment.Regions[0]
	a := &outside{e: e, r: r, n: r.Coordinators[0], ways: IsolateOneWay{}.ways(e), begun: map[string]bool{}}
	a.since = e.Log.Now()
	a.before = history.Rate(e.Log.Ops(), a.since-3e9, a.since)
	for _, r := range e.Deployment.Regions {
		for _, c := range r.Tap.Calls() {
			if c.Op == "try" && c.Status == http.StatusOK && c.Kind != tap.Dropped {
				a.begun[c.Gid] = true
			}
		}
	}
	a.bytes = a.refused()
	if !o.off {
		for _, w := range a.ways {
			w.link.CutOneWay(w.d)
		}
	}
	return a, nil
}

type outside struct {
	e      Env
	r      *proc.Region
	n      *proc.Node
	ways   []way
	bytes  uint64 // refused before
	since  int64
	before float64
	begun  map[string]bool // transactions that held something when the cut was made
}

func (a *outside) refused() (n uint64) {
	for _, w := range a.ways {
		n += w.link.Counters().RefusedBytes
	}
	return n
}

// open is how many of the transactions that had been begun have not ended in their region's journal.
func (a *outside) open(ctx context.Context) (int, error) {
	ended := map[string]bool{}
	for _, r := range a.e.Deployment.Regions {
		all, _, err := check.ReadJournal(ctx, r.Name, r.Journal)
		if err != nil {
			return 0, err
		}
		for _, d := range all {
			ended[d.Gid] = ended[d.Gid] || d.Finished
		}
	}
	n := 0
	for gid := range a.begun {
		if !ended[gid] {
			n++
		}
	}
	return n, nil
}

// Effective wants the fault to bite, and then progress inside the core while it lasts.
func (a *outside) Effective(ctx context.Context) (Evidence, error) {
	heir := a.r.Admin[1]
	what := ""
	ev, err := until(ctx, a.e.wait(progressLimit), func() (Evidence, bool, error) {
		bytes, now := a.refused()-a.bytes, held(heir)
		open, err := a.open(ctx)
		time.Sleep(100 * time.Millisecond) // to look is a load too
		return Evidence{What: fmt.Sprintf("%d bytes to %s were swallowed; the other coordinator holds %v of %d slots; of %d transactions that had been begun %d have not ended", bytes, a.n.Name, now, slot.Count/2, len(a.begun), open)},
			bytes > 0 && now == slot.Count/2 && len(a.begun) > 0 && open == 0, err
	})
	if err != nil {
		return ev, err
	}
	what = ev.What
	return until(ctx, a.e.wait(progressLimit), func() (Evidence, bool, error) {
		at := a.e.Log.Now()
		rate := history.Rate(a.e.Log.Ops(), at-progressFor.Nanoseconds(), at)
		return Evidence{fmt.Sprintf("%s; %.0f decisions a second for %v since, %.0f before, and nothing was healed", what, rate, progressFor, a.before), map[string]int64{"begun": int64(len(a.begun)), "rate": int64(rate)}},
			rate >= coreShare*a.before && rate > 0, nil
	})
}

// Recover is the end of liveness mode: the one outside is killed, never healed, and another process starts in its place.
func (a *outside) Recover(ctx context.Context) error {
	a.n.Kill()
	if err := a.Cleanup(); err != nil {
		return err
	}
	return a.n.Start(ctx)
}

// Recovered wants it to hold slots.
func (a *outside) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		n := held(a.r.Admin[0])
		return Evidence{What: fmt.Sprintf("%s was killed, and its successor holds %v slots", a.n.Name, n)}, n > 0, nil
	})
}

// Cleanup heals the links.
func (a *outside) Cleanup() error {
	for _, w := range a.ways {
		w.link.Heal()
	}
	return nil
}
