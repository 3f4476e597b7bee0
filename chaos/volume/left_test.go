package volume

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestTheNextOneRemovesWhatAKilledProcessLeft: its mount, its loop device and its image; and no living process'.
func TestTheNextOneRemovesWhatAKilledProcessLeft(t *testing.T) {
	if dir := os.Getenv("LOCKSTEP_VOLUME_LEFT"); dir != "" {
		leave(dir)
	}
	mine := open(t)
	dir := filepath.Join(t.TempDir(), "left behind")
	cmd := exec.Command(os.Args[0], "-test.run", t.Name())
	cmd.Env = append(os.Environ(), "LOCKSTEP_VOLUME_LEFT="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "mounted\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	if err := sweep(); err != nil || !mounted(t, dir) {
		t.Errorf("a living process' volume is mounted: %v, %v", mounted(t, dir), err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if !mounted(t, dir) {
		t.Fatal("the killed process has left nothing: there is nothing to remove")
	}
	if err := sweep(); err != nil || mounted(t, dir) {
		t.Errorf("what a killed process has left is mounted: %v, %v", mounted(t, dir), err)
	}
	if _, err := os.Stat(dir + ".img"); !os.IsNotExist(err) {
		t.Errorf("its image is still there: %v", err)
	}
	if !mounted(t, mine.Dir()) {
		t.Error("this process' own volume was removed too")
	}
}

// leave mounts a volume, and waits to be killed.
func leave(dir string) {
	if _, err := Open(dir, 16<<20); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("mounted")
	time.Sleep(time.Hour)
}

func mounted(t *testing.T, dir string) bool {
	t.Helper()
	all, err := loops()
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range all {
		if at == dir {
			return true
		}
	}
	return false
}

// TestADeviceSaysWhoseItIs: and nobody else's name is taken for ours.
func TestADeviceSaysWhoseItIs(t *testing.T) {
	if pid, ours := owner(owned(4711)); pid != 4711 || !ours {
		t.Errorf("%d, %v", pid, ours)
	}
	for _, text := range []string{"", "/var/lib/x.img", mark, mark + "x", mark + "-1", mark + "0"} {
		var name [64]uint8
		copy(name[:], text)
		if pid, ours := owner(name); ours {
			t.Errorf("%q is taken for process %d's", strings.TrimRight(text, "\x00"), pid)
		}
	}
}
