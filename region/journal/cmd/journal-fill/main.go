// Command journal-fill writes synthetic finished transactions into a journal, as fast as it takes them: for
// measurements of a coordinator whose journal is large. The rows go through Append, as a coordinator's do.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/journal/sample"
	"github.com/lockstep-tx/lockstep/region/slot"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

type options struct {
	URL     string        `required:"" help:"The journal: sqlite:/path/file.db, postgres://… or mysql://…" env:"LOCKSTEP_JOURNAL_URL"`
	Rows    int           `default:"1000000" help:"How many transactions to write."`
	Batch   int           `default:"1000" help:"Rows in one append."`
	Workers int           `default:"2" help:"Appends at a time. SQLite takes one after the other."`
	Span    time.Duration `default:"1h" help:"The transactions began evenly over this time, up to now."`
	Gids    string        `default:"new" enum:"new,random" help:"new: as the coordinator makes them, which sort by time. random: as DTM's clients make them."`
}

func (o *options) Validate() error {
	if o.Rows < 1 || o.Batch < 1 || o.Workers < 1 || o.Span < 0 {
		return errors.New("--rows, --batch and --workers are at least 1, --span is not negative")
	}
	return nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var o options
	code := -1
	parser, err := kong.New(&o, kong.Name("journal-fill"), kong.Writers(stdout, stderr), kong.Exit(func(n int) { code = n }),
		kong.Description("Write synthetic finished transactions into a journal."))
	if err == nil {
		_, err = parser.Parse(args)
	}
	switch {
	case code >= 0: // --help was printed
		return code
	case err != nil:
		fmt.Fprintln(stderr, "journal-fill:", err)
		return 2
	}
	if err := fill(ctx, &o, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, "journal-fill:", err)
		return 1
	}
	return 0
}

func fill(ctx context.Context, o *options, stdout, stderr io.Writer) error {
	j, err := journal.Open(ctx, o.URL)
	if err != nil {
		return err
	}
	defer j.Close()
	start := time.Now()
	var written atomic.Int64
	batches := make(chan []engine.Row, o.Workers)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(batches)
		return generate(ctx, o, start, batches)
	})
	for range o.Workers {
		g.Go(func() error {
			for rows := range batches {
				if err := j.Append(ctx, rows); err != nil {
					return err
				}
				written.Add(int64(len(rows)))
			}
			return nil
		})
	}
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-time.After(5 * time.Second):
				fmt.Fprintf(stderr, "%d of %d rows\n", written.Load(), o.Rows)
			case <-done:
				return
			}
		}
	}()
	err = g.Wait()
	close(done)
	took := time.Since(start)
	n := written.Load()
	fmt.Fprintf(stdout, "%d rows in %.1f s: %.0f rows/s\n", n, took.Seconds(), float64(n)/took.Seconds())
	return err
}

func generate(ctx context.Context, o *options, now time.Time, batches chan<- []engine.Row) error {
	var m sample.Maker
	for from := 0; from < o.Rows; from += o.Batch {
		rows := make([]engine.Row, 0, o.Batch)
		for i := from; i < min(from+o.Batch, o.Rows); i++ {
			at := now.Add(-o.Span + time.Duration(float64(o.Span)*float64(i)/float64(o.Rows)))
			gid := slot.NewGid(at, nil)
			if o.Gids == "random" {
				gid = fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64())
			}
			rows = append(rows, m.Row(sample.Payment{Gid: txn.Gid(gid), BegunAt: at.UnixMilli(), Abort: i%50 == 0}))
		}
		select {
		case batches <- rows:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
