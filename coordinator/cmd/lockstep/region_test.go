package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// world is an arbiter with the regions east and west, whose coordinators are handlers of the test.
type world struct {
	t       *testing.T
	arbiter *arbiter.Arbiter
	file    string
	admin   map[string]*http.ServeMux
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	m := arbiter.Member{Name: "a", Dir: t.TempDir(), Client: freeAddr(t), Peer: freeAddr(t), TickMillis: 20}
	m.Cluster = []string{"a=" + m.Peer}
	running, err := arbiter.Start(ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(running.Close)
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{m.Client}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cli.Close() })
	w := &world{t: t, arbiter: arbiter.New(cli, nil), file: filepath.Join(t.TempDir(), "regions.yaml"), admin: map[string]*http.ServeMux{}}
	text := fmt.Sprintf("arbiter: [%q]\nregions:\n", m.Client)
	for _, region := range []string{"east", "west"} {
		w.admin[region] = http.NewServeMux()
		srv := httptest.NewServer(w.admin[region])
		t.Cleanup(srv.Close)
		text += fmt.Sprintf("  %s: {grpc: [%q], admin: [%q], kafka: [%q]}\n", region, freeAddr(t), srv.URL, freeAddr(t))
	}
	if err := os.WriteFile(w.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

// command runs lockstep, and gives all that it wrote.
func (w *world) command(args ...string) (string, int) {
	w.t.Helper()
	var out bytes.Buffer
	code := run(w.t.Context(), append(args, "--context", w.file), &out, &out, noEnv)
	return out.String(), code
}

// must runs lockstep, which must succeed.
func (w *world) must(args ...string) string {
	w.t.Helper()
	out, code := w.command(args...)
	if code != exitOK {
		w.t.Fatalf("%v: %d\n%s", args, code, out)
	}
	return out
}

// give moves slots as a handover does.
func (w *world) give(to string, index int, slots ...int) {
	w.t.Helper()
	owners, err := w.arbiter.Owners(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, n := range slots {
		for _, step := range []func(slot.Owner) (slot.Owner, error){
			func(o slot.Owner) (slot.Owner, error) { return o.Drain(to, "op", time.Now().Add(time.Minute)) },
			func(o slot.Owner) (slot.Owner, error) { return o.Close(slot.SealOf(o.Epoch, 1, []byte{1})) },
			func(o slot.Owner) (slot.Owner, error) { return o.Give(index) },
		} {
			next, err := step(owners[n])
			if err == nil {
				err = w.arbiter.Change(w.t.Context(), arbiter.Change{Slot: n, From: owners[n], To: next})
			}
			if err != nil {
				w.t.Fatal(err)
			}
			owners[n] = next
		}
	}
}

// status lets a region answer with a status.
func (w *world) status(region, text string) {
	w.admin[region].HandleFunc("GET /v1/region/status", func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, text) })
}


// TestFailbackMovesWhatTheTargetHadFirst: even slots are east's, odd ones west's; 0, 2 and 8 went west, and 2 came back.
func TestFailbackMovesWhatTheTargetHadFirst(t *testing.T) {
	w := newWorld(t)
	w.must("region", "init")
	w.give("west", 2, 0, 2, 8)
	w.give("east", 1, 2)
	w.give("east", 1, 3)
	out, _ := w.command("region", "failback", "--from", "west", "--to", "east", "--dry-run")
	if !strings.Contains(out, "failback of 2 slots from west to east") {
		t.Error(out)
	}
	out, code := w.command("region", "failback", "--from", "west", "--to", "east", "--slots", "0-7", "--dry-run")
	if code != exitUsage || !strings.Contains(out, "--slots: 1,5,7 were not east's first") || !strings.Contains(out, "next: lockstep region handover --from west --to east --slots 1,5,7 ") {
		t.Error(code, out)
	}
	if out, _ := w.command("region", "failback", "--from", "west", "--to", "east", "--slots", "0,8", "--dry-run"); !strings.Contains(out, "failback of 2 slots") {
		t.Error(out)
	}
	w.give("east", 1, 0, 8)
	if out, code := w.command("region", "failback", "--from", "west", "--to", "east", "--dry-run"); code != exitUsage || !strings.Contains(out, "none of those that west has were east's first") {
		t.Error(code, out)
	}
	if got := slotList([]int{0, 1, 2, 5, 7, 8}); got != "0-2,5,7-8" {
		t.Error(got)
	}
}
