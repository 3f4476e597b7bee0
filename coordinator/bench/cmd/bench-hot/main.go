// Command bench-hot measures what one account takes that every payment goes to, at the merchants' participant on
// PostgreSQL, behind its barrier: a payment is a try and a confirm of one leg. The ways to keep a hot account stand side by
// side, beside payments spread over many merchants. After each the money is counted.
//
//	bench-hot --clients 256 --rounds 2 --round 5s
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/payees"
	"github.com/lockstep-tx/lockstep/coordinator/bench/rig"
	"github.com/lockstep-tx/lockstep/coordinator/bench/stats"
	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// way is one way to keep the account.
type way struct {
	name      string
	mode      ledger.Mode
	accounts  int
	shards    int
	alone     bool // each call in a local transaction of its own, many at once
	against   string
	atLeast   float64 // in multiples of against
	perSecond []float64
}

func ways(spread int) []*way {
	return []*way{
		{name: "spread", mode: ledger.Direct, accounts: spread},
		{name: "direct", mode: ledger.Direct, accounts: 1, alone: true},
		{name: "serial batch", mode: ledger.Serial, accounts: 1, against: "direct", atLeast: 5},
		{name: "buffered", mode: ledger.Buffered, accounts: 1, against: "spread", atLeast: 0.8},
		{name: "aggregated", mode: ledger.Aggregated, accounts: 1, against: "spread", atLeast: 0.8},
		{name: "sub-accounts", mode: ledger.Split, accounts: 1, shards: 16},
	}
}

type options struct {
	clients, rounds, spread int
	round, warmUp           time.Duration
	server                  string
}

func main() {
	o := options{server: os.Getenv("LOCKSTEP_TEST_POSTGRES_URL")}
	flag.IntVar(&o.clients, "clients", 256, "concurrent payments")
	flag.IntVar(&o.rounds, "rounds", 2, "how often each takes its turn")
	flag.IntVar(&o.spread, "spread", 10_000, "merchants of the spread case")
	flag.DurationVar(&o.round, "round", 5*time.Second, "measured window of a turn")
	flag.DurationVar(&o.warmUp, "warm-up", time.Second, "load before each window")
	flag.Parse()
	if o.server == "" {
		fmt.Fprintln(os.Stderr, "bench-hot: LOCKSTEP_TEST_POSTGRES_URL names no server\nnext: make bench-hot")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench-hot:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	fmt.Printf("%d cores, %s; one merchant, %d payments at once, PostgreSQL\n", runtime.NumCPU(), runtime.Version(), o.clients)
	all := ways(o.spread)
	for round := range o.rounds {
		for _, w := range all {
			n, err := measure(ctx, o, w)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			w.perSecond = append(w.perSecond, n)
			fmt.Printf("round %d  %-13s %7.0f payments/s; the money is right\n", round+1, w.name, n)
		}
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\nmedians of %d\tpayments/s\n", o.rounds)
	median := map[string]float64{}
	for _, w := range all {
		median[w.name] = stats.Median(w.perSecond)
	}
	for _, w := range all {
		verdict := ""
		if w.against != "" {
			ratio := median[w.name] / median[w.against]
			verdict = fmt.Sprintf("%.2f times %s: PASS (at least %g)", ratio, w.against, w.atLeast)
			if ratio < w.atLeast {
				verdict = fmt.Sprintf("%.2f times %s: FALLS SHORT (at least %g)", ratio, w.against, w.atLeast)
			}
		}
		fmt.Fprintf(t, "%s\t%.0f\t%s\n", w.name, median[w.name], verdict)
	}
	return t.Flush()
}

// measure runs payments to one way's accounts on an empty database.
func measure(ctx context.Context, o options, w *way) (perSecond float64, err error) {
	url, drop, err := rig.CreateDatabase(ctx, o.server)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, drop(context.WithoutCancel(ctx))) }()
	if err := payees.Prepare(ctx, url, payees.Plan{Kind: "merchant", N: w.accounts, Mode: w.mode, Shards: w.shards}); err != nil {
		return 0, err
	}
	po := payees.Options{Style: payees.Kit, URL: url, Conns: 32}
	if w.alone {
		po.Together, po.Workers = 1, 32
	}
	p, err := payees.New(ctx, po)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	postCtx, stopPoster := context.WithCancel(ctx)
	var poster sync.WaitGroup
	if w.mode == ledger.Buffered {
		poster.Go(func() { _ = p.Post(postCtx) })
	}
	var measuring atomic.Bool
	var stop atomic.Bool
	var paid, counted atomic.Int64
	errs := make([]error, o.clients)
	var clients sync.WaitGroup
	for i := range o.clients {
		clients.Go(func() {
			for !stop.Load() && errs[i] == nil {
				if errs[i] = pay(ctx, p, w.accounts); errs[i] != nil {
					return
				}
				paid.Add(1)
				if measuring.Load() {
					counted.Add(1)
				}
			}
		})
	}
	sleep(ctx, o.warmUp)
	measuring.Store(true)
	began := time.Now()
	sleep(ctx, o.round)
	measuring.Store(false)
	took := time.Since(began)
	stop.Store(true)
	clients.Wait()
	stopPoster()
	poster.Wait()
	if err := errors.Join(append(errs, ctx.Err())...); err != nil {
		return 0, err
	}
	got, err := p.Sums(ctx)
	if err != nil {
		return 0, err
	}
	if want := -paid.Load() * payees.PaymentMinor; got.Clearing != want || got.Pending != 0 {
		return 0, fmt.Errorf("%d payments moved %d and left %d pending, want %d", paid.Load(), got.Clearing, got.Pending, want)
	}
	return float64(counted.Load()) / took.Seconds(), nil
}

// pay makes one payment's try and confirm, as a coordinator does.
func pay(ctx context.Context, p *payees.Payee, accounts int) error {
	gid := slot.NewGid(time.Now(), nil)
	payload, err := json.Marshal(payees.Order{Debit: payees.Clearing, Credit: payees.Account("merchant", rand.IntN(accounts)), Minor: payees.PaymentMinor})
	if err != nil {
		return err
	}
	for _, op := range []string{barrier.OpTry, barrier.OpConfirm} {
		call := &barrier.Call{TransType: "tcc", Gid: gid, BranchID: "01", Op: op, Fence: barrier.Fence{Slot: slot.Of(gid), Epoch: 1}}
		for attempt := 0; ; attempt++ {
			err := p.Call(ctx, "/leg/"+op, call, payload)
			if err == nil {
				break
			}
			if attempt == 20 || ctx.Err() != nil || errors.Is(err, barrier.ErrRefused) {
				return fmt.Errorf("%s: %w", op, err)
			}
			call = &barrier.Call{TransType: "tcc", Gid: gid, BranchID: "01", Op: op, Fence: call.Fence} // a repeat, as after any Unknown
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
