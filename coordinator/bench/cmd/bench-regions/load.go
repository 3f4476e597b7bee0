package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/coordinator/bench/stats"
)

// window is what a load measured.
type window struct {
	PerSecond float64
	Took      []time.Duration
	Failed    int
	Sample    string
}

func (w *window) ms(percent int) float64 {
	return float64(stats.Percentile(w.Took, percent).Microseconds()) / 1000
}

// order is a load that a process of its own is to make: transactions of two branches at a coordinator for a time, clients at once,
// each the next one when the one before is answered, and with a rate (per second, all together) no faster than that.
type order struct {
	Noop, Addr string
	Clients    int
	Rate       float64
	Durability client.Durability
	Until      client.Until
	For        time.Duration
}

// away has a process of its own make the load. It gives way to everybody else: clients have hosts of their own, and here no core.
func (o order) away(ctx context.Context) (w window, err error) {
	raw, err := json.Marshal(o)
	if err != nil {
		return w, err
	}
	return w, itself(ctx, []string{"nice", "-n", loadNice}, "-load", string(raw), &w)
}

const loadNice = "10"

// make makes it, and prints what it measured when it or ctx ends.
func (o order) make(ctx context.Context, out io.Writer) error {
	w, err := o.run(ctx)
	return errors.Join(err, json.NewEncoder(out).Encode(w))
}

func (o order) run(ctx context.Context) (window, error) {
	cl, err := client.Dial(o.Addr)
	if err != nil {
		return window{}, err
	}
	defer cl.Close()
	base := "http://" + o.Noop
	var branches []client.Branch
	for i := range 2 {
		branches = append(branches, client.Branch{ID: strconv.Itoa(i + 1), Try: base + "/try", Confirm: base + "/confirm", Cancel: base + "/cancel", Payload: []byte(`{"account":"alice","amount":30}`)})
	}
	began := time.Now()
	ends := began.Add(o.For)
	var w window
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range o.Clients {
		wg.Go(func() {
			for k := 0; time.Now().Before(ends) && ctx.Err() == nil; k++ {
				if o.Rate > 0 {
					due := began.Add(time.Duration(float64(i+k*o.Clients) / o.Rate * float64(time.Second)))
					if due.After(ends) {
						return
					}
					time.Sleep(time.Until(due))
				}
				t0 := time.Now()
				s, err := cl.Execute(ctx, client.Tx{Branches: branches, Options: client.Options{Durability: o.Durability}}, o.Until)
				took := time.Since(t0)
				mu.Lock()
				if err == nil && s.Committed() {
					w.Took = append(w.Took, took)
				} else if ctx.Err() == nil {
					w.Failed++
					w.Sample = fmt.Sprint(s.GetPhase(), " ", err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	w.PerSecond = float64(len(w.Took)) / time.Since(began).Seconds()
	slices.Sort(w.Took)
	return w, nil
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
		wg.Go(func() { ws[i], errs[i] = order{r.Noop, addr, clients, rate / 2, d, until, dur}.away(ctx) })
	}
	wg.Wait()
	w := window{PerSecond: ws[0].PerSecond + ws[1].PerSecond, Failed: ws[0].Failed + ws[1].Failed, Sample: ws[0].Sample + ws[1].Sample}
	w.Took = append(ws[0].Took, ws[1].Took...)
	slices.Sort(w.Took)
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
