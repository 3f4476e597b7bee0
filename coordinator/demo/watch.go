package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/server"
)

// second is what was seen of one region in one second.
type second struct {
	At     float64 `json:"at"`   // seconds since the start
	Rate   float64 `json:"rate"` // payments a second
	Lag    int64   `json:"lag"`  // milliseconds behind the others, the most; -1 when it did not answer
	Copies uint64  `json:"copies"`
}

// event is something that happened, for the timeline.
type event struct {
	At   float64 `json:"at"`
	Lane string  `json:"lane"` // a region, or ""
	Kind string  `json:"kind"`
	Text string  `json:"text"`
}

// watcher asks the regions how they stand, about once a second, and tells it.
type watcher struct {
	d    *demo
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu       sync.Mutex
	seconds  map[string][]second
	events   []event
	findings int // open ones
}

// mark notes an event for the timeline.
func (w *watcher) mark(lane, kind, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, event{time.Since(w.d.start).Seconds(), lane, kind, fmt.Sprintf(format, args...)})
}

func (w *watcher) setFindings(n int) {
	w.mu.Lock()
	w.findings = n
	w.mu.Unlock()
}

func (w *watcher) start(ctx context.Context) {
	ctx, w.stop = context.WithCancel(ctx)
	w.wg.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		last, before := time.Now(), map[string]int64{}
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			took := time.Since(last).Seconds()
			last = time.Now()
			w.look(ctx, took, before)
		}
	})
}

func (w *watcher) halt() {
	if w.stop != nil {
		w.stop()
	}
	w.wg.Wait()
}

// look asks every region once and prints the progress line.
func (w *watcher) look(ctx context.Context, took float64, before map[string]int64) {
	var rates, lags, copies []string
	for _, r := range w.d.world.regions {
		made := w.d.load.made[r.name].Load()
		s := second{At: time.Since(w.d.start).Seconds(), Rate: float64(made-before[r.name]) / took, Lag: -1}
		before[r.name] = made
		rates = append(rates, fmt.Sprintf("%s %.0f/s", r.name, s.Rate))
		st, err := regionStatus(ctx, r)
		if err != nil {
			lags, copies = append(lags, r.name+" is down"), append(copies, r.name+" ?")
		} else {
			s.Lag, s.Copies = worst(st), st.ApplyLag
			lags, copies = append(lags, fmt.Sprintf("%s %d ms", r.name, s.Lag)), append(copies, fmt.Sprintf("%s %d", r.name, s.Copies))
		}
		w.mu.Lock()
		w.seconds[r.name] = append(w.seconds[r.name], s)
		w.mu.Unlock()
	}
	w.mu.Lock()
	n := w.findings
	w.mu.Unlock()
	if ctx.Err() == nil {
		w.d.tell("  %s · lag %s · copies behind %s · findings %d", strings.Join(rates, ", "), strings.Join(lags, ", "), strings.Join(copies, ", "), n)
	}
}

func worst(st *server.RegionStatus) int64 {
	var n int64
	for _, o := range st.Origins {
		n = max(n, o.LagMillis)
	}
	return n
}

// regionStatus asks a region's coordinator.
func regionStatus(ctx context.Context, r *region) (*server.RegionStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.addr.Admin+"/v1/region/status", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("region %s: %s", r.name, resp.Status)
	}
	st := &server.RegionStatus{}
	return st, json.NewDecoder(resp.Body).Decode(st)
}
