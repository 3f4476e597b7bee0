// Package arbitertest runs an arbiter for tests: one member or some, in the test's process, with its data on disk.
//
// It is tested by the packages that use it.
package arbitertest

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/coordinator/bench/proc"
	"github.com/lockstep-tx/lockstep/region/arbiter"
)

// FreeAddr gives a loopback address, HOST:PORT, that nobody listens on.
func FreeAddr(t testing.TB) string {
	t.Helper()
	addrs, err := proc.FreeAddrs(1) // one that is no outgoing connection's either when it is listened on
	if err != nil {
		t.Fatal(err)
	}
	return addrs[0]
}

// Start runs an arbiter without a deployment until the test ends, and gives a client of it with its address, HOST:PORT.
func Start(t testing.TB) (a *arbiter.Arbiter, addr string) {
	t.Helper()
	a, addrs := Cluster(t, 1)
	return a, addrs[0]
}

// Cluster is Start for n members, with all their addresses.
func Cluster(t testing.TB, n int) (a *arbiter.Arbiter, addrs []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var members []arbiter.Member
	var peers []string
	for i := range n {
		m := arbiter.Member{Name: string(rune('a' + i)), Dir: t.TempDir(), Client: FreeAddr(t), Peer: FreeAddr(t), TickMillis: 20}
		members, peers, addrs = append(members, m), append(peers, m.Name+"="+m.Peer), append(addrs, m.Client)
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, m := range members {
		m.Cluster = peers
		g.Go(func() error {
			running, err := arbiter.Start(gctx, m)
			if err == nil {
				t.Cleanup(running.Close)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	cli, err := clientv3.New(clientv3.Config{Endpoints: addrs, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cli.Close() })
	return arbiter.New(cli, nil), addrs
}
