package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/store/etcdstore"
	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/place"
	"github.com/lockstep-tx/lockstep/region/slot"
	"github.com/lockstep-tx/lockstep/region/topology"
)

// regions is what a coordinator of a deployment with several regions has beside the others; nil where there is one.
type regions struct {
	file    *topology.File
	arbiter *arbiter.Arbiter
	place   *place.Place
	http    *http.Client
}

// openRegions reads the regions file and asks the arbiter who this region is.
func (s *Server) openRegions(ctx context.Context) error {
	c := s.cfg
	if c.RegionsFile == "" {
		return nil
	}
	f, err := topology.Load(c.RegionsFile)
	if err != nil {
		return fmt.Errorf("regions-file: %w", err)
	}
	if _, ok := f.Regions[c.Region]; !ok {
		return fmt.Errorf("region: %q is not in %s, which has %v", c.Region, c.RegionsFile, f.Names())
	}
	s.front.say("the arbiter is asked for the first time")
	cli, err := etcdstore.Connect(ctx, etcdstore.Cluster{Endpoints: f.Arbiter, CAFile: f.ArbiterCa, CertFile: f.ArbiterCert, KeyFile: f.ArbiterKey})
	if err != nil {
		return fmt.Errorf("regions-file: arbiter: %w", err)
	}
	s.onClose(cli.Close)
	tls, err := s.branchTLS()
	if err != nil {
		return err
	}
	s.regions = &regions{file: f, arbiter: arbiter.New(cli, s.log), http: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: tls, MaxIdleConnsPerHost: 16}}}
	s.regions.place, err = place.New(ctx, place.Config{
		Self: c.Region, Topology: f, Arbiter: s.regions.arbiter, Forward: forwarder{s}, Carried: s.carried, HTTP: s.regions.http, Log: s.log,
	})
	if errors.Is(err, arbiter.ErrNoDeployment) {
		return fmt.Errorf("regions-file: %w", err)
	}
	return err
}

// forwarder is the peers' client, which is made later.
type forwarder struct{ s *Server }

// Forward is engine.Forwarder's.
func (f forwarder) Forward(ctx context.Context, to engine.Member, req engine.Request) (engine.Reply, error) {
	return f.s.peers.Forward(ctx, to, req)
}

// carried is what came with a seal, from the own journal.
func (s *Server) carried(ctx context.Context, n int, seal *slot.Seal) ([][]byte, error) {
	return nil, engine.ErrNotYet
}

// beyond is the engine's view of the other regions; nil where there are none.
func (s *Server) beyond() engine.Regions {
	if s.regions == nil {
		return nil
	}
	return s.regions.place
}

// resolver gives branch calls their addresses by the homes of their accounts; nil where there is one region.
func (s *Server) resolver() func(*engine.Call) (*engine.Call, error) {
	if s.regions == nil {
		return nil
	}
	return s.regions.place.Resolve
}

