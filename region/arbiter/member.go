package arbiter

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"sync"

	"go.etcd.io/etcd/server/v3/embed"
)

// Member is how one member of the arbiter's cluster is run. Addresses are HOST:PORT.
type Member struct {
	Name string
	Dir  string
	// Client is where the regions ask, Peer where the other members do.
	Client, Peer string
	// Cluster names every member's peer address: name=HOST:PORT.
	Cluster []string
	// Join says that the cluster exists and that this member was just added to it: it begins with nothing and gets what the others
	// have. With data in Dir it says nothing.
	Join bool
	// TickMillis is the heartbeat; elections take ten times as long. Defaults to 100: for links of up to 100 ms.
	TickMillis uint
	// Cert, Key and CA (PEM files) turn mutual TLS on, towards regions and members alike.
	Cert, Key, CA string
}

// Running is a member in this process.
type Running struct {
	etcd *embed.Etcd
	once sync.Once
}

// Start starts a member and waits until it serves, which takes a majority of the cluster; ctx bounds the wait. The caller
// closes it. What it answers is synced to disk.
func Start(ctx context.Context, m Member) (*Running, error) {
	scheme := "http"
	if m.Cert != "" {
		scheme = "https"
	}
	at := func(addr string) []url.URL { return []url.URL{{Scheme: scheme, Host: addr}} }
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = m.Name, filepath.Join(m.Dir, "arbiter")
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = at(m.Client), at(m.Client)
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = at(m.Peer), at(m.Peer)
	var cluster []string
	for _, c := range m.Cluster {
		name, addr, ok := strings.Cut(c, "=")
		if !ok {
			return nil, fmt.Errorf("cluster: %q is not NAME=HOST:PORT", c)
		}
		cluster = append(cluster, name+"="+scheme+"://"+addr)
	}
	cfg.InitialCluster = strings.Join(cluster, ",")
	cfg.InitialClusterToken = "lockstep-arbiter"
	if m.Join {
		cfg.ClusterState = embed.ClusterStateFlagExisting
	}
	cfg.LogLevel, cfg.LogOutputs = "fatal", []string{"stderr"}
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = "periodic", "5m"
	if m.TickMillis == 0 {
		m.TickMillis = 100
	}
	cfg.TickMs, cfg.ElectionMs = m.TickMillis, 10*m.TickMillis
	if m.Cert != "" {
		cfg.ClientTLSInfo.CertFile, cfg.ClientTLSInfo.KeyFile = m.Cert, m.Key
		cfg.ClientTLSInfo.TrustedCAFile, cfg.ClientTLSInfo.ClientCertAuth = m.CA, m.CA != ""
		cfg.PeerTLSInfo = cfg.ClientTLSInfo
	}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("start arbiter member %s in %s: %w", m.Name, cfg.Dir, err)
	}
	select {
	case <-e.Server.ReadyNotify():
		return &Running{etcd: e}, nil
	case err := <-e.Err():
		e.Close()
		return nil, fmt.Errorf("arbiter member %s: %w", m.Name, err)
	case <-e.Server.StopNotify():
		e.Close()
		return nil, fmt.Errorf("arbiter member %s stopped while starting", m.Name)
	case <-ctx.Done():
		e.Close()
		return nil, fmt.Errorf("arbiter member %s: no majority of %v answered: %w", m.Name, m.Cluster, context.Cause(ctx))
	}
}

// Err tells when the member fails by itself.
func (r *Running) Err() <-chan error { return r.etcd.Err() }

// Close stops the member. Idempotent.
func (r *Running) Close() { r.once.Do(r.etcd.Close) }
