package sweep

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Control is the quiet control: the same load and cuts, and no seed. All deployments have their part in it.
type Control struct {
	Wanted int `json:"wanted"`
	// Reconciled transactions, each in one window that was looked at whole; Looks are all looks.
	Reconciled int `json:"reconciled"`
	Looks      int `json:"looks"`
	// Lagging are looks that found something on its way: what is not closed was left alone, and not by luck.
	Lagging int     `json:"lagging"`
	Cuts    int     `json:"cuts"`
	Seconds float64 `json:"seconds"`
	// Findings are false, all of them.
	Findings []string `json:"findings,omitempty"`
}

// Bound is the upper bound of the rate of false findings at 95 % that no finding in so many transactions proves: 3/N.
func (c *Control) Bound() float64 {
	if c.Reconciled == 0 {
		return 1
	}
	return 3 / float64(c.Reconciled)
}

const (
	quietLanes = 24
	quietThink = 1200 * time.Millisecond
	// quietBurst is how many transactions the copies of wallets on database servers keep up with at full load.
	quietBurst = 1500
	quietRate  = 25.0 // transactions a second at least, on the reference machine: bounds the time
	cutEvery   = 10 * time.Second
	// quietStale is far above what a cut and its aftermath take.
	quietStale = 30 * time.Second
)

// watchLine is what a look of the watch says: its window, and what it has looked at.
var watchLine = regexp.MustCompile(`(?m)^(\S+) to (\S+), rests \S+: compared \d+ chains .*?, (\d+) transactions, .*?; (\d+) on their way;`)

// shares is how many of the control's transactions are each deployment's. All have a part of it: a look adds up the whole books, so
// that the cost of all would grow with the square of what one deployment has. Those with database servers beside them have a small
// one: there the load is what two cores keep up with.
func shares(all int, beds []Bed) (out []int) {
	sum, given, had := 0, 0, 0
	for _, b := range beds {
		sum += b.weight()
	}
	for _, b := range beds {
		had += b.weight()
		out = append(out, all*had/sum-given)
		given += out[len(out)-1]
	}
	return out
}

func (b *Bed) servers() bool { return *b != Bed{Name: b.Name} }

func (b *Bed) weight() int {
	if b.servers() {
		return 1
	}
	return 10
}

// quietControl runs load and cuts, and the product's continuous watch over it, until so many transactions more were reconciled.
func (w *world) quietControl(ctx context.Context, c *Control, wanted int) error {
	began, before, cuts := time.Now(), c.Reconciled, 0
	defer func() { c.Seconds += time.Since(began).Seconds() }()
	rest := time.Duration(0)
	if w.bed.servers() && wanted > quietBurst {
		rest = quietThink // else the copies fall behind for good, and nothing is ever whole
	}
	load, err := w.load(ctx, quietLanes, rest)
	defer load.Stop()
	if err != nil {
		return err
	}
	end := began.Add(time.Minute + w.scaled(time.Duration(float64(wanted)/quietRate*1e9)))
	windows, stopped := map[string]int{}, false
	var lastCut time.Time
	for c.Reconciled < before+wanted && time.Now().Before(end) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !stopped && time.Since(began) > 5*time.Second && time.Since(lastCut) > w.scaled(cutEvery) {
			// The first cut is of the events' way alone: the product can look at both regions while one lags.
			ending := []string{"/kafka", ""}[cuts%2]
			if err := w.cutRegions(cutFor, ending); err != nil {
				return err
			}
			lastCut, c.Cuts, cuts = time.Now(), c.Cuts+1, cuts+1
		}
		if !stopped && w.decided() > wanted+wanted/20+100 {
			load.Stop()
			stopped = true
		}
		out, err := w.d.Tool(ctx, "drift", "watch", "--context", w.d.Regions[0].File, "-o", "json", "--looks", "1", "--share", "1", "--window", "20s", "--settle", "1s",
			"--since", "5s", "--stale-after", w.scaled(quietStale).String())
		c.Looks++
		if err != nil {
			w.o.Say("drift watch: %v: %s", err, out)
			continue
		}
		for line := range strings.Lines(out) {
			var f finding
			if strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &f) == nil {
				c.Findings = append(c.Findings, strings.TrimSpace(line))
			}
		}
		m := watchLine.FindStringSubmatch(out)
		if m == nil {
			return fmt.Errorf("drift watch says nothing of what it has looked at: %s", out)
		}
		n, _ := strconv.Atoi(m[3]) // digits
		if m[4] != "0" {
			c.Lagging++
		}
		if m[4] == "0" && !strings.Contains(out, "NOT COMPARED") {
			windows[m[1]] = n // a window that is not whole is looked at again
		}
		c.Reconciled = before
		for _, n := range windows {
			c.Reconciled += n
		}
		w.o.Say("quiet control: %d of %d transactions reconciled, %d findings, %s on their way", c.Reconciled-before, wanted, len(c.Findings), m[4])
	}
	return nil
}

// decided is how many transactions have ended so far, as clients heard.
func (w *world) decided() int {
	w.remember()
	return len(w.ops)
}
