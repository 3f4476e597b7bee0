package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// locks are held until the process ends where nobody frees them: an etcd that nobody waits for any more must not come up
// while its directory is removed.
var locks []*os.File

// occupied gives the arguments of a coordinator whose embedded etcd cannot be opened before free is called: somebody
// else has the lock of its database. A database that takes long to open looks the same.
func occupied(t *testing.T) (args []string, addr string, free func()) {
	t.Helper()
	dir := t.TempDir()
	first := serve(t, "--data-dir", dir)
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	db, err := os.OpenFile(filepath.Join(dir, "etcd", "member", "snap", "db"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	locks = append(locks, db)
	if err := syscall.Flock(int(db.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = l.Addr().String()
	l.Close()
	args = []string{"--embedded", "--data-dir", dir, "--http-addr=127.0.0.1:0", "--grpc-addr=127.0.0.1:0", "--admin-addr", addr}
	return args, "http://" + addr, func() {
		if err := syscall.Flock(int(db.Fd()), syscall.LOCK_UN); err != nil {
			t.Error(err)
		}
	}
}

// A probe finds a coordinator alive while its embedded etcd starts, not ready, and is told why; everything else is told
// to come back. Once it has started the same address serves as ever.
func TestProbesAreAnsweredWhileTheStoreStarts(t *testing.T) {
	args, base, free := occupied(t)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() {
		s, err := New(ctx, parse(t, args...), "test", slog.New(slog.DiscardHandler))
		if err == nil {
			err = s.Run(ctx)
		}
		ran <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	eventually(t, "somebody answers", func() bool {
		resp, err := http.Get(base + "/healthz")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})
	eventually(t, "it says what it is at", func() bool {
		_, _, body := ask(t, http.DefaultClient, "GET", base+"/readyz", "", "")
		return strings.Contains(body, "embedded etcd")
	})
	for path, want := range map[string]string{"/healthz": "200 alive", "/readyz": "503 not ready: starting: the embedded etcd", "/v1/transactions": "503 ", "/metrics": "503 ", "/region/ready": "503 "} {
		code, _, body := ask(t, http.DefaultClient, "GET", base+path, "", "")
		if got := fmt.Sprintf("%d %s", code, body); !strings.HasPrefix(got, want) {
			t.Errorf("starting, %s: %s, want %s", path, got, want)
		}
	}
	free()
	eventually(t, "it is ready", func() bool {
		code, _, _ := ask(t, http.DefaultClient, "GET", base+"/readyz", "", "")
		return code == http.StatusOK
	})
	if code, _, body := ask(t, http.DefaultClient, "GET", base+"/metrics", "", ""); code != http.StatusOK || !strings.Contains(body, "lockstep_slots_held") {
		t.Errorf("started, /metrics: %d", code)
	}
}

// A coordinator that is told to stop while its store starts stops, and answers nobody any more.
func TestItCanBeStoppedWhileTheStoreStarts(t *testing.T) {
	args, base, _ := occupied(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		_, err := New(ctx, parse(t, args...), "test", slog.New(slog.DiscardHandler))
		ended <- err
	}()
	eventually(t, "somebody answers", func() bool {
		resp, err := http.Get(base + "/healthz")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("New: %v", err)
	}
	if resp, err := http.Get(base + "/healthz"); err == nil {
		resp.Body.Close()
		t.Error("its admin address still answers")
	}
}

// A coordinator that cannot tell its addresses ends and says so; it does not stay behind unreachable.
func TestAnAddrFileThatCannotBeWrittenEndsIt(t *testing.T) {
	file := filepath.Join(t.TempDir(), "missing", "addr.json")
	s, err := New(context.Background(), parse(t, "--embedded", "--data-dir", t.TempDir(), "--http-addr=127.0.0.1:0", "--grpc-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0", "--addr-file", file), "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- s.Run(context.Background()) }()
	select {
	case err := <-ran:
		if !errors.Is(err, os.ErrNotExist) || !strings.HasPrefix(err.Error(), "addr-file: ") {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it is still there")
	}
}
