// Package report tells what a run of the chaos suite found: on the console, as JSON, as JUnit's XML for CI systems, and as a
// page for people.
//
// Its law: passed, failed, inconclusive and skipped are counted apart, and the exit code says the worst of them.
package report

import (
	"bytes"
	"cmp"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/scenario"
	"github.com/lockstep-tx/lockstep/chaos/sweep"
)

// Version of result.json's form.
const Version = 1

// Run is a whole run.
type Run struct {
	Version   int               `json:"version"`
	Program   string            `json:"program,omitempty"`
	Seed      uint64            `json:"seed"`
	Slow      float64           `json:"slow"`
	Bed       string            `json:"bed"` // what the run was on, and what in it was no real thing
	Scenarios []scenario.Result `json:"scenarios"`
	// Sweep is what was measured of drift; nil where it did not run.
	Sweep *sweep.Result `json:"sweep,omitempty"`
	// Unrun are scenarios for which the budget did not suffice.
	Unrun []string `json:"unrun,omitempty"`
}

// Exit codes, highest precedence first: a violation, an error of the suite, nothing proven, all held.
const (
	ExitViolation    = 1
	ExitHarness      = 4
	ExitInconclusive = 3
	ExitHeld         = 0
)

// Exit is the run's exit code.
func (r *Run) Exit() int {
	code := ExitHeld
	if len(r.Unrun) > 0 || r.counts()[check.Passed] == 0 {
		code = ExitInconclusive // a run of nothing proves nothing
	}
	for _, s := range r.Scenarios {
		switch {
		case s.Verdict == check.Failed:
			return ExitViolation
		case s.Harness != "":
			code = ExitHarness
		case s.Verdict == check.Inconclusive && code == ExitHeld:
			code = ExitInconclusive
		}
	}
	return code
}

func (r *Run) counts() map[check.Verdict]int {
	n := map[check.Verdict]int{}
	for _, s := range r.Scenarios {
		n[s.Verdict]++
	}
	return n
}

// Rare adds up what is to happen sometimes, in the order of the checkers' package, and names what never did; nil where nothing was
// counted.
func (r *Run) Rare() (seen []check.Rare, never []string) {
	at := map[string]int{}
	for _, s := range r.Scenarios {
		for _, x := range s.Rare {
			i, ok := at[x.What]
			if !ok {
				i = len(seen)
				at[x.What], seen = i, append(seen, check.Rare{What: x.What})
			}
			seen[i].N += x.N
		}
	}
	for _, x := range seen {
		if x.N == 0 {
			never = append(never, x.What)
		}
	}
	return seen, never
}

// Sometimes prints that.
func (r *Run) Sometimes(w io.Writer) {
	seen, never := r.Rare()
	if len(seen) == 0 {
		return
	}
	fmt.Fprintf(w, "%d of %d things that are to happen sometimes did:\n", len(seen)-len(never), len(seen))
	for _, x := range seen {
		fmt.Fprintf(w, "  %7d %s\n", x.N, x.What)
	}
}

// Summary is the last line.
func (r *Run) Summary() string {
	n := r.counts()
	return fmt.Sprintf("%d passed, %d failed, %d inconclusive, %d skipped", n[check.Passed], n[check.Failed], n[check.Inconclusive]+len(r.Unrun), n[check.Skipped])
}

// replay is how to run a scenario with the same draws.
func replay(s *scenario.Result) string {
	return cmp.Or(s.Again, fmt.Sprintf("bin/lockstep-chaos run --scenario %s --seed %d --out DIR", s.ID, s.Seed))
}

// One prints a scenario.
func One(w io.Writer, s *scenario.Result) {
	fmt.Fprintf(w, "%-12s %-14s %s\n", strings.ToUpper(string(s.Verdict)), s.ID, s.Title)
	if s.Verdict == check.Skipped {
		fmt.Fprintf(w, "  %s\n", strings.Join(s.Reasons, "; "))
		return
	}
	fmt.Fprintf(w, "  fault: %s\n  healed: %s\n", s.Effective.What, s.Recovered.What)
	fmt.Fprintf(w, "  load: %d operations, %d unknown, %d in flight at the injection, %.0f/s before, %.0f/s after (back in %.1f s); %.0f s in all\n",
		s.Ops, s.Unknown, s.InFlight, s.Rate, s.RateAfter, s.Back, s.Seconds)
	for i := range s.Checks {
		c := &s.Checks[i]
		mark := " "
		if c.Required {
			mark = "*"
		}
		fmt.Fprintf(w, "  %s%-4s %-12s %7d examined, %s\n", mark, c.ID, c.Verdict(), c.Examined, c.Arming)
		for _, v := range c.Violations {
			fmt.Fprintf(w, "        %s\n", v)
		}
	}
	if s.Harness != "" {
		fmt.Fprintf(w, "  the suite itself: %s\n", s.Harness)
	}
	if s.Verdict != check.Passed {
		for _, why := range s.Reasons {
			fmt.Fprintf(w, "  %s\n", why)
		}
		fmt.Fprintf(w, "next: %s\n", replay(s))
	}
}

