package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/lockstep-tx/lockstep/region/arbiter"
)

// arbiterCmd runs one member of the arbiter.
type arbiterCmd struct {
	Name    string   `help:"Name of this member." required:""`
	DataDir string   `help:"Directory of its data." required:"" placeholder:"DIR"`
	Client  string   `help:"Address that the regions ask." default:"127.0.0.1:36780" placeholder:"HOST:PORT"`
	Peer    string   `help:"Address that the other members ask." default:"127.0.0.1:36781" placeholder:"HOST:PORT"`
	Cluster []string `help:"Every member's peer address, this one's too: three or five, each in a failure domain of its own." required:"" placeholder:"NAME=HOST:PORT"`
	Join    bool     `help:"The cluster exists, and this member was just added to it: for the one that takes a lost member's place."`
	Tick    uint     `help:"Heartbeat in milliseconds; an election takes ten. Half to one and a half round trips between the members." default:"100"`
	TlsCert string   `help:"Certificate, towards regions and members." placeholder:"FILE"`
	TlsKey  string   `help:"Key of --tls-cert." placeholder:"FILE"`
	TlsCa   string   `name:"tls-ca" help:"CA of the regions' and the other members' certificates." placeholder:"FILE"`
}

// Run serves until the process is told to stop.
func (c *arbiterCmd) Run(e *env) error {
	if len(c.Cluster)%2 == 0 {
		return usageError{fmt.Errorf("--cluster: %d members; an even number bears no more losses than one less: give 1 (for tests), 3 or 5", len(c.Cluster))}
	}
	if (c.TlsCert == "") != (c.TlsKey == "") {
		return usageError{errors.New("--tls-cert: --tls-cert and --tls-key belong together")}
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	log := slog.New(slog.NewTextHandler(e.err, nil))
	sctx, cancel := context.WithTimeoutCause(e.ctx, time.Minute, errors.New("it did not start within a minute"))
	defer cancel()
	m, err := arbiter.Start(sctx, arbiter.Member{
		Name: c.Name, Dir: c.DataDir, Client: c.Client, Peer: c.Peer, Cluster: c.Cluster, Join: c.Join, TickMillis: c.Tick, Cert: c.TlsCert, Key: c.TlsKey, CA: c.TlsCa,
	})
	if err != nil {
		return err
	}
	defer m.Close()
	log.Info("arbiter member serves", "name", c.Name, "client", c.Client)
	select {
	case err := <-m.Err():
		return fmt.Errorf("the arbiter's member failed: %w", err)
	case <-e.ctx.Done():
		return nil
	}
}
