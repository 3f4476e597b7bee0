package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/failover/recovery"
	"github.com/lockstep-tx/lockstep/region/place"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// exposure is what is known of a lost region, and what is not.
type exposure struct {
	// Views are the surviving regions' own, by name; an error where one did not answer.
	Views map[string]regionExposure `json:"views"`
	// Tries without an end at surviving participants, of transactions of the lost region's slots, by gid; Unasked are the
	// participants that did not answer, Unfenced those that cannot say.
	Tries    map[txn.Gid][]recovery.Try `json:"tries"`
	Unasked  []string                   `json:"unasked,omitempty"`
	Unfenced []string                   `json:"unfenced,omitempty"`
	// Decisions of global durability that stand in the arbiter.
	Decisions int `json:"decisions"`
	Slots     int `json:"slots"`
}

// regionExposure is what one region knows of the lost one: at its last word.
type regionExposure struct {
	Error       string `json:"error,omitempty"`
	HeardMillis int64  `json:"heard_ms"`
	Open        int    `json:"open"`
	Unpublished int    `json:"unpublished"`
	Unapplied   uint64 `json:"unapplied"`
	Slots       []struct {
		Slot    int    `json:"slot"`
		Applied uint64 `json:"applied"`
		Head    uint64 `json:"head"`
	} `json:"slots"`
}

// expose asks everybody that is left.
func (c *regionFailoverCmd) expose(ctx context.Context, e *env, o *opened, owners *slot.Map) (*exposure, error) {
	x := &exposure{Views: map[string]regionExposure{}, Tries: map[txn.Gid][]recovery.Try{}}
	want, err := parseSlots(c.Slots)
	if err != nil {
		return nil, usageError{err}
	}
	var slots []int
	for n, w := range owners {
		if w.Region == c.From && (want == nil || want[n]) {
			slots = append(slots, n)
		}
	}
	x.Slots = len(slots)
	a := c.asker(e, o)
	a.client.Timeout = c.Scan
	for region, ans := range a.askAll(ctx, c.From, "/v1/region/exposure?"+url.Values{"origin": {c.From}}.Encode(), nil) {
		var v regionExposure
		if ans.err == nil {
			ans.err = json.Unmarshal(ans.body, &v)
		}
		if ans.err != nil {
			v = regionExposure{Error: ans.err.Error(), HeardMillis: -1}
		}
		x.Views[region] = v
	}
	decisions, err := o.arbiter.AllDecisions(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range slots {
		x.Decisions += len(decisions[n])
	}
	if len(slots) == 0 {
		return x, nil
	}
	return x, x.askParticipants(ctx, a.client, o, c.From, slots)
}

// askParticipants asks those that survive for what stands there.
func (x *exposure) askParticipants(ctx context.Context, client *http.Client, o *opened, lost string, slots []int) error {
	t, err := registry.Load(ctx, o.arbiter)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, part := range t.All() {
		if part.Can == nil || !part.Can.Tries {
			x.Unfenced = append(x.Unfenced, part.Name)
			continue
		}
		for region, endpoint := range part.Endpoints {
			if region == lost {
				continue
			}
			all.Go(func() {
				list, err := place.Tries(ctx, client, endpoint, slots)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					x.Unasked = append(x.Unasked, part.Name+" in "+region)
				}
				for _, one := range list {
					one.Participant = part.Name
					x.Tries[one.Gid] = append(x.Tries[one.Gid], one)
				}
			})
		}
	}
	all.Wait()
	slices.Sort(x.Unasked)
	return nil
}

