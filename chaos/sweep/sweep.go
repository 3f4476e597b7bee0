// Package sweep measures what the product finds of drift: it plants seeds of every class in a deployment of real processes
// under load, behind the product's back, has the product look, plan and repair, and counts what was found, missed, taken for
// something else, and found where nothing was.
//
// Its law: a seed counts only if the suite's own checkers saw it; what is not found within its time is missed; a finding that is
// of no seed, and that no checker sees, is false; what an authority proves must be repaired, what none proves must be left as it
// is; and nothing else may have changed. The product is asked through its own command alone. Whatever was not proven is
// inconclusive.
//
// It is tested by mutants of the reconciler (package coordinator/mutant), each of which must turn it red.
package sweep

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/netproxy"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/seed"
	"github.com/lockstep-tx/lockstep/chaos/workload"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// Options of a sweep.
type Options struct {
	// Dir is for what it leaves; Bin is where the programs are; Env is added to their environment.
	Dir, Bin string
	Env      []string
	Seed     uint64
	// Each is how many seeds of each class there are; Classes only these ("D01"); nil: all.
	Each    int
	Classes []string
	// Beds of the deployments, one after the other, over again. Empty: SQLite alone.
	Beds []Bed
	// Quiet is how many transactions the quiet control is to reconcile; 0: there is none.
	Quiet int
	// Limit is how long a seed may stay unfound, and how long it may stay unrepaired after that, before it is scaled.
	Limit time.Duration
	// Slow scales waits, at least 1.
	Slow float64
	Say  func(format string, args ...any)
}

// Bed is what a deployment's databases are on: "" is SQLite.
type Bed struct {
	Name    string
	Wallets [2]string // addresses
	Barrier [2]string
	// Journal of the first region; it has two coordinators then.
	Journal string
}

const (
	// accountsPer are the accounts of each region: two books of all of them are what seeds have room in.
	accountsPer = 24
	// So many clients, that rest so long at most between two requests: some twenty-five transactions a second.
	lanes    = 6
	think    = 400 * time.Millisecond
	perRound = 12
	// staleAfter is how long an event may be on its way in the product's eyes; cutFor is shorter.
	staleAfter = 12 * time.Second
	cutFor     = 3 * time.Second
	// lookBack is how far back a look goes at least.
	lookBack = 40 * time.Second
	// backupAge is how old the backup is that a book is set back to.
	backupAge = time.Second
)

// db is a database and how it is spoken to.
type db struct {
	db *sql.DB
	d  sqldb.Dialect
}

// world is one deployment under the sweep.
type world struct {
	o        Options
	bed      Bed
	dir      string
	d        *proc.Deployment
	log      *history.Log
	rnd      *rand.Rand
	wallets  [2]db
	journals [2]db
	home     map[string]int
	ops      map[string]history.Op
	seenOps  int

	seeds      []*Seed
	taken      map[string]bool
	takenGids  map[string]bool
	last       *reading
	false      map[string]string // by finding
	spoiled    map[string]bool   // rows that changed and are of no seed
	generation int               // of the load
	latest     *reading          // before the last look
	lagged     map[string]bool   // findings of a lag that was there
	holds      int
	judged     int // transactions in the last look
	looks      int
	found      map[*Seed][]finding // of the last look
	cut        []span              // when the regions were cut from each other
	truncated  map[string]bool     // events that a D22 took out of a topic, by key
	problems   []string
}

type span struct{ from, to time.Time }

// Run runs a sweep: deployment after deployment until all seeds were planted.
func Run(ctx context.Context, o Options) *Result {
	res := &Result{Seed: o.Seed, Each: o.Each, began: time.Now()}
	if len(o.Beds) == 0 {
		o.Beds = []Bed{{Name: "SQLite"}}
	}
	runs := max(1, (o.Each+PerDeployment-1)/PerDeployment)
	if o.Quiet > 0 {
		res.Control = &Control{Wanted: o.Quiet}
	}
	beds := make([]Bed, runs)
	for n := range beds {
		beds[n] = o.Beds[n%len(o.Beds)]
	}
	quiet := shares(o.Quiet, beds)
	for n := range runs {
		each := min(PerDeployment, o.Each-n*PerDeployment)
		if each < 1 || ctx.Err() != nil {
			break
		}
		w := &world{o: o, bed: beds[n], dir: filepath.Join(o.Dir, fmt.Sprintf("sweep-%d", n+1)), log: history.New(), rnd: rand.New(rand.NewPCG(o.Seed, uint64(n))),
			home: map[string]int{}, ops: map[string]history.Op{}, taken: map[string]bool{}, takenGids: map[string]bool{}, false: map[string]string{}, lagged: map[string]bool{}, spoiled: map[string]bool{}, truncated: map[string]bool{}}
		err := w.run(ctx, each, quiet[n], res)
		if err != nil { // it was broken off: what still had time is neither found nor missed
			for _, s := range w.seeds {
				if !s.over() && !w.given(s) {
					s.SeenBy = nil
				}
			}
		}
		res.add(w)
		if err != nil {
			res.Harness = err.Error()
			break
		}
	}
	res.settle(o.Classes)
	return res
}

// PerDeployment is how many seeds of a class one deployment has room for.
const PerDeployment = 5

