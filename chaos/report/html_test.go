package report

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/chaos/check"
)

// stored is a run as result.json has it, and the page of it.
func stored(t *testing.T) (*Run, string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "result.json"))
	if err != nil {
		t.Fatal(err)
	}
	r := &Run{}
	if err := json.Unmarshal(raw, r); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := r.HTML(&out); err != nil {
		t.Fatal(err)
	}
	return r, out.String()
}

// attribute reads a number of the first element that the expression finds after a place in the page.
func attribute(t *testing.T, page, element, name string) float64 {
	t.Helper()
	tag := regexp.MustCompile(element).FindString(page)
	m := regexp.MustCompile(`\b` + name + `="([^"]*)"`).FindStringSubmatch(tag)
	if m == nil {
		t.Fatalf("no %s in %q, looked for %s", name, tag, element)
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// chartOf is a scenario's timeline in the page.
func chartOf(t *testing.T, page, id string) string {
	t.Helper()
	_, rest, ok := strings.Cut(page, `<section id="`+id+`">`)
	rest, _, _ = strings.Cut(rest, "</section>")
	_, svg, ok2 := strings.Cut(rest, "<svg")
	svg, _, ok3 := strings.Cut(svg, "</svg>")
	if !ok || !ok2 || !ok3 {
		t.Fatalf("%s has no timeline", id)
	}
	return svg
}

// TestTheShadedWindowStandsWhereTheFaultWas: the fault of the fixture was there from second 3 to second 6 of ten.
func TestTheShadedWindowStandsWhereTheFaultWas(t *testing.T) {
	_, page := stored(t)
	svg := chartOf(t, page, "N8")
	x, w := attribute(t, svg, `<rect class="window"[^>]*>`, "x"), attribute(t, svg, `<rect class="window"[^>]*>`, "width")
	for second, want := range map[int]float64{3: x, 6: x + w} {
		got := attribute(t, svg, `<rect class="bar \w+" data-second="`+strconv.Itoa(second)+`"[^>]*>`, "x")
		if diff := got - want; diff > 0.01 || diff < -0.01 {
			t.Errorf("second %d stands at %.2f, the window's edge at %.2f", second, got, want)
		}
	}
	if strings.Contains(svg, `class="crash"`) {
		t.Error("N8 is no crash")
	}
	if svg := chartOf(t, page, "P1"); !strings.Contains(svg, `class="crash"`) {
		t.Error("the crash of P1 is not marked")
	}
	// Bars stand on each other, and the busiest second is as high as the chart.
	full := attribute(t, svg, `<rect class="window"[^>]*>`, "height")
	ok, unknown := `<rect class="bar ok" data-second="7"[^>]*>`, `<rect class="bar unknown" data-second="7"[^>]*>`
	if sum := attribute(t, svg, ok, "height") + attribute(t, svg, unknown, "height"); sum < full-0.01 || sum > full+0.01 {
		t.Errorf("the busiest second is %.2f high of %.2f", sum, full)
	}
	if top := attribute(t, svg, unknown, "y") + attribute(t, svg, unknown, "height"); top-attribute(t, svg, ok, "y") > 0.01 {
		t.Error("the unknown do not stand on the answered")
	}
}

func TestThePageSaysViolationsFirst(t *testing.T) {
	r, page := stored(t)
	if r.Scenarios[0].Verdict != check.Passed || r.Scenarios[1].Verdict != check.Failed {
		t.Fatal("the fixture is to have the violation in its second scenario")
	}
	at := -1
	for _, next := range []string{"origin 1 slot 7 has 3 events", "and 2 more", "P2</a> inconclusive: no proven effect", "M8</a> not run", `<section id="N8">`, `<section id="P2">`, `<section id="P1">`} {
		n := strings.Index(page, next)
		if n <= at {
			t.Errorf("%q stands at %d, what is to be before it at %d", next, n, at)
		}
		at = n
	}
	for _, want := range []string{"12 bytes were swallowed", "1234", "not armed: 0 events that a region lacked", "I9*", "--scenario N8 --seed 7", "12.3 times slower"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

// TestThePageNeedsNothingElseAndRunsNothing: what it shows comes from processes and databases, and is text.
func TestThePageNeedsNothingElseAndRunsNothing(t *testing.T) {
	r, page := stored(t)
	if !strings.Contains(r.Scenarios[1].Checks[0].Violations[0], "<script>") || !strings.Contains(r.Scenarios[1].Windows[0].Fault, `"><`) {
		t.Fatal("the fixture is to have what must be escaped")
	}
	for _, bad := range []string{"<script", `"><b>`, "src=", "@import", "url(", "http://", "https://", "<link"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %s", bad)
		}
	}
	if !strings.Contains(page, "&lt;script&gt;alert") {
		t.Error("the violation is not shown as text")
	}
}

func TestARunIsWrittenWithItsPage(t *testing.T) {
	r, page := stored(t)
	dir := t.TempDir()
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "report.html"))
	if err != nil || string(raw) != page {
		t.Errorf("%v, or it is another page", err)
	}
	// A scenario of which nothing is known but that the suite failed has a section too.
	broken := verdicts(check.Inconclusive)
	broken.Scenarios[0].Harness = "it did not start"
	var out bytes.Buffer
	if err := broken.HTML(&out); err != nil || strings.Contains(out.String(), "<svg") || !strings.Contains(out.String(), "it did not start") || strings.Contains(out.String(), ">failed<") {
		t.Errorf("%v: %s", err, out.String())
	}
}
