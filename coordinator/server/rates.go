package server

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/lockstep-tx/lockstep/coordinator/api/admin"
	"github.com/lockstep-tx/lockstep/coordinator/auth"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// limited is the Runner as clients' protocols get it: begins are limited per tenant, what was begun never is; and an
// operator's act that comes by DTM's protocol (forceStop, resetNextCronTime) is logged with who did it.
type limited struct {
	*engine.Runner
	rates *rates
	log   *slog.Logger
}

// Do is engine.Runner's, behind the limit.
func (l *limited) Do(ctx context.Context, req engine.Request) (engine.Reply, error) {
	if l.rates != nil && engine.Begins(req.Event) {
		if wait := l.rates.take(auth.From(ctx).Name); wait > 0 {
			return engine.Reply{}, &engine.OverloadedError{Why: "this tenant begins more transactions than its limit", RetryAfter: wait}
		}
	}
	rep, err := l.Runner.Do(ctx, req)
	switch req.Event.(type) {
	case txn.Stop:
		admin.Audit(ctx, l.log, "stop", string(req.Gid), err)
	case txn.Retry:
		admin.Audit(ctx, l.log, "retry", string(req.Gid), err)
	}
	return rep, err
}

// rates are token buckets by tenant.
type rates struct {
	perSecond float64
	mu        sync.Mutex
	by        map[string]*rate.Limiter
}

func newRates(perSecond float64) *rates {
	if perSecond <= 0 {
		return nil
	}
	return &rates{perSecond: perSecond, by: map[string]*rate.Limiter{}}
}

// take gives how long to wait; 0 when the begin may go on.
func (r *rates) take(tenant string) time.Duration {
	r.mu.Lock()
	l := r.by[tenant]
	if l == nil {
		l = rate.NewLimiter(rate.Limit(r.perSecond), max(1, int(r.perSecond)))
		r.by[tenant] = l
	}
	r.mu.Unlock()
	if l.Allow() {
		return 0
	}
	return time.Duration(float64(time.Second)/r.perSecond) + time.Millisecond
}
