package demo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
)

// payWithDTM is DTM's own Go SDK, unchanged.
func (d *demo) payWithDTM(ctx context.Context) error {
	before := time.Since(d.start)
	gid, err := d.dtmPayment(ctx, 1, 10_000)
	if err != nil {
		return fmt.Errorf("the first payment, with DTM's SDK: %w", err)
	}
	d.first = time.Since(d.start)
	d.act("%s pays %s to %s with DTM's Go SDK, unchanged: both frozen, decided, confirmed (gid %s, %d ms). The first payment was made %.1f s after the start",
		buyer(1), yuan(10_000), merchant(1), gid, (d.first - before).Milliseconds(), d.first.Seconds())
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

// kill kills the coordinator between the decision and the confirms: the first confirm has left it, so the decision is
// durable, but no participant has seen it.
func (d *demo) kill(ctx context.Context) error {
	const amount = 77_700
	caught := d.gate.close()
	gid, err := d.home().native.NewGid(ctx)
	if err != nil {
		return err
	}
	answered := make(chan error, 1)
	go func() {
		_, err := d.home().native.Execute(ctx, d.payment(gid, 5, amount, d.gate.base), client.Finished)
		answered <- err
	}()
	select {
	case <-caught:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(startLimit):
		return fmt.Errorf("no confirm was sent within %v", startLimit)
	}
	home := d.home()
	pid := home.coord.pid()
	d.watch.mark(home.name, "kill", "coordinator %d killed between decision and confirm", pid)
	if err := home.coord.kill(); err != nil {
		return err
	}
	if err := <-answered; err == nil {
		return errors.New("the client got an answer from a coordinator that was killed")
	}
	d.gate.open()
	d.act("the coordinator of %s (pid %d) is killed with SIGKILL after it decided to commit %s and before any participant heard of it; the client knows nothing; the other regions go on", home.name, pid, yuan(amount))
	before := time.Now()
	if home.coord, err = home.coord.again(ctx, d.cfg.Lockstep); err != nil {
		return err
	}
	phase, err := d.ended(ctx, gid)
	if err != nil {
		return fmt.Errorf("the killed payment %s after the restart: %w", gid, err)
	}
	if phase != "PHASE_COMMITTED" {
		return fmt.Errorf("the payment was decided commit and ended as %s", phase)
	}
	d.book(5, amount)
	d.watch.mark(home.name, "start", "coordinator %d reads the decision back and confirms", home.coord.pid())
	d.tell("restarted (pid %d), it reads the decision back and confirms both sides: finished %.1f s after the restart began", home.coord.pid(), time.Since(before).Seconds())
	return nil
}

// ended waits for a transaction's end. The client's connection may still rest from having found nobody.
func (d *demo) ended(ctx context.Context, gid string) (phase string, err error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		err = d.home().native.Watch(ctx, gid, func(s client.State) error { phase = s.GetPhase().String(); return nil })
		if err == nil || !client.Retryable(err) || ctx.Err() != nil {
			return phase, err
		}
		select {
		case <-ctx.Done():
			return phase, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// countShop counts the shop's money in its databases.
func (d *demo) countShop(ctx context.Context) error {
	deadline := time.Now().Add(d.patience)
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
	d.tell("the shop's money, counted in its databases: buyers %s + merchants %s = %s; it was %s", yuan(st.Buyer.Balance), yuan(income), yuan(st.Buyer.Balance+income), yuan(total))
	d.tell("the shop's payments %d, refused %d; still frozen %d; points %d, expected %d", d.made.Load(), d.refused.Load(), st.Open, st.Points.Points, d.want.points)
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
	return nil
}
