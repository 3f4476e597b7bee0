package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/coordinator/bench/build"
)

// program is the coordinator's binary, built once.
var program string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "lockstep-e2e-*")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "lockstep")
	cmd := build.ForTest("-o", program, "../cmd/lockstep")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build lockstep: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// coordinator is one process.
type coordinator struct {
	t    *testing.T
	args []string
	dir  string
	addr struct{ HTTP, GRPC, Admin string }

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
}

// start starts a coordinator and waits until it is ready. Ports stay the same over restarts.
func start(t *testing.T, args ...string) *coordinator {
	t.Helper()
	c := &coordinator{t: t, args: args, dir: t.TempDir()}
	c.addr.HTTP, c.addr.GRPC, c.addr.Admin = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	t.Cleanup(c.kill)
	c.restart()
	return c
}

// embedded starts one on its own etcd.
func embedded(t *testing.T, extra ...string) *coordinator {
	t.Helper()
	return start(t, append([]string{"--embedded", "--data-dir", t.TempDir()}, extra...)...)
}

// launch starts the process; the channel is closed when it has ended.
func (c *coordinator) launch(addrFile string) <-chan struct{} {
	c.t.Helper()
	log, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, append([]string{"serve", "--http-addr", c.addr.HTTP, "--grpc-addr", c.addr.GRPC, "--admin-addr", c.addr.Admin, "--addr-file", addrFile}, c.args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cmd, c.done = cmd, done
	return done
}

func (c *coordinator) restart() {
	c.t.Helper()
	addrFile := filepath.Join(c.dir, "addr.json")
	_ = os.Remove(addrFile)
	before := c.logged()
	done := c.launch(addrFile)
	eventually(c.t, 20*time.Second, "the coordinator is ready", func() bool {
		select {
		case <-done:
			// A connection of some other test may have been given the port while nobody listened there.
			if said := c.log(); !strings.Contains(said[before:], "address already in use") {
				c.t.Fatalf("the coordinator ended while starting:\n%s", said)
			}
			before = c.logged()
			time.Sleep(200 * time.Millisecond)
			done = c.launch(addrFile)
			return false
		default:
		}
		raw, err := os.ReadFile(addrFile)
		if err != nil || json.Unmarshal(raw, &c.addr) != nil {
			return false
		}
		resp, err := http.Get("http://" + c.addr.Admin + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// kill ends the process with SIGKILL and waits for its end.
func (c *coordinator) kill() {
	c.mu.Lock()
	cmd, done := c.cmd, c.done
	c.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Kill() // it may be dead already
	<-done
}

func (c *coordinator) signal(s syscall.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

func (c *coordinator) log() string {
	raw, err := os.ReadFile(filepath.Join(c.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

// logged is the length of the log in bytes; 0 before the first start.
func (c *coordinator) logged() int {
	fi, err := os.Stat(filepath.Join(c.dir, "log"))
	if err != nil {
		return 0
	}
	return int(fi.Size())
}

// metric reads one sample of the coordinator's metrics, by the beginning of its line.
func (c *coordinator) metric(prefix string) float64 {
	c.t.Helper()
	resp, err := http.Get("http://" + c.addr.Admin + "/metrics")
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	sum := 0.0
	for _, line := range strings.Split(readAll(c.t, resp), "\n") {
		if strings.HasPrefix(line, prefix) {
			var v float64
			fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &v)
			sum += v
		}
	}
	return sum
}

func (c *coordinator) client() *client.Client {
	c.t.Helper()
	cl, err := client.Dial(c.addr.GRPC)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = cl.Close() })
	return cl
}

// eventually polls: what is waited for happens in other processes.
func eventually(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

// bank is the participants: a barrier and counters per branch of each transaction.
type bank struct {
	t    *testing.T
	base string

	mu     sync.Mutex
	parts  map[string]*effects
	before func(gid, branch, op string) // called before a call takes effect
	after  func(gid, branch, op string) // called after it took effect, before its answer
	refuse map[string]bool              // branch/op
}

// effects is what one branch did; calls counts what arrived.
type effects struct {
	tried, confirmed, cancelled, tombstone int
	calls                                  map[string]int
}

func newBank(t *testing.T) *bank {
	b := &bank{t: t, parts: map[string]*effects{}, refuse: map[string]bool{}}
	srv := httptest.NewServer(b)
	t.Cleanup(srv.Close)
	b.base = srv.URL
	return b
}

// ServeHTTP is the participant: POST /op with DTM's query.
func (b *bank) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	gid, branch, op := q.Get("gid"), q.Get("branch_id"), q.Get("op")
	b.mu.Lock()
	before, after := b.before, b.after
	b.mu.Unlock()
	if before != nil {
		before(gid, branch, op)
	}
	status := b.apply(gid, branch, op)
	if after != nil {
		after(gid, branch, op)
	}
	w.WriteHeader(status)
}

// apply takes effect once per branch and operation, as a barrier does.
func (b *bank) apply(gid, branch, op string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.parts[gid+"/"+branch]
	if e == nil {
		e = &effects{calls: map[string]int{}}
		b.parts[gid+"/"+branch] = e
	}
	e.calls[op]++
	switch op {
	case "try":
		if b.refuse[branch+"/try"] || e.tombstone > 0 {
			return http.StatusConflict
		}
		e.tried = 1
	case "confirm":
		if e.cancelled+e.tombstone > 0 {
			b.t.Errorf("%s/%s: confirmed after its cancel", gid, branch)
		}
		e.confirmed = 1
	case "cancel":
		if e.confirmed > 0 {
			b.t.Errorf("%s/%s: cancelled after its confirm", gid, branch)
		}
		if e.tried == 0 {
			e.tombstone = 1
		} else {
			e.cancelled = 1
		}
	}
	return http.StatusOK
}

func (b *bank) hooks(before, after func(gid, branch, op string)) {
	b.mu.Lock()
	b.before, b.after = before, after
	b.mu.Unlock()
}

func (b *bank) get(gid, branch string) effects {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.parts[gid+"/"+branch]; e != nil {
		return *e
	}
	return effects{}
}

// branches are two TCC branches at the bank.
func (b *bank) branches() []client.Branch {
	var out []client.Branch
	for _, id := range []string{"a", "b"} {
		out = append(out, client.Branch{ID: id, Try: b.base + "/try", Confirm: b.base + "/confirm", Cancel: b.base + "/cancel", Payload: []byte(`{}`)})
	}
	return out
}

// audit compares what the client was told with what the branches did.
func (b *bank) audit(gid string, committed bool) {
	b.t.Helper()
	for _, id := range []string{"a", "b"} {
		e := b.get(gid, id)
		if committed && (e.confirmed != 1 || e.cancelled+e.tombstone > 0) {
			b.t.Errorf("%s/%s: committed, and the branch did %+v", gid, id, e)
		}
		if !committed && e.confirmed > 0 {
			b.t.Errorf("%s/%s: aborted, and the branch did %+v", gid, id, e)
		}
	}
}

// persist repeats a request until its answer is definite, as a careful client does.
func persist(t *testing.T, within time.Duration, f func(ctx context.Context) (client.State, error)) client.State {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	for {
		st, err := f(ctx)
		if err == nil {
			return st
		}
		if !client.Retryable(err) || ctx.Err() != nil {
			t.Fatalf("the request was refused or time is up: %v", err)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}
