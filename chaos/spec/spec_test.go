//go:build servers

package spec

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var all = flag.Bool("spec.all", false, "search the larger worlds too: minutes")

// world is one search: what of the model is switched on, and what must come of it.
type world struct {
	name   string
	define string
	live   bool   // that all ends is searched, with a fair scheduler; else that nothing bad happens
	broken bool   // the search must find something
	why    string // what it finds, or why it finds nothing though a rule is broken
	large  bool
}

var worlds = []world{
	{name: "the arbiter decides", define: "GLOBAL"},
	{name: "the lost region decides, and one participant is lost with it", define: "FAR"},
	{name: "it all ends", define: "GLOBAL ALONE", live: true},
	{name: "the lost region decides", define: "REGIONAL", large: true},
	{name: "two transactions draw on one unit", define: "GLOBAL ALONE TXS=2", large: true},

	{name: "no barrier row", define: "GLOBAL NO_BARRIER", broken: true, why: "a confirm takes effect twice"},
	{name: "no row of an empty cancel", define: "GLOBAL NO_TOMBSTONE", broken: true, why: "a late try holds for ever"},
	{name: "confirms before the decision", define: "GLOBAL EARLY", broken: true, why: "the decision is another one"},
	{name: "decisions of an epoch that is over, and absence taken for abort", define: "GLOBAL NO_EPOCH", broken: true, why: "both decide", large: true},
	{name: "an abort that is not written", define: "GLOBAL STALE_STATE", broken: true, why: "the decision that stands is not looked at", large: true},
	{name: "participants without epochs", define: "REGIONAL NO_FENCE", broken: true, why: "a confirm of the lost region comes after an operator's abort"},
	{name: "what is known is tried, so it is cancelled", define: "FAR CANCEL_TRIED", broken: true, why: "the branch that nobody knows of is confirmed"},
	{name: "a try that holds nothing", define: "GLOBAL ALONE TXS=2 NO_HOLD", broken: true, why: "one unit is spent twice"},

	{name: "participants without epochs where the arbiter decides", define: "GLOBAL NO_FENCE", why: "all calls follow from one record", large: true},
}

// TestTheModelHoldsAndEachBrokenRuleIsFound searches every state of each world.
func TestTheModelHoldsAndEachBrokenRuleIsFound(t *testing.T) {
	for _, tool := range []string{"spin", "cc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing: run the tests with make test, which installs it (%v)", tool, err)
		}
	}
	model, err := filepath.Abs("tcc.pml")
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range worlds {
		if w.large && !*all {
			continue
		}
		t.Run(w.name, func(t *testing.T) {
			found, states := w.search(t, model)
			t.Logf("%s: %s states, found %q", w.define, states, found)
			switch {
			case w.broken && found == "":
				t.Errorf("nothing is found; it should be that %s", w.why)
			case !w.broken && found != "":
				t.Errorf("%s (in %s)", found, w.define)
			}
		})
	}
}

var (
	errorsLine = regexp.MustCompile(`errors: (\d+)`)
	badLine    = regexp.MustCompile(`(?m)^pan:\d+: .{0,90}`)
	stateLine  = regexp.MustCompile(`(\d+) states, stored`)
)

// search has Spin make the checker and runs it. found is "" where every state was seen and none is bad.
func (w *world) search(t *testing.T, model string) (found, states string) {
	t.Helper()
	dir := t.TempDir()
	run := func(name string, args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	spin, cc, pan := []string{"-a"}, []string{"-O2", "-w", "-DCOLLAPSE", "-o", "pan", "pan.c"}, []string{"-n", "-m1000000"}
	for _, d := range strings.Fields(w.define) {
		spin = append(spin, "-D"+d)
	}
	if w.live {
		spin, cc, pan = append(spin, "-DLIVE"), append(cc, "-DNFAIR=6"), append(pan, "-a", "-f")
	} else {
		cc = append(cc, "-DSAFETY")
	}
	text := run("spin", append(spin, model)...)
	if _, err := os.Stat(filepath.Join(dir, "pan.c")); err != nil {
		t.Fatalf("the model is none: %s", text)
	}
	run("cc", cc...)
	out := run(filepath.Join(dir, "pan"), pan...)
	n, s := errorsLine.FindStringSubmatch(out), stateLine.FindStringSubmatch(out)
	if n == nil || s == nil || strings.Contains(out, "max search depth too small") || strings.Contains(out, "out of memory") {
		t.Fatalf("the search has not come to its end:\n%s", out)
	}
	if s[1] == "0" {
		t.Fatal("no state was looked at")
	}
	if n[1] != "0" {
		if found = badLine.FindString(out); found == "" {
			t.Fatalf("%s errors, and not one of them is told:\n%s", n[1], out)
		}
	}
	return found, s[1]
}
