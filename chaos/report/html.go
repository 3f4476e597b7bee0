package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/scenario"
)

//go:embed report.html.tmpl
var pageText string

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"percent": func(share float64) string { return fmt.Sprintf("%.1f %%", share*100) },
}).Parse(pageText))

// The timeline's measures, in pixels of its own: between left and right stand the seconds, between top and bottom the counts.
const (
	chartWidth, chartHeight = 900.0, 190.0
	chartLeft, chartRight   = 44.0, 890.0
	chartTop, chartBottom   = 22.0, 160.0
	ticksMax                = 15
)

// page is what the template shows.
type page struct {
	*Run
	Verdict    check.Verdict
	Violations []finding
	Open       []finding // why something is not proven
	Scenarios  []section
}

// finding is one line about a scenario. Checker is empty where it is about the scenario as a whole.
type finding struct{ Scenario, Checker, Text string }

// section is a scenario with its timeline.
type section struct {
	scenario.Result
	Replay string
	Chart  *chart
}

// chart is a timeline, laid out.
type chart struct {
	Width, Height, Left, Right, Top, Bottom float64
	Most                                    int // operations in the busiest second
	Bars                                    []bar
	Windows                                 []shade
	Ticks                                   []tick
}

// Depth is how high a bar can be.
func (c *chart) Depth() float64 { return c.Bottom - c.Top }

// bar is one part of a second's bar.
type bar struct {
	Second, Count int
	Class         string
	X, Y, W, H    float64
}

// shade is the time in which a fault was there.
type shade struct {
	Label, Span string
	Crash       bool
	Named       bool // its label is written over it; else it shows itself on pointing
	X, W        float64
}

type tick struct {
	Second int
	X      float64
}

// HTML writes the run as one page that needs nothing else: violations first, then what is not proven, then each scenario
// with its timeline, the worst of them first.
func (r *Run) HTML(w io.Writer) error {
	p := page{Run: r, Verdict: check.Inconclusive} // also where the suite itself failed
	switch r.Exit() {
	case ExitHeld:
		p.Verdict = check.Passed
	case ExitViolation:
		p.Verdict = check.Failed
	}
	for i := range r.Scenarios {
		s := &r.Scenarios[i]
		p.note(s)
		p.Scenarios = append(p.Scenarios, section{*s, replay(s), lay(s)})
	}
	for _, id := range r.Unrun {
		p.Open = append(p.Open, finding{id, "", "not run: the budget was used up before it"})
	}
	worst := []check.Verdict{check.Failed, check.Inconclusive, check.Skipped, check.Passed}
	slices.SortStableFunc(p.Scenarios, func(a, b section) int {
		return slices.Index(worst, a.Verdict) - slices.Index(worst, b.Verdict)
	})
	return pageTemplate.Execute(w, p)
}

// note takes what is to be said first of a scenario.
func (p *page) note(s *scenario.Result) {
	for i := range s.Checks {
		c := &s.Checks[i]
		for _, text := range c.Violations {
			p.Violations = append(p.Violations, finding{s.ID, c.ID, text})
		}
		if more := c.Count - len(c.Violations); more > 0 {
			p.Violations = append(p.Violations, finding{s.ID, c.ID, fmt.Sprintf("and %d more", more)})
		}
	}
	if s.Harness != "" {
		p.Open = append(p.Open, finding{s.ID, "", "the suite itself: " + s.Harness})
	}
	if s.Verdict == check.Inconclusive || s.Verdict == check.Skipped {
		for _, why := range s.Reasons {
			p.Open = append(p.Open, finding{s.ID, "", why})
		}
	}
}

// lay lays a scenario's timeline out; nil where there is none.
func lay(s *scenario.Result) *chart {
	if len(s.Timeline) == 0 {
		return nil
	}
	seconds := float64(len(s.Timeline))
	for _, w := range s.Windows {
		seconds = max(seconds, float64(w.Healed)/1e9)
	}
	c := &chart{Width: chartWidth, Height: chartHeight, Left: chartLeft, Right: chartRight, Top: chartTop, Bottom: chartBottom, Most: 1}
	at := func(second float64) float64 { return chartLeft + (chartRight-chartLeft)*second/seconds }
	for _, sec := range s.Timeline {
		c.Most = max(c.Most, sec.OK+sec.Fail+sec.Unknown)
	}
	for n, sec := range s.Timeline {
		y := chartBottom
		for _, part := range []struct {
			class string
			count int
		}{{"ok", sec.OK}, {"fail", sec.Fail}, {"unknown", sec.Unknown}} {
			h := (chartBottom - chartTop) * float64(part.count) / float64(c.Most)
			y -= h
			if part.count > 0 {
				c.Bars = append(c.Bars, bar{n, part.count, part.class, at(float64(n)), y, at(1) - at(0) - 1, h})
			}
		}
	}
	for n, w := range s.Windows {
		from, to := float64(w.Injected)/1e9, float64(w.Healed)/1e9
		if w.Injected == 0 {
			continue // the scenario ended before its fault
		}
		if to < from {
			to = seconds // it was never healed
		}
		c.Windows = append(c.Windows, shade{w.Fault, fmt.Sprintf("%.1f s to %.1f s", from, to), w.Crash, n == 0, at(from), at(to) - at(from)})
	}
	for n, step := 0, 1+len(s.Timeline)/ticksMax; n <= len(s.Timeline); n += step {
		c.Ticks = append(c.Ticks, tick{n, at(float64(n))})
	}
	return c
}
