package fault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/seed"
	"github.com/lockstep-tx/lockstep/chaos/tap"
)

// Repaired alters counters of wallets behind the product's back, under load, and plants a hold that nobody knows; has the product
// find that and repair what has an authority; and
// kills the reconciler when its first repair is done and it has not heard so, so that it is done once more (P9).
type Repaired struct {
	Accounts int
	// During has a look for drift under way when it is planted (R26).
	During bool
	off    bool
}

const (
	alteredBy   = 700 // of the first account; of each further one, 1 more
	repairLimit = 20 * time.Second
	intoLook    = 150 * time.Millisecond
	lookLimit   = time.Second // the counters were altered, or the repair had succeeded, before
)

// Name is the fault's.
func (Repaired) Name() string { return "drift-and-killed-repair" }

// Available is always.
func (Repaired) Available(Env) error { return nil }

func (r Repaired) disabled() Fault { r.off = true; return r }

// Inject alters the counters.
func (r Repaired) Inject(ctx context.Context, e Env) (a Active, err error) {
	m := &mended{e: e, region: e.Deployment.Regions[0], planted: map[string]int64{}}
	if r.off {
		return m, nil
	}
	if r.During {
		look := make(chan error, 1)
		go func() {
			_, err := m.drift(ctx, "run")
			look <- err
		}()
		time.Sleep(e.wait(intoLook))
		defer func() {
			select {
			case <-look: // too early: nothing was planted while it looked
			default:
				m.during = true
				err = errors.Join(err, <-look)
			}
		}()
		m.inLook = true
	}
	db, d, err := seed.Open(ctx, m.region.DB)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	for i, account := range m.region.Accounts[:r.Accounts] {
		if _, err := seed.Counter(ctx, db, d, account, alteredBy+int64(i)); err != nil {
			return m, err
		}
		m.planted[account] = alteredBy + int64(i)
		m.plants = append(m.plants, check.Plant{Region: m.region.Name, Class: string(seed.D06), Account: account, At: e.Log.Now()})
	}
	// Another account gets a hold of a transaction that nobody knows: nothing says whether it is lost or was never there.
	m.ghost, err = seed.Plant(ctx, db, d, seed.D10, seed.Target{Account: m.region.Accounts[r.Accounts], Schema: m.region.Barrier}, e.rand(9))
	if err == nil {
		m.plants = append(m.plants, check.Plant{Region: m.region.Name, Class: string(seed.D10), Gid: m.ghost.Gid, At: e.Log.Now(), Ambiguous: true})
	}
	return m, err
}

type mended struct {
	e       Env
	region  *proc.Region
	planted map[string]int64
	killed  bool     // the reconciler, in the middle of a repair
	others  []string // findings of what was not planted

	// inLook: it was to be planted while a look was under way; during: so it was.
	inLook, during bool

	ghost  seed.Planted // the hold of a transaction that nobody knows
	plants []check.Plant
}

// Plants is what was planted and what became of it.
func (m *mended) Plants() []check.Plant { return m.plants }

// ghostly is the plant that is ambiguous; where nothing was planted, none.
func (m *mended) ghostly() *check.Plant {
	if len(m.plants) == 0 {
		return &check.Plant{}
	}
	return &m.plants[len(m.plants)-1]
}

// bury looks whether the hold that nobody knows is still there, as it was planted, and takes it away, as a person might who knows
// where it came from.
func (m *mended) bury(ctx context.Context) (err error) {
	db, d, err := seed.Open(ctx, m.region.DB)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	m.ghostly().Stayed, err = seed.Bury(ctx, db, d, m.ghost, m.region.Barrier)
	return err
}

// wrong gives by how much the credits of the accounts differ from their entries, as another connection reads both at once.
func (m *mended) wrong(ctx context.Context) (map[string]int64, error) {
	b, err := check.ReadBook(ctx, m.region.Name, m.region.DB, m.region.Barrier)
	out := map[string]int64{}
	for _, a := range b.Accounts {
		if _, ok := m.planted[a.ID]; ok {
			out[a.ID] = a.CreditsPosted
		}
	}
	for _, x := range b.Entries {
		if _, ok := out[x.Account]; ok && x.Direction == "credit" {
			out[x.Account] -= x.Amount
		}
	}
	return out, err
}

