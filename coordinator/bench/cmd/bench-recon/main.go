// Command bench-recon measures a day's reconciliation: so many lines of a channel's file against so many payments in SQLite,
// and beside it sort and join of the coreutils on the same data, which is the bare work.
//
// Its law: the measured process is one of its own, whose time and greatest memory the kernel tells; it loads the file, with
// every check, and compares the day, and what was planted must be what it finds.
package main

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/lockstep-tx/lockstep/participants/payment"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
	"github.com/lockstep-tx/lockstep/region/reconcile/dayend"
	"github.com/lockstep-tx/lockstep/region/reconcile/dayend/books"
)

type cli struct {
	Lines int    `help:"Lines of the file, and payments." default:"10000000"`
	Every int    `help:"One in so many is only ours, one only theirs, one of another amount." default:"50000"`
	Dir   string `help:"Directory for the data. Defaults to a temporary one that is removed; in one that is given, what is there is used again." type:"path"`
	Check bool   `help:"Exit code 1 when a target is missed."`
	Child string `hidden:"" help:"make or run: what a process of its own does."`
}

// The targets of the issue.
const (
	timeMax   = 60 * time.Second
	memoryMax = 512 << 20
	day       = "20261120"
)

func main() {
	var c cli
	kong.Parse(&c, kong.Description("What reconciling a day costs."))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	work := c.run
	switch c.Child {
	case "make":
		work = c.make
	case "run":
		work = c.child
	}
	if err := work(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench-recon:", err)
		os.Exit(1)
	}
}

func (c *cli) path(name string) string { return filepath.Join(c.Dir, name) }

func (c *cli) run(ctx context.Context) (err error) {
	if c.Dir == "" {
		if c.Dir, err = os.MkdirTemp("", "bench-recon"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(c.Dir)) }()
	}
	if _, serr := os.Stat(c.path("made")); serr != nil {
		began := time.Now()
		// A process of its own, so that what is measured afterwards does not inherit its memory.
		if _, err := c.measured(ctx, os.Args[0], "--child=make", "--dir", c.Dir, "--lines", fmt.Sprint(c.Lines), "--every", fmt.Sprint(c.Every)); err != nil {
			return err
		}
		fmt.Printf("made %d lines and %d payments in %.0f s\n", c.Lines, c.Lines, time.Since(began).Seconds())
	}
	if err := os.RemoveAll(c.path("recon")); err != nil {
		return err
	}
	ours, err := c.measured(ctx, os.Args[0], "--child=run", "--dir", c.Dir, "--lines", fmt.Sprint(c.Lines), "--every", fmt.Sprint(c.Every))
	if err != nil {
		return err
	}
	floor, err := c.measured(ctx, "sh", "-c", `export LC_ALL=C; cd "$0" && sort -S 128M -T . -t, -k1,1 theirs.txt -o theirs.sorted && sort -S 128M -T . -t, -k1,1 ours.txt -o ours.sorted &&
		join -t, -a1 -a2 -e- -o 0,1.2,2.2 ours.sorted theirs.sorted | awk -F, '$2 != $3' | wc -l && rm -f theirs.sorted ours.sorted`, c.Dir)
	if err != nil {
		return err
	}
	fmt.Printf("lockstep recon  %6.1f s  %4d MB  load, checks, %d lines against %d rows of SQL\n", ours.took.Seconds(), ours.memory>>20, c.Lines, c.Lines)
	fmt.Printf("sort and join   %6.1f s  %4d MB  the floor: both sides are text files already\n", floor.took.Seconds(), floor.memory>>20)
	fmt.Printf("ratio           %6.2f\n", ours.took.Seconds()/floor.took.Seconds())
	verdict := "PASS"
	if ours.took > timeMax || ours.memory > memoryMax {
		verdict = "FALLS SHORT"
	}
	fmt.Printf("%s (target: 60 s, 512 MB, for 10,000,000)\n", verdict)
	if verdict != "PASS" && c.Check {
		return errors.New("a target was missed")
	}
	return nil
}

type cost struct {
	took   time.Duration
	memory int64
}

// measured runs a process to its end.
func (c *cli) measured(ctx context.Context, name string, args ...string) (cost, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return cost{}, fmt.Errorf("%s: %w", name, err)
	}
	return cost{time.Since(began), cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10}, nil
}

func (c *cli) mapping() (*channelfile.Mapping, error) {
	column := func(n int) channelfile.Field { return channelfile.Field{Column: n} }
	m := &channelfile.Mapping{
		Channel: "bench", Kind: channelfile.Business, Format: "csv", Amount: "decimal", Zone: "UTC", DayCut: "22:00", Straddle: 30 * time.Minute,
		Trailer:   &channelfile.Frame{Begins: "T,", Fields: map[string]channelfile.Field{"count": column(2), "sum": column(3)}},
		Fields:    map[string]channelfile.Field{"payment": column(1), "amount": column(2), "currency": column(3), "state": column(4), "time": column(5)},
		States:    map[string]string{"SUCCESS": "paid"},
		Time:      "2006-01-02 15:04:05",
		Name:      `^bench_(?P<day>\d{8})\.csv$`,
		Signature: channelfile.Signature{Type: "hmac-sha256", KeyFile: c.path("secret")},
	}
	return m, m.Check()
}

// acts answers for the payments' API, which is not measured.
type acts struct{ *books.Payments }

func (acts) Reverse(context.Context, string, string) (string, bool, error) {
	return "reversed", true, nil
}

