package syncfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// holder has a test of this program open a mount and wait to be killed.
const holder = "LOCKSTEP_SYNCFS_HOLDER"

func TestMain(m *testing.M) {
	Child()
	if dir := os.Getenv(holder); dir != "" {
		if _, err := Open(filepath.Join(dir, "back"), filepath.Join(dir, "at")); err != nil {
			panic(err)
		}
		os.Stdout.WriteString("open\n")
		time.Sleep(time.Minute)
	}
	os.Exit(m.Run())
}

func open(t *testing.T) *Mount {
	t.Helper()
	if err := Probe(); err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "back"), 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := Open(filepath.Join(dir, "back"), filepath.Join(dir, "at"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// TestSyncsAreSlowOrFailAndAreCounted: of files and of directories; all else passes, and what is written is where it belongs.
func TestSyncsAreSlowOrFailAndAreCounted(t *testing.T) {
	m := open(t)
	for _, c := range []struct {
		mode Mode
		want Counts
	}{{Mode{}, Counts{2, 0, 0}}, {Mode{Slow: 100 * time.Millisecond}, Counts{4, 2, 0}}, {Mode{Fail: true}, Counts{6, 2, 2}}, {Mode{}, Counts{8, 2, 2}}} {
		if err := m.Set(c.mode); err != nil {
			t.Fatal(err)
		}
		d, err := os.Open(m.Dir())
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		err = d.Sync()
		if took := time.Since(began); took < c.mode.Slow || errors.Is(err, syscall.EIO) != c.mode.Fail {
			t.Errorf("%+v: a directory's sync took %v: %v", c.mode, took, err)
		}
		d.Close()
		if took, err := m.Sync(); took < c.mode.Slow || errors.Is(err, syscall.EIO) != c.mode.Fail {
			t.Errorf("%+v: a file's sync took %v: %v", c.mode, took, err)
		}
		if got, err := m.Counts(); err != nil || got != c.want {
			t.Errorf("%+v: counted %+v, want %+v: %v", c.mode, got, c.want, err)
		}
	}
	from, to := filepath.Join(m.Dir(), "a"), filepath.Join(m.Dir(), "sub", "b")
	if err := errors.Join(os.Mkdir(filepath.Dir(to), 0o700), os.WriteFile(from, []byte("x"), 0o600), os.Rename(from, to)); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(m.back, "sub", "b")); err != nil || string(got) != "x" {
		t.Errorf("behind it there is %q: %v", got, err)
	}
}

// TestStopAndStart: in between there is nothing; counts and mode are kept.
func TestStopAndStart(t *testing.T) {
	m := open(t)
	if err := m.Set(Mode{Fail: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Sync(); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	if _, err := m.Counts(); err != nil {
		t.Error(err)
	}
	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}
	if all, err := os.ReadDir(m.Dir()); err != nil || len(all) != 0 {
		t.Errorf("unmounted it has %v: %v", all, err)
	}
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Sync(); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	if got, err := m.Counts(); err != nil || got.Failed != 2 {
		t.Errorf("%+v %v", got, err)
	}
}

// TestWhoIsKilledLeavesNoMount: the process that serves it takes it away; where that is killed too, the next Open does.
func TestWhoIsKilledLeavesNoMount(t *testing.T) {
	if err := Probe(); err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	for _, both := range []bool{false, true} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "back"), 0o700); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), holder+"="+dir)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err == nil {
			_, err = out.Read(make([]byte, 8))
		}
		if err != nil {
			t.Fatal(err)
		}
		at := filepath.Join(dir, "at")
		if all, err := mounts(); err != nil || all[at] != cmd.Process.Pid {
			t.Fatalf("it is not mounted: %v %v", all, err)
		}
		if both {
			for _, pid := range children(t, cmd.Process.Pid) {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		gone := func() bool { all, err := mounts(); _, there := all[at]; return err == nil && !there }
		for end := time.Now().Add(5 * time.Second); !both && !gone() && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		if both {
			if gone() {
				t.Error("nobody was left to take it away, and it is gone: this test shows nothing")
			}
			if err := sweep(); err != nil {
				t.Error(err)
			}
		}
		if !gone() {
			t.Errorf("both killed %v: it is still mounted", both)
		}
	}
}

// children are a process' own.
func children(t *testing.T, of int) (pids []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range all {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		var pid, parent int
		var state string
		if _, rest, ok := bytes.Cut(raw, []byte(") ")); ok {
			if n, _ := fmt.Sscan(string(rest), &state, &parent); n == 2 && parent == of {
				if _, err := fmt.Sscan(strings.Fields(string(raw))[0], &pid); err == nil {
					pids = append(pids, pid)
				}
			}
		}
	}
	if len(pids) == 0 {
		t.Fatal("it has no children")
	}
	return pids
}
