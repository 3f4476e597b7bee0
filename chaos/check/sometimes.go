package check

import (
	"net/http"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/tap"
)

// This file counts what is to happen sometimes: runs in which it never does look for faults where there are none. Which of it
// happens is for a whole set to say, not for a scenario.

// Rare is something that is to happen sometimes, as often as it did.
type Rare struct {
	What string `json:"what"`
	N    int    `json:"n"`
}

// gapMany is how many events a region is to lag by, once in a set.
const gapMany = 1000

var rare = []struct {
	what  string
	count func(v *view) int
}{
	{"a leader changed with transactions in flight", func(v *view) int {
		if !anyWindow(v, func(w *Window) bool { return w.InFlight > 0 }) {
			return 0
		}
		return v.Stores.Elections
	}},
	{"a confirm was made again by a new owner", again},
	{"a client was told nothing, and the transaction was committed", func(v *view) int { return v.unknowns(history.Committed) }},
	{"a client was told nothing, and the transaction was aborted", func(v *view) int { return v.unknowns(history.Aborted) }},
	{"a cancel came where nothing had been tried", func(v *view) (n int) {
		for i := range v.Books {
			for _, ops := range v.rows[i] {
				if ops["try"] == "cancel" {
					n++
				}
			}
		}
		return n
	}},
	{"a try that came after its cancel was kept out", func(v *view) int {
		return v.count(func(c *tap.Call) bool { return c.Kind == tap.Late && c.Op == "try" && c.Status == http.StatusConflict })
	}},
	{"a call came twice", func(v *view) int { return v.count(func(c *tap.Call) bool { return c.Kind == tap.Copy }) }},
	{"an old epoch was refused", func(v *view) int {
		return v.count(func(c *tap.Call) bool { return c.Status == http.StatusPreconditionFailed })
	}},
	{"a watch was compacted, and listed again", func(v *view) int { return v.Stores.Relisted }},
	{"a region had more than 1,000 events to catch up on", func(v *view) int { return max(0, v.Lagged-gapMany) }},
	{"drift was repaired", func(v *view) (n int) {
		for _, r := range v.Repairs {
			if r.Status == http.StatusOK {
				n++
			}
		}
		return n
	}},
	{"drift was quarantined", func(v *view) (n int) {
		for _, p := range v.Plants {
			if p.Quarantined {
				n++
			}
		}
		return n
	}},
	{"a participant refused", func(v *view) int {
		return v.count(func(c *tap.Call) bool { return c.Op == "try" && c.Status == http.StatusConflict })
	}},
	{"a request was made again under its gid", func(v *view) int { return v.kinds(history.Again, history.OK) }},
	{"a gid was used for something else, and refused", func(v *view) int { return v.kinds(history.Other, history.Fail) }},
	{"crashes came one after another in one run", func(v *view) int { return max(0, len(v.Windows)-1) }},
}

// Sometimes counts them in one run's evidence, each of them, also those that did not happen.
func Sometimes(e *Evidence) []Rare {
	v := look(e)
	out := make([]Rare, len(rare))
	for i, r := range rare {
		out[i] = Rare{r.what, r.count(v)}
	}
	return out
}

func anyWindow(v *view, is func(*Window) bool) bool {
	for i := range v.Windows {
		if is(&v.Windows[i]) {
			return true
		}
	}
	return false
}

// again counts confirms that were taken at two epochs of their slot.
func again(v *view) int {
	first, twice := map[string]int64{}, map[string]bool{}
	for i := range v.Calls {
		c := &v.Calls[i]
		if c.Op != "confirm" || c.Kind != tap.Plain || c.Epoch == 0 {
			continue
		}
		if was, ok := first[c.Key()]; ok && was != c.Epoch {
			twice[c.Key()] = true
		}
		first[c.Key()] = c.Epoch
	}
	return len(twice)
}

// unknowns counts requests whose answer never came, and that ended so.
func (v *view) unknowns(as history.Value) (n int) {
	for _, op := range v.Ops {
		if op.Outcome == history.Unknown && op.Kind != history.Read && v.outcome[op.Gid] == as {
			n++
		}
	}
	return n
}

func (v *view) kinds(kind history.Kind, o history.Outcome) (n int) {
	for _, op := range v.all {
		if op.Kind == kind && op.Outcome == o {
			n++
		}
	}
	return n
}
