package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// fakeDocker puts a program named docker into PATH that notes how it is called and does what the test's files say. A real
// engine was never there.
type fakeDocker struct{ dir string }

func newFakeDocker(t *testing.T) fakeDocker {
	t.Helper()
	d := fakeDocker{t.TempDir()}
	const script = `#!/bin/sh
printf '%%s\n' "$*" >>%[1]q/calls
env | grep '^LOCKSTEP_DEV_' | sort >%[1]q/env
case "$*" in
info) [ ! -e %[1]q/no-engine ];;
"compose version") [ ! -e %[1]q/no-compose ];;
*" down -v "*) [ ! -e %[1]q/no-down ] || { echo "cannot stop it" >&2; exit 1; };;
*" up -d "*) [ ! -e %[1]q/no-up ] || { echo "no such image" >&2; exit 1; };;
*" kill "*) [ ! -e %[1]q/no-kill ];;
esac
`
	if err := os.WriteFile(filepath.Join(d.dir, "docker"), fmt.Appendf(nil, script, d.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", d.dir+":"+os.Getenv("PATH"))
	t.Setenv(wayVariable, "")
	return d
}

func (d fakeDocker) does(t *testing.T, what string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(d.dir, what), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// calls returns what was called since it was last asked.
func (d fakeDocker) calls(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.dir, "calls"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	_ = os.Remove(filepath.Join(d.dir, "calls"))
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// redisAt answers as a redis does that is ready.
func redisAt(t *testing.T, port int) {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			lines := bufio.NewScanner(c)
			for n := 0; n < 2 && lines.Scan(); n++ {
			}
			fmt.Fprint(c, "+OK\r\n+PONG\r\n")
			c.Close()
		}
	}()
}

func TestDockerIsUsedWhereAnEngineAnswers(t *testing.T) {
	d := newFakeDocker(t)
	want := func(text string) {
		t.Helper()
		var w bytes.Buffer
		run(t.Context(), []string{"plan"}, &w, &w) // fails where packages are missing that may not be installed
		if got := strings.Contains(w.String(), "docker compose"); got != (text == "docker") {
			t.Errorf("%s wanted; the plan is\n%s", text, w.String())
		}
	}
	want("docker")
	t.Setenv(wayVariable, "packages")
	want("packages")
	t.Setenv(wayVariable, "")
	d.does(t, "no-compose")
	want("packages")
	d.does(t, "no-engine")
	want("packages")
}

// A set's containers come, come back, and go, by a project that is its directory's alone; nothing secret is on a command line.
func TestContainersOfASet(t *testing.T) {
	d := newFakeDocker(t)
	dir := filepath.Join(t.TempDir(), "dev")
	if err := mark(dir); err != nil {
		t.Fatal(err)
	}
	s, err := plan(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	other, err := plan(t.TempDir(), true)
	if err != nil || other.Project == s.Project {
		t.Errorf("two directories have the project %s (%v)", s.Project, err)
	}
	var both []*server
	for _, sv := range s.Servers {
		if sv.Kind == redis {
			both = append(both, sv)
			redisAt(t, sv.Port)
		}
	}
	project := "compose -p " + s.Project + " -f " + filepath.Join(dir, composeFile) + " "
	for _, tc := range []struct {
		silent []*server
		want   []string
	}{
		{both, []string{project + "up -d redis redis-aof"}},
		{nil, []string{""}},
		{both[1:], []string{project + "kill redis-aof", project + "up -d redis-aof"}},
	} {
		if err := s.bringContainers(t.Context(), tc.silent); err != nil {
			t.Fatal(err)
		}
		if got := d.calls(t); !slices.Equal(got, tc.want) {
			t.Errorf("calls %q, want %q", got, tc.want)
		}
	}
	d.does(t, "no-kill") // there was none to kill
	if err := s.bringContainers(t.Context(), both); err != nil {
		t.Fatal(err)
	}
	if got := d.calls(t); strings.Contains(strings.Join(got, " "), s.Password) {
		t.Errorf("the password is on a command line: %q", got)
	}
	env, err := os.ReadFile(filepath.Join(d.dir, "env"))
	if err != nil {
		t.Fatal(err)
	}
	// What compose.yaml asks for is what it gets.
	b, err := os.ReadFile(filepath.Join(dir, composeFile))
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	for _, part := range strings.Split(string(b), "${")[1:] {
		name, _, _ := strings.Cut(part, ":?}")
		if asked++; !strings.Contains("\n"+string(env), "\n"+name+"=") {
			t.Errorf("compose.yaml asks for %s, which is not among\n%s", name, env)
		}
	}
	if asked < 10 || !strings.Contains(string(env), fmt.Sprintf("LOCKSTEP_DEV_REDIS_AOF_PORT=%d\n", both[1].Port)) {
		t.Errorf("%d variables; the environment was\n%s", asked, env)
	}
	for _, line := range s.env() {
		if strings.HasPrefix(line, "LOCKSTEP_TEST_POSTGRES_") != strings.HasPrefix(line, "LOCKSTEP_TEST_POSTGRES_URL=") {
			t.Errorf("a container has %s", line)
		}
	}

	d.does(t, "no-down")
	if err := down(dir); err == nil || !strings.Contains(err.Error(), "cannot stop it") {
		t.Errorf("down hides that the containers stay: %v", err)
	}
	if _, err := load(dir); err != nil {
		t.Fatalf("the directory that names the containers is gone: %v", err)
	}
	d.calls(t)
	if err := os.Remove(filepath.Join(d.dir, "no-down")); err != nil {
		t.Fatal(err)
	}
	if err := down(dir); err != nil {
		t.Fatal(err)
	}
	if got := d.calls(t); len(got) != 1 || got[0] != project+"down -v --remove-orphans" {
		t.Errorf("down calls %q", got)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
}

// Containers do not die with the devctl that runs a command; guard does it for them.
func TestContainersEndWithTheirOwner(t *testing.T) {
	if dir := os.Getenv("LOCKSTEP_DEVCTL_GUARDED"); dir != "" { // the owner, in a process of its own
		s, err := load(dir)
		if err != nil || s.guard() != nil {
			t.Fatal(err)
		}
		fmt.Println("guarded")
		select {}
	}
	d := newFakeDocker(t)
	dir := filepath.Join(t.TempDir(), "dev")
	if err := mark(dir); err != nil {
		t.Fatal(err)
	}
	s, err := plan(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, composeFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	owner := exec.Command(self, "-test.run", "^TestContainersEndWithTheirOwner$")
	owner.Env = append(os.Environ(), "LOCKSTEP_DEVCTL_GUARDED="+dir)
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "guarded\n" {
		t.Fatalf("the owner said %q, %v", line, err)
	}
	if got := d.calls(t); got[0] != "" {
		t.Errorf("taken down too early: %q", got)
	}
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if got := d.calls(t); strings.Contains(got[0], s.Project) && strings.HasSuffix(got[0], " down -v --remove-orphans") {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the containers stay")
		}
	}
}