// child is what is measured.
func (c *cli) child(ctx context.Context) error {
	m, err := c.mapping()
	if err != nil {
		return err
	}
	b, err := dayend.Open(ctx, "sqlite:"+c.path("recon.db"), c.path("recon"))
	if err != nil {
		return err
	}
	defer func() { b.DB.Close(); os.Remove(c.path("recon.db")) }()
	db, d, err := sqldb.Open(ctx, "sqlite:"+c.path("merchant.db"))
	if err != nil {
		return err
	}
	defer db.Close()
	began := time.Now()
	f, err := b.Load(ctx, m, c.path("bench_"+day+".csv"))
	if err != nil {
		return err
	}
	loaded := time.Since(began)
	b.Now = func() time.Time { return time.UnixMilli(f.CutMS).Add(time.Hour) }
	r, _, err := b.Run(ctx, m, acts{&books.Payments{DB: db, Dialect: d}}, day, dayend.Options{})
	if err != nil {
		return err
	}
	fmt.Printf("  load %.1f s, compare %.1f s, %d matched, %v stand, %v ended\n", loaded.Seconds(), (time.Since(began) - loaded).Seconds(), r.Matched, r.Standing, r.Ended)
	n := c.Lines / c.Every
	if r.Standing[dayend.Short] != n || r.Standing[dayend.AmountDiffers] != n || r.Ended[dayend.Long] != n || r.Differences() != 2*n {
		return fmt.Errorf("%d differences of each class were planted; found %v and %v", n, r.Standing, r.Ended)
	}
	return nil
}

// make writes the payments into SQLite, the channel's file with its signature, and both sides as text for sort and join.
func (c *cli) make(ctx context.Context) (err error) {
	m, err := c.mapping()
	if err != nil {
		return err
	}
	cut, err := m.CutOf(day)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.path("secret"), []byte("a secret of the channel's"), 0o600); err != nil {
		return err
	}
	var files [3]*os.File
	var out [3]*bufio.Writer
	for i, name := range []string{"bench_" + day + ".csv", "theirs.txt", "ours.txt"} {
		if files[i], err = os.Create(c.path(name)); err != nil {
			return err
		}
		out[i] = bufio.NewWriterSize(files[i], 1<<20)
	}
	if err := c.fill(ctx, cut, out); err != nil {
		return err
	}
	for i := range files {
		if err := errors.Join(out[i].Flush(), files[i].Close()); err != nil {
			return err
		}
	}
	if err := sign(c.path("secret"), c.path("bench_"+day+".csv")); err != nil {
		return err
	}
	return os.WriteFile(c.path("made"), nil, 0o600)
}

// fill writes row by row. The channel's lines come in another order than ours, as they would: a block is turned around.
func (c *cli) fill(ctx context.Context, cut time.Time, out [3]*bufio.Writer) error {
	for _, old := range []string{"merchant.db", "merchant.db-wal", "merchant.db-shm"} {
		if err := os.Remove(c.path(old)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	db, d, err := sqldb.Open(ctx, "sqlite:"+c.path("merchant.db"))
	if err != nil {
		return err
	}
	defer db.Close()
	if err := payment.Migrate(ctx, db, d); err != nil {
		return err
	}
	for _, stmt := range []string{"PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF", "PRAGMA cache_size = -3000000", "DROP INDEX payment_by_state", "DROP INDEX payment_by_decision"} {
		if _, err := db.ExecContext(ctx, stmt); err != nil {
			return err
		}
	}
	const block = 50_000
	lines, theirs, sum := make([]string, 0, block), 0, int64(0)
	for at := 0; at < c.Lines; at += block {
		lines = lines[:0]
		err := sqldb.InTx(ctx, db, func(tx *sql.Tx) error {
			put, err := tx.PrepareContext(ctx, "INSERT INTO payment (id, merchant, order_no, body, digest, gid, state, created_ms, decided_ms) VALUES (?, ?, ?, ?, '', ?, 'paid', ?, ?)")
			if err != nil {
				return err
			}
			defer put.Close()
			for i := at; i < min(at+block, c.Lines); i++ {
				when := cut.Add(-23*time.Hour + time.Duration(i*79_200_000/c.Lines)*time.Millisecond) // none straddles
				req := payment.Request{Merchant: fmt.Sprintf("m%04d", i%5000), OrderNo: fmt.Sprintf("o%09d", i), Buyer: fmt.Sprintf("buyer-%d", i%100_000), Amount: int64(100 + i%99_900), Currency: "CNY"}
				id, amount := payment.PaymentID(req.Merchant, req.OrderNo), req.Amount
				if i%c.Every != 1 { // 1 is only theirs
					body, err := json.Marshal(req)
					if err != nil {
						return err
					}
					if _, err := put.ExecContext(ctx, id, req.Merchant, req.OrderNo, string(body), fmt.Sprintf("gid-%012d", i), when.UnixMilli()-40, when.UnixMilli()); err != nil {
						return err
					}
					fmt.Fprintf(out[2], "%s,%d\n", id, amount)
				}
				if i%c.Every == 2 { // another amount
					amount++
				}
				if i%c.Every != 3 { // 3 is only ours
					lines = append(lines, fmt.Sprintf("%s,%d.%02d,CNY,SUCCESS,%s\n", id, amount/100, amount%100, when.UTC().Format("2006-01-02 15:04:05")))
					fmt.Fprintf(out[1], "%s,%d\n", id, amount)
					theirs, sum = theirs+1, sum+amount
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for i := len(lines) - 1; i >= 0; i-- {
			if _, err := io.WriteString(out[0], lines[i]); err != nil {
				return err
			}
		}
	}
	fmt.Fprintf(out[0], "T,%d,%d.%02d\n", theirs, sum/100, sum%100)
	if err := payment.Migrate(ctx, db, d); err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, "PRAGMA journal_mode = WAL")
	return err
}
