package docs

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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

var link = regexp.MustCompile(`\]\(([^)#\s]+)(#[^)\s]*)?\)`)

func TestLinksLeadSomewhere(t *testing.T) {
	for _, page := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(read(t, page), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
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

// TestGuaranteesNameTestsThatExist: every test that docs/guarantees.md and docs/testing.md name is in the code, and
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
	for _, p := range []string{page, read(t, "testing.md")} {
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

// TestFlagsInThePagesExist: a command that a page shows can be typed.
func TestFlagsInThePagesExist(t *testing.T) {
	known := map[string]bool{}
	for _, k := range config.Keys() {
		known[k] = true
	}
	for _, other := range []string{"help", "admin-addr", "ca", "cert", "key", "output", "timeout", "status", "mode", "older-than", "newer-than", "slot", "prefix", "stuck", "limit", "cursor", "all", "from", "redis-prefix", "schema", "dry-run", "keep", "payments", "role", "name"} {
		known[other] = true
	}
	shown := regexp.MustCompile(`lockstep (?:serve|tx|status|config|token|import-dtm|demo)[^\n` + "`" + `]*`)
	flagName := regexp.MustCompile(`--([a-z][a-z-]*)`)
	for _, page := range pages(t) {
		for _, cmd := range shown.FindAllString(read(t, page), -1) {
			for _, m := range flagName.FindAllStringSubmatch(cmd, -1) {
				if !known[m[1]] {
					t.Errorf("%s shows --%s in %q, which no command has", page, m[1], cmd)
				}
			}
		}
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
