package fault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Sink is the kitchen sink (X1): one to four faults of different kinds, drawn by the seed from those that can be had here, each begun
// at its time and ended at its own, over each other. All draws are made first and written down as sink.json.
type Sink struct {
	// Draw tells several of them in one run apart.
	Draw uint64
	off  bool
}

// kinds are the faults of which one of each may be drawn: two of one kind would undo each other.
func kinds() [][]Fault {
	arbiter := NoQuorum(true).(Nodes)
	arbiter.Serves = false // that nothing is decided may be another's doing
	return [][]Fault{
		{Duplicates(), LostAnswers(), Gray{}, Deaf()}, // the taps have one set of rules
		{Between{}, WAN(), Weather{Title: "flapping-between-regions", Flap: true}, Weather{Title: "one-way-between-regions", OneWay: true}, Torn{}, Swizzle{}},
		{KillMember{Arbiter: true}, arbiter},
		{Kill{Region: 1}, Participant()},
		{Broker(false), Broker(true), Unacknowledged{}},
		{KillMember{}, LeaseLost{}},
	}
}

// Drawn is one fault of a schedule: when it begins, and how long it stays once it is proven.
type Drawn struct {
	Fault string        `json:"fault"`
	After time.Duration `json:"after_ns"` // since the one before
	Stay  time.Duration `json:"stay_ns"`  // since all of them are there

	is Fault
}

// Name is the fault's.
func (Sink) Name() string { return "kitchen-sink" }

// Available wants what all kinds want.
func (Sink) Available(e Env) error {
	return errors.Join(paired(e, 0), KillMember{}.Available(e), KillMember{Arbiter: true}.Available(e), Unacknowledged{}.Available(e))
}

func (s Sink) disabled() Fault { s.off = true; return s }

// Schedule draws the faults.
func (s Sink) Schedule(seed uint64) (out []Drawn) {
	rnd := rand.New(rand.NewPCG(seed, 1000+s.Draw))
	all := kinds()
	rnd.Shuffle(len(all), func(i, k int) { all[i], all[k] = all[k], all[i] })
	for _, kind := range all[:1+rnd.IntN(4)] {
		f := kind[rnd.IntN(len(kind))]
		out = append(out, Drawn{Fault: f.Name(), After: time.Duration(rnd.Int64N(int64(1500 * time.Millisecond))), Stay: time.Duration(rnd.Int64N(int64(3 * time.Second))), is: f})
	}
	return out
}

// Inject begins them, one after the other.
func (s Sink) Inject(ctx context.Context, e Env) (Active, error) {
	a := &sunk{e: e, drawn: s.Schedule(e.Seed)}
	raw, err := json.MarshalIndent(a.drawn, "", "  ")
	if err == nil {
		err = os.WriteFile(filepath.Join(e.Dir, "sink.json"), append(raw, '\n'), 0o600)
	}
	if err != nil {
		return a, err
	}
	for _, d := range a.drawn {
		f := d.is
		if s.off {
			f = Disabled{Fault: f}
		}
		time.Sleep(d.After)
		one, err := f.Inject(ctx, e)
		if one != nil {
			a.active = append(a.active, one)
		}
		if err != nil {
			return a, fmt.Errorf("%s: %w", d.Fault, err)
		}
	}
	return a, nil
}

type sunk struct {
	e      Env
	drawn  []Drawn
	active []Active
}

// all asks every fault, and puts what they say together.
func (a *sunk) all(ask func(Active) (Evidence, error)) (Evidence, error) {
	var said []string
	var err error
	counts := map[string]int64{}
	for i, one := range a.active {
		ev, oerr := ask(one)
		if oerr != nil {
			oerr = fmt.Errorf("%s: %w", a.drawn[i].Fault, oerr)
		}
		said, err = append(said, a.drawn[i].Fault+": "+ev.What), errors.Join(err, oerr)
		for k, n := range ev.Counts {
			counts[a.drawn[i].Fault+"/"+k] = n
		}
	}
	return Evidence{fmt.Sprintf("%d faults: %s", len(a.active), strings.Join(said, "; ")), counts}, err
}

// Effective wants each of them proven.
func (a *sunk) Effective(ctx context.Context) (Evidence, error) {
	return a.all(func(one Active) (Evidence, error) { return one.Effective(ctx) })
}

// Recover ends them, the last first, each when its time is over.
func (a *sunk) Recover(ctx context.Context) error {
	for i := len(a.active) - 1; i >= 0; i-- {
		time.Sleep(a.drawn[i].Stay)
		if err := a.active[i].Recover(ctx); err != nil {
			return fmt.Errorf("%s: %w", a.drawn[i].Fault, err)
		}
	}
	return nil
}

// Recovered wants each of them over.
func (a *sunk) Recovered(ctx context.Context) (Evidence, error) {
	return a.all(func(one Active) (Evidence, error) { return one.Recovered(ctx) })
}

// Cleanup leaves nothing of any of them.
func (a *sunk) Cleanup() (err error) {
	for i := len(a.active) - 1; i >= 0; i-- {
		err = errors.Join(err, a.active[i].Cleanup())
	}
	return err
}
