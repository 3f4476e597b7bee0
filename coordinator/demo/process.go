package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// process is a child that is ended by its pid.
type process struct {
	cmd   *exec.Cmd
	done  chan struct{} // closed when it has ended
	ended error         // how; read it after done
	log   string
	// killed: by kill, so that how it ended is no fault.
	killed bool
}

func start(name, logFile string, args ...string) (*process, error) {
	f, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := &process{cmd: exec.Command(name, args...), done: make(chan struct{}), log: logFile}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	// Ctrl-C reaches the demo alone, which ends its children in order; should the demo die, they die with it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() { p.ended = p.cmd.Wait(); close(p.done) }()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// end stops the process with SIGTERM, and with SIGKILL when it does not listen.
func (p *process) end() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	select {
	case <-p.done:
		if p.killed {
			return nil
		}
		return p.ended
	case <-time.After(15 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("%s did not stop within 15 s after SIGTERM", filepath.Base(p.cmd.Path))
	}
}

func (p *process) kill() error {
	p.killed = true
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return nil
}

// startLimit is for a process to be ready: seconds on an idle machine, and this one may be busy.
const startLimit = 60 * time.Second

// await waits until ready gives true, and gives up when the process ends or startLimit has passed.
func (p *process) await(ctx context.Context, what string, ready func() bool) error {
	deadline := time.Now().Add(startLimit)
	for !ready() {
		select {
		case <-p.done:
			return fmt.Errorf("%s ended while starting (%v): %s", what, p.ended, p.tail())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s was not ready within %v: %s", what, startLimit, p.tail())
		}
	}
	return nil
}

// tail is the end of the process's log.
func (p *process) tail() string {
	raw, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(raw[max(0, len(raw)-2000):]))
}

type addresses struct {
	HTTP  string `json:"http"`
	GRPC  string `json:"grpc"`
	Admin string `json:"admin"`
}

// coordinator is a `lockstep serve`; args are kept for the start after a kill.
type coordinator struct {
	*process
	addr addresses
	dir  string
	args []string
}

func startCoordinator(ctx context.Context, program, dir string, a addresses, args ...string) (*coordinator, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	addrFile := filepath.Join(dir, "addresses")
	_ = os.Remove(addrFile) // of the process before
	p, err := start(program, filepath.Join(dir, "log"), append([]string{"serve", "--embedded", "--data-dir", filepath.Join(dir, "data"),
		"--http-addr", a.HTTP, "--grpc-addr", a.GRPC, "--admin-addr", a.Admin, "--addr-file", addrFile, "--log-level", "warn"}, args...)...)
	if err != nil {
		return nil, err
	}
	c := &coordinator{process: p, dir: dir, args: args}
	err = p.await(ctx, "the coordinator", func() bool {
		if c.addr.Admin == "" {
			raw, err := os.ReadFile(addrFile)
			if err != nil || json.Unmarshal(raw, &c.addr) != nil {
				return false
			}
		}
		return ok(ctx, "http://"+c.addr.Admin+"/readyz")
	})
	if err != nil {
		return nil, errors.Join(err, p.end())
	}
	return c, nil
}

// again starts a coordinator that was killed, where it was.
func (c *coordinator) again(ctx context.Context, program string) (*coordinator, error) {
	return startCoordinator(ctx, program, c.dir, c.addr, c.args...)
}

func ok(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

type participants struct {
	*process
	base string
}

// startParticipants starts the shop's. Payments remember where they were begun: the address is chosen, and fixed.
func startParticipants(ctx context.Context, program, dir, db, addr, coordinator string) (*participants, error) {
	if db == "" {
		db = "sqlite:" + dir
	}
	p, err := start(program, filepath.Join(dir, "participants.log"), "serve", "--listen", addr, "--db", db, "--coordinator", coordinator)
	if err != nil {
		return nil, err
	}
	ps := &participants{process: p, base: "http://" + addr}
	if err := p.await(ctx, "the participants", func() bool { return ok(ctx, ps.base+"/healthz") }); err != nil {
		return nil, errors.Join(err, p.end())
	}
	return ps, nil
}

func (p *participants) create(ctx context.Context, kind, id string, balance int64) error {
	return openAccount(ctx, p.base, map[string]any{"kind": kind, "id": id, "balance": balance})
}

// openAccount opens an account of the shop or a wallet.
func openAccount(ctx context.Context, base string, account map[string]any) error {
	body, err := json.Marshal(account)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/accounts", bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 500)) // the status is what counts
		return fmt.Errorf("open account %v: %s: %s", account["id"], resp.Status, text)
	}
	return nil
}

// state is what the participants' databases hold.
type state struct {
	Buyer struct {
		Balance int64 `json:"balance"`
	} `json:"buyer"`
	Merchant struct {
		Posted   int64 `json:"posted"`
		Refunded int64 `json:"refunded"`
	} `json:"merchant"`
	Points struct {
		Points int64 `json:"points"`
	} `json:"points"`
	Open    int64    `json:"open"`
	Settled bool     `json:"settled"`
	Faults  []string `json:"faults"`
}

func (p *participants) state(ctx context.Context) (state, error) {
	var s state
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.base+"/state", nil)
	if err != nil {
		return s, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}
