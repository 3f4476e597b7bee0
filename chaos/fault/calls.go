package fault

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/tap"
)

// Calls changes branch calls on their way to the participants. Proof counts, in what the taps have written down since the
// injection, what the fault has done; Need of it are wanted.
type Calls struct {
	Title string
	Rules tap.Rules
	Proof func(*tap.Call) bool
	Need  int64
	// At is the one region whose tap does it, counted from 1; 0 is all.
	At  int
	off bool
}

// Name is the fault's.
func (c Calls) Name() string { return c.Title }

// Available is always.
func (Calls) Available(Env) error { return nil }

func (c Calls) disabled() Fault { c.off = true; return c }

// Inject sets the rules.
func (c Calls) Inject(_ context.Context, e Env) (Active, error) {
	a := &changed{c: c, e: e, since: e.Log.Now()}
	if !c.off {
		a.set(c.Rules)
	}
	return a, nil
}

type changed struct {
	c             Calls
	e             Env
	since, healed int64
}

func (a *changed) set(r tap.Rules) {
	for i, region := range a.e.Deployment.Regions {
		if a.c.At == 0 || a.c.At == i+1 {
			region.Tap.Set(r)
		}
	}
}

func (a *changed) count() (n int64) {
	for _, region := range a.e.Deployment.Regions {
		n += int64(region.Tap.Count(func(c *tap.Call) bool { return c.Start >= a.since && a.c.Proof(c) }))
	}
	return n
}

func (a *changed) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		n := a.count()
		return Evidence{fmt.Sprintf("%s: %d calls, %d are wanted", a.c.Title, n, a.c.Need), map[string]int64{"calls": n}}, n >= a.c.Need, nil
	})
}

func (a *changed) Recover(context.Context) error {
	a.set(tap.Rules{})
	a.healed = a.e.Log.Now()
	return nil
}

// Recovered wants a call at each of the taps that came and went as it was made.
func (a *changed) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(lookLimit), func() (Evidence, bool, error) {
		plain, silent := 0, 0
		for _, region := range a.e.Deployment.Regions {
			n := region.Tap.Count(func(c *tap.Call) bool { return c.Start > a.healed && c.Kind == tap.Plain && c.Status == http.StatusOK })
			if plain += n; n == 0 {
				silent++
			}
		}
		return Evidence{What: fmt.Sprintf("%s: %d calls in all; %d came unchanged since", a.c.Title, a.count(), plain)}, a.healed > 0 && silent == 0, nil
	})
}

func (a *changed) Cleanup() error { a.set(tap.Rules{}); return nil }

// Duplicates sends confirms and cancels three times at once (M1).
func Duplicates() Fault {
	return Calls{Title: "duplicate-settles", Rules: tap.Rules{Copies: 3}, Need: 40,
		Proof: func(c *tap.Call) bool { return c.Kind == tap.Copy && c.Status == http.StatusOK }}
}

// LostAnswers loses answers of what the participant has done (N14).
func LostAnswers() Fault {
	return Calls{Title: "lost-answers", Rules: tap.Rules{LoseShare: 0.3}, Need: 40, Proof: func(c *tap.Call) bool { return c.Kind == tap.Lost }}
}

// Deaf cuts one region's coordinator off from one participant, the other region's wallets (N7): its calls do not come
// there, and it finds out by its deadlines. Everything else passes, the wallets' other callers included.
func Deaf() Fault {
	of := 0 // the first region's slots
	return Calls{Title: "cut-from-one-participant", Rules: tap.Rules{Deaf: &of}, At: 2, Need: 20, Proof: func(c *tap.Call) bool { return c.Kind == tap.Unheard }}
}

// CancelFirst keeps tries away from the participant until their cancel has been answered: for good (M2), or they come then (M3).
func CancelFirst(late bool) Fault {
	if late {
		return Calls{Title: "late-try", Rules: tap.Rules{HoldShare: 0.15}, Need: 5, Proof: func(c *tap.Call) bool { return c.Kind == tap.Late && c.Status != 0 }}
	}
	return Calls{Title: "cancel-before-try", Rules: tap.Rules{DropShare: 0.15}, Need: 5, Proof: func(c *tap.Call) bool { return c.Kind == tap.Dropped }}
}
