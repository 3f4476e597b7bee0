// Command etcdmember is one member of the external etcd cluster that deploy/dev starts: etcd's embed server, built from
// the very module version that go.mod pins for the coordinator's embedded store, so that the two can never differ.
// (etcd's own etcdmain would do, but it pulls in the gateway and the proxy with modules that nothing else needs.)
//
// Its law: nothing of ours runs in it, fsync stays on, and it ends with an error rather than guess a flag. It is tested
// by deploy/dev/devctl's tests, which start three of them.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"go.etcd.io/etcd/server/v3/embed"
)

func main() { os.Exit(run(context.Background(), os.Args[1:], os.Stderr)) }

// run serves until ctx or a signal ends it, and returns the exit code.
func run(ctx context.Context, args []string, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	cfg, err := configure(args, stderr)
	if err == nil {
		err = serve(ctx, cfg)
	}
	if err != nil {
		fmt.Fprintln(stderr, "etcdmember:", err)
		return 1
	}
	return 0
}

func configure(args []string, stderr io.Writer) (*embed.Config, error) {
	cfg := embed.NewConfig()
	var client, peer string
	fs := flag.NewFlagSet("etcdmember", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&cfg.Name, "name", "", "this member's name in --initial-cluster")
	fs.StringVar(&cfg.Dir, "data-dir", "", "where its data is kept")
	fs.StringVar(&client, "client-url", "", "URL to serve clients on")
	fs.StringVar(&peer, "peer-url", "", "URL to serve the other members on")
	fs.StringVar(&cfg.InitialCluster, "initial-cluster", "", "name=peer-url,... of all members")
	fs.StringVar(&cfg.InitialClusterToken, "cluster-token", "lockstep-dev", "tells clusters apart")
	fs.UintVar(&cfg.TickMs, "heartbeat-ms", cfg.TickMs, "heartbeat interval in milliseconds")
	fs.UintVar(&cfg.ElectionMs, "election-ms", cfg.ElectionMs, "election timeout in milliseconds")
	fs.Int64Var(&cfg.QuotaBackendBytes, "quota-bytes", cfg.QuotaBackendBytes, "space quota in bytes, 0 for etcd's default")
	fs.StringVar(&cfg.LogLevel, "log-level", "warn", "debug, info, warn or error")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	for name, value := range map[string]string{"name": cfg.Name, "data-dir": cfg.Dir, "client-url": client,
		"peer-url": peer, "initial-cluster": cfg.InitialCluster} {
		if value == "" {
			return nil, fmt.Errorf("--%s is missing", name)
		}
	}
	clientURL, err := url.Parse(client)
	if err != nil {
		return nil, fmt.Errorf("--client-url: %w", err)
	}
	peerURL, err := url.Parse(peer)
	if err != nil {
		return nil, fmt.Errorf("--peer-url: %w", err)
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*clientURL}, []url.URL{*clientURL}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peerURL}, []url.URL{*peerURL}
	return cfg, nil
}

func serve(ctx context.Context, cfg *embed.Config) error {
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return err
	}
	defer e.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-e.Err():
		return err
	}
}