// run makes a deployment, loads it, and plants in it.
func (w *world) run(ctx context.Context, each, quiet int, res *Result) (err error) {
	if err := os.MkdirAll(w.dir, 0o755); err != nil {
		return err
	}
	cfg := proc.Config{Bin: w.o.Bin, Env: w.o.Env, Now: w.log.Now, Accounts: accountsPer, Wallets: w.bed.Wallets, Barriers: w.bed.Barrier, Journal: w.bed.Journal, Pair: w.bed.Journal != ""}
	if cfg.Dir, err = os.MkdirTemp("", "lockstep-sweep-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(cfg.Dir)) }()
	w.d, err = proc.New(ctx, cfg)
	defer func() { err = errors.Join(err, w.d.Close(), keepLogs(cfg.Dir, w.dir)) }()
	if err != nil {
		return fmt.Errorf("the deployment did not start: %w", err)
	}
	if err := w.open(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if quiet > 0 {
		if err := w.quietControl(ctx, res.Control, quiet); err != nil {
			return err
		}
	}
	w.generation++
	load, err := w.load(ctx, lanes, think)
	defer func() { load.Stop() }()
	if err != nil {
		return err
	}
	return w.sweep(ctx, each, &load)
}

func (w *world) load(ctx context.Context, lanes int, think time.Duration) (*workload.Load, error) {
	return workload.Start(ctx, w.d, w.log, workload.Options{Seed: w.o.Seed + uint64(w.generation)*1_000_000, Lanes: lanes, TryLimit: time.Second, Timeout: 3 * time.Second, RetryLimit: 2, Think: think})
}

func (w *world) open(ctx context.Context) (err error) {
	for i, r := range w.d.Regions {
		for _, a := range r.Accounts {
			w.home[a] = i
		}
		if w.wallets[i].db, w.wallets[i].d, err = seed.Open(ctx, r.DB); err != nil {
			return err
		}
		if w.journals[i].db, w.journals[i].d, err = seed.Open(ctx, r.Journal); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) close() (err error) {
	for i := range w.wallets {
		for _, d := range []*sql.DB{w.wallets[i].db, w.journals[i].db} {
			if d != nil {
				err = errors.Join(err, d.Close())
			}
		}
	}
	return err
}

func (w *world) scaled(d time.Duration) time.Duration {
	return time.Duration(float64(d) * max(1, w.o.Slow))
}

func (w *world) index(region string) int {
	if region == w.d.Regions[1].Name {
		return 1
	}
	return 0
}

// engine names what a region's database is on.
func (w *world) engine(region int, journal bool) string {
	d := w.wallets[region].d
	if journal {
		d = w.journals[region].d
	}
	return fmt.Sprint(d)
}

// sweep plants, looks and repairs in rounds until every seed is over or its time is; then those that want the deployment for
// themselves; then everything is counted at rest.
func (w *world) sweep(ctx context.Context, each int, load **workload.Load) error {
	var queue []*class
	apart := map[seed.Class]int{}
	for i := range classes {
		c := &classes[i]
		if len(w.o.Classes) > 0 && !slices.Contains(w.o.Classes, string(c.id)) {
			continue
		}
		for range each {
			if c.apart {
				apart[c.id]++
			} else {
				queue = append(queue, c)
			}
		}
	}
	w.rnd.Shuffle(len(queue), func(i, k int) { queue[i], queue[k] = queue[k], queue[i] })
	if !sleep(ctx, w.scaled(settleAge+3*time.Second)) {
		return ctx.Err()
	}
	end := time.Now().Add(w.scaled(time.Duration(len(queue))*3*time.Second + time.Minute))
	total := len(queue)
	for round := 0; len(queue) > 0 || w.awaited(); round++ {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(end) && len(queue) > 0 {
			w.problem("%d of %d seeds could not be planted in time", len(queue), total)
			queue = nil
		}
		var err error
		if queue, err = w.round(ctx, queue, round == 2); err != nil {
			return err
		}
	}
	if err := w.truncations(ctx, apart[d22]); err != nil {
		return err
	}
	if err := w.rewinds(ctx, apart[d21], load); err != nil {
		return err
	}
	(*load).Stop()
	for _, s := range w.seeds {
		if err := s.ended(); err != nil {
			return err
		}
	}
	return w.final(ctx)
}

// awaited says that something is still awaited of a seed.
func (w *world) awaited() bool {
	for _, s := range w.seeds {
		if !s.over() && !w.given(s) {
			return true
		}
	}
	return false
}

// given says that a seed's time is over: it is missed, or not repaired.
func (w *world) given(s *Seed) bool {
	if s.Found.IsZero() {
		return time.Since(s.Injected)-w.unreachable(s.Injected, time.Now()) > w.scaled(w.o.Limit)
	}
	return time.Since(s.Found) > w.scaled(w.o.Limit)
}

// unreachable is for how much of a time the regions were cut from each other.
func (w *world) unreachable(from, to time.Time) (sum time.Duration) {
	for _, c := range w.cut {
		if a, b := later(from, c.from), earlier(to, c.to); b.After(a) {
			sum += b.Sub(a)
		}
	}
	return sum
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// faulty names what is cut now.
func (w *world) faulty() string {
	if n := len(w.cut); n > 0 && time.Now().Before(w.cut[n-1].to) {
		return "the regions are cut from each other"
	}
	return ""
}

// cutRegions cuts the links between the regions whose names end so, for a while from now on; what is under way goes on meanwhile.
func (w *world) cutRegions(d time.Duration, ending string) error {
	d = w.scaled(d)
	var links []*netproxy.Link
	for _, k := range w.d.Links {
		if strings.HasSuffix(k.Counters().Route, ending) {
			links = append(links, k)
		}
	}
	for _, k := range links {
		if err := k.Cut(netproxy.Drop); err != nil {
			return err
		}
	}
	if now := time.Now(); ending == "" {
		w.cut = append(w.cut, span{now, now.Add(d)})
	}
	time.AfterFunc(d, func() {
		for _, k := range links {
			k.Heal()
		}
	})
	return nil
}

func (w *world) problem(format string, args ...any) {
	w.problems = append(w.problems, fmt.Sprintf(format, args...))
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
