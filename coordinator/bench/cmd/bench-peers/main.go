// Command bench-peers compares Lockstep with its peers and with a coordinator that stores nothing, in one run on one
// machine: it starts them all, lets them take turns under the same load, and prints one table, medians over the rounds,
// and whether the targets hold. See --help; `make bench-peers` builds and calls it.
//
// It exits with 1 when a figure cannot be trusted (a measurement failed, or the participants were called less often than
// the transactions reported as committed demand), with --check also when a target is missed, with 130 on Ctrl-C.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/load"
	"github.com/lockstep-tx/lockstep/coordinator/bench/report"
	"github.com/lockstep-tx/lockstep/coordinator/bench/rig"
)

// options are the command line.
type options struct {
	contenders, apis []string
	clients          []int
	rounds           int
	round, warmUp    time.Duration
	dir, binDir      string
	lockstepArgs     []string
	jsonPath         string
	check            bool
}

func main() {
	o, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-peers:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code, err := run(ctx, o)
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "bench-peers:", err)
	}
	if ctx.Err() != nil {
		code = 130
	}
	os.Exit(code)
}

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("bench-peers", flag.ExitOnError)
	list := func(into *[]string, name, def, usage string) {
		*into = strings.Split(def, ",")
		f.Func(name, usage+" (default "+def+")", func(s string) error { *into = strings.Split(s, ","); return nil })
	}
	var clients []string
	list(&o.contenders, "contenders", strings.Join(rig.Names(), ","), "who takes part")
	list(&o.apis, "apis", load.HTTP+","+load.GRPC+","+load.Native+","+load.NativeBatch, "of http, grpc, native and native-batch, the last two being Lockstep's alone")
	list(&clients, "clients", "1,64,256", "numbers of concurrent clients")
	f.IntVar(&o.rounds, "rounds", 3, "how often each takes its turn")
	f.DurationVar(&o.round, "round", 4*time.Second, "measured window of a turn")
	f.DurationVar(&o.warmUp, "warm-up", time.Second, "load before each window")
	f.StringVar(&o.dir, "dir", "/var/tmp", "where the run's files go; must be on a disk")
	f.StringVar(&o.binDir, "bin", "", "where the other binaries are (default: bin/ of the module, built first)")
	f.Func("lockstep-arg", "one more argument for lockstep serve; may be repeated", func(s string) error {
		o.lockstepArgs = append(o.lockstepArgs, s)
		return nil
	})
	f.StringVar(&o.jsonPath, "json", "", "also write all samples to this file")
	f.BoolVar(&o.check, "check", false, "exit with 1 when a target is missed")
	_ = f.Parse(args)
	errs := []error{rig.CheckNames(o.contenders)}
	for _, s := range clients {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			errs = append(errs, fmt.Errorf("--clients: %q is no number of clients", s))
		}
		o.clients = append(o.clients, n)
	}
	for _, a := range o.apis {
		if all := []string{load.HTTP, load.GRPC, load.Native, load.NativeBatch}; !slices.Contains(all, a) {
			errs = append(errs, fmt.Errorf("--apis: no api %q; there are %v", a, all))
		}
	}
	if o.rounds < 1 || o.round <= 0 {
		errs = append(errs, errors.New("--rounds and --round must be positive"))
	}
	return o, errors.Join(errs...)
}

func run(ctx context.Context, o options) (code int, err error) {
	r, err := rig.New(ctx, o.dir, o.binDir)
	defer func() {
		if cerr := r.Close(ctx); cerr != nil {
			code, err = 1, errors.Join(err, fmt.Errorf("clean up: %w", cerr))
		}
	}()
	if err != nil {
		return 1, err
	}
	r.LockstepArgs = o.lockstepArgs
	cost, err := r.SyncCost()
	if err != nil {
		return 1, err
	}
	turns := len(o.contenders) * len(o.apis) * len(o.clients) * o.rounds
	fmt.Printf("%d cores, %s, fdatasync %s; %d turns of %s, about %s\n", runtime.NumCPU(), runtime.Version(), cost, turns,
		o.round, (time.Duration(turns) * (o.round + o.warmUp + 300*time.Millisecond)).Round(time.Second))
	var contenders []*rig.Contender
	for _, name := range o.contenders {
		c, err := r.Start(ctx, name)
		if err != nil {
			return 1, fmt.Errorf("start %s: %w", name, err)
		}
		fmt.Printf("started %s (pid %d)\n", name, c.Process.PID)
		contenders = append(contenders, c)
	}
	res := measureAll(ctx, o, r, contenders)
	if ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "interrupted; what there is so far:")
	}
	fmt.Println()
	if err := res.Table(os.Stdout); err != nil {
		return 1, err
	}
	short := res.WriteTargets(os.Stdout)
	if o.jsonPath != "" {
		if err := writeJSON(o.jsonPath, res); err != nil {
			return 1, err
		}
	}
	if len(res.Failed) > 0 {
		return 1, fmt.Errorf("%d measurements failed:\n%w", len(res.Failed), errors.Join(res.Failed...))
	}
	if o.check && short > 0 {
		return 1, fmt.Errorf("%d targets missed", short)
	}
	return 0, nil
}

// measureAll lets the contenders take turns: for each number of clients and API, A B C A B C …
func measureAll(ctx context.Context, o options, r *rig.Rig, contenders []*rig.Contender) *report.Run {
	res := report.New()
	for _, n := range o.clients {
		for _, api := range o.apis {
			for round := range o.rounds {
				for _, c := range contenders {
					if (api == load.Native || api == load.NativeBatch) && c.Name != rig.Lockstep {
						continue
					}
					if ctx.Err() != nil {
						return res
					}
					s, err := r.Measure(ctx, c, api, load.Plan{Clients: n, WarmUp: o.warmUp, Duration: o.round})
					if ctx.Err() != nil {
						return res
					}
					k := report.Key{Contender: c.Name, API: api, Clients: n}
					fmt.Printf("%-13s %s %3d clients, round %d: ", c.Name, api, n, round+1)
					if err != nil {
						fmt.Println("FAILED:", err)
						res.Failed = append(res.Failed, fmt.Errorf("%s over %s, %d clients: %w", c.Name, api, n, err))
						continue
					}
					res.Samples[k] = append(res.Samples[k], s)
					fmt.Printf("%6.0f tx/s, p99 %7.2f ms, cpu %5.0f us", s.PerSecond, s.P99MS, s.CPUMicros)
					if s.TotalFailed > 0 {
						fmt.Printf(", %d failed, such as: %.200q", s.TotalFailed, s.Errors)
					}
					fmt.Println()
				}
			}
		}
	}
	return res
}

func writeJSON(path string, res *report.Run) error {
	type entry struct {
		report.Key
		Samples []rig.Sample `json:"samples"`
	}
	var all []entry
	for k, s := range res.Samples {
		all = append(all, entry{k, s})
	}
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}
