// Package fill brings a coordinator into a state over DTM's HTTP wire: many transactions prepared, or decided with their
// confirms still owed. It is for the benchmarks that are about a coordinator's store and not about its speed.
package fill

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Wire speaks to one coordinator. Set the fields before the first call.
type Wire struct {
	Base    string        // …/api/dtmsvr
	Confirm string        // url of every branch's confirm
	Cancel  string        // url of every branch's cancel
	Timeout time.Duration // timeout_to_fail of every transaction; long, so that nothing ends by itself
	Workers int           // concurrent requests

	client http.Client
}

// New returns a wire with workers connections.
func New(base, participants string, workers int) *Wire {
	return &Wire{
		Base: base, Confirm: "http://" + participants + "/confirm", Cancel: "http://" + participants + "/cancel",
		Timeout: 24 * time.Hour, Workers: workers,
		client: http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: workers}},
	}
}

// Prepare begins n transactions with one branch each, named Gid(prefix, i).
func (w *Wire) Prepare(ctx context.Context, prefix string, n int) error {
	return w.each(ctx, n, func(i int) error { return w.prepare(ctx, Gid(prefix, i)) })
}

// Decide begins n transactions with one branch each and submits them, without waiting for their confirms.
func (w *Wire) Decide(ctx context.Context, prefix string, n int) error {
	return w.each(ctx, n, func(i int) error {
		gid := Gid(prefix, i)
		if err := w.prepare(ctx, gid); err != nil {
			return err
		}
		return w.post(ctx, "submit", w.global(gid))
	})
}

// Gid names the i-th transaction: all of one length, so that none is a prefix of another (DTM would mix them up).
func Gid(prefix string, i int) string { return fmt.Sprintf("%s-%08d", prefix, i) }

// Statuses asks for up to n of the transactions, evenly spread over total, and counts their statuses.
func (w *Wire) Statuses(ctx context.Context, prefix string, total, n int) (map[string]int, error) {
	counts := map[string]int{}
	var mu sync.Mutex
	n = min(n, total)
	return counts, w.each(ctx, n, func(i int) error {
		var answer struct{ Transaction *struct{ Status string } }
		if err := w.get(ctx, "/query?gid="+url.QueryEscape(Gid(prefix, i*total/n)), &answer); err != nil {
			return err
		}
		status := "unknown to the coordinator"
		if answer.Transaction != nil {
			status = answer.Transaction.Status
		}
		mu.Lock()
		defer mu.Unlock()
		counts[status]++
		return nil
	})
}

func (w *Wire) global(gid string) any {
	return map[string]any{"gid": gid, "trans_type": "tcc", "timeout_to_fail": int(w.Timeout.Seconds())}
}

func (w *Wire) prepare(ctx context.Context, gid string) error {
	if err := w.post(ctx, "prepare", w.global(gid)); err != nil {
		return err
	}
	return w.post(ctx, "registerBranch", map[string]string{
		"gid": gid, "trans_type": "tcc", "branch_id": "01", "data": `{"account":"alice","amount":30}`,
		"confirm": w.Confirm, "cancel": w.Cancel,
	})
}

// each calls f for 0 ≤ i < n from Workers goroutines and stops at the first error.
func (w *Wire) each(ctx context.Context, n int, f func(i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var workers sync.WaitGroup
	for range w.Workers {
		workers.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := f(i); err != nil {
					cancel(err)
				}
			}
		})
	}
	workers.Wait()
	return context.Cause(ctx)
}

func (w *Wire) post(ctx context.Context, op string, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.Base+"/"+op, bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	answer, err := w.do(req)
	if err == nil && strings.Contains(string(answer), "FAILURE") {
		err = fmt.Errorf("%s: %.200s", op, answer)
	}
	return err
}

func (w *Wire) get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.Base+path, nil)
	if err != nil {
		return err
	}
	answer, err := w.do(req)
	if err != nil {
		return err
	}
	return json.Unmarshal(answer, into)
}

func (w *Wire) do(req *http.Request) ([]byte, error) {
	resp, err := w.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.200s", req.URL.Path, resp.Status, answer)
	}
	return answer, err
}
