package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/lockstep-tx/lockstep/chaos/report"
)

const root = "../../.."

// ciJob is what a job of either system has, as far as it is looked at here.
type ciJob struct {
	Script []string
	Steps  []struct {
		Run, Uses, If string
		With          struct {
			Path  string
			Depth *int `yaml:"fetch-depth"`
		}
	}
	Env, Variables map[string]string
	Artifacts      struct {
		When    string
		Paths   []string
		Reports struct{ JUnit string }
	}
}

func (j *ciJob) commands() []string {
	out := slices.Clone(j.Script)
	for _, s := range j.Steps {
		if s.Run != "" {
			out = append(out, s.Run)
		}
	}
	return out
}

// keeps gives the directories that the job keeps whatever became of it.
func (j *ciJob) keeps() (out []string) {
	if j.Artifacts.When == "always" {
		out = append(out, j.Artifacts.Paths...)
	}
	for _, s := range j.Steps {
		if strings.HasPrefix(s.Uses, "actions/upload-artifact@") && s.If == "always()" {
			out = append(out, s.With.Path)
		}
	}
	return out
}

// history says whether the job has the whole history of the project.
func (j *ciJob) history() bool {
	for _, s := range j.Steps {
		if strings.HasPrefix(s.Uses, "actions/checkout@") {
			return s.With.Depth != nil && *s.With.Depth == 0
		}
	}
	return j.Variables["GIT_DEPTH"] == "0"
}

// ciJobs reads the jobs out of docs/ci.md.
func ciJobs(t *testing.T) map[string]*ciJob {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, "docs", "ci.md"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*ciJob{}
	for i, block := range regexp.MustCompile("(?ms)^```yaml\n(.*?)^```").FindAllSubmatch(raw, -1) {
		if host := regexp.MustCompile(`\b[a-z0-9-]+\.(io|com|org|net|dev)\b`).Find(block[1]); host != nil {
			t.Errorf("block %d names the host %s", i, host)
		}
		var github struct{ Jobs map[string]*ciJob }
		if err := yaml.Unmarshal(block[1], &github); err != nil {
			t.Fatalf("block %d: %v", i, err)
		}
		jobs := github.Jobs
		if jobs == nil {
			if err := yaml.Unmarshal(block[1], &jobs); err != nil {
				t.Fatalf("block %d: %v", i, err)
			}
		}
		for name, j := range jobs {
			all[[]string{"github", "gitlab"}[min(i, 1)]+" "+name] = j
		}
	}
	return all
}

// TestTheJobsInThePagesRun runs every command of the jobs in docs/ci.md: make says what it would do, and the suite has a
// budget that is used up at once. What the suite leaves is what the job keeps.
func TestTheJobsInThePagesRun(t *testing.T) {
	jobs := ciJobs(t)
	for _, name := range []string{"github suite", "github mutants", "github nightly", "gitlab chaos", "gitlab chaos-mutants", "gitlab chaos-nightly"} {
		if jobs[name] == nil || len(jobs[name].commands()) == 0 {
			t.Errorf("there is no job %s, or it does nothing", name)
		}
	}
	for name, j := range jobs {
		t.Run(name, func(t *testing.T) {
			for _, line := range j.commands() {
				command(t, j, line)
			}
			for _, env := range []map[string]string{j.Env, j.Variables} {
				for variable := range env {
					if variable == "GIT_DEPTH" {
						continue
					}
					if raw, err := os.ReadFile("suite.go"); err != nil || !bytes.Contains(raw, []byte(`env:"`+variable+`"`)) {
						t.Errorf("the job sets %s, which the program does not read: %v", variable, err)
					}
				}
			}
		})
	}
}

func command(t *testing.T, j *ciJob, line string) {
	t.Helper()
	words := strings.Fields(line)
	switch {
	case words[0] == "make":
		dry := exec.Command("make", append([]string{"-n"}, words[1:]...)...)
		dry.Dir = root
		if out, err := dry.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
		if slices.Contains(words, "chaos-nightly") && !(j.history() && slices.Contains(j.keeps(), "chaos-out")) {
			t.Errorf("%s: the job has the history: %v; it keeps %v", line, j.history(), j.keeps())
		}
	case words[0] == "git":
		sh := exec.Command("sh", "-ec", line)
		sh.Dir = t.TempDir()
		sh.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL="+filepath.Join(sh.Dir, "config"), "GITHUB_WORKSPACE="+root) // not whose machine this is
		if out, err := sh.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
	case words[0] == "bin/lockstep-chaos" && words[1] == "run":
		suiteRuns(t, j, words[1:])
	case words[0] == "bin/lockstep-chaos":
		// The programs need not be built here, and doctor ends as the suite would without them: what it says of the host
		// is what is looked at. A command that does not exist ends with 2.
		var out bytes.Buffer
		code := run(t.Context(), words[1:], &out, &out)
		if code != 0 && code != report.ExitHarness || !strings.Contains(out.String(), "loopback") {
			t.Errorf("%s: exit %d\n%s", line, code, out.String())
		}
	default:
		t.Errorf("%s: it is not known here how to try that", line)
	}
}

// suiteRuns runs the suite with nothing to spend.
func suiteRuns(t *testing.T, j *ciJob, words []string) {
	t.Helper()
	at := func(flag string) int {
		n := slices.Index(words, flag)
		if n < 0 || n+1 == len(words) {
			t.Fatalf("%v: %s is to be there", words, flag)
		}
		return n + 1
	}
	out, budget := at("--out"), at("--budget")
	if !slices.Contains(j.keeps(), words[out]) {
		t.Errorf("the job writes to %s, and keeps %v whatever becomes of it", words[out], j.keeps())
	}
	if junit := j.Artifacts.Reports.JUnit; j.Script != nil && junit != words[out]+"/junit.xml" {
		t.Errorf("the job's JUnit report is %s", junit)
	}
	dir := t.TempDir()
	words = slices.Clone(words)
	words[out], words[budget] = dir, "1ns"
	var said bytes.Buffer
	if code := run(t.Context(), words, &said, &said); code != report.ExitHarness && code != report.ExitInconclusive {
		t.Errorf("%v: exit %d\n%s", words, code, said.String())
	}
	for _, file := range []string{"junit.xml", "result.json", "report.html"} {
		if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
			t.Error(err)
		}
	}
}
