package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/region/failover/conduct"
)

// A host that is gone refuses, if it is lucky for whoever asks; one whose packets are dropped says nothing. So nobody waits for a
// silent address before the next one is asked, and for what is not needed nobody waits long.
const (
	// dialLimit is how long a connection may take to be made: a second for a lost packet's repetition, and some.
	dialLimit = 1500 * time.Millisecond
	// silence is how long a region may take to answer that is not needed for what is done: one that is lost, or a third one.
	silence = 1500 * time.Millisecond
	// stagger is how long one coordinator of a region may take before the next one is asked as well.
	stagger = 300 * time.Millisecond
	// mostBytes of an answer, and of one that a look for drift asks for: a page of fingerprints or decisions.
	mostBytes      = 16 << 20
	mostDriftBytes = 256 << 20
)

// asker asks the regions' coordinators.
type asker struct {
	o      *opened
	client *http.Client
	token  string
	most   int64 // bytes of an answer; 0: mostBytes

	mu      sync.Mutex
	written map[int]bool // slots in which a canary was served
}

func (c *contextFile) asker(e *env, o *opened) *asker {
	return &asker{o: o, token: e.getenv("LOCKSTEP_TOKEN"), client: &http.Client{Timeout: min(c.Timeout, 5*time.Second),
		Transport: &http.Transport{MaxIdleConnsPerHost: conduct.AsksAtOnce, DialContext: (&net.Dialer{Timeout: dialLimit}).DialContext}}}
}

// heard is which coordinator of each region answered last: it is asked first. The zero value is ready.
type heard struct {
	mu   sync.Mutex
	last map[string]string
}

func (h *heard) note(region, base string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last == nil {
		h.last = map[string]string{}
	}
	h.last[region] = base
}

// of is the address that answered last; "" where none has.
func (h *heard) of(region string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last[region]
}

// bases are a region's admin addresses, the one that answered last first.
func (a *asker) bases(region string) []string {
	all := slices.Clone(a.o.file.Regions[region].Admin)
	if at := slices.Index(all, a.o.heard.of(region)); at > 0 {
		all[0], all[at] = all[at], all[0]
	}
	return all
}

// ask tries a region's coordinators one after the other, for what shall be done once.
func (a *asker) ask(ctx context.Context, region, method, path string, out any) error {
	raw, err := a.askInTurn(ctx, region, method, path, nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, out)
}

func (a *asker) askInTurn(ctx context.Context, region, method, path string, body []byte) ([]byte, error) {
	var errs []error
	for _, base := range a.bases(region) {
		raw, err := a.send(ctx, method, base+path, body)
		if err == nil {
			a.o.heard.note(region, base)
			return raw, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("the regions file has no admin address of region %s", region)
	}
	return nil, errors.Join(errs...)
}

func (a *asker) askOne(ctx context.Context, base, method, path string, out any) error {
	raw, err := a.send(ctx, method, base+path, nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, out)
}

func (a *asker) send(ctx context.Context, method, url string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	return a.do(req)
}

func (a *asker) do(req *http.Request) ([]byte, error) {
	if a.token != "" {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	most := cmp.Or(a.most, mostBytes)
	raw, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err == nil && int64(len(raw)) > most {
		err = fmt.Errorf("%s: the answer is longer than %d bytes", req.URL, most)
	}
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, &statusError{resp.StatusCode, fmt.Sprintf("%s: %s: %s", req.URL, resp.Status, shown(cut(string(raw), 200)))}
	}
	return raw, nil
}

// statusError is an answer that is not 200.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

// answered is what a region's coordinator answered.
type answered struct {
	body []byte
	err  error
}

// askAll asks a coordinator of every region but one, side by side: POST where there is a body. limit is how long each may take; 0,
// or a limit that is nil: as long as the client has.
func (a *asker) askAll(ctx context.Context, but, path string, body []byte, limit func(region string) time.Duration) map[string]answered {
	out := map[string]answered{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, region := range a.o.file.Names() {
		if region == but {
			continue
		}
		all.Go(func() {
			rctx := ctx
			if limit != nil && limit(region) > 0 {
				var cancel context.CancelFunc
				rctx, cancel = context.WithTimeoutCause(ctx, limit(region), fmt.Errorf("region %s said nothing for %v", region, limit(region)))
				defer cancel()
			}
			raw, err := a.askAny(rctx, region, path, body)
			if err != nil && rctx.Err() != nil {
				err = context.Cause(rctx)
			}
			mu.Lock()
			defer mu.Unlock()
			out[region] = answered{raw, err}
		})
	}
	all.Wait()
	return out
}

// hurried is a limit for askAll: for the one region that is needed, and for those that have answered before, none beyond the
// client's; silence for the others.
func (a *asker) hurried(needed string) func(region string) time.Duration {
	return func(region string) time.Duration {
		if region == needed || a.o.heard.of(region) != "" {
			return 0
		}
		return silence
	}
}

// askAny asks a region's coordinators, the next one as soon as the one before has refused or is late, and takes the first answer.
// What is asked must do no harm when it is done twice.
func (a *asker) askAny(ctx context.Context, region, path string, body []byte) ([]byte, error) {
	method := http.MethodGet
	if body != nil {
		method = http.MethodPost
	}
	bases := a.bases(region)
	errs := []error{fmt.Errorf("no coordinator of region %s answers", region)}
	if len(bases) == 0 {
		return nil, errs[0]
	}
	type answer struct {
		base string
		answered
	}
	var all sync.WaitGroup
	defer all.Wait() // after the cancel
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer, len(bases))
	asked := 0
	begin := func() {
		base := bases[asked]
		asked++
		all.Go(func() {
			raw, err := a.send(ctx, method, base+path, body)
			answers <- answer{base, answered{raw, err}}
		})
	}
	begin()
	late := time.NewTicker(stagger)
	defer late.Stop()
	for ended := 0; ; {
		select {
		case <-late.C:
			if asked < len(bases) {
				begin()
			}
		case ans := <-answers:
			if ans.err == nil {
				a.o.heard.note(region, ans.base)
				return ans.body, nil
			}
			errs = append(errs, ans.err)
			if ended++; ended == len(bases) {
				return nil, errors.Join(errs...)
			}
			if asked < len(bases) {
				begin()
			}
		}
	}
}
