package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/fault"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/workload"
)

// scheduleVersion is of the file's form.
const scheduleVersion = 1

const scheduleFile = "schedule.json"

// Schedule is all that a run of a scenario on real processes had drawn, and when it did what: enough to do the same again,
// however the generator draws by then. Processes keep no schedule: what comes of it may differ.
type Schedule struct {
	Version  int    `json:"version"`
	Scenario string `json:"scenario"`
	Seed     uint64 `json:"seed"`
	Lanes    int    `json:"lanes"`
	// Operations of the load, in the order in which they began.
	Operations []workload.Operation `json:"operations"`
	// Faults is the one fault of the scenario, or none. Times are from the load's beginning.
	Faults []Planned `json:"faults"`
	// Wallets is the server that the wallets were on.
	Wallets Server `json:"wallets,omitempty"`
	// Participant ran in place of our wallets; nil: ours did. Its command is looked for where it was, from the same directory.
	Participant *proc.Participant `json:"participant,omitempty"`
	// Volumes are the parts that had a volume of their own.
	Volumes []string `json:"volumes,omitempty"`
}

// Planned is when a fault was there, and what it drew.
type Planned struct {
	Name  string              `json:"name"`
	At    time.Duration       `json:"at"`
	Until time.Duration       `json:"until"` // when it began to heal
	Draws map[string][]uint64 `json:"draws,omitempty"`
}

// LoadSchedule reads what a run has written into its scenario's directory, or the file itself.
func LoadSchedule(path string) (*Schedule, error) {
	if i, err := os.Stat(path); err == nil && i.IsDir() {
		path = filepath.Join(path, scheduleFile)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s := &Schedule{}
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if s.Version != scheduleVersion {
		return nil, fmt.Errorf("%s has version %d, this program knows %d", path, s.Version, scheduleVersion)
	}
	return s, s.valid()
}

// valid says what in a schedule cannot be done.
func (s *Schedule) valid() error {
	var err error
	found, ferr := Find([]string{s.Scenario})
	if ferr != nil {
		err = fmt.Errorf("scenario %q: there is none of that name", s.Scenario)
	}
	if s.Wallets != OnSQLite && s.Wallets != OnPostgreSQL && s.Wallets != OnMariaDB {
		err = errors.Join(err, fmt.Errorf("wallets on %q: there is no such server", s.Wallets))
	}
	if s.Participant != nil {
		err = errors.Join(err, s.Participant.Valid())
	}
	if s.Lanes < 1 {
		err = errors.Join(err, fmt.Errorf("lanes %d: at least one is wanted", s.Lanes))
	}
	for i, op := range s.Operations {
		if op.Lane < 0 || op.Lane >= s.Lanes || op.At < 0 || op.Kind == "" || op.Gid == "" {
			return errors.Join(err, fmt.Errorf("operations[%d]: lane %d of %d, at %v, %q of gid %q", i, op.Lane, s.Lanes, op.At, op.Kind, op.Gid))
		}
	}
	if len(s.Faults) > 1 {
		err = errors.Join(err, fmt.Errorf("%d faults: a scenario has one, or none", len(s.Faults)))
	}
	for _, f := range s.Faults {
		if len(found) > 0 && found[0].Fault.Name() != f.Name {
			err = errors.Join(err, fmt.Errorf("fault %s: %s has %s", f.Name, s.Scenario, found[0].Fault.Name()))
		}
		if f.At < 0 || f.Until < f.At {
			err = errors.Join(err, fmt.Errorf("fault %s: from %v to %v", f.Name, f.At, f.Until))
		}
	}
	return err
}

// Save writes it into a scenario's directory.
func (s *Schedule) Save(dir string) error {
	raw, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, scheduleFile), raw, 0o644)
}

// Without is a part of a schedule: of n equal parts of its operations those without the i-th.
func (s *Schedule) Without(i, n int) *Schedule {
	out := *s
	low, high := len(s.Operations)*i/n, len(s.Operations)*(i+1)/n
	out.Operations = append(append([]workload.Operation{}, s.Operations[:low]...), s.Operations[high:]...)
	return &out
}

// Faultless is the schedule without its faults.
func (s *Schedule) Faultless() *Schedule {
	out := *s
	out.Faults = nil
	return &out
}

// schedule is what this run has drawn.
func (r *running) schedule(load *workload.Load) *Schedule {
	s := &Schedule{Version: scheduleVersion, Scenario: r.s.ID, Seed: r.o.Seed, Lanes: r.o.Lanes, Operations: load.Made(), Participant: r.o.Participant, Volumes: r.volumes()}
	switch scheme, _, _ := strings.Cut(r.wallets(), ":"); scheme {
	case "":
	case "postgres", "postgresql":
		s.Wallets = OnPostgreSQL
	default:
		s.Wallets = OnMariaDB
	}
	if r.win.Fault != "" {
		began := load.Began()
		s.Faults = []Planned{{Name: r.win.Fault, At: time.Duration(r.win.Injected - began), Until: time.Duration(max(r.until, r.win.Injected) - began), Draws: r.env.Draws.Noted()}}
	}
	return s
}

// draws are those of the faults: drawn from the seed, or given again.
func (r *running) draws() *fault.Draws {
	if r.o.Schedule != nil && len(r.o.Schedule.Faults) > 0 {
		return fault.NewDraws(r.o.Seed, r.o.Schedule.Faults[0].Draws)
	}
	return fault.NewDraws(r.o.Seed, nil)
}

// again does under a load that is made again what underLoad does under one that is drawn: the fault comes when it came, and
// begins to heal when it did. Nothing is asked of rates: the load is as much as it was made.
func (r *running) again(ctx context.Context, load *workload.Load) error {
	for _, p := range r.o.Schedule.Faults {
		if !r.at(ctx, load, p.At) {
			return ctx.Err()
		}
		active, err := r.inject(ctx)
		if active != nil {
			defer func() {
				if cerr := active.Cleanup(); cerr != nil {
					r.o.Say("%s: clean up: %v", r.s.ID, cerr)
				}
			}()
		}
		if err != nil {
			return err
		}
		r.struck(active)
		if r.res.Effective, err = active.Effective(ctx); err != nil {
			r.res.inconclusive("%v", err)
		}
		if !r.at(ctx, load, p.Until) {
			return ctx.Err()
		}
		if err := r.heal(ctx, active); err != nil {
			return err
		}
	}
	load.Wait()
	return ctx.Err()
}

// at waits until so much time has passed since the load began.
func (r *running) at(ctx context.Context, load *workload.Load, d time.Duration) bool {
	return sleep(ctx, max(0, d-time.Duration(r.log.Now()-load.Began())))
}

// Red are the checkers that have found something.
func (r *Result) Red() (ids []string) {
	for i := range r.Checks {
		if r.Checks[i].Verdict() == check.Failed {
			ids = append(ids, r.Checks[i].ID)
		}
	}
	return ids
}
