package proc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Server is a database server of the suite's own, which it may kill: devctl starts it, and starts it again on its data. devctl's other
// servers are shared and are nobody's to kill.
type Server struct {
	Kind string // postgres or mariadb
	URL  string

	devctl, dir string
	env         []string // added to the environment of what starts it
}

// serverDirs is what the directories of such servers begin with; the pid of the suite follows.
const serverDirs = "lockstep-chaos-server-"

// OpenServer starts a server of a kind, with a clock that can be moved where that is asked for, and takes down those that a suite that was killed has left. The caller closes it.
func OpenServer(ctx context.Context, devctl, kind string, clock bool) (*Server, error) {
	if err := sweepServers(devctl); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", serverDirs+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return nil, err
	}
	s := &Server{Kind: kind, devctl: devctl, dir: dir}
	if err := os.Chmod(dir, 0o711); err != nil { // PostgreSQL runs as somebody else
		return s, err
	}
	if clock {
		if err := s.clocked(); err != nil {
			return s, err
		}
	}
	if err := s.Start(ctx); err != nil {
		return s, err
	}
	raw, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil {
		return s, err
	}
	name := map[string]string{"postgres": "LOCKSTEP_TEST_POSTGRES_URL=", "mariadb": "LOCKSTEP_TEST_MYSQL_URL="}[kind]
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), name); ok && name != "" {
			s.URL = v
		}
	}
	if s.URL == "" {
		return s, fmt.Errorf("devctl says nothing of where its %s is", kind)
	}
	return s, nil
}

// sweepServers takes down the servers of suites that are no more.
func sweepServers(devctl string) error {
	all, err := filepath.Glob(filepath.Join(os.TempDir(), serverDirs+"*"))
	for _, dir := range all {
		id, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), serverDirs), "-")
		pid, perr := strconv.Atoi(id)
		if perr != nil || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue
		}
		err = errors.Join(err, (&Server{devctl: devctl, dir: dir}).Close())
	}
	return err
}

func (s *Server) call(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, s.devctl, args...)
	cmd.Env = append(os.Environ(), s.env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("devctl %s: %w: %s", args[0], err, bytes.TrimSpace(out))
	}
	return nil
}

// Start starts it, on the data that it has, and waits until it answers.
func (s *Server) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	return s.call(ctx, "up", "--dir", s.dir, "--only", s.Kind)
}

// PID is the server's, as it was started last; of PostgreSQL its postmaster's.
func (s *Server) PID() (int, error) {
	var r struct {
		Pid int `json:"pid"`
	}
	raw, err := os.ReadFile(filepath.Join(s.dir, s.Kind+".pid.json"))
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	if err == nil && r.Pid <= 1 {
		err = fmt.Errorf("the %s server of %s has no pid", s.Kind, s.dir)
	}
	return r.Pid, err
}

// Kill sends it SIGKILL, and returns once it is no more.
func (s *Server) Kill() error {
	pid, err := s.PID()
	if err != nil {
		return err
	}
	p, err := os.FindProcess(pid) // a handle: the pid cannot come to mean another's
	if err != nil {
		return err
	}
	defer func() { _ = p.Release() }()
	// That the pid is still the server's is seen by its command line: it names its data.
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(line, []byte(s.dir)) {
		return errors.Join(fmt.Errorf("process %d is not the %s server of %s", pid, s.Kind, s.dir), err)
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	for end := time.Now().Add(10 * time.Second); s.alive(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("process %d survives SIGKILL", pid)
		}
	}
	return nil
}

// Alive says that its process runs.
func (s *Server) Alive() bool {
	pid, err := s.PID()
	return err == nil && s.alive(pid)
}

// alive says that a process runs; one that nobody has waited for does not.
func (s *Server) alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	i := bytes.LastIndexByte(b, ')')
	return err == nil && i > 0 && i+2 < len(b) && b[i+2] != 'Z' && b[i+2] != 'X'
}

// Close ends it and removes what it wrote.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), readyLimit)
	defer cancel()
	if err := s.call(ctx, "down", "--dir", s.dir); err != nil {
		return err
	}
	return os.RemoveAll(s.dir)
}
