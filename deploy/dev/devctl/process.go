package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// record says which process a server is. A pid alone is reused by the kernel; pid and start time together are not.
type record struct {
	Pid        int    `json:"pid"`
	StartTicks uint64 `json:"start_ticks"` // field 22 of /proc/PID/stat: clock ticks since boot
}

// statOf returns a process's start time and whether it still runs; a zombie does not.
func statOf(pid int) (ticks uint64, running bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// The second field is the program's name in parentheses and may itself hold anything.
	_, rest, ok := strings.Cut(string(b[max(bytes.LastIndexByte(b, ')'), 0):]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, false
	}
	ticks, err = strconv.ParseUint(fields[19], 10, 64)
	return ticks, err == nil && fields[0] != "Z" && fields[0] != "X"
}

func (r record) alive() bool {
	ticks, running := statOf(r.Pid)
	return r.Pid > 0 && running && ticks == r.StartTicks
}

// stop asks the process to end with sig, waits for limit, and then kills it. A process that is no longer the recorded
// one is left alone. It returns when the process is gone.
func (r record) stop(sig syscall.Signal, limit time.Duration) error {
	p, err := os.FindProcess(r.Pid) // holds a pidfd: from here on the handle cannot come to mean another process
	if err != nil || !r.alive() {
		return nil
	}
	defer p.Release()
	for _, step := range []struct {
		sig   syscall.Signal
		limit time.Duration
	}{{syscall.SIGCONT, 0}, {sig, limit}, {syscall.SIGKILL, 10 * time.Second}} {
		if err := p.Signal(step.sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("signal %v to pid %d: %w", step.sig, r.Pid, err)
		}
		for end := time.Now().Add(step.limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if !r.alive() {
				return nil
			}
		}
	}
	return fmt.Errorf("pid %d does not end", r.Pid)
}

func readRecord(file string) (record, error) {
	var r record
	err := readJSON(file, &r)
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, nil
	}
	return r, err
}

func readJSON(file string, v any) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// writeFile replaces file in one step: a reader, or a run after an interruption, sees all of it or none.
func writeFile(file string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}

func writeJSON(file string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(file, append(b, '\n'))
}

// execCmd is how every server starts: the new process writes its own record first and then becomes the server, so that
// there is no moment at which a server runs that nobody could name. It holds the directory's lock (fd 3) until then.
type execCmd struct {
	Record   string   `required:""`
	UID      int      `default:"-1"`
	GID      int      `default:"-1"`
	DeathSig int      `help:"Signal to get when the devctl that started it dies; 0 for none."`
	Command  []string `arg:"" passthrough:""`
}

const lockFD = 3

func (c *execCmd) Run() error {
	argv := c.Command
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	owner := os.Getppid()
	ticks, ok := statOf(os.Getpid())
	if !ok {
		return errors.New("cannot read /proc/self/stat")
	}
	if err := writeJSON(c.Record, record{os.Getpid(), ticks}); err != nil {
		return err
	}
	syscall.CloseOnExec(lockFD)
	if c.UID >= 0 {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(c.GID), syscall.Setuid(c.UID)); err != nil {
			return fmt.Errorf("become uid %d: %w", c.UID, err)
		}
	}
	if c.DeathSig != 0 {
		// After setuid, which clears it. The owner may have gone between the fork and this line.
		runtime.LockOSThread() // it belongs to the thread that will exec
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(c.DeathSig), 0, 0, 0); err != nil {
			return fmt.Errorf("prctl: %w", err)
		}
		if os.Getppid() != owner {
			return errors.New("the devctl that started this is gone")
		}
	}
	return syscall.Exec(argv[0], argv, os.Environ())
}

// spawn starts argv as a server with its output appended to logFile and waits until its record is written.
func (s *serverSet) spawn(sv *server, argv []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	logFile, err := os.OpenFile(s.logPath(sv.Name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	if err := os.Remove(s.recordPath(sv.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	args := []string{"exec", "--record", s.recordPath(sv.Name)}
	if sv.Kind == postgres && s.PostgresUID > 0 {
		args = append(args, "--uid", strconv.Itoa(s.PostgresUID), "--gid", strconv.Itoa(s.PostgresGID))
	}
	if s.withOwner {
		sig := syscall.SIGKILL
		if sv.Kind == postgres {
			sig = syscall.SIGQUIT // at once, but it removes its shared memory
		}
		args = append(args, "--death-sig", strconv.Itoa(int(sig)))
	}
	cmd := exec.Command(self, append(append(args, "--"), argv...)...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.Dir = s.Home
	cmd.ExtraFiles = []*os.File{s.lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C in the terminal is for devctl, not for them
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }() // reaps it if it ends while devctl lives; after that, init does
	sv.ended = ended
	for {
		if r, err := readRecord(s.recordPath(sv.Name)); err == nil && r.Pid != 0 {
			return nil
		}
		select {
		case <-ended:
			return fmt.Errorf("%s did not start:\n%s", sv.Name, s.logTail(sv.Name))
		case <-time.After(2 * time.Millisecond):
		}
	}
}