// digest is over what may change what the operator decides: not over ages.
func (x *exposure) digest() string {
	h := sha256.New()
	for _, region := range slices.Sorted(maps.Keys(x.Views)) {
		v := x.Views[region]
		fmt.Fprintln(h, region, v.Error != "", v.Open, v.Unpublished, v.Unapplied)
	}
	for _, gid := range slices.Sorted(maps.Keys(x.Tries)) {
		fmt.Fprintln(h, gid, len(x.Tries[gid]))
	}
	fmt.Fprintln(h, x.Unasked, x.Unfenced, x.Decisions, x.Slots)
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// gidsShown bounds the list.
const gidsShown = 20

func (x *exposure) print(w io.Writer, from, to string) {
	fmt.Fprintf(w, "exposure of %s, %d slots:\n", from, x.Slots)
	for _, region := range slices.Sorted(maps.Keys(x.Views)) {
		v := x.Views[region]
		switch {
		case v.Error != "":
			fmt.Fprintf(w, "  %s does not answer: %s\n", region, cut(v.Error, 120))
		case v.HeardMillis < 0:
			fmt.Fprintf(w, "  %s has never heard of it\n", region)
		default:
			fmt.Fprintf(w, "  %s heard it last %d ms ago: %d transactions open, %d decisions not published; %d events that it told of have not arrived\n", region, v.HeardMillis, v.Open, v.Unpublished, v.Unapplied)
			fmt.Fprintf(w, "    nothing is known of the last %d ms\n", v.HeardMillis)
		}
	}
	fmt.Fprintf(w, "  the arbiter has %d decisions of global durability: none of them is lost\n", x.Decisions)
	fmt.Fprintf(w, "  surviving participants hold %d transactions without an end%s\n", len(x.Tries), x.amounts())
	for i, gid := range slices.Sorted(maps.Keys(x.Tries)) {
		if i == gidsShown {
			fmt.Fprintf(w, "    and %d more\n", len(x.Tries)-gidsShown)
			break
		}
		fmt.Fprintf(w, "    %s: %s\n", gid, triesText(x.Tries[gid]))
	}
	if len(x.Unasked) > 0 {
		fmt.Fprintf(w, "  not asked, since they do not answer: %s\n", strings.Join(x.Unasked, ", "))
	}
	if len(x.Unfenced) > 0 {
		fmt.Fprintf(w, "  unfenced: what is open at %s stays in doubt unless its durability is global or a branch proves how it ended\n", strings.Join(x.Unfenced, ", "))
	}
	fmt.Fprintf(w, "  accounts at risk: every account that has its home in %s, until its return is worked off; they go to %s\n", from, to)
}

// amounts sums what is held by currency: debits alone, each transaction has as much on its other side.
func (x *exposure) amounts() string {
	sums := map[string]int64{}
	for _, list := range x.Tries {
		for _, t := range list {
			if t.Debit && t.State == recovery.Tried {
				sums[t.Currency] += t.Amount
			}
		}
	}
	if len(sums) == 0 {
		return ""
	}
	var parts []string
	for _, cur := range slices.Sorted(maps.Keys(sums)) {
		parts = append(parts, fmt.Sprintf("%d %s", sums[cur], cur))
	}
	return ", debits held: " + strings.Join(parts, ", ") + " (minor units)"
}

func triesText(list []recovery.Try) string {
	var parts []string
	for _, t := range list {
		text := fmt.Sprintf("%s branch %s %s", t.Participant, t.Branch, t.State)
		if t.Account != "" {
			text += fmt.Sprintf(" %s %d %s", t.Account, t.Amount, t.Currency)
		}
		parts = append(parts, text)
	}
	slices.Sort(parts)
	return strings.Join(parts, "; ")
}

// answered is what a region's coordinator answered.
type answered struct {
	body []byte
	err  error
}

// askAll asks a coordinator of every region but one, side by side: POST where there is a body.
func (a *asker) askAll(ctx context.Context, but, path string, body []byte) map[string]answered {
	out := map[string]answered{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, region := range a.o.file.Names() {
		if region == but {
			continue
		}
		all.Go(func() {
			raw, err := a.askAny(ctx, region, path, body)
			mu.Lock()
			defer mu.Unlock()
			out[region] = answered{raw, err}
		})
	}
	all.Wait()
	return out
}

// askAny tries a region's coordinators one after the other.
func (a *asker) askAny(ctx context.Context, region, path string, body []byte) ([]byte, error) {
	errs := []error{fmt.Errorf("no coordinator of region %s answers", region)}
	for _, base := range a.o.file.Regions[region].Admin {
		method := http.MethodGet
		if body != nil {
			method = http.MethodPost
		}
		req, err := http.NewRequestWithContext(ctx, method, base+path, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		raw, err := a.do(req)
		if err == nil {
			return raw, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}
