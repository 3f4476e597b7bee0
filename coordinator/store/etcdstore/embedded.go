package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"github.com/lockstep-tx/lockstep/coordinator/mutant"
)

// Embedded is one etcd member in this process: real raft, its log synced to disk.
type Embedded struct {
	etcd *embed.Etcd
	cli  *clientv3.Client
}

// EmbeddedQuotaBytes is the size at which the embedded member refuses writes. Begins are shed at 60 % of it.
const EmbeddedQuotaBytes = 4 << 30

// StartEmbedded starts a member with its data under dir and waits until it serves. The caller stops it. One process
// may use a directory at a time; a second gets an error that says so.
func StartEmbedded(ctx context.Context, dir string) (*Embedded, error) {
	peer, err := freeURL()
	if err != nil {
		return nil, err
	}
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = "embedded", filepath.Join(dir, "etcd")
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	// The process talks to its member directly; nobody else is let in.
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = nil, []url.URL{*peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.LogLevel, cfg.LogOutputs = "fatal", []string{"stderr"}
	cfg.QuotaBackendBytes = EmbeddedQuotaBytes
	cfg.BackendBatchInterval, cfg.BackendBatchLimit = time.Second, 50_000
	cfg.TickMs, cfg.ElectionMs = 50, 500 // one member: nobody else's link is measured by it
	cfg.UnsafeNoFsync = mutant.On(mutant.AckBeforeFsync)
	e, err := startEtcd(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("start embedded etcd in %s: %w", cfg.Dir, err)
	}
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		e.Close()
		return nil, fmt.Errorf("embedded etcd in %s: %w", cfg.Dir, err)
	case <-e.Server.StopNotify():
		e.Close()
		return nil, fmt.Errorf("embedded etcd in %s stopped while starting", cfg.Dir)
	case <-ctx.Done():
		e.Close()
		return nil, fmt.Errorf("embedded etcd in %s: %w", cfg.Dir, context.Cause(ctx))
	}
	return &Embedded{etcd: e, cli: v3client.New(e.Server)}, nil
}

// startEtcd is embed.StartEtcd for a caller who may lose patience: it waits without end for a directory that another
// process uses. A member that comes up afterwards is stopped again.
func startEtcd(ctx context.Context, cfg *embed.Config) (*embed.Etcd, error) {
	type result struct {
		e   *embed.Etcd
		err error
	}
	started := make(chan result, 1)
	go func() {
		e, err := embed.StartEtcd(cfg)
		started <- result{e, err}
	}()
	select {
	case r := <-started:
		return r.e, r.err
	case <-ctx.Done():
		go func() {
			if r := <-started; r.err == nil {
				r.e.Close()
			}
		}()
		return nil, fmt.Errorf("%w; does another process use the directory?", context.Cause(ctx))
	}
}

// Client talks to the member in this process.
func (e *Embedded) Client() *clientv3.Client { return e.cli }

// Err tells when the member fails by itself.
func (e *Embedded) Err() <-chan error { return e.etcd.Err() }

// Close stops the member; everything that was answered is on disk.
func (e *Embedded) Close() error {
	err := e.cli.Close()
	e.etcd.Close()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// freeURL finds a loopback port for the member's peer listener, which nobody uses.
func freeURL() (*url.URL, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("find a free loopback port: %w", err)
	}
	defer l.Close()
	return &url.URL{Scheme: "http", Host: l.Addr().String()}, nil
}

// DialTimeout bounds the first real request to an external cluster.
const DialTimeout = 5 * time.Second
