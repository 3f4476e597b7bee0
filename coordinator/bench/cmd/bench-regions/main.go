// Command bench-regions measures what several regions cost: two regions on this machine, each on one core, with a round trip
// of 40 ms between them and to the arbiter. It prints the replication lag at half of the maximum throughput, both
// durabilities side by side, the throughput with replication against without, and the pause of a handover's batches, and
// whether the targets hold. `make bench-regions` builds what it needs and calls it.
//
// The participants of the load do nothing (bench-participants); those whose accounts are handed over are wallets on SQLite.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/coordinator/bench/bed"
	"github.com/lockstep-tx/lockstep/coordinator/bench/stats"
)

type options struct {
	rtt, round       time.Duration
	rounds, clients  int
	batch, slots     int
	kafka, brokers   string
	dir, bin         string
	lagTarget, pause time.Duration
	check, keep      bool
}

// bench is a bed and what is measured on it.
type bench struct {
	*bed.Bed
	o options
}

func main() {
	var o options
	flag.DurationVar(&o.rtt, "rtt", 40*time.Millisecond, "round trip between the regions, and to the arbiter")
	flag.DurationVar(&o.round, "round", 6*time.Second, "length of each window")
	flag.IntVar(&o.rounds, "rounds", 3, "windows with and without replication, in turns")
	flag.IntVar(&o.clients, "clients", 48, "clients per region at full load")
	flag.IntVar(&o.slots, "slots", 256, "slots that are handed over, there and back")
	flag.IntVar(&o.batch, "batch", 32, "slots of a batch")
	flag.StringVar(&o.kafka, "kafka", "real", "real: Apache Kafka at --brokers; embedded: lockstep broker, for a quick look")
	flag.StringVar(&o.brokers, "brokers", os.Getenv("LOCKSTEP_TEST_KAFKA_URL"), "Kafka of east and of west, with a comma; one is used by both")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "where the run's files go; must be on a disk")
	flag.StringVar(&o.bin, "bin", "bin", "where lockstep, lockstep-participants, lockstep-chaos and bench-participants are")
	flag.BoolVar(&o.check, "check", false, "exit with 1 when a target is missed")
	flag.BoolVar(&o.keep, "keep", false, "leave the logs")
	writer := flag.String("bare", "", "the arbiter's address, for the process that the bench starts to write to it and do nothing else")
	loads := flag.String("load", "", "what to make, for the processes that the bench starts to make the load")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *writer != "" || *loads != "" {
		if err := serves(ctx, *writer, *loads); err != nil {
			fmt.Fprintln(os.Stderr, "bench-regions:", err)
			os.Exit(1)
		}
		return
	}
	o.lagTarget, o.pause = 250*time.Millisecond, 2*time.Second
	if o.kafka != "embedded" && o.brokers == "" {
		fmt.Fprintln(os.Stderr, "bench-regions: no Kafka: run it with bin/devctl run --, give --brokers, or --kafka embedded")
		os.Exit(2)
	}
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-regions:", err)
		os.Exit(2)
	}
	o.bin = bin
	b := &bench{o: o}
	short, err := b.measure(ctx)
	if b.Bed != nil {
		b.Close()
	}
	switch {
	case ctx.Err() != nil:
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench-regions:", err)
		os.Exit(1)
	case o.check && short > 0:
		os.Exit(1)
	}
}

// serves is what a process does that the bench has started.
func serves(ctx context.Context, arbiter, load string) error {
	if arbiter != "" {
		return bare(ctx, os.Stdout, arbiter)
	}
	var o order
	if err := json.Unmarshal([]byte(load), &o); err != nil {
		return fmt.Errorf("-load: %w", err)
	}
	return o.make(ctx, os.Stdout)
}

// row prints one figure with its target.
func row(what, got, target string, ok bool) int {
	mark, short := "", 0
	if !ok {
		mark, short = "  FALLS SHORT", 1
	}
	fmt.Printf("%-52s %-34s %s%s\n", what, got, target, mark)
	return short
}

