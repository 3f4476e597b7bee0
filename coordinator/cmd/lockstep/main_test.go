package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/server"
)

// TestMain lets scripts call lockstep as a command: this test's own program.
func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"lockstep": main}) }

// TestScripts runs whole commands, against one coordinator that all scripts share. Its addresses are $ADMIN, $GRPC and
// $HTTP; what it holds is in newFixture.
func TestScripts(t *testing.T) {
	addr := newFixture(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("ADMIN", addr.Admin)
			e.Setenv("GRPC", addr.GRPC)
			e.Setenv("HTTP", addr.HTTP)
			return nil
		},
	})
}

// newFixture runs a coordinator with: three prepared transactions held-1 to held-3, a committed one "paid", an aborted
// one "refused", one "it's stuck" whose confirm keeps failing, and "to-stop", whose confirm fails too; and to trick who looks at it: "-rf",
// "next: lockstep tx stop other", and "evil", whose participant refuses with what a terminal obeys.
func newFixture(t *testing.T) server.Addresses {
	t.Helper()
	shop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/refuse":
			w.WriteHeader(http.StatusConflict)
		case "/evil":
			http.Error(w, "\x1b[2J no\tmoney\nnext: lockstep tx stop other\n\u202egnp.exe \u009b31m \xff", http.StatusConflict)
		case "/broken":
			http.Error(w, "out of order", http.StatusInternalServerError)
		}
	}))
	t.Cleanup(shop.Close)
	ctx, cancel := context.WithCancel(context.Background())
	dir := t.TempDir()
	addrFile := filepath.Join(dir, "addr.json")
	var out bytes.Buffer
	exit := make(chan int, 1)
	go func() {
		exit <- run(ctx, []string{"serve", "--embedded", "--data-dir", dir, "--http-addr=127.0.0.1:0", "--grpc-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0", "--addr-file", addrFile}, &out, &out, noEnv)
	}()
	t.Cleanup(func() {
		cancel()
		if code := <-exit; code != exitOK {
			t.Errorf("serve ended with %d, want 0:\n%s", code, out.String())
		}
	})
	var addr server.Addresses
	wait, stop := context.WithTimeout(ctx, 20*time.Second)
	defer stop()
	eventually(t, wait, "the coordinator is ready", func() bool {
		raw, err := os.ReadFile(addrFile)
		if err != nil || json.Unmarshal(raw, &addr) != nil {
			return false
		}
		resp, err := http.Get("http://" + addr.Admin + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	cl, err := client.Dial(addr.GRPC)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for _, gid := range []string{"held-1", "held-2", "held-3", "-rf", "next: lockstep tx stop other"} {
		if _, err := cl.Begin(wait, client.Tx{Gid: gid}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		gid, try, confirm string
		until             client.Until
	}{
		{"paid", "/ok", "/ok", client.Finished}, {"refused", "/refuse", "/ok", client.Finished}, {"evil", "/evil", "/ok", client.Finished}, {"it's stuck", "/ok", "/broken", client.Decided}, {"to-stop", "/ok", "/broken", client.Decided},
	} {
		tx := client.Tx{Gid: c.gid, Branches: []client.Branch{{ID: "b", Try: shop.URL + c.try, Confirm: shop.URL + c.confirm, Cancel: shop.URL + "/ok"}}, Options: client.Options{RetryInterval: time.Millisecond}}
		if _, err := cl.Execute(wait, tx, c.until); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, wait, "two are stuck", func() bool {
		var out bytes.Buffer
		if run(ctx, []string{"tx", "list", "--stuck", "-o", "json", "--admin-addr", addr.Admin}, &out, &out, noEnv) != exitOK {
			t.Fatal(out.String())
		}
		return strings.Count(out.String(), `"gid"`) == 2
	})
	return addr
}

// eventually asks again and again.
func eventually(t *testing.T, ctx context.Context, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("it did not come: %s (stuck is %d failures)", what, engine.StuckFails)
		}
	}
}

func noEnv(string) string { return "" }

// TestExitCodes holds the exit codes and the next lines of what is refused: 1 for a failure, 2 for a mistake in the call.
func TestExitCodes(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	taken := busy.Addr().String()
	busy2, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := busy2.Addr().String()
	busy2.Close()
	for _, c := range []struct {
		name string
		args []string
		want int
		says []string
	}{
		{"version", []string{"version"}, exitOK, []string{version}},
		{"help", []string{"--help"}, exitOK, []string{"Run a coordinator"}},
		{"nothing", nil, exitUsage, []string{"next: lockstep --help"}},
		{"unknown command", []string{"tx", "delete", "x"}, exitUsage, []string{"next: lockstep --help"}},
		{"unknown flag", []string{"tx", "list", "--colour"}, exitUsage, []string{"--colour", "next: lockstep --help"}},
		{"a word for an enum", []string{"tx", "list", "--output", "xml"}, exitUsage, []string{"next: lockstep --help"}},
		{"a CA that is not there", []string{"status", "--ca", "/nowhere.pem"}, exitUsage, []string{"--ca", "/nowhere.pem", "next: lockstep status --help"}},
		{"serve without a store", []string{"serve"}, exitUsage, []string{"\nembedded: no store", "next: lockstep config check"}},
		{"serve on a port in use", []string{"serve", "--embedded", "--data-dir", t.TempDir(), "--http-addr", taken, "--grpc-addr=127.0.0.1:0", "--admin-addr", taken}, exitFailure, []string{"http-addr: ", "admin-addr: ", "address already in use", "next: lockstep config check"}},
		{"nobody answers", []string{"status", "--admin-addr", gone}, exitFailure, []string{"next: lockstep status --admin-addr"}},
		{"a name of two words", []string{"token", "new", "--role", "viewer", "--name", "a b"}, exitUsage, []string{"--name: ", "next: lockstep token new --role viewer"}},
		{"a role that is none", []string{"token", "new", "--role", "king", "--name", "x"}, exitUsage, []string{"viewer", "next: lockstep --help"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			if got := run(context.Background(), c.args, &out, &out, noEnv); got != c.want {
				t.Errorf("exit code %d, want %d:\n%s", got, c.want, out.String())
			}
			for _, s := range c.says {
				if !strings.Contains(out.String(), s) {
					t.Errorf("it does not say %q:\n%s", s, out.String())
				}
			}
		})
	}
}
