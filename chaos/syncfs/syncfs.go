// Package syncfs is a directory seen through a file system of the suite's own (FUSE), which passes everything on, but for what it is
// told to do with syncs: take longer, or fail.
//
// Its law: a process of its own serves it, so that nobody waits for himself. That process ends with the one that asked for it, however
// that ends, and takes the mount away; what both have left when they were killed together, the next Open removes. Whoever has a file open
// there when nobody serves it any more is told so, and never waits. Syncs that fail are not passed on: what they were to save is in the
// page cache alone.
//
// Linux, root and /dev/fuse are needed. Probe says whether they are there, by doing it once.
package syncfs

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// variable tells a process what it is to serve.
const variable = "LOCKSTEP_CHAOS_SYNCFS"

const answerLimit = 10 * time.Second

// Mode is what is done with syncs: they take so much longer, or fail. The zero Mode passes them on.
type Mode struct {
	Slow time.Duration `json:"slow,omitempty"`
	Fail bool          `json:"fail,omitempty"`
}

// Counts of syncs since it was opened: all of them, those that were made slow, and those that have failed.
type Counts struct {
	Syncs  int64 `json:"syncs"`
	Slowed int64 `json:"slowed"`
	Failed int64 `json:"failed"`
}

// job is what a process serves.
type job struct {
	Back, Dir string
	Owner     int // pid of whom it is for
}

// Mount is a directory and the process that serves it. Safe for concurrent use.
type Mount struct {
	back, dir string

	mu   sync.Mutex
	cmd  *exec.Cmd // nil: nobody serves it
	in   io.WriteCloser
	out  *bufio.Reader
	mode Mode
	past Counts // of processes that served it before
	last Counts // of the one that serves it
}

// Open shows back at dir, which it creates. The caller closes it. This program's main function must call Child.
func Open(back, dir string) (*Mount, error) {
	if os.Getenv(variable) != "" {
		return nil, errors.New("a process that is to serve a file system asks for one: its main function does not call syncfs.Child")
	}
	if err := sweep(); err != nil {
		return nil, fmt.Errorf("mounts that a dead process has left: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	m := &Mount{back: back, dir: dir}
	return m, m.Start()
}

// Dir is where it is seen.
func (m *Mount) Dir() string { return m.dir }

// Start has it served, after Stop.
func (m *Mount) Start() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd != nil {
		return nil
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	what, err := json.Marshal(job{Back: m.back, Dir: m.dir, Owner: os.Getpid()})
	if err != nil {
		return err
	}
	cmd := exec.Command(program)
	cmd.Env, cmd.Stderr = append(os.Environ(), variable+"="+string(what)), os.Stderr
	// A group of its own keeps a Ctrl-C away from it. It is not to die with its parent: it has something to take away then.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if m.in, err = cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	m.cmd, m.out, m.last = cmd, bufio.NewReader(out), Counts{}
	if err := m.ask(); err != nil {
		return errors.Join(fmt.Errorf("serve %s at %s: %w", m.back, m.dir, err), m.stop())
	}
	return nil
}

// ask tells the process the mode, and hears its counts. One that does not answer is killed, which ends the wait.
func (m *Mount) ask() error {
	if m.cmd == nil {
		return fmt.Errorf("nobody serves %s", m.dir)
	}
	raw, err := json.Marshal(m.mode)
	if err != nil {
		return err
	}
	late := time.AfterFunc(answerLimit, func() { _ = m.cmd.Process.Kill() }) // it may have ended
	defer late.Stop()
	if _, err := m.in.Write(append(raw, '\n')); err != nil {
		return err
	}
	line, err := m.out.ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, &m.last)
}

// Set says what is done with syncs that are asked for from now on.
func (m *Mount) Set(mode Mode) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mode = mode
	return m.ask()
}

// Counts are those until now.
func (m *Mount) Counts() (Counts, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.ask()
	return Counts{m.past.Syncs + m.last.Syncs, m.past.Slowed + m.last.Slowed, m.past.Failed + m.last.Failed}, err
}

// Stop takes the mount away until Start; what it shows stays where it is. The mode is kept.
func (m *Mount) Stop() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stop()
}

func (m *Mount) stop() error {
	if m.cmd == nil {
		return nil
	}
	m.in.Close()
	late := time.AfterFunc(answerLimit, func() { _ = m.cmd.Process.Kill() }) // it may have ended
	defer late.Stop()
	err := m.cmd.Wait()
	m.cmd = nil
	m.past.Syncs, m.past.Slowed, m.past.Failed = m.past.Syncs+m.last.Syncs, m.past.Slowed+m.last.Slowed, m.past.Failed+m.last.Failed
	if err != nil {
		return errors.Join(fmt.Errorf("who serves %s: %w", m.dir, err), detach(m.dir))
	}
	return nil
}

// Close takes the mount away for good. It may be called twice.
func (m *Mount) Close() error { return m.Stop() }

// Probe says why it cannot be had here; nil where it can. It tries once.
var Probe = sync.OnceValue(func() error {
	dir, err := os.MkdirTemp("", "lockstep-syncfs-")
	if err != nil {
		return err
	}
	return errors.Join(try(dir), os.RemoveAll(dir))
})

// try wants a sync to pass, then to take longer, and then to fail.
func try(dir string) (err error) {
	back := filepath.Join(dir, "back")
	if err := os.Mkdir(back, 0o700); err != nil {
		return err
	}
	m, err := Open(back, filepath.Join(dir, "at"))
	if m != nil {
		defer func() { err = errors.Join(err, m.Close()) }()
	}
	if err != nil {
		return err
	}
	const longer = 30 * time.Millisecond
	for _, mode := range []Mode{{}, {Slow: longer}, {Fail: true}} {
		if err := m.Set(mode); err != nil {
			return err
		}
		took, err := m.Sync()
		if errors.Is(err, syscall.EIO) != mode.Fail || err != nil && !mode.Fail || took < mode.Slow {
			return fmt.Errorf("with %+v a sync took %v: %v", mode, took, err)
		}
	}
	return nil
}

// probed is the file that Sync writes.
const probed = ".chaos-sync"

// Sync writes and syncs a file there, and says how long the sync took.
func (m *Mount) Sync() (took time.Duration, err error) {
	f, err := os.Create(filepath.Join(m.dir, probed))
	if err != nil {
		return 0, err
	}
	defer f.Close() // what it says is the sync's
	if _, err := f.Write([]byte{1}); err != nil {
		return 0, err
	}
	began := time.Now()
	err = f.Sync()
	return time.Since(began), err
}
