// Command bench-payments measures payments between two ledgers on a real database, behind barriers: DTM with its SDK and
// barrier, Lockstep over DTM's wire with the very same participants, and Lockstep's own API with participants that take
// batches. After every turn the money is counted, and in the end every entry.
//
//	bench-payments --db postgres|mysql --clients 64 --rounds 3 --round 8s
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/load"
	"github.com/lockstep-tx/lockstep/coordinator/bench/payees"
	"github.com/lockstep-tx/lockstep/coordinator/bench/rig"
	"github.com/lockstep-tx/lockstep/coordinator/bench/stats"
)

type options struct {
	db                    string
	clients, rounds, n    int
	round, warmUp         time.Duration
	dir, binDir, envOfURL string
	check                 bool
	only                  string
	conns, fill           int
}

// turn is one of the three ways to pay.
type turn struct {
	name, contender, api, style string
	atLeast                     float64 // in multiples of DTM; 0 is not promised
	filled                      bool    // between ledgers that hold many entries already
}

// growth are the two turns of --fill: the same payments with many entries present as with none.
func growth(entries int) []turn {
	return []turn{
		{name: "native, batches, empty ledgers", contender: rig.Lockstep, api: load.PayNative, style: payees.Kit},
		{name: fmt.Sprintf("native, batches, %d entries present", entries), contender: rig.Lockstep, api: load.PayNative, style: payees.Kit, atLeast: 0.9, filled: true},
	}
}

func turns(db string) []turn {
	dtm := map[string]string{"postgres": rig.DTMPostgres, "mysql": rig.DTMMariaDB}[db]
	t := []turn{
		{name: "DTM, its SDK and barrier", contender: dtm, api: load.PayDTM, style: payees.DTM},
		{name: "Lockstep, DTM's SDK, the same participants", contender: rig.Lockstep, api: load.PayDTM, style: payees.DTM, atLeast: 2},
		{name: "Lockstep, native, batches", contender: rig.Lockstep, api: load.PayNative, style: payees.Kit, atLeast: 5},
	}
	if db != "postgres" { // the promise is for PostgreSQL
		for i := range t {
			t[i].atLeast = 0
		}
	}
	return t
}