// Effective wants every planted difference to be there.
func (m *mended) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, m.e.wait(lookLimit), func() (Evidence, bool, error) {
		wrong, err := m.wrong(ctx)
		there := 0
		for account, by := range m.planted {
			if wrong[account] == by {
				there++
			}
		}
		what := ""
		if m.inLook {
			what = fmt.Sprintf("; a look was under way meanwhile: %v", m.during)
		}
		return Evidence{fmt.Sprintf("%d counters in %s differ from their entries as planted: %v%s", there, m.region.Name, wrong, what), map[string]int64{"planted": int64(there)}},
			there > 0 && there == len(m.planted) && m.inLook == m.during, err
	})
}

// drift runs one of the reconciler's commands.
func (m *mended) drift(ctx context.Context, what string) (string, error) {
	return m.e.Deployment.Tool(ctx, "drift", what, "--context", m.region.File, "-o", "json", "--since", "20s")
}

// found says whether the product has named all that was planted.
func (m *mended) found(ctx context.Context) (bool, string, error) {
	out, err := m.drift(ctx, "run")
	named := map[string]bool{}
	for line := range strings.Lines(out) {
		var f struct{ Class, Region, Account, Gid, Repair string }
		if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &f) != nil {
			continue // the summary
		}
		if _, ok := m.planted[f.Account]; ok && f.Class == "D06" && f.Region == m.region.Name && f.Repair != "" {
			named[f.Account] = true
		} else if m.ghost.Gid != "" && f.Gid == m.ghost.Gid {
			m.ghostly().Quarantined = f.Repair == ""
		} else {
			m.others = append(m.others, strings.TrimSpace(line))
		}
	}
	return len(named) == len(m.planted), out, err
}

// Recover has the product repair what it finds.
func (m *mended) Recover(ctx context.Context) error {
	if len(m.planted) == 0 {
		return nil
	}
	end := time.Now().Add(m.e.wait(repairLimit))
	named := time.Now().Add(m.e.wait(repairLimit) / 2)
	for {
		all, out, err := m.found(ctx)
		if all && err == nil && (m.ghostly().Quarantined || time.Now().After(named)) { // unnamed, it is for the checker
			break
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return broken(ctx, "drift is found", errors.Join(errors.New(out), err))
		}
	}
	m.killIt(ctx)
	for {
		out, err := m.drift(ctx, "apply")
		if err == nil {
			return m.bury(ctx)
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return broken(ctx, "drift that has an authority is repaired", errors.Join(errors.New(out), err))
		}
	}
}

// killIt kills the reconciler once the participant has made its first repair and before it hears so.
func (m *mended) killIt(ctx context.Context) {
	trap := tap.NewTrap(true, func(c *tap.Call) bool { return c.Op == tap.Mend && c.Status == http.StatusOK })
	m.region.Tap.Arm(trap)
	defer m.region.Tap.Arm(nil)
	tctx, kill := context.WithCancel(ctx)
	defer kill()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = m.drift(tctx, "apply") // it is killed; what it says is of no interest
	}()
	select {
	case <-trap.Caught():
		kill()
		<-ended
		trap.Let(false)
		m.killed = true
	case <-ended:
	}
}

// Recovered wants the counters to be what their entries say, by a repair that was interrupted.
func (m *mended) Recovered(ctx context.Context) (Evidence, error) {
	ev, err := until(ctx, m.e.wait(lookLimit), func() (Evidence, bool, error) {
		wrong, err := m.wrong(ctx)
		right := 0
		for _, by := range wrong {
			if by == 0 {
				right++
			}
		}
		return Evidence{What: fmt.Sprintf("of %d counters %d are what their entries say: %v; the reconciler was killed in the middle of a repair: %v; %d findings of what was not planted; a hold that nobody knows is in quarantine: %v, untouched: %v",
				len(m.planted), right, wrong, m.killed, len(m.others), m.ghostly().Quarantined, m.ghostly().Stayed)},
			right == len(m.planted), err
	})
	if err == nil && len(m.others) > 0 {
		err = broken(ctx, "nothing is found that is not there", errors.New(strings.Join(m.others, " ")))
	}
	if err == nil && !m.killed {
		err = errors.New("the reconciler was not killed in the middle of a repair: " + ev.What)
	}
	return ev, err
}

// Cleanup has nothing to undo: what is altered is for the product to repair.
func (m *mended) Cleanup() error { return nil }