func (b *bench) measure(ctx context.Context) (short int, err error) {
	o := b.o
	began := time.Now()
	b.Bed, err = bed.New(ctx, bed.Config{RTT: o.rtt, Kafka: o.kafka, Brokers: o.brokers, Dir: o.dir, Bin: o.bin, Idle: true, Keep: o.keep})
	if err != nil {
		return 0, err
	}
	fmt.Printf("two regions, a core each, round trip %v (also to the arbiter), Kafka %s (%s; before the rest of its core: %v), participants of the load do nothing, the load gives way to all (nice %s); started in %v\n",
		o.rtt, o.kafka, o.brokers, b.Preferred, loadNice, time.Since(began).Round(time.Second))
	if _, err := b.both(ctx, false, o.clients, 0, client.Regional, client.Finished, o.round/2); err != nil { // warm up
		return 0, err
	}
	if _, err := b.both(ctx, true, o.clients, 0, client.Regional, client.Finished, o.round/2); err != nil {
		return 0, err
	}
	var with, without []float64
	for i := range o.rounds {
		w, err := b.both(ctx, false, o.clients, 0, client.Regional, client.Finished, o.round)
		if err != nil {
			return 0, err
		}
		b.quiet(ctx)
		p, err := b.both(ctx, true, o.clients, 0, client.Regional, client.Finished, o.round)
		if err != nil {
			return 0, err
		}
		fmt.Printf("round %d: %.0f tx/s with replication (%d failed %s), %.0f without (%d failed %s)\n", i+1, w.PerSecond, w.Failed, w.Sample, p.PerSecond, p.Failed, p.Sample)
		with, without = append(with, w.PerSecond), append(without, p.PerSecond)
	}
	maximum := stats.Median(with)
	b.quiet(ctx)
	// What the full load has left behind (records to be purged, logs to be compacted) is no part of the lag at half of it.
	if _, err := b.both(ctx, false, o.clients, maximum/2, client.Regional, client.Finished, o.round); err != nil {
		return 0, err
	}
	b.quiet(ctx)
	before, err := b.delays()
	if err != nil {
		return 0, err
	}
	half, err := b.both(ctx, false, o.clients, maximum/2, client.Regional, client.Finished, 3*o.round)
	if err != nil {
		return 0, err
	}
	b.quiet(ctx)
	after, err := b.delays()
	if err != nil {
		return 0, err
	}
	lag50, count := lag(before, after, 50)
	lag99, _ := lag(before, after, 99)
	bare, halt := b.bareWrites(ctx)
	defer halt()
	var durable [2]window
	for range o.rounds { // in turns, at a tenth of the maximum
		for i, d := range []client.Durability{client.Regional, client.Global} {
			w, err := b.both(ctx, false, o.clients, maximum/10, d, client.Decided, o.round/2)
			if err != nil {
				return 0, err
			}
			durable[i].Took = append(durable[i].Took, w.Took...)
			durable[i].Failed += w.Failed
			durable[i].Sample = w.Sample
		}
	}
	halt()
	pauses, err := b.handovers(ctx, maximum/2)
	if err != nil {
		return 0, err
	}
	fmt.Println()
	ratio := maximum / stats.Median(without)
	short += row("throughput with replication against without", fmt.Sprintf("%.2f (%.0f and %.0f tx/s)", ratio, maximum, stats.Median(without)), "at least 0.80", ratio >= 0.8)
	short += row(fmt.Sprintf("replication lag at %.0f tx/s, p50 / p99 (buckets' ends)", half.PerSecond), fmt.Sprintf("<= %.0f / <= %.0f ms of %.0f events", lag50, lag99, count), "p99 at most 250 ms", count > 0 && lag99 <= float64(o.lagTarget.Milliseconds()))
	r, g := &durable[0], &durable[1]
	row("regional: decided after, p50 / p99", fmt.Sprintf("%.1f / %.1f ms (%d, %d failed %s)", r.ms(50), r.ms(99), len(r.Took), r.Failed, r.Sample), "", true)
	short += row("global: decided after, p50 / p99", fmt.Sprintf("%.1f / %.1f ms (%d, %d failed %s)", g.ms(50), g.ms(99), len(g.Took), g.Failed, g.Sample), "", len(g.Took) > 0)
	// A round trip to the arbiter is what a write there takes that does nothing else, from the same core, measured beside these: the way
	// there and back, and the disk. A global decision is written into the region's store too.
	more := g.ms(50) - r.ms(50)
	rtt, floor := float64(o.rtt.Microseconds())/1000, bare.ms(50)
	short += row("global, more than regional at p50", fmt.Sprintf("%.1f ms = %.2f writes (%.2f of %.0f ms)", more, more/floor, more/rtt, rtt),
		fmt.Sprintf("one write to the arbiter (%.1f ms), to 15 %%", floor), len(g.Took) > 0 && len(bare.Took) > 0 && bare.Failed == 0 && more <= 1.15*floor)
	slices.Sort(pauses)
	short += row(fmt.Sprintf("pause of a batch of %d slots, p50 / p99 / max of %d", o.batch, len(pauses)), fmt.Sprintf("%.0f / %.0f / %.0f ms", stats.Percentile(pauses, 50), stats.Percentile(pauses, 99), stats.Percentile(pauses, 100)), "p99 at most 2000 ms", len(pauses) > 0 && stats.Percentile(pauses, 99) <= float64(o.pause.Milliseconds()))
	return short, nil
}

