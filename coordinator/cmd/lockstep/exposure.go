package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

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

// viewsOf asks the regions that are left what they know of the lost one. The target has as long as a scan; the others are not
// waited for.
func (c *regionFailoverCmd) viewsOf(ctx context.Context, a *asker) map[string]regionExposure {
	patient := &asker{o: a.o, token: a.token, client: &http.Client{Timeout: c.Scan, Transport: a.client.Transport}}
	out := map[string]regionExposure{}
	for region, ans := range patient.askAll(ctx, c.From, "/v1/region/exposure?"+url.Values{"origin": {c.From}}.Encode(), nil, func(region string) time.Duration {
		if region == c.To {
			return c.Scan
		}
		return silence
	}) {
		var v regionExposure
		if ans.err == nil {
			ans.err = json.Unmarshal(ans.body, &v)
		}
		if ans.err != nil {
			v = regionExposure{Error: ans.err.Error(), HeardMillis: -1}
		}
		out[region] = v
	}
	return out
}

// expose asks the arbiter and the participants that are left for what stands there; views are viewsOf's.
func (c *regionFailoverCmd) expose(e *env, o *opened, owners *slot.Map, views map[string]regionExposure) (*exposure, error) {
	x := &exposure{Views: views, Tries: map[txn.Gid][]recovery.Try{}}
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
	ctx, cancel := c.within(e.ctx)
	defer cancel()
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
	t, err := registry.Load(ctx, o.arbiter)
	if err != nil {
		return nil, err
	}
	x.askParticipants(e.ctx, c, c.asker(e, o), t, slots)
	return x, nil
}

// askParticipants asks those that survive for what stands there. One beside coordinators that say nothing may live all the same, but
// is not waited for as long as for a scan.
func (x *exposure) askParticipants(ctx context.Context, c *regionFailoverCmd, a *asker, t *registry.Table, slots []int) {
	client := &http.Client{Transport: a.client.Transport}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, part := range t.All() {
		if part.Can == nil || !part.Can.Tries {
			x.Unfenced = append(x.Unfenced, part.Name)
			continue
		}
		for region, endpoint := range part.Endpoints {
			if region == c.From {
				continue
			}
			limit := c.Scan
			if region != c.To && x.Views[region].Error != "" {
				limit = min(c.Scan, time.Second)
			}
			all.Go(func() {
				pctx, cancel := context.WithTimeout(ctx, limit)
				defer cancel()
				list, err := place.Tries(pctx, client, endpoint, slots)
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
}

// digest is over what may change what the operator decides, states and amounts with it: not over ages.
func (x *exposure) digest() string {
	h := sha256.New()
	for _, region := range slices.Sorted(maps.Keys(x.Views)) {
		v := x.Views[region]
		fmt.Fprintln(h, region, v.Error != "", v.Open, v.Unpublished, v.Unapplied)
	}
	for _, gid := range slices.Sorted(maps.Keys(x.Tries)) {
		var each []string
		for _, t := range x.Tries[gid] {
			each = append(each, fmt.Sprintf("%+q", []any{t.Participant, string(t.Branch), t.Mode, t.Global, t.State, t.Account, t.Amount, t.Currency, t.Debit}))
		}
		slices.Sort(each) // in whatever order they have answered
		fmt.Fprintf(h, "%q %q\n", gid, each)
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
			fmt.Fprintf(w, "  %s does not answer: %s\n", region, shown(cut(v.Error, 120)))
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
		fmt.Fprintf(w, "    %s: %s\n", shown(string(gid)), shown(triesText(x.Tries[gid])))
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
	return ", debits held: " + shown(strings.Join(parts, ", ")) + " (minor units)"
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
