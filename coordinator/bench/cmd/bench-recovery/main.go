// Command bench-recovery measures what a coordinator does after a crash: with many transactions decided but unconfirmed
// and as many prepared it is killed with SIGKILL and started again; the participants, another process, tell how long it
// took from the restart until the first confirm of every decided transaction was attempted. `make bench-recovery` builds
// and calls it.
//
// While the store is filled the participants answer every confirm with 500, so that nothing gets done; from the kill on
// they answer with success. Afterwards a part of the transactions is asked for: decided ones must have succeeded,
// prepared ones must still be prepared.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/fill"
	"github.com/lockstep-tx/lockstep/coordinator/bench/noop"
	"github.com/lockstep-tx/lockstep/coordinator/bench/proc"
	"github.com/lockstep-tx/lockstep/coordinator/bench/rig"
)

const (
	lastFirstConfirmMax = 10 * time.Second // target for Lockstep, from the restart
	peakRSSMax          = 1500 << 20       // bytes; target for Lockstep
	askedFor            = 500              // transactions of each kind whose status is verified
	settleLimit         = 20 * time.Second // for confirmed transactions to become succeeded
)

type options struct {
	contenders     []string
	decided, peers int
	limit          time.Duration
	confirm        string
	dir, binDir    string
	workers        int
	check          bool
}

// outcome is what one contender did.
type outcome struct {
	name          string
	decided       int
	fill          time.Duration // to bring it into the state
	ready         time.Duration // from the restart to its being ready
	firsts        noop.Firsts   // from the restart
	peakRSSBytes  int64         // of the restarted process
	decidedStatus map[string]int
	openStatus    map[string]int
}

func main() {
	var o options
	names := flag.String("contenders", strings.Join([]string{rig.Lockstep, rig.DTMBoltdb, rig.DTMRedis}, ","), "who takes part")
	flag.IntVar(&o.decided, "decided", 50000, "decided transactions, and as many prepared, for Lockstep")
	flag.IntVar(&o.peers, "peer-decided", 10000, "the same for DTM")
	flag.DurationVar(&o.limit, "limit", 2*time.Minute, "how long to wait for the confirms")
	flag.StringVar(&o.confirm, "confirm", "fail", "confirms before the kill: fail, or hold (no answer)")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "where the run's files go; must be on a disk")
	flag.StringVar(&o.binDir, "bin", "", "where the other binaries are (default: bin/ of the module, built first)")
	flag.IntVar(&o.workers, "workers", 64, "concurrent requests while filling")
	flag.BoolVar(&o.check, "check", false, "exit with 1 when a target is missed")
	flag.Parse()
	o.contenders = strings.Split(*names, ",")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, o)
	switch {
	case ctx.Err() != nil:
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench-recovery:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if err := rig.CheckNames(o.contenders); err != nil {
		return err
	}
	r, err := rig.New(ctx, o.dir, o.binDir)
	defer func() { err = errors.Join(err, r.Close(ctx)) }()
	if err != nil {
		return err
	}
	var failed []error
	for _, name := range o.contenders {
		n := o.decided
		if name != rig.Lockstep {
			n = o.peers
		}
		out, err := recoverOne(ctx, o, r, name, n)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		failed = append(failed, out.print(o)...)
	}
	return errors.Join(failed...)
}

func recoverOne(ctx context.Context, o options, r *rig.Rig, name string, n int) (out outcome, err error) {
	out = outcome{name: name, decided: n}
	if err := r.Control(ctx, o.confirm, false); err != nil {
		return out, err
	}
	c, err := r.Start(ctx, name)
	if err != nil {
		return out, err
	}
	fmt.Printf("%s (pid %d): preparing %d and deciding %d transactions\n", name, c.Process.PID, n, n)
	wire := fill.New(c.HTTPBase, r.ParticipantsHTTP, o.workers)
	began := time.Now()
	if err := wire.Prepare(ctx, "open", n); err != nil {
		return out, err
	}
	if err := wire.Decide(ctx, "done", n); err != nil {
		return out, err
	}
	out.fill = time.Since(began)
	fmt.Printf("%s: SIGKILL after %s, then a restart\n", name, out.fill.Round(time.Millisecond))
	c.Process.Kill()
	if err := r.Control(ctx, "ok", true); err != nil {
		return out, err
	}
	began = time.Now()
	if err := r.Restart(ctx, c); err != nil {
		return out, err
	}
	out.ready = time.Since(began)
	for out.firsts.Gids < n && time.Since(began) < o.limit {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return out, ctx.Err()
		}
		if out.firsts, err = r.Firsts(ctx); err != nil {
			return out, err
		}
	}
	if out.peakRSSBytes, err = proc.PeakRSSBytes(c.Process.PID); err != nil {
		return out, err
	}
	// A confirm that was called is recorded a moment later.
	for wait := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		if out.decidedStatus, err = wire.Statuses(ctx, "done", n, askedFor); err != nil {
			return out, err
		}
		if out.decidedStatus["succeed"] == min(n, askedFor) || out.firsts.Gids < n || time.Since(wait) > settleLimit {
			break
		}
	}
	if out.openStatus, err = wire.Statuses(ctx, "open", n, askedFor); err != nil {
		return out, err
	}
	return out, c.Process.Stop()
}

// print writes the outcome and returns what is wrong with it: lost transactions always, missed targets with --check.
func (o *outcome) print(opt options) (failed []error) {
	fmt.Printf("%s: ready after %s; first confirms attempted for %d of %d: first %.0f ms, median %.0f ms, p99 %.0f ms, last %.0f ms "+
		"after the restart; %d confirm calls; peak RSS %d MB\n", o.name, o.ready.Round(time.Millisecond), o.firsts.Gids, o.decided,
		o.firsts.FirstMS, o.firsts.MedianMS, o.firsts.P99MS, o.firsts.LastMS, o.firsts.Confirms, o.peakRSSBytes>>20)
	fmt.Printf("%s: of %d asked for, decided: %v, prepared: %v\n", o.name, askedFor, o.decidedStatus, o.openStatus)
	asked := min(o.decided, askedFor)
	if o.openStatus["prepared"] != asked {
		failed = append(failed, fmt.Errorf("%s: prepared transactions did not stay so: %v", o.name, o.openStatus))
	}
	if o.name != rig.Lockstep {
		return failed
	}
	if o.decidedStatus["succeed"] != asked {
		failed = append(failed, fmt.Errorf("%s: decided transactions did not succeed: %v", o.name, o.decidedStatus))
	}
	last := time.Duration(o.firsts.LastMS * float64(time.Millisecond))
	for _, t := range []struct {
		text string
		ok   bool
	}{
		{fmt.Sprintf("first confirm of every decided transaction within %s: %d of %d, the last after %s",
			lastFirstConfirmMax, o.firsts.Gids, o.decided, last), o.firsts.Gids >= o.decided && last <= lastFirstConfirmMax},
		{fmt.Sprintf("at most %d MB of memory: %d MB", peakRSSMax>>20, o.peakRSSBytes>>20), o.peakRSSBytes <= peakRSSMax},
	} {
		word := "PASS"
		if !t.ok {
			word = "FALLS SHORT"
			if opt.check {
				failed = append(failed, errors.New(t.text))
			}
		}
		fmt.Printf("%-12s  %s\n", word, t.text)
	}
	return failed
}
