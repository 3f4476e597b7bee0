package rig

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/load"
	"github.com/lockstep-tx/lockstep/coordinator/bench/noop"
	"github.com/lockstep-tx/lockstep/coordinator/bench/proc"
)

// settle is waited after a run before the participants are asked, for calls that are still on their way.
const settle = 50 * time.Millisecond

// Sample is one measured window of one contender.
type Sample struct {
	load.Result
	CPUMicros       float64 `json:"cpu_us_per_tx"`                  // of the coordinator's process
	ServerCPUMicros float64 `json:"server_cpu_us_per_tx"`           // of its database server's processes
	WrittenKB       float64 `json:"written_kb_per_tx"`              // by the coordinator's process, as the kernel accounts it
	ServerKB        float64 `json:"server_kb_per_tx"`               // by its database server's processes
	PayeesCPUMicros float64 `json:"payees_cpu_us_per_tx,omitempty"` // of the participants' process, over the whole run
	LedgerCPUMicros float64 `json:"ledger_cpu_us_per_tx,omitempty"` // of the participants' database server, over the whole run
	DiskKB          float64 `json:"disk_kb_per_tx"`                 // by the disk under the run's directory, for whomever; 0 if unknown
}

// ErrIncomplete says that a transaction was reported as committed without all its tries and confirms having been called.
var ErrIncomplete = errors.New("participants were called too seldom")

// Measure runs the load on c over api (load.HTTP, …) and reads the meters around its window. It returns
// ErrIncomplete, and the sample, when the participants' counters contradict the coordinator.
func (r *Rig) Measure(ctx context.Context, c *Contender, api string, p load.Plan) (Sample, error) {
	before, err := r.Counts(ctx)
	if err != nil {
		return Sample{}, err
	}
	s, err := r.load(ctx, c, api, p, "-participants-http", r.ParticipantsHTTP, "-participants-grpc", r.ParticipantsGRPC)
	if err != nil {
		return s, err
	}
	time.Sleep(settle)
	after, err := r.Counts(ctx)
	if err != nil {
		return Sample{}, err
	}
	return s, complete(s.Result, after.Sub(before))
}

// load runs bench-load with more arguments, and reads the meters.
func (r *Rig) load(ctx context.Context, c *Contender, api string, p load.Plan, more ...string) (Sample, error) {
	coordinator := c.HTTPBase
	if api != load.HTTP && api != load.PayDTM {
		coordinator = c.GRPCAddr
	}
	out, in := io.Pipe()
	args := append([]string{"-api", api, "-coordinator", coordinator, "-clients", strconv.Itoa(p.Clients), "-warm-up", p.WarmUp.String()}, more...)
	if p.Count > 0 {
		args = append(args, "-count", strconv.Itoa(p.Count))
	} else {
		args = append(args, "-duration", p.Duration.String())
	}
	l, err := proc.Start(proc.Spec{Name: "load", Path: r.bin("bench-load"), Args: args, Dir: r.Dir, Stdout: in})
	if err != nil {
		return Sample{}, err
	}
	type reading struct {
		s   Sample
		err error
	}
	read := make(chan reading, 1)
	go func() {
		s, err := c.follow(out, r.Dir)
		out.CloseWithError(err) // so that the load cannot block on a reader that has gone
		read <- reading{s, err}
	}()
	err = l.Wait(ctx)
	in.Close()
	got := <-read
	if err != nil {
		return Sample{}, fmt.Errorf("load on %s over %s: %w; its output: %s", c.Name, api, err, l.Log)
	}
	return got.s, got.err
}

func complete(r load.Result, calls noop.Counts) error {
	want := int64(r.TotalOK) * load.Branches
	if calls.Try < want || calls.Confirm < want {
		return fmt.Errorf("%w: %d transactions committed, but %d tries and %d confirms instead of %d each",
			ErrIncomplete, r.TotalOK, calls.Try, calls.Confirm, want)
	}
	return nil
}

// follow reads the load's output and the meters at the marks in it.
func (c *Contender) follow(out io.Reader, dir string) (Sample, error) {
	var begin, end meters
	var s Sample
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var line struct {
			Event  string
			Result load.Result
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return s, fmt.Errorf("bench-load printed %q: %w", lines.Text(), err)
		}
		var err error
		switch line.Event {
		case "begin":
			begin, err = c.meters(dir)
		case "end":
			end, err = c.meters(dir)
		case "result":
			s.Result = line.Result
		}
		if err != nil {
			return s, err
		}
	}
	if err := lines.Err(); err != nil {
		return s, err
	}
	if n := float64(s.OK); n > 0 {
		own, server := end.own.Sub(begin.own), end.server.Sub(begin.server)
		s.CPUMicros, s.WrittenKB = float64(own.CPU.Microseconds())/n, float64(own.WrittenBytes)/1024/n
		s.ServerCPUMicros, s.ServerKB = float64(server.CPU.Microseconds())/n, float64(server.WrittenBytes)/1024/n
		s.DiskKB = float64(end.disk-begin.disk) / 1024 / n
	}
	return s, nil
}

type meters struct {
	own, server proc.Usage
	disk        int64
}

func (c *Contender) meters(dir string) (m meters, err error) {
	if m.own, err = proc.ReadUsage(c.Process.PID); err != nil {
		return m, fmt.Errorf("meters of %s: %w", c.Name, err)
	}
	if c.ServerPID != 0 {
		if m.server, err = proc.ReadTreeUsage(c.ServerPID); err != nil {
			return m, fmt.Errorf("meters of %s's server: %w", c.Name, err)
		}
	}
	m.disk, _ = proc.DiskWritten(dir) // not every file system can tell
	return m, nil
}
