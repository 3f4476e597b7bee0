//go:build servers

package etcdstore

import (
	"context"
	"os"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/store/storetest"
)

// TestStoreOnACluster runs the suite on an external cluster of three members.
func TestStoreOnACluster(t *testing.T) {
	endpoints := os.Getenv("LOCKSTEP_TEST_ETCD_ENDPOINTS")
	if endpoints == "" {
		t.Fatal("LOCKSTEP_TEST_ETCD_ENDPOINTS is not set: this test needs a real cluster; run it with: make test")
	}
	cli, err := Connect(context.Background(), Cluster{Endpoints: strings.Split(endpoints, ",")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cli.Close() })
	// Other tests use the same cluster at the same time.
	cli.KV, cli.Watcher, cli.Lease = namespace.NewKV(cli.KV, "storetest"), namespace.NewWatcher(cli.Watcher, "storetest"), namespace.NewLease(cli.Lease, "storetest")
	storetest.Run(t, func(t *testing.T) engine.Store {
		if _, err := cli.Delete(context.Background(), Prefix, clientv3.WithPrefix()); err != nil {
			t.Fatal(err)
		}
		return New(cli, nil)
	})
}
