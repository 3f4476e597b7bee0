package docs

import (
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-tx/lockstep/coordinator/bench/build"
	"github.com/lockstep-tx/lockstep/coordinator/config"
	"github.com/lockstep-tx/lockstep/coordinator/dtmwire"
	"github.com/lockstep-tx/lockstep/coordinator/telemetry"
)

var update = flag.Bool("update", false, "write the generated references anew")

const root = ".."

// pages are all Markdown files of the project.
func pages(t *testing.T) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "bin" || d.Name() == ".dev" || d.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, ".md") {
			out = append(out, path)
		}
		return nil
	})
	if err != nil || len(out) < 5 {
		t.Fatalf("found %d pages: %v", len(out), err)
	}
	return out
}

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

var (
	link    = regexp.MustCompile(`\]\(([^)#\s]*)(#[^)\s]*)?\)`)
	heading = regexp.MustCompile(`(?m)^#+ +(.+?) *$`)
	fenced  = regexp.MustCompile("(?ms)^```.*?^```")
)

// anchors are the places in a page that a link may name, as GitHub makes them from headings.
func anchors(page string) map[string]bool {
	out := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(page, ""), -1) {
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
				return unicode.ToLower(r)
			}
			return -1
		}, m[1])
		for n, base := 1, name; out[name]; n++ {
			name = fmt.Sprintf("%s-%d", base, n)
		}
		out[name] = true
	}
	return out
}

func TestLinksLeadSomewhere(t *testing.T) {
	for _, page := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(read(t, page), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			target := page
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(page), m[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
			} else if m[2] != "" && strings.HasSuffix(target, ".md") && !anchors(read(t, target))[m[2][1:]] {
				t.Errorf("%s links to %s%s, and there is no such heading", page, m[1], m[2])
			}
		}
	}
}

// generated compares a page with what the code says.
func generated(t *testing.T, page, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(read(t, page), want); diff != "" {
		t.Errorf("%s is not what the code says (-page +code); if it should be: go test ./docs -update\n%s", page, diff)
	}
}

func TestConfigurationReferenceIsTheCode(t *testing.T) {
	generated(t, "reference/config.md", config.Reference())
}

