// Command bench-xa measures the damage that two-phase commit does: the same payments by XA and by TCC, both with DTM's Go
// SDK through Lockstep, on a few hot accounts; first undisturbed, then with one participant that answers slowly, then with
// one that hangs on a few payments. At last the coordinator is killed under load. See package coordinator/bench/xa.
//
//	bench-xa --db postgres|mysql --clients 32 --round 8s --slow 200ms --hang 30s --hanging 3
//
// --quick takes short windows and a hang of 5 s.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/rig"
	"github.com/lockstep-tx/lockstep/coordinator/bench/xa"
)

type options struct {
	db, server, dir, binDir string
	buyers, merchants       int
	plan                    xa.Plan
}

func main() {
	var o options
	flag.StringVar(&o.db, "db", "postgres", "postgres or mysql")
	flag.IntVar(&o.plan.Clients, "clients", 32, "concurrent clients, each waiting for its payment")
	flag.IntVar(&o.buyers, "buyers", 20, "accounts that pay")
	flag.IntVar(&o.merchants, "merchants", 5, "accounts that are paid")
	flag.DurationVar(&o.plan.Window, "round", 8*time.Second, "measured window of the first two phases")
	flag.DurationVar(&o.plan.WarmUp, "warm-up", 2*time.Second, "load before each window")
	flag.DurationVar(&o.plan.Slow, "slow", 200*time.Millisecond, "what the merchants' participant takes to answer in the second phase")
	flag.DurationVar(&o.plan.Hang, "hang", 30*time.Second, "how long it hangs in the third, and that phase's window")
	flag.IntVar(&o.plan.Hanging, "hanging", 3, "payments that it hangs on, each to another merchant")
	quick := flag.Bool("quick", false, "windows of 3 s, a hang of 5 s")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "where the run's files go; must be on a disk")
	flag.StringVar(&o.binDir, "bin", "", "where the other binaries are (default: bin/ of the module, built first)")
	flag.Parse()
	if *quick {
		o.plan.Window, o.plan.WarmUp, o.plan.Hang = 3*time.Second, time.Second, 5*time.Second
	}
	env := map[string]string{"postgres": "LOCKSTEP_TEST_POSTGRES_URL", "mysql": "LOCKSTEP_TEST_MYSQL_URL"}[o.db]
	if o.server = os.Getenv(env); o.server == "" {
		fmt.Fprintf(os.Stderr, "bench-xa: --db %s: postgres and mysql are possible, and %s must name the server\nnext: make bench-xa\n", o.db, env)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench-xa:", err)
		os.Exit(1)
	}
}

// coordinator is a Lockstep that can be killed.
type coordinator struct {
	rig *rig.Rig
	*rig.Contender
}

func (c coordinator) URL() string                       { return c.HTTPBase }
func (c coordinator) Kill()                             { c.Process.Kill(); <-c.Process.Done() }
func (c coordinator) Restart(ctx context.Context) error { return c.rig.Restart(ctx, c.Contender) }

func run(ctx context.Context, o options) (err error) {
	r, err := rig.New(ctx, o.dir, o.binDir)
	defer func() { err = errors.Join(err, r.Close(ctx)) }()
	if err != nil {
		return err
	}
	fmt.Printf("%d cores, %s; payments on %s, %d clients, %d buyers, %d merchants; DTM's Go SDK through Lockstep\n",
		runtime.NumCPU(), runtime.Version(), o.db, o.plan.Clients, o.buyers, o.merchants)
	var tcc, x xa.Report
	if tcc, err = measure(ctx, o, r, xa.TCC); err != nil {
		return err
	}
	if x, err = measure(ctx, o, r, xa.XA); err != nil {
		return err
	}
	return print(o, tcc, x)
}

func measure(ctx context.Context, o options, r *rig.Rig, p xa.Protocol) (report xa.Report, err error) {
	c, err := r.StartIn(ctx, rig.Lockstep, filepath.Join(r.Dir, "lockstep-"+string(p)))
	if err != nil {
		return report, fmt.Errorf("start the coordinator: %w", err)
	}
	bed, err := xa.NewBed(ctx, o.server, o.buyers, o.merchants)
	defer func() { err = errors.Join(err, bed.Close(ctx)) }()
	if err != nil {
		return report, err
	}
	report, err = bed.Run(ctx, p, coordinator{r, c}, o.plan, func(ph xa.Phase) {
		fmt.Printf("%-4s %-28s %7.1f payments/s, p99 %7.0f ms\n", p, ph.Name, ph.PerSecond, ms(ph.P99))
		if ph.FirstErr != nil {
			fmt.Printf("     %d failed, such as: %.300s\n", ph.Failed, ph.FirstErr)
		}
	})
	if err != nil {
		return report, fmt.Errorf("%s: %w", p, err)
	}
	fmt.Printf("%-4s %d payments were made; the money is right\n", p, report.Payments)
	return report, c.Process.Stop()
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// print sets the two side by side.
func print(o options, tcc, x xa.Report) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\n%s, the other payments\t\tpayments/s\tof TCC\tp99 ms\tof TCC\topen at the end\tfailed\tlock waits max\tmean\tlongest held\tneed a person\n", o.db)
	for i, base := range tcc.Phases {
		for _, side := range []struct {
			xa.Protocol
			xa.Phase
		}{{xa.TCC, base}, {xa.XA, x.Phases[i]}} {
			ph := side.Phase
			fmt.Fprintf(t, "%s\t%s\t%.1f\t%.2f\t%.0f\t%.1f\t%d\t%d\t%d\t%.1f\t%.1f s\t%d\n", ph.Name, side.Protocol, ph.PerSecond, ph.PerSecond/base.PerSecond,
				ms(ph.P99), ms(ph.P99)/ms(base.P99), ph.Open, ph.Failed, ph.Seen.WaitsMax, ph.Seen.WaitsMean, ph.Seen.Longest.Seconds(), ph.Left)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Printf("\n%s, the coordinator killed under load\n", o.db)
	for _, side := range []xa.Report{tcc, x} {
		what := map[xa.Protocol]string{xa.TCC: "holds open", xa.XA: "prepared transactions"}[side.Protocol]
		g := side.Gone
		fmt.Printf("  %-4s while it is gone: %d %s, %d of %d accounts locked; after it came back, for a person: %d\n", side.Protocol, g.Held, what, g.Locked, g.Accounts, g.Left)
	}
	return nil
}
