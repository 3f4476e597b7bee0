// Package proc starts the processes of a measurement, ends them by their pid, and reads what they cost from /proc.
//
// A process started here dies with the harness even when that is killed with SIGKILL (Linux' parent-death signal), and
// its output goes to a file, never to a pipe that somebody would have to drain. Linux only.
package proc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopGrace is how long Stop waits between SIGTERM and SIGKILL.
const stopGrace = 10 * time.Second

// Spec says what to start.
type Spec struct {
	Name string   // in messages and as the log file's name
	Path string   // the binary
	Args []string // without argv[0]
	Env  []string // added to the harness' environment
	Dir  string   // working directory; must exist
	Log  string   // output file, appended to; "" means Dir/Name.log

	// Stdout receives the standard output instead of the log file. What it does must not block: the process would.
	Stdout io.Writer

	// Space is the network namespace that it runs in; nil: the harness' own. It takes CAP_SYS_ADMIN.
	Space *os.File
}

// Process is a started child. Its methods are safe for concurrent use.
type Process struct {
	Name string
	PID  int
	Log  string // where its output is

	cmd  *exec.Cmd
	done chan struct{} // closed once the child has been waited for
	err  error         // of Wait; read only after done
}

// spawner runs every fork on one OS thread that lives as long as the harness: the parent-death signal is tied to the
// thread that forked, and Go may end other threads at any time.
var spawner = sync.OnceValue(func() chan func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// Start starts what s describes. The caller owns the process and ends it with Stop or Kill.
func Start(s Spec) (*Process, error) {
	logPath := s.Log
	if logPath == "" {
		logPath = filepath.Join(s.Dir, s.Name+".log")
	}
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", s.Name, err)
	}
	defer log.Close()
	cmd := exec.Command(s.Path, s.Args...)
	cmd.Dir, cmd.Env = s.Dir, append(os.Environ(), s.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	if s.Stdout != nil {
		cmd.Stdout = s.Stdout
	}
	// A process group of its own keeps a Ctrl-C on the terminal away from it: the harness ends it in its own order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	spawner() <- func() { started <- inSpace(s.Space, cmd.Start) }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	p := &Process{Name: s.Name, PID: cmd.Process.Pid, Log: logPath, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// inSpace calls start on this thread within a network namespace. A thread that could not be put back would start everything else in
// there, without a word.
func inSpace(space *os.File, start func() error) error {
	if space == nil {
		return start()
	}
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	if err := unix.Setns(int(space.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter a network namespace: %w", err)
	}
	defer func() {
		if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(fmt.Sprintf("leave a network namespace: %v", err))
		}
	}()
	return start()
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Stop asks the process to end (SIGTERM), kills it if it does not within ten seconds, and returns once it is gone. It
// returns an error if it had to kill. Stopping what has ended is no error.
func (p *Process) Stop() error {
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-time.After(stopGrace):
	}
	p.Kill()
	return fmt.Errorf("%s (pid %d) ignored SIGTERM for %s and was killed", p.Name, p.PID, stopGrace)
}

// Kill sends SIGKILL and returns once the process is gone.
func (p *Process) Kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

// signal cannot hit a stranger with a reused pid: os.Process knows whether the child was waited for.
func (p *Process) signal(sig syscall.Signal) { _ = p.cmd.Process.Signal(sig) }

// Wait waits until the process has ended by itself and returns its exit error. When ctx ends first, it stops it.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		_ = p.Stop()
		return ctx.Err()
	}
}

// AwaitHTTP polls url until it answers 200. It gives up when the process has ended, after limit, or with ctx.
func (p *Process) AwaitHTTP(ctx context.Context, url string, limit time.Duration) error {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	return p.await(ctx, url, limit, func() error {
		resp, err := client.Get(url)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d", resp.StatusCode)
		}
		return nil
	})
}

// AwaitTCP polls addr until it accepts a connection, under the same limits as AwaitHTTP.
func (p *Process) AwaitTCP(ctx context.Context, addr string, limit time.Duration) error {
	return p.await(ctx, addr, limit, func() error {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

func (p *Process) await(ctx context.Context, what string, limit time.Duration, try func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := try()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %s not ready after %s (%w); its output: %s", p.Name, what, limit, err, p.Log)
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before it was ready (%v); its output: %s", p.Name, p.err, p.Log)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Ports are taken from below those that the kernel gives to whoever connects somewhere: one of those may be gone again before
// the process that it was found for listens.
const (
	portLow  = 18_000
	portHigh = 32_000
	portTry  = 2_000
)

// given are the ports that this process has found: two that look at once must not be given the same before they listen.
var given sync.Map

// FreePorts returns n different TCP ports that were free on all addresses a moment ago, and that it has not returned before. Safe
// for concurrent use.
func FreePorts(n int) ([]int, error) {
	var ports []int
	var held []net.Listener
	defer func() {
		for _, l := range held {
			l.Close()
		}
	}()
	for range portTry {
		if len(ports) == n {
			return ports, nil
		}
		port := portLow + rand.IntN(portHigh-portLow)
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			continue // somebody's
		}
		held = append(held, l)
		if _, again := given.LoadOrStore(port, true); !again {
			ports = append(ports, port)
		}
	}
	return nil, errors.New("no free ports")
}

// FreeAddrs returns n different loopback addresses that were free a moment ago.
func FreeAddrs(n int) ([]string, error) {
	ports, err := FreePorts(n)
	if err != nil {
		return nil, err
	}
	addrs := make([]string, n)
	for i, p := range ports {
		addrs[i] = fmt.Sprintf("127.0.0.1:%d", p)
	}
	return addrs, nil
}
