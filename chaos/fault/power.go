package fault

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/volume"
)

// PowerCut takes the power away from every volume that the first region has, all at once, then kills the processes whose
// data are there, and starts them again on what had reached the disks (K1, K2).
type PowerCut struct{ off bool }

// Name is the fault's.
func (PowerCut) Name() string { return "power-cut" }

// Available wants volumes; Needs says why there are none.
func (PowerCut) Available(e Env) error {
	if len(e.Deployment.Regions[0].Disks) == 0 {
		return errors.New("no part of the region has a volume")
	}
	return nil
}

// Needs is why it cannot be had on this machine.
func (PowerCut) Needs() error {
	if err := volume.Probe(); err != nil {
		return fmt.Errorf("root, loop devices and ext4's shutdown are needed: %w", err)
	}
	return nil
}

func (p PowerCut) disabled() Fault { p.off = true; return p }

// Inject writes what is to be lost and what is not, and cuts.
func (p PowerCut) Inject(_ context.Context, e Env) (Active, error) {
	a := &dark{e: e, disks: e.Deployment.Regions[0].Disks}
	for _, d := range a.disks {
		if err := d.Mark(); err != nil {
			return a, err
		}
	}
	if p.off {
		return a, nil
	}
	for _, d := range a.disks { // all of them first: what one acknowledges meanwhile must not be saved by another
		if err := d.Cut(); err != nil {
			return a, err
		}
	}
	for _, d := range a.disks {
		no, err := d.Refuses()
		if err != nil {
			return a, err
		}
		if no {
			a.refused++
		}
	}
	for _, d := range a.disks {
		d.Node.Kill()
	}
	a.cut = true
	return a, nil
}

type dark struct {
	e        Env
	disks    []proc.Disk
	refused  int // volumes that refused a write before their process was killed
	cut      bool
	restored bool
	kept     int
	lost     int
}

func (a *dark) names() string {
	var out []string
	for _, d := range a.disks {
		out = append(out, d.Node.Name)
	}
	return strings.Join(out, ", ")
}

// Effective wants a write refused on every volume before its process died, and the processes reaped.
func (a *dark) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(lookLimit), func() (Evidence, bool, error) {
		dead := 0
		for _, d := range a.disks {
			if !d.Node.Alive() && d.Node.Refuses() {
				dead++
			}
		}
		return Evidence{fmt.Sprintf("the power of %s is cut: %d of %d volumes answered a write with EIO, then %d of the processes were reaped", a.names(), a.refused, len(a.disks), dead),
			map[string]int64{"eio": int64(a.refused), "reaped": int64(dead)}}, a.refused == len(a.disks) && dead == len(a.disks), nil
	})
}

// Recover mounts what is left, looks at it before anybody else does, and starts the processes.
func (a *dark) Recover(ctx context.Context) error {
	if !a.cut || a.restored {
		return nil
	}
	for _, d := range a.disks {
		if err := d.Restore(); err != nil {
			return err
		}
		kept, lost, err := d.Left()
		if err != nil {
			return err
		}
		a.kept, a.lost = a.kept+kept, a.lost+lost
	}
	a.restored = true
	for _, d := range a.disks {
		if err := restart(ctx, d.Node); err != nil {
			return fmt.Errorf("%s after the power cut: %w", d.Node.Name, err)
		}
	}
	return nil
}

// Recovered wants what was synced to be there, what was not to be gone, and the processes to run.
func (a *dark) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(lookLimit), func() (Evidence, bool, error) {
		up := 0
		for _, d := range a.disks {
			if d.Node.Alive() && !d.Node.Refuses() {
				up++
			}
		}
		return Evidence{fmt.Sprintf("mounted again: %d bytes that were synced are there, %d that were not are gone; %d of %s run", a.kept, a.lost, up, a.names()),
				map[string]int64{"kept": int64(a.kept), "lost": int64(a.lost)}},
			a.kept == volume.Synced*len(a.disks) && a.lost == volume.Unsynced*len(a.disks) && up == len(a.disks), nil
	})
}

// Cleanup has nothing to undo: the volumes are the deployment's.
func (a *dark) Cleanup() error { return nil }
