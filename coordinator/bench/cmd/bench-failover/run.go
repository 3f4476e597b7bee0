package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/bed"
	"github.com/lockstep-tx/lockstep/region/failover"
)

// outcome is what one run measured.
type outcome struct {
	detect time.Duration // from the kill until the heir's status says so
	decide time.Duration // from the tool's start to the consent
	// From the consent: until the target may serve, canaries in 64 of its new slots (evenly spread) were served, a payment on
	// one of the lost region's accounts was made, and one on each of them.
	given, served, first, every time.Duration
	rpo                         map[bool]recovered // by whether it was global
}

// recovered is what the heir knows of what clients of the lost region were told.
type recovered struct {
	told, lost int
	age        time.Duration // of the oldest lost, at the kill
}

func (o *outcome) String() string {
	r, g := o.rpo[false], o.rpo[true]
	return fmt.Sprintf("detect %d, decide %d, switch %d (canaries %d), first success %d, every account %d ms; regional %d of %d lost, oldest %d ms; global %d of %d",
		o.detect.Milliseconds(), o.decide.Milliseconds(), o.given.Milliseconds(), o.served.Milliseconds(), o.first.Milliseconds(), o.every.Milliseconds(),
		r.lost, r.told, r.age.Milliseconds(), g.lost, g.told)
}

// run kills east once.
func run(ctx context.Context, o options) (*outcome, error) {
	b, err := bed.New(ctx, bed.Config{RTT: o.rtt, Kafka: "embedded", Dir: o.dir, Bin: o.bin, Keep: o.keep})
	defer b.Close()
	if err != nil {
		return nil, err
	}
	l, err := newLoad(ctx, b, o)
	if err != nil {
		return nil, err
	}
	defer l.close()
	l.start(ctx)
	wait := o.warm + time.Duration(rand.Int64N(int64(2*time.Second)))
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	out := &outcome{}
	killed := time.Now()
	b.Regions[0].Kill()
	l.leave(0)
	if err := missed(ctx, b.Regions[1], o.unheard); err != nil {
		return nil, err
	}
	out.detect = time.Since(killed)
	if err := take(ctx, b, l, out); err != nil {
		return nil, err
	}
	out.rpo = l.recovered(ctx, killed)
	return out, ctx.Err()
}

// missed waits until a region's status has not heard of the other one for so long.
func missed(ctx context.Context, r *bed.Region, silence time.Duration) error {
	for {
		var st struct {
			Origins []struct {
				HeardMillis int64 `json:"heard_ms"`
			} `json:"origins"`
		}
		if err := getJSON(ctx, "http://"+r.Admin+"/v1/region/status", &st); err != nil {
			return err
		}
		if len(st.Origins) == 1 && st.Origins[0].HeardMillis >= silence.Milliseconds() {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func getJSON(ctx context.Context, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(into)
}

// take runs the tool while clients ask west for payments on east's accounts.
func take(ctx context.Context, b *bed.Bed, l *load, out *outcome) error {
	began := time.Now()
	firsts := l.probe(ctx)
	text, err := b.Tool(ctx, "region", "failover", "--context", b.Regions[1].File, "--from", "east", "--to", "west", "--fenced-by", "power",
		"--at-risk", "allow", "--plan", "any", "--confirm-region", "east", "--why", "bench")
	if err != nil {
		return fmt.Errorf("region failover: %w\n%s", err, text)
	}
	r, err := lastRun(ctx, b)
	if err != nil {
		return err
	}
	if r.Status != failover.Done || len(r.Batches) != 1 {
		return fmt.Errorf("region failover ended as %s:\n%s", r.Status, text)
	}
	consent := time.UnixMilli(r.BegunMillis)
	since := func(millis int64) time.Duration { return time.UnixMilli(millis).Sub(consent) }
	out.decide, out.given, out.served = consent.Sub(began), since(r.Batches[0].Given), since(r.Batches[0].Served)
	first, last, err := firsts()
	out.first, out.every = first.Sub(consent), last.Sub(consent)
	return err
}

// lastRun reads the operation as the arbiter has it.
func lastRun(ctx context.Context, b *bed.Bed) (r failover.Run, err error) {
	text, err := b.Tool(ctx, "region", "history", "--context", b.Regions[1].File, "-o", "json")
	if err != nil {
		return r, fmt.Errorf("region history: %w\n%s", err, text)
	}
	var h struct {
		Runs []failover.Run `json:"runs"`
	}
	if err := json.Unmarshal([]byte(text), &h); err != nil || len(h.Runs) != 1 {
		return r, fmt.Errorf("region history has %d operations: %w", len(h.Runs), err)
	}
	return h.Runs[0], nil
}
