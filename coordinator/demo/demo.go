// Package demo is `lockstep demo`: real payments on this machine, through a coordinator and a participant process with
// two databases, with a coordinator that is killed on the way; it ends by counting the money.
//
// The law it keeps: it shows nothing that it did not do. The coordinator and the participants are the processes that
// anybody runs, the money is read from the participants' databases, and one cent too much or too little is a failure.
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

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
)

// Config of a demo.
type Config struct {
	Out io.Writer
	// Lockstep and Participants are the two programs.
	Lockstep, Participants string
	// Keep leaves the directory with the databases and logs behind.
	Keep bool
	// DB is the address of a database for the participants, which must be empty; "" is two SQLite files.
	DB string
	// Load is how many payments run in the act under load.
	Load int
}

// demo is one run.
type demo struct {
	cfg     Config
	dir     string
	start   time.Time
	parts   *participants
	coord   *coordinator
	gate    *gate
	payer   *payer
	native  *client.Client
	want    ledger
	acts    int
	refused atomic.Int64
	made    atomic.Int64
}

// ledger is what the money should be in the end, counted from what the coordinator answered alone.
type ledger struct {
	mu       sync.Mutex
	spent    int64
	refunded int64
	points   int64
	unknown  []string // gids whose answer was not learned: asked again before the count
}

// Run plays the demo. It returns an error when anything did not go as told, and when the money is off.
func Run(ctx context.Context, cfg Config) error {
	d := &demo{cfg: cfg, start: time.Now()}
	return d.play(ctx, d.open, d.payWithDTM, d.payNative, d.payOrders, d.refuse, d.underLoad, d.kill, d.count)
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
				return errors.New("interrupted; everything was stopped and removed")
			}
			return err
		}
	}
	return nil
}

