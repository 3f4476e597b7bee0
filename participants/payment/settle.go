package payment

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

const (
	settlePage     = 100             // rows that are read at once
	settleTogether = 16              // payments that are asked for at once
	settleAsk      = 5 * time.Second // for one of them

	keysEvery = time.Hour
	// KeepKeys is how long an idempotency key is known at least.
	KeepKeys = 7 * 24 * time.Hour
)

// Settle asks for payments and refunds that have been processing for a while, those whose client or whose server went away,
// releases orders that have lapsed, and forgets old idempotency keys, until ctx ends. Orders do not wait for payments: a coordinator that is away holds up
// the payments alone.
func (s *Service) Settle(ctx context.Context, every, older time.Duration) {
	var wg sync.WaitGroup
	wg.Go(func() {
		s.each(ctx, every, func() {
			if err := s.settleOnce(ctx, s.Now().Add(-older)); err != nil && ctx.Err() == nil {
				s.Log.Warn("open payments could not be asked for", "err", err)
			}
		})
	})
	wg.Go(func() {
		s.each(ctx, every, func() {
			if n, err := s.Inventory.Expire(ctx, s.InventoryDB, settlePage); err != nil && ctx.Err() == nil {
				s.Log.Warn("lapsed orders could not be released", "err", err)
			} else if n > 0 {
				s.Log.Info("lapsed orders released", "orders", n)
			}
		})
	})
	wg.Go(func() {
		s.each(ctx, keysEvery, func() {
			if err := s.forgetKeys(ctx, s.Now().Add(-KeepKeys)); err != nil && ctx.Err() == nil {
				s.Log.Warn("old idempotency keys were not forgotten", "err", err)
			}
		})
	})
	wg.Wait()
}

// forgetKeys forgets the keys that came before then.
func (s *Service) forgetKeys(ctx context.Context, before time.Time) error {
	return sqldb.InTx(ctx, s.DB, func(tx *sql.Tx) error {
		for _, stmt := range []string{
			"DELETE FROM payment_key_attempt WHERE idempotency_key IN (SELECT idempotency_key FROM payment_key WHERE created_ms < ?)",
			"DELETE FROM payment_key WHERE created_ms < ?",
		} {
			if _, err := tx.ExecContext(ctx, s.Dialect.Q(stmt), before.UnixMilli()); err != nil {
				return err
			}
		}
		return nil
	})
}

// each calls f again and again, until ctx ends.
func (s *Service) each(ctx context.Context, every time.Duration, f func()) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			f()
		case <-ctx.Done():
			return
		}
	}
}

// settleOnce asks once for everything that was open before then, however much it is and however many are not decided.
func (s *Service) settleOnce(ctx context.Context, before time.Time) error {
	var g errgroup.Group
	g.SetLimit(settleTogether)
	ask := func(one func(ctx context.Context) error) {
		g.Go(func() error {
			actx, cancel := context.WithTimeout(ctx, settleAsk)
			defer cancel()
			return one(actx)
		})
	}
	err := s.openPayments(ctx, before, func(p *Payment) { ask(func(ctx context.Context) error { return s.drive(ctx, p, false) }) })
	rerr := s.openRefunds(ctx, before, func(r *Refund) { ask(func(ctx context.Context) error { return s.driveRefund(ctx, r, false) }) })
	return errors.Join(err, rerr, g.Wait())
}

// openPayments gives every payment that was open before then, page by page.
func (s *Service) openPayments(ctx context.Context, before time.Time, each func(*Payment)) error {
	for after := ""; ctx.Err() == nil; {
		page, err := s.list(ctx, "state = ? AND created_ms < ? AND id > ?", settlePage, Processing, before.UnixMilli(), after)
		if err != nil {
			return err
		}
		for _, p := range page {
			each(p)
			after = p.ID
		}
		if len(page) < settlePage {
			return nil
		}
	}
	return ctx.Err()
}

// openRefunds is openPayments for refunds.
func (s *Service) openRefunds(ctx context.Context, before time.Time, each func(*Refund)) error {
	for payment, no := "", ""; ctx.Err() == nil; {
		page, err := s.refunds(ctx, "state = 'processing' AND created_ms < ? AND (payment > ? OR (payment = ? AND refund_no > ?)) ORDER BY payment, refund_no LIMIT ?",
			before.UnixMilli(), payment, payment, no, settlePage)
		if err != nil {
			return err
		}
		for _, r := range page {
			each(r)
			payment, no = r.Payment, r.RefundNo
		}
		if len(page) < settlePage {
			return nil
		}
	}
	return ctx.Err()
}
