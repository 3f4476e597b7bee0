package load

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/stats"
)

const (
	pauseAfterError = 5 * time.Millisecond // of one client, so that a dead coordinator is not hammered
	drainLimit      = 40 * time.Second     // for the transactions still open when the window ends
	errorsKept      = 3                    // messages in the result
)

// Plan says how hard and how long. One of Duration and Count is set.
type Plan struct {
	Clients  int
	WarmUp   time.Duration // before the measured window
	Duration time.Duration // of the window
	Count    int           // transactions in the window
}

// Result is what one run measured. Rates and latencies are those of transactions that ended inside the window; the totals
// include warm-up and drain.
type Result struct {
	Clients     int      `json:"clients"`
	OK          int      `json:"ok"` // committed in the window
	WindowMS    float64  `json:"window_ms"`
	PerSecond   float64  `json:"tx_per_second"`
	P50MS       float64  `json:"p50_ms"`
	P99MS       float64  `json:"p99_ms"`
	MaxMS       float64  `json:"max_ms"`
	TotalOK     int      `json:"total_ok"`
	TotalFailed int      `json:"total_failed"`
	Errors      []string `json:"errors,omitempty"` // the first few
}

// Mark is called when the measured window begins ("begin") and ends ("end"), in step with it, so that whoever listens can
// read meters.
type Mark func(event string)

type client struct {
	latencies []time.Duration // of this client's transactions in the window
	ok        int
	failed    int
	errors    []string
}

// Run drives d as p says. It returns after all clients have ended; an error means that the result is worthless.
func Run(ctx context.Context, d Driver, p Plan, mark Mark) (Result, error) {
	if p.Clients < 1 || (p.Duration > 0) == (p.Count > 0) {
		return Result{}, fmt.Errorf("a plan needs clients and either a duration or a count: %+v", p)
	}
	const warming, measuring, over = 0, 1, 2
	var phase atomic.Int32
	var left atomic.Int64
	left.Store(int64(p.Count))
	counted := make(chan struct{}) // closed when Count transactions are done
	var done atomic.Int64

	clients := make([]client, p.Clients)
	var running sync.WaitGroup
	for i := range clients {
		c := &clients[i]
		running.Go(func() {
			for phase.Load() != over && ctx.Err() == nil {
				inCount := false
				if p.Count > 0 && phase.Load() == measuring {
					if left.Add(-1) < 0 {
						return
					}
					inCount = true
				}
				began := time.Now()
				err := d.Run(ctx)
				took := time.Since(began)
				if err != nil {
					c.failed++
					if len(c.errors) < errorsKept {
						c.errors = append(c.errors, err.Error())
					}
					time.Sleep(pauseAfterError)
				} else {
					c.ok++
					if phase.Load() == measuring && (p.Count == 0 || inCount) {
						c.latencies = append(c.latencies, took)
					}
				}
				if inCount && done.Add(1) == int64(p.Count) {
					close(counted)
				}
			}
		})
	}

	sleep(ctx, p.WarmUp)
	mark("begin")
	began := time.Now()
	phase.Store(measuring)
	if p.Duration > 0 {
		sleep(ctx, p.Duration)
	} else {
		select {
		case <-counted:
		case <-ctx.Done():
		}
	}
	phase.Store(over)
	window := time.Since(began)
	mark("end")

	drained := make(chan struct{})
	go func() { running.Wait(); close(drained) }()
	select {
	case <-drained:
	case <-time.After(drainLimit):
		return Result{}, fmt.Errorf("transactions still open %s after the window's end", drainLimit)
	}
	return evaluate(clients, window), context.Cause(ctx)
}

func evaluate(clients []client, window time.Duration) Result {
	var all []time.Duration
	r := Result{Clients: len(clients), WindowMS: ms(window)}
	for i := range clients {
		c := &clients[i]
		all = append(all, c.latencies...)
		r.TotalOK += c.ok
		r.TotalFailed += c.failed
		r.Errors = append(r.Errors, c.errors[:min(len(c.errors), errorsKept-len(r.Errors))]...)
	}
	r.OK = len(all)
	r.PerSecond = float64(r.OK) / window.Seconds()
	if len(all) > 0 {
		slices.Sort(all)
		r.P50MS, r.P99MS, r.MaxMS = ms(stats.Percentile(all, 50)), ms(stats.Percentile(all, 99)), ms(stats.Percentile(all, 100))
	}
	return r
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
