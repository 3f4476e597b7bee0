//go:build servers

package proc

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestAServerOfTheSuitesOwn: it dies, comes back under its address, and leaves nothing; and what a suite that was killed has left is
// taken down by the next.
func TestAServerOfTheSuitesOwn(t *testing.T) {
	devctl := os.Getenv("LOCKSTEP_TEST_DEVCTL")
	if devctl == "" {
		t.Skip("LOCKSTEP_TEST_DEVCTL is not set: run it by bin/devctl run --")
	}
	if _, err := os.Stat("/usr/sbin/mariadbd"); err != nil {
		t.Skip("MariaDB is not installed here; it runs in a container")
	}
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	left := &Server{Kind: "mariadb", devctl: devctl, dir: filepath.Join(os.TempDir(), fmt.Sprintf("%s%d-left", serverDirs, gone.Process.Pid))}
	if err := os.Mkdir(left.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := left.Close(); err != nil { // there is nothing any more, or it is to go now
			t.Error(err)
		}
	})
	if err := left.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	stray, err := left.PID()
	if err != nil || !left.alive(stray) {
		t.Fatalf("process %d, %v", stray, err)
	}

	s, err := OpenServer(t.Context(), devctl, "mariadb", false)
	if s != nil {
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left.dir); !os.IsNotExist(err) || left.alive(stray) {
		t.Errorf("what a dead suite has left is still there: %v, its server runs: %v", err, left.alive(stray))
	}
	before, err := s.PID()
	if err != nil || s.URL == "" || !s.Alive() {
		t.Fatalf("process %d at %q, %v", before, s.URL, err)
	}
	if err := s.Kill(); err != nil || s.Alive() {
		t.Fatalf("it lives: %v, %v", s.Alive(), err)
	}
	if err := s.Kill(); err == nil {
		t.Error("what is dead was killed once more")
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after, err := s.PID(); err != nil || after == before || !s.Alive() {
		t.Errorf("process %d, before %d, %v", after, before, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", s.dir, err)
	}
}
