package proc

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

func TestStartStopKill(t *testing.T) {
	var out strings.Builder
	p, err := Start(Spec{Name: "echo", Path: "/bin/sh", Args: []string{"-c", "echo $WORD"}, Env: []string{"WORD=hello"}, Dir: t.TempDir(), Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(t.Context()); err != nil || out.String() != "hello\n" {
		t.Errorf("wait: %v, output %q", err, out.String())
	}
	if err := p.Stop(); err != nil {
		t.Errorf("stop of what has ended: %v", err)
	}
	p, err = Start(Spec{Name: "sleep", Path: "/bin/sleep", Args: []string{"1000"}, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if u, err := ReadTreeUsage(os.Getpid()); err != nil || u.CPU < 0 {
		t.Errorf("usage %+v, %v", u, err)
	}
	if rss, err := PeakRSSBytes(p.PID); err != nil || rss <= 0 {
		t.Errorf("peak rss %d, %v", rss, err)
	}
	p.Kill()
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", p.PID)); !os.IsNotExist(err) {
		t.Errorf("the process is still there: %v", err)
	}
	if err := p.AwaitTCP(t.Context(), "127.0.0.1:1", time.Minute); err == nil {
		t.Error("a dead process became ready")
	}
}

func TestListenerPID(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if pid, err := ListenerPID(l.Addr().(*net.TCPAddr).Port); err != nil || pid != os.Getpid() {
		t.Errorf("pid %d, %v; this is %d", pid, err, os.Getpid())
	}
}
