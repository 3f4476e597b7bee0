// Package proc is a deployment of Lockstep as real processes that can be killed, paused and started again: an arbiter, and
// for each of two regions a broker, coordinators with their etcd, and wallets behind a tap. Loopback alone.
//
// Its law: it ends what it started, by pid, whatever happened; a process that it started dies with it.
package proc

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/proc"
)

const readyLimit = 60 * time.Second

// Node is a process that can be started again with what it had.
type Node struct {
	Name string
	Addr string // a TCP address that it listens on

	spec  proc.Spec
	ready string // URL that answers 200 when it is up; "" for one that only listens

	mu  sync.Mutex
	cur *proc.Process
}

// NewNode describes a process that belongs to no deployment of ours. It listens on addr, and is up once ready, a URL, answers
// 200; "" where it only listens. The caller starts it, and ends it with Close.
func NewNode(addr, ready string, s proc.Spec) *Node {
	return &Node{Name: s.Name, Addr: addr, ready: ready, spec: s}
}

// Close ends it for good, whatever state it is in. It may be called twice.
func (n *Node) Close() error { return n.stop() }

// Start starts it, and waits until it is ready.
func (n *Node) Start(ctx context.Context) error {
	n.mu.Lock()
	spec := n.spec
	n.mu.Unlock()
	p, err := proc.Start(spec)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.cur = p
	n.mu.Unlock()
	if n.ready != "" {
		return p.AwaitHTTP(ctx, n.ready, readyLimit)
	}
	return p.AwaitTCP(ctx, n.Addr, readyLimit)
}

func (n *Node) process() *proc.Process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cur
}

// With adds arguments for its next starts.
func (n *Node) With(args ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.spec.Args = append(slices.Clip(n.spec.Args), args...)
}

// Program is what its next starts run.
func (n *Node) Program(path string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.spec.Path = path
}

// Data is where a member of an etcd keeps its data.
func (n *Node) Data() string { return filepath.Join(n.spec.Dir, n.Name) }

// PID of the process that runs or ran last.
func (n *Node) PID() int {
	if p := n.process(); p != nil {
		return p.PID
	}
	return 0
}

// Log is the file with what it has written, of all its lives.
func (n *Node) Log() string { return filepath.Join(n.spec.Dir, n.Name+".log") }

// Kill sends SIGKILL and returns once the process is reaped.
func (n *Node) Kill() {
	if p := n.process(); p != nil {
		p.Kill()
	}
}

// Terminate asks it to end by SIGTERM and waits until it has, at most until ctx is over. An exit code other than 0 is an error.
func (n *Node) Terminate(ctx context.Context) error {
	if err := n.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return n.process().Wait(ctx)
}

// Alive says that the process has not been reaped.
func (n *Node) Alive() bool {
	p := n.process()
	if p == nil {
		return false
	}
	select {
	case <-p.Done():
		return false
	default:
		return true
	}
}

// Signal sends a signal to a living process: a pid that was reaped may be another's.
func (n *Node) Signal(s syscall.Signal) error {
	if !n.Alive() {
		return fmt.Errorf("%s does not run", n.Name)
	}
	return syscall.Kill(n.PID(), s)
}

// State is the letter of the process table: T for one that is stopped.
func (n *Node) State() (byte, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.PID()))
	if err != nil {
		return 0, err
	}
	if i := bytes.LastIndexByte(b, ')'); i >= 0 && i+2 < len(b) {
		return b[i+2], nil
	}
	return 0, fmt.Errorf("/proc/%d/stat: %q", n.PID(), b)
}

// Refuses says that nobody listens on its address.
func (n *Node) Refuses() bool {
	c, err := net.DialTimeout("tcp", n.Addr, time.Second)
	if err != nil {
		return true
	}
	c.Close()
	return false
}

// stop ends it for good: a stopped process does not hear SIGTERM.
func (n *Node) stop() error {
	p := n.process()
	if p == nil {
		return nil
	}
	if n.Alive() {
		_ = syscall.Kill(p.PID, syscall.SIGCONT) // it may end just now
	}
	p.Kill()
	return nil
}
