package fault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/seed"
)

// Canary is drift that is planted on purpose where the continuous look for it runs (R27): one counter, under load. The watch must name it
// by itself, and nothing else; and it is repaired.
type Canary struct{ off bool }

// canaryLimit is how long the watch may take to name it.
const canaryLimit = 30 * time.Second

// Name is the fault's.
func (Canary) Name() string { return "canary-drift" }

// Available is always.
func (Canary) Available(Env) error { return nil }

func (c Canary) disabled() Fault { c.off = true; return c }

// Inject starts the watch, and plants once it has looked.
func (c Canary) Inject(ctx context.Context, e Env) (Active, error) {
	r := e.Deployment.Regions[0]
	a := &sung{mended: mended{e: e, region: r, planted: map[string]int64{}}, account: r.Accounts[1]}
	if c.off {
		return a, nil
	}
	wctx, stop := context.WithCancel(ctx)
	a.stop = stop
	a.done.Go(func() {
		err := e.Deployment.Follow(wctx, a.said, "drift", "watch", "--context", r.File, "-o", "json", "--share", "0.5", "--window", "10s", "--settle", "1s", "--since", "5s", "--stale-after", e.wait(30*time.Second).String())
		a.mu.Lock()
		a.ended = err
		a.mu.Unlock()
	})
	if _, err := until(ctx, e.wait(canaryLimit), func() (Evidence, bool, error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		return Evidence{What: "the watch has not looked yet"}, a.looks > 0, a.ended
	}); err != nil {
		return a, err
	}
	db, d, err := seed.Open(ctx, r.DB)
	if err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := seed.Counter(ctx, db, d, a.account, alteredBy); err != nil {
		return a, err
	}
	a.planted[a.account], a.at = alteredBy, time.Now()
	a.plants = append(a.plants, check.Plant{Region: r.Name, Class: string(seed.D06), Account: a.account, At: e.Log.Now()})
	return a, err
}

type sung struct {
	mended
	account string
	at      time.Time
	stop    context.CancelFunc
	done    sync.WaitGroup

	mu     sync.Mutex
	looks  int
	named  time.Time
	strays []string // findings of anything else
	ended  error
}

// said takes a line of the watch's.
func (a *sung) said(line string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if strings.Contains(line, ", rests ") {
		a.looks++
	}
	var f struct{ Class, Region, Account, Repair string }
	if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &f) != nil {
		return
	}
	if f.Class == string(seed.D06) && f.Account == a.account && f.Region == a.region.Name && f.Repair != "" {
		if a.named.IsZero() {
			a.named = time.Now()
		}
		return
	}
	a.strays = append(a.strays, line)
}

// Effective wants the counter to differ from its entries.
func (a *sung) Effective(ctx context.Context) (Evidence, error) { return a.mended.Effective(ctx) }

// Recover waits for the watch to name it, and has it repaired.
func (a *sung) Recover(ctx context.Context) error {
	if len(a.planted) == 0 {
		return nil
	}
	if _, err := until(ctx, a.e.wait(canaryLimit), func() (Evidence, bool, error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		return Evidence{What: fmt.Sprintf("the watch has looked %d times and not named it", a.looks)}, !a.named.IsZero(), a.ended
	}); err != nil {
		return broken(ctx, "a watch finds drift by itself", err)
	}
	for end := time.Now().Add(a.e.wait(repairLimit)); ; {
		_, out, err := a.found(ctx)
		if err == nil {
			if out, err = a.drift(ctx, "apply"); err == nil {
				return nil
			}
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return broken(ctx, "drift that has an authority is repaired", errors.Join(errors.New(out), err))
		}
	}
}

// Recovered wants the counter to be what its entries say, and no finding of anything else.
func (a *sung) Recovered(ctx context.Context) (Evidence, error) {
	ev, err := until(ctx, a.e.wait(lookLimit), func() (Evidence, bool, error) {
		wrong, err := a.wrong(ctx)
		a.mu.Lock()
		defer a.mu.Unlock()
		return Evidence{fmt.Sprintf("the watch named it %v after it was planted, in %d looks, and %d other things; the counter differs by %d now", a.named.Sub(a.at).Round(time.Millisecond), a.looks, len(a.strays), wrong[a.account]),
			map[string]int64{"named_ms": a.named.Sub(a.at).Milliseconds(), "strays": int64(len(a.strays))}}, len(a.planted) > 0 && wrong[a.account] == 0, err
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil && len(a.strays) > 0 {
		err = broken(ctx, "nothing is found that is not there", errors.New(strings.Join(a.strays, " ")))
	}
	return ev, err
}

// Cleanup ends the watch.
func (a *sung) Cleanup() error {
	if a.stop != nil {
		a.stop()
	}
	a.done.Wait()
	return nil
}
