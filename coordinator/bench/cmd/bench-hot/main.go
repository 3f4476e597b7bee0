// Command bench-hot measures what one account takes that every payment goes to, at the merchants' participant on
// PostgreSQL, behind its barrier: a payment is a try and a confirm of one leg. The ways to keep a hot account stand side by
// side, beside payments spread over many merchants. After each the money is counted, on every account and entry by entry.
//
// Two things make ways differ, and each is named: the account's mode, and whether calls share local transactions, which is
// the kit's doing and not the mode's. Direct and spread run both ways. Serial batch is a serial account whose calls share,
// against a direct one whose calls do not: the promise is of sharing. The modes that promise to be as good as spread are held
// against the better of the two ways to spread.
//
//	bench-hot --clients 256 --rounds 2 --round 5s
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"slices"
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
	alone     bool     // each call in a local transaction of its own, many at once
	against   []string // the better of them
	atLeast   float64  // in multiples of that
	perSecond []float64
}

func ways(spread int) []*way {
	return []*way{
		{name: "spread, alone", mode: ledger.Direct, accounts: spread, alone: true},
		{name: "spread, shared", mode: ledger.Direct, accounts: spread},
		{name: "direct, alone", mode: ledger.Direct, accounts: 1, alone: true},
		{name: "direct, shared", mode: ledger.Direct, accounts: 1},
		{name: "serial batch", mode: ledger.Serial, accounts: 1, against: []string{"direct, alone"}, atLeast: 5},
		{name: "buffered", mode: ledger.Buffered, accounts: 1, against: []string{"spread, alone", "spread, shared"}, atLeast: 0.8},
		{name: "aggregated", mode: ledger.Aggregated, accounts: 1, against: []string{"spread, alone", "spread, shared"}, atLeast: 0.8},
		{name: "sub-accounts", mode: ledger.Split, accounts: 1, shards: 16},
	}
}

type options struct {
	clients, rounds, spread int
	round, warmUp           time.Duration
	server, only            string
	check                   bool
}

func main() {
	o := options{server: os.Getenv("LOCKSTEP_TEST_POSTGRES_URL")}
	flag.IntVar(&o.clients, "clients", 256, "concurrent payments")
	flag.IntVar(&o.rounds, "rounds", 2, "how often each takes its turn")
	flag.IntVar(&o.spread, "spread", 10_000, "merchants of the spread case")
	flag.DurationVar(&o.round, "round", 5*time.Second, "measured window of a turn")
	flag.DurationVar(&o.warmUp, "warm-up", time.Second, "load before each window")
	flag.StringVar(&o.only, "only", "", "the one way that is run, for a look")
	flag.BoolVar(&o.check, "check", false, "exit with 1 when a target is missed")
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
	all := slices.DeleteFunc(ways(o.spread), func(w *way) bool { return o.only != "" && o.only != w.name })
	if len(all) == 0 {
		return fmt.Errorf("--only: there is no way %q", o.only)
	}
	for round := range o.rounds {
		for _, w := range all {
			n, err := measure(ctx, o, w)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			w.perSecond = append(w.perSecond, n)
			fmt.Printf("round %d  %-14s %7.0f payments/s; the money is right\n", round+1, w.name, n)
		}
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\nmedians of %d\tpayments/s\n", o.rounds)
	median := map[string]float64{}
	for _, w := range all {
		median[w.name] = stats.Median(w.perSecond)
	}
	short := 0
	for _, w := range all {
		verdict := ""
		if len(w.against) > 0 && o.only == "" {
			best := slices.MaxFunc(w.against, func(a, b string) int { return cmp.Compare(median[a], median[b]) })
			ratio, word := median[w.name]/median[best], "PASS"
			if ratio < w.atLeast {
				short, word = short+1, "FALLS SHORT"
			}
			verdict = fmt.Sprintf("%.2f times %q: %s (at least %g)", ratio, best, word, w.atLeast)
		}
		fmt.Fprintf(t, "%s\t%.0f\t%s\n", w.name, median[w.name], verdict)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if o.check && short > 0 {
		return fmt.Errorf("%d targets missed", short)
	}
	return nil
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
	if got.Accounts != -got.Clearing {
		return 0, fmt.Errorf("%d went through clearing, and the accounts have %d", -got.Clearing, got.Accounts)
	}
	if err := p.Audit(ctx); err != nil {
		return 0, err
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
