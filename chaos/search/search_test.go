package search

import (
	"flag"
	"strings"
	"testing"
	"time"
)

const statesMax = 2_000_000

var larger = flag.Bool("larger", false, "search larger bounds: minutes, and some GiB")

// nightly are the bounds of `make search`.
var nightly = map[string]Bounds{
	"the slot changes hands, a write's answer is lost":                     {Doubts: 1, Takeovers: 1, States: 20_000_000},
	"the slot changes hands, a call is lost, a participant refuses":        {Losses: 1, Refusals: 1, Takeovers: 1, States: 20_000_000},
	"the slot changes hands, a call is lost, one arrives twice":            {Losses: 1, Repeats: 1, Takeovers: 1, States: 20_000_000},
	"a write's answer is lost, a call too, one arrives twice, one refuses": {Doubts: 1, Losses: 1, Repeats: 1, Refusals: 1, States: 20_000_000},
}

// inCI are bounds that two cores look through within a minute; `make search` looks at larger ones.
var inCI = map[string]Bounds{
	"the slot changes hands, and a call or an answer is lost":     {Losses: 1, Takeovers: 1, States: statesMax},
	"the slot changes hands, and a call arrives twice":            {Repeats: 1, Takeovers: 1, States: statesMax},
	"the slot changes hands, and a participant refuses":           {Refusals: 1, Takeovers: 1, States: statesMax},
	"a write's answer is lost, a call too, a participant refuses": {Doubts: 1, Losses: 1, Refusals: 1, States: statesMax},
}

// TestNothingIsBrokenWithinTheBounds looks at every state, sees both ends, and finds a way to an end from everywhere.
func TestNothingIsBrokenWithinTheBounds(t *testing.T) {
	all := inCI
	if *larger {
		all = nightly
	}
	for name, b := range all {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			res, err := Run(Rules{}, b)
			if err != nil {
				t.Fatal(err)
			}
			if res.Broken != "" || res.Commits == 0 || res.Aborts == 0 || res.States < 1000 {
				t.Fatal(res)
			}
			t.Logf("%v in %v", res, time.Since(start))
		})
	}
}

// TestEachRuleThatIsSwitchedOffIsFound: a search that finds nothing where something is broken would prove nothing.
func TestEachRuleThatIsSwitchedOffIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		rules Rules
		b     Bounds
		says  string
	}{
		"writes of an old term are taken":     {Rules{NoTerm: true}, Bounds{Takeovers: 1}, "(G"},
		"calls leave before the decision":     {Rules{CallsFirst: true}, Bounds{Takeovers: 1}, "(G"},
		"a lost answer is taken for no":       {Rules{LostIsNo: true}, Bounds{Doubts: 1}, "(G"},
		"an empty cancel leaves no tombstone": {Rules{NoTombstone: true}, Bounds{Losses: 1}, "nothing leads from here to an end"},
		"there is no barrier":                 {Rules{NoBarrier: true}, Bounds{Repeats: 1}, "twice"},
	} {
		t.Run(name, func(t *testing.T) {
			c.b.States = statesMax
			res, err := Run(c.rules, c.b)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(res.Broken, c.says) || len(res.Trace) == 0 {
				t.Fatalf("not found: %v", res)
			}
			t.Log(res)
		})
	}
}
