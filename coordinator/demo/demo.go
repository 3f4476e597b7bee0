// Package demo is `lockstep demo`: real payments on this machine, in two or more regions whose coordinators, brokers,
// participants and arbiter are processes of their own. A coordinator is killed, slots are moved under load, the link between
// the regions is cut and healed, drift is planted, found and repaired, a region is lost whole, failed over by force, and
// returns; it ends by counting the money.
//
// The law it keeps: it shows nothing that it did not do. The processes are those that anybody runs, faults come from a
// program that the product does not know, the money is read from the participants' databases by statements of its own, and
// one cent too much or too little is a failure.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Config of a demo.
type Config struct {
	Out io.Writer
	// Lockstep, Participants and Chaos are the programs.
	Lockstep, Participants, Chaos string
	// Regions is how many there are: 2 or more.
	Regions int
	// Duration is how long it all takes, about.
	Duration time.Duration
	// Keep leaves everything running at the end until ctx ends, and the directory with databases and logs behind.
	Keep bool
	// DB is the address of a database for the participants, which must be empty; "" is SQLite files. On PostgreSQL the
	// regions' wallets get databases beside it.
	DB string
	// Kafka is the address of a broker; "" is an embedded one for each region.
	Kafka string
	// Rate is how many payments a second a region's load makes at the most.
	Rate int
	// Timeline is the file that the HTML timeline is written to.
	Timeline string
}

// demo is one run.
type demo struct {
	cfg      Config
	dir      string
	start    time.Time
	first    time.Duration // when the first payment was made
	world    *world
	shopAddr string
	parts    *participants // the shop's
	gate     *gate
	payer    *payer
	load     *load
	watch    *watcher
	drift    []*planted
	loss     *loss // nil until a region is lost
	// apartSince is when drift is looked for from: a little before the link was cut.
	apartSince time.Time
	rested     time.Time // when the load was over
	want       ledger
	acts       int
	patience   time.Duration // for everything to come to rest
	refused    atomic.Int64
	made       atomic.Int64
}

// ledger is what the shop's money should be in the end, counted from what the coordinator answered alone.
type ledger struct {
	mu       sync.Mutex
	spent    int64
	refunded int64
	points   int64
}

func newDemo(cfg Config) *demo {
	d := &demo{cfg: cfg, start: time.Now(), load: newLoad(cfg.Rate), patience: quietLimit}
	d.watch = &watcher{d: d, seconds: map[string][]second{}}
	return d
}

// Run plays the demo. It returns an error when anything did not go as told, and when the money is off.
func Run(ctx context.Context, cfg Config) error {
	d := newDemo(cfg)
	return d.play(ctx, d.open, d.payWithDTM, d.payNative, d.payOrders, d.refuse, d.beginLoad, d.kill, d.moveSlots, d.cutLink, d.heal, d.repair, d.loseRegion, d.bringBack, d.end, d.keep)
}

// play plays acts in a directory of its own, and cleans up.
func (d *demo) play(ctx context.Context, acts ...func(context.Context) error) (err error) {
	if d.dir, err = os.MkdirTemp("", "lockstep-demo-*"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	for _, act := range acts {
		if err := act(ctx); err != nil {
			if ctx.Err() != nil {
				return errors.New("interrupted; everything was stopped")
			}
			return err
		}
	}
	return nil
}

// tell prints one line of the story. Several goroutines may.
func (d *demo) tell(format string, args ...any) {
	fmt.Fprintf(d.cfg.Out, "%6.2fs  %s\n", time.Since(d.start).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) act(format string, args ...any) {
	d.acts++
	d.tell("act %d: %s", d.acts, fmt.Sprintf(format, args...))
}

// until waits for a part of the whole duration to be over.
func (d *demo) until(ctx context.Context, part float64) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(d.start.Add(time.Duration(part * float64(d.cfg.Duration))))):
		return nil
	}
}

// home is the region whose coordinator the shop talks to.
func (d *demo) home() *region { return d.world.regions[0] }

// Accounts of the shop's story. Amounts are fen, the hundredth of a yuan.
const (
	buyers       = 20
	merchants    = 5
	firstDeposit = 1_000_000
)

func buyer(i int) string    { return fmt.Sprintf("buyer-%02d", i%buyers) }
func merchant(i int) string { return fmt.Sprintf("merchant-%02d", i%merchants) }

// open starts the processes and opens the accounts.
func (d *demo) open(ctx context.Context) error {
	if err := d.bringUp(ctx); err != nil {
		return err
	}
	var err error
	if d.gate, err = newGate(d.parts.base); err != nil {
		return err
	}
	if d.payer, err = startPayer(d.cfg.Participants, filepath.Join(d.dir, "payer.log"), "http://"+d.home().addr.HTTP+"/api/dtmsvr", d.parts.base); err != nil {
		return err
	}
	for i := range buyers {
		if err := d.parts.create(ctx, "buyer", buyer(i), firstDeposit); err != nil {
			return err
		}
	}
	for i := range merchants {
		if err := d.parts.create(ctx, "merchant", merchant(i), 0); err != nil {
			return err
		}
	}
	if err := d.parts.create(ctx, "article", article, articleStock); err != nil {
		return err
	}
	d.introduce()
	return nil
}

// introduce says what runs.
func (d *demo) introduce() {
	where := "SQLite databases"
	if scheme, _, ok := strings.Cut(d.cfg.DB, ":"); ok {
		where = "a " + scheme + " database"
	}
	brokers := "an embedded Kafka broker each"
	if d.cfg.Kafka != "" {
		brokers = "Kafka at " + d.cfg.Kafka
	}
	var pids []string
	for _, r := range d.world.regions {
		pids = append(pids, fmt.Sprintf("%s (coordinator %d)", r.name, r.coord.pid()))
	}
	d.tell("regions %s with %s, an arbiter of %d members, wallets and a shop (pid %d) on %s run; %d wallets and %d buyers have %s each",
		strings.Join(pids, ", "), brokers, arbiterMembers, d.parts.pid(), where, wallets, buyers, yuan(firstDeposit))
}

func yuan(fen int64) string {
	if fen < 0 {
		return "-" + yuan(-fen)
	}
	return fmt.Sprintf("¥%d.%02d", fen/100, fen%100)
}
