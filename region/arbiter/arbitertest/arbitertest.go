// Package arbitertest runs an arbiter for tests: one member, in the test's process, with its data on disk.
//
// It is tested by the packages that use it.
package arbitertest

import (
	"context"
	"net"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lockstep-tx/lockstep/region/arbiter"
)

// FreeAddr gives a loopback address, HOST:PORT, that nobody listens on.
func FreeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Start runs an arbiter without a deployment until the test ends, and gives a client of it with its address, HOST:PORT.
func Start(t testing.TB) (a *arbiter.Arbiter, addr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	m := arbiter.Member{Name: "a", Dir: t.TempDir(), Client: FreeAddr(t), Peer: FreeAddr(t), TickMillis: 20}
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
	return arbiter.New(cli, nil), m.Client
}
