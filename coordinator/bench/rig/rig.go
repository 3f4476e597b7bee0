// Package rig starts what a benchmark needs — the participants, the contenders with their stores, the load — measures one
// contender at a time from outside (throughput and latency from the load, CPU and bytes written from /proc), verifies
// with the participants that nothing was left out, and ends everything again.
package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/build"
	"github.com/lockstep-tx/lockstep/coordinator/bench/noop"
	"github.com/lockstep-tx/lockstep/coordinator/bench/proc"
	"github.com/lockstep-tx/lockstep/coordinator/bench/stats"
)

const (
	readyLimit   = 30 * time.Second // for a process of ours to answer
	cleanUpLimit = time.Minute      // for dropping stores after a run
)

// Rig is the test bench. It is used by one goroutine.
type Rig struct {
	Dir              string // of this run; removed by Close
	BinDir           string // where bench-participants, bench-ceiling, bench-load and lockstep are
	LockstepArgs     []string
	ParticipantsHTTP string
	ParticipantsGRPC string

	undo []func(context.Context) error // in order of doing
}

// New makes a directory for the run under parent, which must be on a disk (a memory file system makes fsync free and the
// figures worthless), and starts the participants. binDir "" means bin/ of our module, into which the tools are built first. The
// caller calls Close, also after an error of any method.
func New(ctx context.Context, parent, binDir string) (*Rig, error) {
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, err
	}
	if err := onDisk(parent); err != nil {
		return nil, err
	}
	parent, err := filepath.Abs(parent)
	if err != nil {
		return nil, err
	}
	if binDir == "" {
		binDir, err = build.Tools(ctx)
	} else {
		binDir, err = filepath.Abs(binDir)
	}
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(parent, "lockstep-bench-")
	if err != nil {
		return nil, err
	}
	r := &Rig{Dir: dir, BinDir: binDir}
	r.defers(func(context.Context) error { return os.RemoveAll(dir) })
	addrs, err := proc.FreeAddrs(2)
	if err != nil {
		return r, err
	}
	r.ParticipantsHTTP, r.ParticipantsGRPC = addrs[0], addrs[1]
	p, err := r.start(proc.Spec{
		Name: "participants", Path: r.bin("bench-participants"), Dir: dir,
		Args: []string{"-http-addr", addrs[0], "-grpc-addr", addrs[1]},
	})
	if err != nil {
		return r, err
	}
	return r, p.AwaitHTTP(ctx, "http://"+addrs[0]+"/counts", readyLimit)
}

// Close ends every process, drops the stores and removes the directory, in reverse order of starting. It works to the end
// whatever fails and whatever became of the run's context.
func (r *Rig) Close(ctx context.Context) error {
	if r == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpLimit)
	defer cancel()
	var errs []error
	for _, f := range slices.Backward(r.undo) {
		errs = append(errs, f(ctx))
	}
	r.undo = nil
	return errors.Join(errs...)
}

func (r *Rig) defers(f func(context.Context) error) { r.undo = append(r.undo, f) }

func (r *Rig) bin(name string) string { return filepath.Join(r.BinDir, name) }

func (r *Rig) start(s proc.Spec) (*proc.Process, error) {
	p, err := proc.Start(s)
	if err == nil {
		r.defers(func(context.Context) error { return p.Stop() })
	}
	return p, err
}

// Counts asks the participants how often they were called.
func (r *Rig) Counts(ctx context.Context) (c noop.Counts, err error) {
	return c, r.participants(ctx, http.MethodGet, "/counts", &c)
}

// Firsts asks the participants what they tracked.
func (r *Rig) Firsts(ctx context.Context) (f noop.Firsts, err error) {
	return f, r.participants(ctx, http.MethodGet, "/firsts", &f)
}

// Control tells the participants how to answer confirms (ok, fail, hold) and whether to track them from now on.
func (r *Rig) Control(ctx context.Context, confirm string, track bool) error {
	var c noop.Counts
	return r.participants(ctx, http.MethodPost, fmt.Sprintf("/control?confirm=%s&track=%t", confirm, track), &c)
}

func (r *Rig) participants(ctx context.Context, method, path string, into any) error {
	return CallJSON(ctx, method, "http://"+r.ParticipantsHTTP+path, into)
}

// CallJSON makes a request without a body and decodes the answer, which must be 200.
func CallJSON(ctx context.Context, method, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, url, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

func onDisk(dir string) error {
	const tmpfs, ramfs = 0x01021994, 0x858458f6
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return err
	}
	if st.Type == tmpfs || int64(st.Type) == ramfs {
		return fmt.Errorf("%s is in memory, where fsync costs nothing; name a directory on a disk with --dir", dir)
	}
	return nil
}

// SyncCost appends 4 KiB to a file in the run's directory and syncs it, two hundred times, and returns the median: what a
// durable write costs at least on this disk.
func (r *Rig) SyncCost() (time.Duration, error) {
	f, err := os.Create(filepath.Join(r.Dir, "sync"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	took := make([]time.Duration, 200)
	block := make([]byte, 4096)
	for i := range took {
		began := time.Now()
		if _, err := f.Write(block); err != nil {
			return 0, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return 0, err
		}
		took[i] = time.Since(began)
	}
	return stats.Percentile(took, 50), nil
}
