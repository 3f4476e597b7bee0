package fault

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/syncfs"
)

// synced wants volumes whose syncs can be told what to do.
func synced(e Env) error {
	for _, d := range e.Deployment.Regions[0].Disks {
		if d.Syncs == nil {
			return fmt.Errorf("the syncs of %s's disk are its own", d.Node.Name)
		}
	}
	return PowerCut{}.Available(e)
}

// syncsNeed is why volumes with such syncs cannot be had on this machine.
func syncsNeed() error {
	if err := syncfs.Probe(); err != nil {
		return fmt.Errorf("root and FUSE are needed: %w", err)
	}
	return PowerCut{}.Needs()
}

// setSyncs says what is done with syncs on all of the disks.
func setSyncs(disks []proc.Disk, mode syncfs.Mode) (err error) {
	for _, d := range disks {
		err = errors.Join(err, d.Syncs.Set(mode))
	}
	return err
}

// SyncFails has every sync on the volumes that the first region has fail from a moment on (K4). Then the processes are killed, what was
// not synced is lost as it is when the power goes, and they are started again on what is left: what they have acknowledged must be there.
type SyncFails struct{ off bool }

// Name is the fault's.
func (SyncFails) Name() string { return "sync-fails" }

// Available wants volumes; Needs says why there are none.
func (SyncFails) Available(e Env) error { return synced(e) }

// Needs is why it cannot be had on this machine.
func (SyncFails) Needs() error { return syncsNeed() }

func (s SyncFails) disabled() Fault { s.off = true; return s }

// Inject writes what is to be lost and what is not, and has syncs fail.
func (s SyncFails) Inject(_ context.Context, e Env) (Active, error) {
	a := &failing{dark: dark{e: e, disks: e.Deployment.Regions[0].Disks}}
	a.stuffed = stuffed{e: e, disks: a.disks}
	for _, d := range a.disks {
		if err := d.Mark(); err != nil {
			return a, err
		}
	}
	a.since = e.Log.Now()
	if s.off {
		return a, nil
	}
	return a, setSyncs(a.disks, syncfs.Mode{Fail: true})
}

// failing is a disk whose syncs fail: dark after it was killed, and like one that is full while it lives.
type failing struct {
	dark
	stuffed stuffed
	since   int64
	lost    int64 // when what was not synced was gone
}

// Fleeting is the region and the time in which what is read of its disks may be what nobody has synced, and be lost: who reads a database
// of SQLite after its process has died is shown what that could not save.
func (a *failing) Fleeting() (region string, from, to int64) {
	return a.e.Deployment.Regions[0].Name, a.since, a.lost
}

// Effective wants syncs of the process itself to have failed, and the process to have felt it: the wallets answer with errors, or the
// coordinator does not run any more.
func (a *failing) Effective(ctx context.Context) (Evidence, error) {
	a.stuffed.since = a.since
	return until(ctx, a.e.wait(30*time.Second), func() (Evidence, bool, error) {
		syncs, failed, ended := int64(0), a.stuffed.failed(), 0
		for _, d := range a.disks {
			n, err := d.Syncs.Counts()
			if err != nil {
				return Evidence{}, false, err
			}
			if syncs += n.Failed; !d.Node.Alive() {
				ended++
			}
		}
		return Evidence{fmt.Sprintf("%d syncs of %s failed; %d branch calls failed since, and %d of the processes have ended", syncs, a.names(), failed, ended),
			map[string]int64{"failed_syncs": syncs, "failed": int64(failed), "ended": int64(ended)}}, syncs > 0 && (failed >= 10 || ended > 0), nil
	})
}

// Recover kills who still runs, takes what was not synced away, has syncs succeed again, and starts the processes.
func (a *failing) Recover(ctx context.Context) error {
	for _, d := range a.disks {
		d.Node.Kill()
		if err := d.Cut(); err != nil {
			return err
		}
	}
	if err := a.Cleanup(); err != nil {
		return err
	}
	a.cut = true
	err := a.dark.Recover(ctx)
	a.lost = a.e.Log.Now()
	return err
}

// Cleanup has syncs succeed.
func (a *failing) Cleanup() error { return setSyncs(a.disks, syncfs.Mode{}) }

// SyncSlow has every sync on the volumes that the first region has take longer (K7).
type SyncSlow struct{ off bool }

// slower is by how much.
const slower = 500 * time.Millisecond

// Name is the fault's.
func (SyncSlow) Name() string { return "sync-slow" }

// Available wants volumes; Needs says why there are none.
func (SyncSlow) Available(e Env) error { return synced(e) }

// Needs is why it cannot be had on this machine.
func (SyncSlow) Needs() error { return syncsNeed() }

func (s SyncSlow) disabled() Fault { s.off = true; return s }

// Inject measures, and slows.
func (s SyncSlow) Inject(_ context.Context, e Env) (Active, error) {
	a := &sluggish{e: e, disks: e.Deployment.Regions[0].Disks}
	var err error
	if a.before, err = a.probe(); err != nil {
		return a, err
	}
	a.since = e.Log.Now()
	if s.off {
		return a, nil
	}
	return a, setSyncs(a.disks, syncfs.Mode{Slow: slower})
}

type sluggish struct {
	e      Env
	disks  []proc.Disk
	since  int64
	before time.Duration // what a sync took
	probes int64
}

// probe is how long a sync of the suite's own takes, of all disks the quickest one's.
func (a *sluggish) probe() (took time.Duration, err error) {
	for i, d := range a.disks {
		a.probes++
		one, err := d.Syncs.Sync()
		if err != nil {
			return 0, err
		}
		if i == 0 || one < took {
			took = one
		}
	}
	return took, nil
}

// Effective wants the syncs to take longer, as a probe measures, and some of the process' own to have been slowed, while it lives and
// decisions are made.
func (a *sluggish) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		took, err := a.probe()
		slowed, alive := -a.probes, 0
		for _, d := range a.disks {
			n, cerr := d.Syncs.Counts()
			err = errors.Join(err, cerr)
			if slowed += n.Slowed; d.Node.Alive() {
				alive++
			}
		}
		decided := history.Rate(a.e.Log.Ops(), a.since, a.e.Log.Now())
		return Evidence{fmt.Sprintf("a sync takes %v, %v before; %d of the processes' own were slowed (%d of %d live); %.1f decisions a second since", took.Round(time.Millisecond), a.before.Round(time.Millisecond), slowed, alive, len(a.disks), decided),
				map[string]int64{"slowed": slowed, "sync_ms": took.Milliseconds(), "sync_ms_before": a.before.Milliseconds()}},
			a.before < slower && took >= slower && slowed >= 10 && alive == len(a.disks) && decided > 0, err
	})
}

// Recover has syncs take what they take.
func (a *sluggish) Recover(context.Context) error { return a.Cleanup() }

// Recovered wants a sync to be as quick as before, more or less, and the processes to live.
func (a *sluggish) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		took, err := a.probe()
		alive := 0
		for _, d := range a.disks {
			if d.Node.Alive() && !d.Node.Refuses() {
				alive++
			}
		}
		return Evidence{What: fmt.Sprintf("a sync takes %v; %d of %d processes run", took.Round(time.Millisecond), alive, len(a.disks))}, took < slower && alive == len(a.disks), err
	})
}

// Cleanup has syncs take what they take.
func (a *sluggish) Cleanup() error { return setSyncs(a.disks, syncfs.Mode{}) }
