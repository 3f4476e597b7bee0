// Command bench-failover measures what the loss of a whole region costs: two regions on this machine, each on one core, with
// a round trip of 40 ms between them and to the arbiter, both under load; everything of east is killed at a random moment,
// and `lockstep region failover` gives its slots to west. It prints the RTO in its parts and the RPO for each durability,
// against what the clients had been told, over --runs runs on fresh disks, and whether the targets hold.
// `make bench-failover` builds what it needs and calls it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/stats"
)

type options struct {
	rtt           time.Duration
	runs          int
	rate          float64
	global        int
	warm, unheard time.Duration
	limit         time.Duration
	dir, bin      string
	check, keep   bool
}

// firstSuccess is the target: from the confirmation to the first payment on an account of the lost region.
const firstSuccess = 2 * time.Second

func main() {
	var o options
	quick := false
	flag.DurationVar(&o.rtt, "rtt", 40*time.Millisecond, "round trip between the regions, and to the arbiter")
	flag.IntVar(&o.runs, "runs", 20, "how often a region is killed")
	flag.Float64Var(&o.rate, "rate", 60, "payments per second in each region")
	flag.IntVar(&o.global, "global", 25, "payments of a hundred that have durability global")
	flag.DurationVar(&o.warm, "warm", 3*time.Second, "load before the kill; up to two seconds more, at random")
	flag.DurationVar(&o.unheard, "unheard", 3*time.Second, "silence after which west's status calls east lost")
	flag.DurationVar(&o.limit, "limit", 2*time.Minute, "for one run")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "where the run's files go; must be on a disk")
	flag.StringVar(&o.bin, "bin", "bin", "where lockstep, lockstep-participants and lockstep-chaos are")
	flag.BoolVar(&o.check, "check", false, "exit with 1 when a target is missed")
	flag.BoolVar(&o.keep, "keep", false, "leave the logs")
	flag.BoolVar(&quick, "quick", false, "one short run: does it work at all?")
	flag.Parse()
	if quick {
		o.runs, o.warm = 1, time.Second
	}
	bin, err := filepath.Abs(o.bin)
	if err != nil || o.runs < 1 {
		fmt.Fprintln(os.Stderr, "bench-failover: --runs of 1 at least:", err)
		os.Exit(2)
	}
	o.bin = bin
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	short, err := measure(ctx, o)
	switch {
	case ctx.Err() != nil:
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench-failover:", err)
		os.Exit(1)
	case o.check && short > 0:
		os.Exit(1)
	}
}

func measure(ctx context.Context, o options) (short int, err error) {
	fmt.Printf("two regions, a core each, round trip %v (also to the arbiter, one member), a broker of ours and wallets on SQLite each, %.0f payments/s each, %d in a hundred global; everything of east gets SIGKILL\n",
		o.rtt, o.rate, o.global)
	var all []*outcome
	for i := range o.runs {
		rctx, cancel := context.WithTimeout(ctx, o.limit)
		out, err := run(rctx, o)
		cancel()
		if err != nil {
			return 0, fmt.Errorf("run %d: %w", i+1, err)
		}
		all = append(all, out)
		fmt.Printf("run %2d: %s\n", i+1, out)
	}
	fmt.Println()
	return report(all), nil
}

// row prints one figure with its target.
func row(what, got, target string, ok bool) int {
	mark, short := "", 0
	if !ok {
		mark, short = "  FALLS SHORT", 1
	}
	fmt.Printf("%-62s %-28s %s%s\n", what, got, target, mark)
	return short
}

// report prints p50 and worst over the runs, and gives how many targets are missed.
func report(all []*outcome) (short int) {
	times := func(of func(*outcome) time.Duration) (string, time.Duration) {
		var list []time.Duration
		for _, o := range all {
			list = append(list, of(o))
		}
		slices.Sort(list)
		worst := list[len(list)-1]
		return fmt.Sprintf("%d / %d ms", stats.Percentile(list, 50).Milliseconds(), worst.Milliseconds()), worst
	}
	fmt.Printf("%d runs, p50 / worst\n", len(all))
	got, _ := times(func(o *outcome) time.Duration { return o.detect })
	row("detect: from the kill until west's status misses east", got, "", true)
	got, _ = times(func(o *outcome) time.Duration { return o.decide })
	row("decide: the tool shows the exposure", got, "", true)
	got, _ = times(func(o *outcome) time.Duration { return o.given })
	row("switch: from the confirmation until west may serve", got, "", true)
	got, _ = times(func(o *outcome) time.Duration { return o.served })
	row("  until canaries in 64 slots, evenly spread, were served", got, "", true)
	got, worst := times(func(o *outcome) time.Duration { return o.first })
	short += row("first success: from the confirmation to a payment", got, fmt.Sprintf("worst at most %v", firstSuccess), worst <= firstSuccess)
	got, _ = times(func(o *outcome) time.Duration { return o.decide + o.first })
	row("  from the operator's command, with what it shows first", got, "", true)
	got, _ = times(func(o *outcome) time.Duration { return o.every })
	row("  until every account of east that was tried has paid", got, "", true)
	lost := func(g bool) (counts []int, oldest time.Duration, told int) {
		for _, o := range all {
			r := o.rpo[g]
			counts, oldest, told = append(counts, r.lost), max(oldest, r.age), told+r.told
		}
		slices.Sort(counts)
		return counts, oldest, told
	}
	counts, oldest, told := lost(false)
	row(fmt.Sprintf("RPO regional: transactions told committed and not known, of %d", told),
		fmt.Sprintf("%d / %d, oldest %d ms", stats.Percentile(counts, 50), counts[len(counts)-1], oldest.Milliseconds()), "", true)
	counts, _, told = lost(true)
	none := counts[len(counts)-1] == 0
	return short + row(fmt.Sprintf("RPO global: the same, of %d", told), fmt.Sprintf("%d / %d", stats.Percentile(counts, 50), counts[len(counts)-1]), "0 in every run", none && told > 0)
}
