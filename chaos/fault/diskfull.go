package fault

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/tap"
	"github.com/lockstep-tx/lockstep/chaos/volume"
)

// DiskFull takes all the space of the volumes that the first region has (K3): whoever writes there is told ENOSPC.
type DiskFull struct{ off bool }

// Name is the fault's.
func (DiskFull) Name() string { return "disk-full" }

// Available wants volumes; Needs says why there are none.
func (DiskFull) Available(e Env) error { return PowerCut{}.Available(e) }

// Needs is why it cannot be had on this machine.
func (DiskFull) Needs() error {
	if err := volume.Probe(); err != nil {
		return fmt.Errorf("root, loop devices and ext4 are needed: %w", err)
	}
	return nil
}

func (d DiskFull) disabled() Fault { d.off = true; return d }

// Inject fills.
func (d DiskFull) Inject(_ context.Context, e Env) (Active, error) {
	a := &stuffed{e: e, disks: e.Deployment.Regions[0].Disks, since: e.Log.Now()}
	for _, v := range a.disks {
		if d.off {
			break
		}
		if err := v.Fill(); err != nil {
			return a, err
		}
	}
	return a, nil
}

type stuffed struct {
	e     Env
	disks []proc.Disk
	since int64
}

func (a *stuffed) names() string {
	var out []string
	for _, d := range a.disks {
		out = append(out, d.Node.Name)
	}
	return strings.Join(out, ", ")
}

// full is how many of the volumes refuse a write for want of space.
func (a *stuffed) full() (n int, err error) {
	for _, d := range a.disks {
		full, err := d.Full()
		if err != nil {
			return n, err
		}
		if full {
			n++
		}
	}
	return n, nil
}

// failed counts calls that the region's wallets have answered with an error of their own, or that nobody has answered.
func (a *stuffed) failed() int {
	return a.e.Deployment.Regions[0].Tap.Count(func(c *tap.Call) bool {
		return c.Start > a.since && c.Kind == tap.Plain && (c.Status >= http.StatusInternalServerError || c.Status == 0)
	})
}

// Effective wants writes of the suite's own refused for want of space, and the process whose disk it is to have felt it: the wallets
// answer with errors, or the coordinator does not run any more.
func (a *stuffed) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(30*time.Second), func() (Evidence, bool, error) {
		n, err := a.full()
		failed, ended := a.failed(), 0
		for _, d := range a.disks {
			if !d.Node.Alive() {
				ended++
			}
		}
		return Evidence{fmt.Sprintf("%d of %d volumes (%s) refuse a write for want of space; %d branch calls failed since, and %d of the processes have ended", n, len(a.disks), a.names(), failed, ended),
			map[string]int64{"full": int64(n), "failed": int64(failed), "ended": int64(ended)}}, n == len(a.disks) && (failed >= 10 || ended > 0), err
	})
}

// Recover gives the space back, and starts whoever has ended for want of it.
func (a *stuffed) Recover(ctx context.Context) error {
	if err := a.Cleanup(); err != nil {
		return err
	}
	for _, d := range a.disks {
		if !d.Node.Alive() {
			if err := restart(ctx, d.Node); err != nil {
				return fmt.Errorf("%s after its disk was full: %w", d.Node.Name, err)
			}
		}
	}
	return nil
}

// Recovered wants the volumes to take writes, and the processes to run.
func (a *stuffed) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		n, err := a.full()
		up := 0
		for _, d := range a.disks {
			if d.Node.Alive() && !d.Node.Refuses() {
				up++
			}
		}
		return Evidence{What: fmt.Sprintf("%d of %d volumes are full; %d of %s run", n, len(a.disks), up, a.names())}, n == 0 && up == len(a.disks), err
	})
}

// Cleanup gives the space back.
func (a *stuffed) Cleanup() error {
	for _, d := range a.disks {
		if err := d.Empty(); err != nil {
			return err
		}
	}
	return nil
}
