package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// bareEvery is how often each region's core writes a key that means nothing.
const bareEvery = 100 * time.Millisecond

// bareWrites has a process on each region's core write a key into the arbiter, over the way that the region takes, until halt, which
// may be called more than once: what a decision of that region costs that does nothing else, with the same neighbours. The window
// is to be read after halt.
func (b *bench) bareWrites(ctx context.Context) (w *window, halt func()) {
	w = &window{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	wctx, cancel := context.WithCancel(ctx)
	for core := range b.Regions {
		wg.Go(func() {
			took, err := bareOn(wctx, core, b.Arbiter)
			mu.Lock()
			defer mu.Unlock()
			w.Took = append(w.Took, took...)
			if err != nil {
				w.Failed++
				w.Sample = err.Error()
			}
		})
	}
	return w, func() {
		cancel()
		wg.Wait()
		slices.Sort(w.Took)
	}
}

// bareOn runs this program as a bare writer on a core until ctx ends.
func bareOn(ctx context.Context, core int, arbiter string) (took []time.Duration, err error) {
	if err := itself(ctx, []string{"taskset", "-c", strconv.Itoa(core)}, "-bare", arbiter, &took); err != nil {
		return nil, fmt.Errorf("bare writes: %w", err)
	}
	return took, nil
}

// bare is the writer: it prints how long each write took, in nanoseconds, when ctx ends.
func bare(ctx context.Context, out io.Writer, arbiter string) error {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{arbiter}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()}) // it tells of the call that ends
	if err != nil {
		return err
	}
	defer cli.Close()
	took := []time.Duration{}
	for ctx.Err() == nil {
		t0 := time.Now()
		_, err := cli.Put(ctx, "/bench/bare", "a global decision is some hundreds of bytes; so is this")
		switch {
		case err == nil:
			took = append(took, time.Since(t0))
		case ctx.Err() == nil:
			return errors.Join(err, json.NewEncoder(out).Encode(took))
		}
		select {
		case <-time.After(bareEvery - time.Since(t0)):
		case <-ctx.Done():
		}
	}
	return json.NewEncoder(out).Encode(took)
}