// quiet waits until every region has what the other has, for half a minute at most.
func (b *bench) quiet(ctx context.Context) {
	last := -1.0
	for i := 0; i < 60 && ctx.Err() == nil; i++ {
		m, err := b.delays()
		if err == nil && m[1e9] == last {
			return
		}
		last = m[1e9]
		time.Sleep(500 * time.Millisecond)
	}
}

var batchLine = regexp.MustCompile(`(?m)^batch \d+: \d+ slots; switched after \d+ ms, first success after (\d+) ms$`)

// handovers moves slots there and back under load and gives the batches' pauses as the tool reports them: from the freeze to
// the first success in the last of its slots.
func (b *bench) handovers(ctx context.Context, rate float64) (all []float64, err error) {
	lctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var w window
	var lerr error
	wg.Go(func() {
		w, lerr = b.both(lctx, false, b.o.clients, rate, client.Regional, client.Finished, 10*time.Minute) // ended by lctx
	})
	defer func() {
		cancel()
		wg.Wait()
		if lerr != nil {
			all, err = nil, errors.Join(err, fmt.Errorf("the load during the handovers: %w", lerr))
		}
		fmt.Printf("during the handovers: p99 %.1f ms, slowest %.0f ms, %d failed %s\n", w.ms(99), w.ms(100), w.Failed, w.Sample)
	}()
	// Even slots are east's.
	for _, way := range [][3]string{{"handover", "east", "west"}, {"failback", "west", "east"}} {
		list := ""
		for n := range b.o.slots {
			list += strconv.Itoa(2*n) + ","
		}
		out, err := b.Tool(ctx, "region", way[0], "--context", b.Regions[0].File, "--from", way[1], "--to", way[2], "--slots", list[:len(list)-1],
			"--batch", strconv.Itoa(b.o.batch), "--pause", "500ms", "--max-lag", "30s", "--why", "bench")
		if err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", way[0], err, out)
		}
		for _, m := range batchLine.FindAllStringSubmatch(out, -1) {
			ms, err := strconv.ParseFloat(m[1], 64)
			if err != nil {
				return nil, err
			}
			all = append(all, ms)
		}
	}
	return all, nil
}