// tell prints one line of the story.
func (d *demo) tell(format string, args ...any) {
	fmt.Fprintf(d.cfg.Out, "%6.2fs  %s\n", time.Since(d.start).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) act(format string, args ...any) {
	d.acts++
	d.tell("act %d: %s", d.acts, fmt.Sprintf(format, args...))
}

// Accounts of the story. Amounts are fen, the hundredth of a yuan.
const (
	buyers       = 20
	merchants    = 5
	firstDeposit = 1_000_000
)

func buyer(i int) string    { return fmt.Sprintf("buyer-%02d", i%buyers) }
func merchant(i int) string { return fmt.Sprintf("merchant-%02d", i%merchants) }

// open starts the processes and opens the accounts.
func (d *demo) open(ctx context.Context) error {
	var err error
	if d.coord, err = startCoordinator(ctx, d.cfg.Lockstep, filepath.Join(d.dir, "coordinator"), addresses{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"}); err != nil {
		return err
	}
	if d.parts, err = startParticipants(ctx, d.cfg.Participants, d.dir, d.cfg.DB, d.coord.addr.GRPC); err != nil {
		return err
	}
	if d.gate, err = newGate(d.parts.base); err != nil {
		return err
	}
	if d.payer, err = startPayer(d.cfg.Participants, filepath.Join(d.dir, "payer.log"), "http://"+d.coord.addr.HTTP+"/api/dtmsvr", d.parts.base); err != nil {
		return err
	}
	if d.native, err = client.Dial(d.coord.addr.GRPC); err != nil {
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
	where := "two SQLite databases"
	if scheme, _, ok := strings.Cut(d.cfg.DB, ":"); ok {
		where = "a " + scheme + " database"
	}
	d.tell("a coordinator (pid %d, embedded etcd, synced to disk) and a participant process (pid %d, %s behind barriers) run; %d buyers have %s each",
		d.coord.pid(), d.parts.pid(), where, buyers, yuan(firstDeposit))
	return nil
}

// payWithDTM is DTM's own Go SDK, unchanged.
func (d *demo) payWithDTM(ctx context.Context) error {
	before := time.Since(d.start)
	gid, err := d.dtmPayment(ctx, 1, 10_000)
	if err != nil {
		return fmt.Errorf("the first payment, with DTM's SDK: %w", err)
	}
	d.act("%s pays %s to %s with DTM's Go SDK, unchanged: both frozen, decided, confirmed (gid %s, %.0f ms; %.1f s after the start)",
		buyer(1), yuan(10_000), merchant(1), gid, float64((time.Since(d.start) - before).Milliseconds()), time.Since(d.start).Seconds())
	return nil
}

// payNative is the native API: one call.
func (d *demo) payNative(ctx context.Context) error {
	before := time.Now()
	tx, err := d.nativePayment(ctx, 2, 25_050, d.parts.base, client.Finished)
	if err != nil {
		return err
	}
	if !tx.Committed() {
		return fmt.Errorf("the payment of %s was %s: %s", buyer(2), tx.GetPhase(), tx.GetReason())
	}
	d.act("%s pays %s to %s with one call of the native API, 250 points follow as a message (%d ms)", buyer(2), yuan(25_050), merchant(2), time.Since(before).Milliseconds())
	return nil
}

// dtmFailure is DTM's word for a refusal: anything else says nothing of the transaction.
const dtmFailure = "FAILURE"

// refuse shows that a No cancels everything.
func (d *demo) refuse(ctx context.Context) error {
	switch _, err := d.dtmPayment(ctx, 3, firstDeposit+1); {
	case err == nil:
		return errors.New("a buyer spent more than the balance")
	case !strings.Contains(err.Error(), dtmFailure):
		return fmt.Errorf("a payment of more than the balance was not refused but failed: %w", err)
	}
	tx, err := d.nativePayment(ctx, 4, firstDeposit+1, d.parts.base, client.Finished)
	if err != nil {
		return err
	}
	if !tx.Aborted() {
		return errors.New("a buyer spent more than the balance")
	}
	d.refused.Add(2)
	st, err := d.parts.state(ctx)
	if err != nil {
		return err
	}
	if st.Open != 0 {
		return fmt.Errorf("%d holds are still open after the refusals", st.Open)
	}
	d.act("two payments of %s are refused for want of money: whatever was frozen is free again", yuan(firstDeposit+1))
	return nil
}

// underLoad runs both kinds side by side.
func (d *demo) underLoad(ctx context.Context) error {
	before := time.Now()
	const workers = 8
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	for w := range workers {
		wg.Go(func() {
			for i := w; i < d.cfg.Load; i += workers {
				if err := d.onePayment(ctx, i); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	if err := <-errs; err != nil {
		return err
	}
	took := time.Since(before)
	d.act("%d payments at once, half of them over DTM's wire, half native: %.0f payments/s on this machine, each synced to disk", d.cfg.Load, float64(d.cfg.Load)/took.Seconds())
	return nil
}

func (d *demo) onePayment(ctx context.Context, i int) error {
	amount := int64(100 + i%7)
	if i%2 == 0 {
		_, err := d.dtmPayment(ctx, i, amount)
		return err
	}
	tx, err := d.nativePayment(ctx, i, amount, d.parts.base, client.Decided)
	if err == nil && !tx.Committed() {
		err = fmt.Errorf("payment %d was %s: %s", i, tx.GetPhase(), tx.GetReason())
	}
	return err
}

// kill kills the coordinator between the decision and the confirms: the first confirm has left it, so the decision is
// durable, but no participant has seen it.
func (d *demo) kill(ctx context.Context) error {
	const amount = 77_700
	caught := d.gate.close()
	gid, err := d.native.NewGid(ctx)
	if err != nil {
		return err
	}
	answered := make(chan error, 1)
	go func() {
		_, err := d.native.Execute(ctx, d.payment(gid, 5, amount, d.gate.base), client.Finished)
		answered <- err
	}()
	select {
	case <-caught:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(10 * time.Second):
		return errors.New("no confirm was sent within 10 s")
	}
	pid := d.coord.pid()
	if err := d.coord.kill(); err != nil {
		return err
	}
	if err := <-answered; err == nil {
		return errors.New("the client got an answer from a coordinator that was killed")
	}
	d.gate.open()
	d.act("the coordinator (pid %d) is killed with SIGKILL after it decided to commit %s and before any participant heard of it; the client knows nothing", pid, yuan(amount))
	before := time.Now()
	addr := d.coord.addr
	if d.coord, err = startCoordinator(ctx, d.cfg.Lockstep, filepath.Join(d.dir, "coordinator"), addr); err != nil {
		return err
	}
	wctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	phase := ""
	if err := d.native.Watch(wctx, gid, func(s client.State) error { phase = s.GetPhase().String(); return nil }); err != nil {
		return fmt.Errorf("the killed payment %s after the restart: %w", gid, err)
	}
	if phase != "PHASE_COMMITTED" {
		return fmt.Errorf("the payment was decided commit and ended as %s", phase)
	}
	d.book(5, amount)
	d.act("restarted (pid %d), it reads the decision back and confirms both sides: finished %.1f s after the restart began", d.coord.pid(), time.Since(before).Seconds())
	return nil
}

// count counts the money in the databases.
func (d *demo) count(ctx context.Context) error {
	deadline := time.Now().Add(15 * time.Second)
	var st state
	for {
		var err error
		if st, err = d.parts.state(ctx); err != nil {
			return err
		}
		if (st.Settled && st.Points.Points == d.want.points) || time.Now().After(deadline) {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	total := int64(buyers) * firstDeposit
	income := st.Merchant.Posted - st.Merchant.Refunded
	d.tell("the money, counted in the databases: buyers %s + merchants %s = %s; it was %s", yuan(st.Buyer.Balance), yuan(income), yuan(st.Buyer.Balance+income), yuan(total))
	d.tell("payments %d, refused %d; still frozen %d; points %d, expected %d", d.made.Load(), d.refused.Load(), st.Open, st.Points.Points, d.want.points)
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(len(st.Faults) == 0, "the databases contradict themselves: %v", st.Faults)
	check(st.Settled, "%d holds are still open", st.Open)
	check(st.Buyer.Balance+income == total, "%d fen are missing or too many", st.Buyer.Balance+income-total)
	check(st.Merchant.Refunded == d.want.refunded, "%d fen were refunded, the coordinator committed %d", st.Merchant.Refunded, d.want.refunded)
	check(st.Merchant.Posted == d.want.spent, "merchants got %d fen, the coordinator committed %d", st.Merchant.Posted, d.want.spent)
	check(st.Points.Points == d.want.points, "%d points were given, %d were due", st.Points.Points, d.want.points)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("THE MONEY IS WRONG:\n%w", err)
	}
	d.tell("not a cent is off")
	return nil
}

func yuan(fen int64) string { return fmt.Sprintf("¥%d.%02d", fen/100, fen%100) }