func TestMetricsReferenceIsTheCode(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Metrics\n\nGenerated from `coordinator/telemetry` by `make generate`. Served at `/metrics` on the admin address, with Go's and the\nprocess's own, and with etcd's (`etcd_…`) beside an embedded member. No label holds a gid, a branch or an address.\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n")
	seen := map[string]bool{}
	for _, e := range telemetry.NewMetrics(nil).Catalogue() {
		if seen[e.Name] || !strings.HasPrefix(e.Name, "lockstep_") {
			t.Errorf("metric %s stands twice or lacks the prefix", e.Name)
		}
		seen[e.Name] = true
		if e.Kind == "counter" && !strings.HasSuffix(e.Name, "_total") {
			t.Errorf("counter %s does not end in _total", e.Name)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", e.Name, e.Kind, strings.Join(e.Labels, ", "), e.Help)
	}
	generated(t, "reference/metrics.md", b.String())
}

func TestErrorsReferenceNamesEveryKind(t *testing.T) {
	page := read(t, "reference/errors.md")
	for _, k := range dtmwire.FaultKinds {
		http, rpc, json := k.Codes()
		want := fmt.Sprintf("| `%s` | %d | %s | %d |", k, http, rpc, json)
		if !strings.Contains(page, want) {
			t.Errorf("reference/errors.md has no row that begins %s", want)
		}
	}
}

// TestSampleConfigurationHoldsTheDefaults: the sample is what a process without flags would run with.
func TestSampleConfigurationHoldsTheDefaults(t *testing.T) {
	const sample = "../deploy/config/lockstep.yaml"
	values, err := config.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := config.CheckValues(values, sample); err != nil {
		t.Fatal(err)
	}
	for key, def := range config.Defaults() {
		if got, ok := values[key]; !ok || got != def {
			t.Errorf("%s: %s is %q, the default is %q", sample, key, got, def)
		}
	}
}

var testName = regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9_]+)`")

// TestGuaranteesNameTestsThatExist: every test that docs/guarantees.md, docs/testing.md and docs/reference/dtm.md name is in the code, and
// every guarantee names one or says that it is not built.
func TestGuaranteesNameTestsThatExist(t *testing.T) {
	out, err := exec.Command("git", "-C", root, "grep", "-hoE", "^func (Test|Fuzz)[A-Za-z0-9_]+", "--", "*_test.go").Output()
	if err != nil {
		t.Fatalf("list tests: %v", err)
	}
	exist := map[string]bool{}
	for _, l := range strings.Fields(string(out)) {
		exist[l] = true
	}
	page := read(t, "guarantees.md")
	for _, p := range []string{page, read(t, "testing.md"), read(t, "reference/dtm.md")} {
		for _, m := range testName.FindAllStringSubmatch(p, -1) {
			if !exist[m[1]] {
				t.Errorf("%s is named and does not exist", m[1])
			}
		}
	}
	for i := 1; i <= 11; i++ {
		row := regexp.MustCompile(fmt.Sprintf(`(?m)^\| G%d \|.*$`, i)).FindString(page)
		if !testName.MatchString(row) && !strings.Contains(row, "not built") {
			t.Errorf("G%d names no test and does not say that it is not built: %q", i, row)
		}
	}
}

// programs are those whose commands the pages show.
var programs = map[string]string{"lockstep": "coordinator/cmd/lockstep", "lockstep-participants": "participants/cmd/lockstep-participants"}

var (
	commandLine = regexp.MustCompile(`(?m)^  ([a-z][a-z-]*(?: [a-z][a-z-]*)?)(?:  +| \[| --|$)`)
	helpFlag    = regexp.MustCompile(`(?m)^ +(?:-[a-z], +)?--(?:\[no-\])?([a-z][a-z-]*)`)
)

// flagsOf asks a program for its commands and their flags, as its kong model has them: the key is "lockstep tx list".
func flagsOf(t *testing.T, name, pkg string) map[string]map[string]bool {
	t.Helper()
	program := filepath.Join(t.TempDir(), name)
	cmd := build.ForTest("-o", program, "./"+pkg)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	help := func(args ...string) string {
		out, err := exec.Command(program, append(args, "--help")...).Output()
		if err != nil {
			t.Fatalf("%s %v --help: %v", name, args, err)
		}
		return string(out)
	}
	_, commands, _ := strings.Cut(help(), "\nCommands:\n")
	all := map[string]map[string]bool{}
	for _, m := range commandLine.FindAllStringSubmatch(commands, -1) {
		flags := map[string]bool{"help": true}
		for _, f := range helpFlag.FindAllStringSubmatch(help(strings.Fields(m[1])...), -1) {
			flags[f[1]] = true
		}
		all[name+" "+m[1]] = flags
	}
	if len(all) < 2 {
		t.Fatalf("%s has the commands %v", name, all)
	}
	return all
}

// TestFlagsInThePagesExist: a command that a page shows can be typed.
func TestFlagsInThePagesExist(t *testing.T) {
	known := map[string]map[string]bool{}
	for name, pkg := range programs {
		maps.Copy(known, flagsOf(t, name, pkg))
	}
	if !known["lockstep tx list"]["stuck"] || !known["lockstep serve"]["keep-finished"] || known["lockstep status"]["stuck"] {
		t.Fatalf("the flags were not read: %v", known)
	}
	shown := regexp.MustCompile(`\b(lockstep(?:-participants)? [a-z][a-z-]*(?: [a-z][a-z-]*)?)([^\n` + "`" + `]*)`)
	flagName := regexp.MustCompile(`--([a-z][a-z-]*)`)
	examined := 0
	for _, page := range pages(t) {
		for _, m := range shown.FindAllStringSubmatch(read(t, page), -1) {
			flags, ok := known[m[1]]
			if !ok { // one word alone is the command
				words := strings.Fields(m[1])
				flags, ok = known[words[0]+" "+words[1]]
			}
			if !ok {
				continue // prose, or a group of commands
			}
			for _, f := range flagName.FindAllStringSubmatch(m[2], -1) {
				examined++
				if !flags[f[1]] {
					t.Errorf("%s shows --%s in %q, which that command does not have", page, f[1], m[0])
				}
			}
		}
	}
	if examined < 10 {
		t.Errorf("only %d flags were examined", examined)
	}
}

// The participant in the guide is the one that compiles, and is as short as it looks.
func TestTheGuidesParticipantIsTheExample(t *testing.T) {
	code := read(t, filepath.Join(root, "participants", "branch", "example_test.go"))
	_, example, found := strings.Cut(code, "\n)\n\n")
	if !found || !strings.Contains(read(t, "participants.md"), "```go\n"+example+"```\n") {
		t.Error("docs/participants.md does not hold participants/branch/example_test.go below its imports")
	}
	if n := strings.Count(code, "\n"); n >= 60 {
		t.Errorf("the complete participant has %d lines", n)
	}
}

// Each defect of DTM that the reference lists has a row: what we do, and the test or the reason why not.
func TestEveryDefectOfDTMHasARow(t *testing.T) {
	page := read(t, "reference/dtm.md")
	for i := 1; i <= 43; i++ {
		row := regexp.MustCompile(fmt.Sprintf(`(?m)^\| D%d \|.*$`, i)).FindString(page)
		if !testName.MatchString(row) && !strings.Contains(row, "out of scope:") {
			t.Errorf("D%d names no test and does not say why it is out of scope: %q", i, row)
		}
	}
}

func TestAnchorsAreGitHubs(t *testing.T) {
	got := anchors("# What DTM's `x` does, 1\n## Same\n## Same\n```\n# no heading\n```\n")
	if want := map[string]bool{"what-dtms-x-does-1": true, "same": true, "same-1": true}; !cmp.Equal(got, want) {
		t.Error(cmp.Diff(got, want))
	}
}
