// Command bench-growth measures whether a coordinator slows down as its stores fill: it starts two, one empty, one with
// many live prepared transactions in etcd and many finished ones in its journal, and lets them take turns under the same
// load. It prints throughput and latency of both, their ratios, and etcd's size before and after. `make bench-growth`
// builds and calls it.
//
// The live transactions are begun over DTM's wire. The finished ones cannot be: a million of them would take longer than
// everybody's patience, so the journal is written directly by the command that --fill-journal gives, which runs before
// the coordinator's start with {data} replaced by its --data-dir and {n} by the number of transactions. Without one, or
// with --finished 0, that part is left out and the output says so.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/fill"
	"github.com/lockstep-tx/lockstep/coordinator/bench/load"
	"github.com/lockstep-tx/lockstep/coordinator/bench/report"
	"github.com/lockstep-tx/lockstep/coordinator/bench/rig"
)

// tolerance is how much worse than the empty one the grown coordinator may be.
const tolerance = 0.10

// The two coordinators' names in the report.
const (
	empty = "empty"
	grown = "grown"
)

// sizes are etcd's own metrics of its size, on the coordinator's admin address.
var sizes = []string{"etcd_mvcc_db_total_size_in_bytes", "etcd_mvcc_db_total_size_in_use_in_bytes"}

type options struct {
	live, finished, clients, rounds, workers int
	round, warmUp                            time.Duration
	api, fillJournal, dir, binDir, contender string
	check                                    bool
}

func main() {
	var o options
	flag.IntVar(&o.live, "live", 100000, "prepared transactions that stay open")
	flag.IntVar(&o.finished, "finished", 1000000, "finished transactions in the journal")
	flag.StringVar(&o.fillJournal, "fill-journal", "", "shell command that writes {n} finished transactions into the journal of {data}")
	flag.IntVar(&o.clients, "clients", 64, "concurrent clients")
	flag.IntVar(&o.rounds, "rounds", 5, "how often each takes its turn")
	flag.DurationVar(&o.round, "round", 4*time.Second, "measured window of a turn")
	flag.DurationVar(&o.warmUp, "warm-up", time.Second, "load before each window")
	flag.StringVar(&o.api, "api", "http", "http, grpc or native")
	flag.StringVar(&o.contender, "contender", rig.Lockstep, "whose growth")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "where the run's files go; must be on a disk")
	flag.StringVar(&o.binDir, "bin", "", "where the other binaries are (default: bin/ of the module, built first)")
	flag.IntVar(&o.workers, "workers", 64, "concurrent requests while filling")
	flag.BoolVar(&o.check, "check", false, "exit with 1 when the target is missed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, o)
	switch {
	case ctx.Err() != nil:
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench-growth:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if err := rig.CheckNames([]string{o.contender}); err != nil {
		return err
	}
	r, err := rig.New(ctx, o.dir, o.binDir)
	defer func() { err = errors.Join(err, r.Close(ctx)) }()
	if err != nil {
		return err
	}
	grownDir := filepath.Join(r.Dir, grown)
	if err := fillJournal(ctx, o, filepath.Join(grownDir, "data")); err != nil {
		return err
	}
	var both []*rig.Contender
	for _, name := range []string{empty, grown} {
		c, err := r.StartIn(ctx, o.contender, filepath.Join(r.Dir, name))
		if err != nil {
			return err
		}
		c.Name = name
		both = append(both, c)
	}
	began := time.Now()
	if err := fill.New(both[1].HTTPBase, r.ParticipantsHTTP, o.workers).Prepare(ctx, "live", o.live); err != nil {
		return err
	}
	fmt.Printf("%d live transactions prepared in %s\n", o.live, time.Since(began).Round(time.Millisecond))
	printSizes(ctx, both)

	res := report.New()
	for round := range o.rounds {
		for _, c := range both {
			s, err := r.Measure(ctx, c, o.api, load.Plan{Clients: o.clients, WarmUp: o.warmUp, Duration: o.round})
			if err != nil {
				return err
			}
			k := report.Key{Contender: c.Name, API: o.api, Clients: o.clients}
			res.Samples[k] = append(res.Samples[k], s)
			fmt.Printf("%s, round %d: %6.0f tx/s, p50 %.2f ms, p99 %.2f ms\n", c.Name, round+1, s.PerSecond, s.P50MS, s.P99MS)
		}
	}
	fmt.Println()
	if err := res.Table(os.Stdout); err != nil {
		return err
	}
	printSizes(ctx, both)
	return verdict(o, res)
}

// verdict prints whether the grown coordinator is within tolerance of the empty one, on each measure.
func verdict(o options, res *report.Run) error {
	e, _ := res.Median(report.Key{Contender: empty, API: o.api, Clients: o.clients})
	g, _ := res.Median(report.Key{Contender: grown, API: o.api, Clients: o.clients})
	var short []error
	for _, m := range []struct {
		name  string
		worse float64 // by how much, 0.1 being a tenth
	}{
		{"throughput", 1 - g.PerSecond/e.PerSecond},
		{"p50", g.P50MS/e.P50MS - 1},
		{"p99", g.P99MS/e.P99MS - 1},
	} {
		word, text := "PASS", fmt.Sprintf("%s within %.0f %% of an empty store: %+.1f %% worse", m.name, tolerance*100, m.worse*100)
		if m.worse > tolerance {
			word = "FALLS SHORT"
			short = append(short, errors.New(text))
		}
		fmt.Printf("%-12s  %s\n", word, text)
	}
	if o.finished > 0 && o.fillJournal == "" {
		fmt.Printf("%-12s  with %d finished transactions in the journal: no --fill-journal command was given\n", "NOT MEASURED", o.finished)
	}
	if !o.check {
		return nil
	}
	return errors.Join(short...)
}

func fillJournal(ctx context.Context, o options, dataDir string) error {
	if o.finished == 0 || o.fillJournal == "" {
		return nil
	}
	if err := os.MkdirAll(dataDir, 0o755); err != nil {
		return err
	}
	line := strings.NewReplacer("{data}", dataDir, "{n}", strconv.Itoa(o.finished)).Replace(o.fillJournal)
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", line, err)
	}
	fmt.Printf("%d finished transactions written in %s\n", o.finished, time.Since(began).Round(time.Millisecond))
	return nil
}

// printSizes prints etcd's size for those that have an admin address; that it cannot be read is no reason to stop.
func printSizes(ctx context.Context, list []*rig.Contender) {
	for _, c := range list {
		if c.AdminAddr == "" {
			continue
		}
		found, err := readSizes(ctx, "http://"+c.AdminAddr+"/metrics")
		if err != nil {
			fmt.Printf("%s: etcd's size: %v\n", c.Name, err)
			continue
		}
		fmt.Printf("%s: %s\n", c.Name, strings.Join(found, ", "))
	}
}

func readSizes(ctx context.Context, url string) ([]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var found []string
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		// A label's value may hold spaces; the figure stands behind the last one (etcd writes no time stamps).
		line := lines.Text()
		i := strings.LastIndexByte(line, ' ')
		if i < 0 {
			continue
		}
		name, _, _ := strings.Cut(line[:i], "{")
		value := line[i+1:]
		if bytes, err := strconv.ParseFloat(value, 64); err == nil && slices.Contains(sizes, name) {
			found = append(found, fmt.Sprintf("%s %.1f MB", name, bytes/(1<<20)))
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("none of %v in %s", sizes, url)
	}
	return found, lines.Err()
}
