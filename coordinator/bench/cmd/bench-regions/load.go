package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"io"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/coordinator/bench/stats"
)

// window is what a load measured.
type window struct {
	perSecond float64
	took      []time.Duration
	failed    int
	sample    string
}

func (w *window) ms(percent int) float64 {
	return float64(stats.Percentile(w.took, percent).Microseconds()) / 1000
}

// run executes transactions of two branches at a coordinator for a time: clients at once, each the next one when the one
// before is answered, and with a rate (per second, all together) no faster than that.
func run(ctx context.Context, noop, addr string, clients int, rate float64, d client.Durability, until client.Until, dur time.Duration) (window, error) {
	cl, err := client.Dial(addr)
	if err != nil {
		return window{}, err
	}
	defer cl.Close()
	base := "http://" + noop
	var branches []client.Branch
	for i := range 2 {
		branches = append(branches, client.Branch{ID: strconv.Itoa(i + 1), Try: base + "/try", Confirm: base + "/confirm", Cancel: base + "/cancel", Payload: []byte(`{"account":"alice","amount":30}`)})
	}
	began := time.Now()
	ends := began.Add(dur)
	var w window
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for k := 0; time.Now().Before(ends) && ctx.Err() == nil; k++ {
				if rate > 0 {
					due := began.Add(time.Duration(float64(i+k*clients) / rate * float64(time.Second)))
					if due.After(ends) {
						return
					}
					time.Sleep(time.Until(due))
				}
				t0 := time.Now()
				s, err := cl.Execute(ctx, client.Tx{Branches: branches, Options: client.Options{Durability: d}}, until)
				took := time.Since(t0)
				mu.Lock()
				if err == nil && s.Committed() {
					w.took = append(w.took, took)
				} else if ctx.Err() == nil {
					w.failed++
					w.sample = fmt.Sprint(s.GetPhase(), " ", err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	w.perSecond = float64(len(w.took)) / time.Since(began).Seconds()
	slices.Sort(w.took)
	return w, ctx.Err()
}

// both runs the same load in both regions at once and gives what they did together.
func (b *bench) both(ctx context.Context, plain bool, clients int, rate float64, d client.Durability, until client.Until, dur time.Duration) (window, error) {
	var ws [2]window
	var errs [2]error
	var wg sync.WaitGroup
	for i, r := range b.Regions {
		addr := r.GRPC
		if plain {
			addr = r.PlainGRPC
		}
		wg.Go(func() { ws[i], errs[i] = run(ctx, r.Noop, addr, clients, rate/2, d, until, dur) })
	}
	wg.Wait()
	w := window{perSecond: ws[0].perSecond + ws[1].perSecond, failed: ws[0].failed + ws[1].failed, sample: ws[0].sample + ws[1].sample}
	w.took = append(ws[0].took, ws[1].took...)
	slices.Sort(w.took)
	for _, err := range errs {
		if err != nil {
			return w, err
		}
	}
	return w, nil
}

// delays are the counts of lockstep_replication_delay_seconds of both regions, by upper bound.
func (b *bench) delays() (map[float64]float64, error) {
	out := map[float64]float64{}
	for _, r := range b.Regions {
		resp, err := http.Get("http://" + r.Admin + "/metrics")
		if err != nil {
			return nil, err
		}
		raw, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return nil, err
		}
		for _, line := range strings.Split(string(raw), "\n") {
			if !strings.HasPrefix(line, "lockstep_replication_delay_seconds_bucket") {
				continue
			}
			_, rest, _ := strings.Cut(line, `le="`)
			le, count, _ := strings.Cut(rest, `"} `)
			bound, err := strconv.ParseFloat(strings.Replace(le, "+Inf", "1e9", 1), 64)
			if err != nil {
				return nil, err
			}
			n, err := strconv.ParseFloat(count, 64)
			if err != nil {
				return nil, err
			}
			out[bound] += n
		}
	}
	return out, nil
}

// lag gives the upper bound of the bucket in which a percentile of what came between two looks is, in ms, and how many came.
func lag(before, after map[float64]float64, percent float64) (ms, count float64) {
	var bounds []float64
	for b := range after {
		bounds = append(bounds, b)
	}
	sort.Float64s(bounds)
	if len(bounds) == 0 {
		return 0, 0
	}
	last := bounds[len(bounds)-1]
	count = after[last] - before[last]
	for _, b := range bounds {
		if after[b]-before[b] >= count*percent/100 {
			return b * 1000, count
		}
	}
	return last * 1000, count
}