func main() {
	var o options
	flag.StringVar(&o.db, "db", "postgres", "postgres or mysql")
	flag.IntVar(&o.clients, "clients", 64, "concurrent clients")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each takes its turn")
	flag.IntVar(&o.n, "accounts", 1000, "buyers, and merchants")
	flag.DurationVar(&o.round, "round", 6*time.Second, "measured window of a turn")
	flag.DurationVar(&o.warmUp, "warm-up", 2*time.Second, "load before each window")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "where the run's files go; must be on a disk")
	flag.StringVar(&o.binDir, "bin", "", "where the other binaries are (default: bin/ of the module, built first)")
	flag.IntVar(&o.fill, "fill", 0, "compare ledgers with so many entries, half with the buyers and half with the merchants, to empty ones (PostgreSQL)")
	flag.IntVar(&o.conns, "conns", 8, "the participants' connections to each database")
	flag.StringVar(&o.only, "only", "", "one way alone: dtm, wire or native")
	flag.BoolVar(&o.check, "check", false, "exit with 1 when a target is missed")
	flag.Parse()
	o.envOfURL = map[string]string{"postgres": "LOCKSTEP_TEST_POSTGRES_URL", "mysql": "LOCKSTEP_TEST_MYSQL_URL"}[o.db]
	if o.envOfURL == "" || os.Getenv(o.envOfURL) == "" {
		fmt.Fprintf(os.Stderr, "bench-payments: --db %s: postgres and mysql are possible, and %s must name the server\nnext: make bench-payments\n", o.db, o.envOfURL)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench-payments:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	r, err := rig.New(ctx, o.dir, o.binDir)
	defer func() { err = errors.Join(err, r.Close(ctx)) }()
	if err != nil {
		return err
	}
	cost, err := r.SyncCost()
	if err != nil {
		return err
	}
	fmt.Printf("%d cores, %s, fdatasync %s; payments on %s, %d clients, %d buyers, %d merchants\n", runtime.NumCPU(), runtime.Version(), cost, o.db, o.clients, o.n, o.n)
	ways := turns(o.db)
	if i := slices.Index([]string{"dtm", "wire", "native"}, o.only); i >= 0 {
		ways = ways[i : i+1]
	}
	if o.fill > 0 {
		if o.db != "postgres" {
			return errors.New("--fill is for PostgreSQL")
		}
		ways = growth(o.fill)
	}
	contenders := map[string]*rig.Contender{}
	type place struct {
		style  string
		filled bool
	}
	places := map[place]*rig.Payees{}
	for _, w := range ways {
		if contenders[w.contender] == nil {
			if contenders[w.contender], err = r.Start(ctx, w.contender); err != nil {
				return fmt.Errorf("start %s: %w", w.contender, err)
			}
		}
		at := place{w.style, w.filled}
		if places[at] == nil {
			fill := 0
			if w.filled {
				fill = o.fill / 2
			}
			if places[at], err = r.StartPayees(ctx, rig.PayeesPlan{
				Style: w.style, Args: []string{"-conns", strconv.Itoa(o.conns)}, ServerURL: os.Getenv(o.envOfURL),
				Buyers:    payees.Plan{Kind: "buyer", N: o.n, Deposit: 1 << 40, Entries: fill},
				Merchants: payees.Plan{Kind: "merchant", N: o.n, Entries: fill},
			}); err != nil {
				return err
			}
		}
	}
	samples := make([][]rig.Sample, len(ways))
	for round := range o.rounds {
		for i, w := range ways {
			s, err := r.MeasurePayments(ctx, contenders[w.contender], w.api, places[place{w.style, w.filled}], load.Plan{Clients: o.clients, WarmUp: o.warmUp, Duration: o.round})
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			samples[i] = append(samples[i], s)
			fmt.Printf("round %d  %-44s %6.0f payments/s, p50 %6.1f ms, p99 %6.1f ms, %d failed; the money is right\n", round+1, w.name, s.PerSecond, s.P50MS, s.P99MS, s.TotalFailed)
			for _, e := range s.Errors {
				fmt.Printf("         such as: %.200s\n", e)
			}
		}
	}
	for at, p := range places {
		if at.filled {
			continue // the loader's entries are of payments that moved nothing; recounting millions takes longer than the run
		}
		if err := p.Audit(ctx); err != nil {
			return err
		}
	}
	fmt.Println("every entry recounted: the books agree with themselves")
	return judge(o, ways, samples)
}

// judge prints the medians and what was promised.
func judge(o options, ways []turn, samples [][]rig.Sample) error {
	median := func(i int, of func(s rig.Sample) float64) float64 {
		var v []float64
		for _, s := range samples[i] {
			v = append(v, of(s))
		}
		return stats.Median(v)
	}
	perSecond := func(s rig.Sample) float64 { return s.PerSecond }
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\n%s, %d clients, medians of %d\tpayments/s\tp50 ms\tp99 ms\tcoordinator cpu us\tparticipants cpu us\tdatabase cpu us\tin multiples of the first\n", o.db, o.clients, o.rounds)
	short := 0
	for i, w := range ways {
		ratio := median(i, perSecond) / median(0, perSecond)
		verdict := ""
		if w.atLeast > 0 && o.only == "" { // alone it has nothing to be held against
			verdict = fmt.Sprintf("  PASS (at least %g)", w.atLeast)
			if ratio < w.atLeast {
				verdict = fmt.Sprintf("  FALLS SHORT (at least %g)", w.atLeast)
				short++
			}
		}
		fmt.Fprintf(t, "%s\t%.0f\t%.1f\t%.1f\t%.0f\t%.0f\t%.0f\t%.2f%s\n", w.name, median(i, perSecond), median(i, func(s rig.Sample) float64 { return s.P50MS }),
			median(i, func(s rig.Sample) float64 { return s.P99MS }), median(i, func(s rig.Sample) float64 { return s.CPUMicros }),
			median(i, func(s rig.Sample) float64 { return s.PayeesCPUMicros }), median(i, func(s rig.Sample) float64 { return s.LedgerCPUMicros }), ratio, verdict)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if o.check && short > 0 {
		return fmt.Errorf("%d targets missed", short)
	}
	return nil
}
