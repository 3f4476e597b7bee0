package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain turns the test binary into devctl when it is called as a server's first life, or by a test.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "exec" || os.Getenv("LOCKSTEP_DEVCTL_TEST") != "") {
		main()
	}
	os.Setenv(wayVariable, "packages") // the tests look at processes and kill them; those of containers say so
	os.Exit(m.Run())
}

func sleeper(t *testing.T, args ...string) (*exec.Cmd, record) {
	t.Helper()
	cmd := exec.Command("/bin/sh", args...)
	if _, err := cmd.StdinPipe(); err != nil { // one that reads waits for as long as the test runs
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	ticks, ok := statOf(cmd.Process.Pid)
	if !ok {
		t.Fatal("no start time")
	}
	return cmd, record{cmd.Process.Pid, ticks}
}

// The law: a pid that now belongs to another process is left alone.
func TestStopLeavesAReusedPidAlone(t *testing.T) {
	_, r := sleeper(t, "-c", "read x", "sh")
	reused := r
	reused.StartTicks--
	if reused.alive() {
		t.Error("a process with another start time passes for ours")
	}
	if err := reused.stop(syscall.SIGKILL, 0); err != nil {
		t.Fatal(err)
	}
	if (record{}).alive() {
		t.Error("no record passes for a process")
	}
}

// A server that ignores the polite signal, or is stopped, ends all the same.
func TestStopKillsWhatDoesNotListen(t *testing.T) {
	cmd, r := sleeper(t, "-c", "trap '' TERM; while :; do sleep 1; done")
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := r.stop(syscall.SIGTERM, 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if r.alive() {
		t.Error("it is still there")
	}
}

// The law: what devctl did not make stays, beside its own and without.
func TestDownRemovesItsOwnOnly(t *testing.T) {
	dir := t.TempDir()
	foreign := filepath.Join(dir, "bench")
	if err := os.Mkdir(foreign, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := down(dir); err != nil {
		t.Fatal(err)
	}
	if err := mark(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := plan(dir, false); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "etcd1.log"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := down(dir); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "bench" {
		t.Errorf("%v %v", entries, err)
	}
	if err := os.Remove(foreign); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(mark(dir), down(dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the empty directory is still there: %v", err)
	}
}

// A directory whose postgres/ is somebody else's is refused: down would remove it.
func TestForeignDataIsNotTakenOver(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "postgres"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := mark(dir); err == nil {
		t.Error("taken over")
	}
}

// A port is one set's own, whether its servers run or not, until its directory is gone.
func TestPortsAreFreeAndNobodyElses(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	seen := map[int]string{}
	pick := func(n int, dir string) {
		t.Helper()
		ports, err := freePorts(n, dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range ports {
			if owner := seen[p]; (owner != "" && exists(owner)) || p < 20000 || p >= 32000 {
				t.Errorf("port %d of %s is %s's", p, dir, owner)
			}
			seen[p] = dir
		}
	}
	one, two := t.TempDir(), filepath.Join(t.TempDir(), "two")
	if err := os.Mkdir(two, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 40 { // 4000 of 12000: hardly one of the next would be new by chance
		pick(50, one)
		pick(50, two)
	}
	if err := os.Remove(two); err != nil {
		t.Fatal(err)
	}
	again := 0
	for range 40 {
		ports, err := freePorts(50, one)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range ports {
			if seen[p] == two {
				again++
			}
		}
	}
	if again == 0 {
		t.Error("no port of the directory that is gone was given out again")
	}
}

// The list of what is missing is exact, whatever is installed here.
func TestMissingNamesExactlyThePackages(t *testing.T) {
	none := installed{}
	if got := strings.Join(none.missing(), " "); got != "postgresql mariadb-server-core mariadb-client-core redis-server default-jre-headless maven spin gcc libc6-dev" {
		t.Errorf("missing %q", got)
	}
	all := installed{postgres: "p", initdb: "i", mariadbd: "m", mariadbInstall: "mi", myPrintDefaults: "mp", redis: "r", java: "j", spin: "s", cc: "c", jars: true}
	if got := all.missing(); got != nil {
		t.Errorf("missing %q", got)
	}
	all.jars = false
	if got := strings.Join(all.missing(), " "); got != "maven" {
		t.Errorf("without the jars, missing %q", got)
	}
	var w bytes.Buffer
	none.describe(&w, nil)
	if !strings.Contains(w.String(), "will install Debian packages: postgresql mariadb-server-core mariadb-client-core redis-server default-jre-headless maven spin gcc libc6-dev\n") {
		t.Errorf("%s", w.String())
	}
}

// Without the right to install, make test stops before anything starts, and says all that is missing in a line to paste.
func TestWhoMayNotInstallIsToldTheExactPackages(t *testing.T) {
	no := errors.New("neither root nor sudo without a password")
	two := []string{"postgresql", "redis-server"}
	for _, tc := range []struct {
		name      string
		pkgs      []string
		root, apt error
		want      string
	}{
		{"nothing is missing", nil, no, no, ""},
		{"root with apt", two, nil, nil, ""},
		{"no right", two, no, nil, "missing: postgresql redis-server (neither root nor sudo without a password)\nnext: apt-get install --no-install-recommends postgresql redis-server"},
		{"no apt", two[:1], nil, exec.ErrNotFound, "missing: postgresql (no apt-get here)\nnext: apt-get install --no-install-recommends postgresql"},
		{"neither", two[:1], no, exec.ErrNotFound, "missing: postgresql (no apt-get here)\nnext: apt-get install --no-install-recommends postgresql"},
	} {
		got := ""
		if err := refusal(tc.pkgs, tc.root, tc.apt); err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for want, args := range map[int][]string{2: {"nonsense"}, 0: {"--help"}} {
		if got := run(t.Context(), args, &bytes.Buffer{}, &bytes.Buffer{}); got != want {
			t.Errorf("%v: exit %d, want %d", args, got, want)
		}
	}
}
