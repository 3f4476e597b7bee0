package fault

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/seed"
)

// DatabaseKilled sends SIGKILL to the database server that all wallets are on, and starts it again on what it has (P6, P7).
type DatabaseKilled struct{ off bool }

// Name is the fault's.
func (DatabaseKilled) Name() string { return "kill-database-server" }

// Available wants a server of the suite's own.
func (DatabaseKilled) Available(e Env) error {
	if e.Server == nil {
		return errors.New("the wallets' server is not the suite's to kill")
	}
	return nil
}

func (d DatabaseKilled) disabled() Fault { d.off = true; return d }

// Inject kills.
func (d DatabaseKilled) Inject(_ context.Context, e Env) (Active, error) {
	a := &headlong{e: e, owned: int64(len(e.Log.Flying()))}
	var err error
	if a.pid, err = e.Server.PID(); err != nil || d.off {
		return a, err
	}
	return a, e.Server.Kill()
}

type headlong struct {
	e     Env
	pid   int
	owned int64
}

// answers asks the server for something.
func (a *headlong) answers(ctx context.Context) (err error) {
	db, _, err := seed.Open(ctx, a.e.Server.URL)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var one int
	return db.QueryRowContext(ctx, "SELECT 1").Scan(&one)
}

// Effective wants the process gone, and nobody to answer in its place.
func (a *headlong) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(5*time.Second), func() (Evidence, bool, error) {
		alive, err := a.e.Server.Alive(), a.answers(ctx)
		return Evidence{fmt.Sprintf("the %s server (pid %d) runs: %v; asked, it says: %v; %d transactions were under way", a.e.Server.Kind, a.pid, alive, err, a.owned), map[string]int64{"in_flight": a.owned}},
			!alive && err != nil && a.owned > 0, nil
	})
}

// Recover starts it.
func (a *headlong) Recover(ctx context.Context) error {
	if a.e.Server.Alive() {
		return nil
	}
	return a.e.Server.Start(ctx)
}

// Recovered wants it to answer, as another process.
func (a *headlong) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		pid, err := a.e.Server.PID()
		err = errors.Join(err, a.answers(ctx))
		return Evidence{What: fmt.Sprintf("the %s server answers, as process %d", a.e.Server.Kind, pid)}, pid != a.pid, err
	})
}

func (a *headlong) Cleanup() error { return nil }