// Write writes result.json, junit.xml and report.html.
func (r *Run) Write(dir string) error {
	r.Version = Version
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	x, err := r.junit()
	if err != nil {
		return err
	}
	var page bytes.Buffer
	if err := r.HTML(&page); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(dir, "result.json"), raw, 0o644), os.WriteFile(filepath.Join(dir, "junit.xml"), x, 0o644),
		os.WriteFile(filepath.Join(dir, "report.html"), page.Bytes(), 0o644))
}

// Load reads result.json.
func Load(dir string) (*Run, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "result.json"))
	if err != nil {
		return nil, err
	}
	r := &Run{}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, err
	}
	if r.Version != Version {
		return nil, fmt.Errorf("result.json has version %d, this program knows %d", r.Version, Version)
	}
	return r, nil
}

type suite struct {
	XMLName  xml.Name `xml:"testsuite"`
	Name     string   `xml:"name,attr"`
	Tests    int      `xml:"tests,attr"`
	Failures int      `xml:"failures,attr"`
	Errors   int      `xml:"errors,attr"`
	Skipped  int      `xml:"skipped,attr"`
	Cases    []kase   `xml:"testcase"`
}

type kase struct {
	Class   string   `xml:"classname,attr"`
	Name    string   `xml:"name,attr"`
	Time    string   `xml:"time,attr"`
	Failure *message `xml:"failure,omitempty"`
	Error   *message `xml:"error,omitempty"`
	Skipped *message `xml:"skipped,omitempty"`
	Out     string   `xml:"system-out,omitempty"`
}

type message struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// junit has a case per scenario, and one per checker in it.
func (r *Run) junit() ([]byte, error) {
	all := suite{Name: "lockstep-chaos"}
	add := func(k kase) {
		all.Tests++
		switch {
		case k.Error != nil:
			all.Errors++
		case k.Failure != nil:
			all.Failures++
		case k.Skipped != nil:
			all.Skipped++
		}
		all.Cases = append(all.Cases, k)
	}
	for i := range r.Scenarios {
		s := &r.Scenarios[i]
		k := kase{Class: "chaos." + s.ID, Name: fmt.Sprintf("%s (seed %d)", s.Title, s.Seed), Time: fmt.Sprintf("%.1f", s.Seconds), Out: s.Effective.What + "\n" + replay(s)}
		text := &message{strings.Join(append([]string{string(s.Verdict)}, s.Reasons...), "; ") + "; replay: " + replay(s), strings.Join(s.Reasons, "\n")}
		switch {
		case s.Verdict == check.Skipped:
			k.Skipped = text
		case s.Verdict == check.Failed || s.Verdict == check.Inconclusive && s.Harness == "":
			k.Failure = text
		case s.Harness != "":
			k.Error = &message{s.Harness, s.Harness}
		}
		add(k)
		for n := range s.Checks {
			c := &s.Checks[n]
			k := kase{Class: "chaos." + s.ID, Name: c.ID + " " + c.Title, Time: "0", Out: fmt.Sprintf("%d examined; %s", c.Examined, c.Arming)}
			switch c.Verdict() {
			case check.Skipped:
				k.Skipped = &message{c.Skipped, ""}
			case check.Failed, check.Inconclusive:
				k.Failure = &message{fmt.Sprintf("%s: %d violations; %s; replay: %s", c.Verdict(), c.Count, c.Arming, replay(s)), strings.Join(c.Violations, "\n")}
			case check.Passed:
			}
			add(k)
		}
	}
	for _, id := range r.Unrun {
		add(kase{Class: "chaos." + id, Name: "not run", Failure: &message{"inconclusive: the budget was used up before it", ""}})
	}
	out, err := xml.MarshalIndent(all, "", " ")
	return append([]byte(xml.Header), out...), err
}
