package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/store/etcdstore"
	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/topology"
)

// contextFile names the file that says where everything is: it works with a region, its coordinators and Kafka gone.
type contextFile struct {
	Context          string        `help:"File with the addresses of the arbiter and the regions, the same that coordinators get as --regions-file." required:"" placeholder:"FILE" env:"LOCKSTEP_REGIONS_FILE"`
	ArbiterEndpoints []string      `help:"Client addresses of the arbiter's members, in place of those in the file." placeholder:"HOST:PORT"`
	Timeout          time.Duration `help:"How long to wait for an answer." default:"10s"`
}

// dryRun is for commands that write.
type dryRun struct {
	DryRun bool `help:"Do every read and every check, and write nothing."`
}

// opened is a context file with the arbiter behind it.
type opened struct {
	file    *topology.File
	arbiter *arbiter.Arbiter
	close   func()
}

// open reads the file and asks the arbiter a first time.
func (c *contextFile) open(ctx context.Context) (*opened, error) {
	f, err := topology.Load(c.Context, c.ArbiterEndpoints...)
	if err != nil {
		return nil, usageError{err}
	}
	cctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, errors.New("the arbiter did not answer in time"))
	defer cancel()
	cli, err := etcdstore.Connect(cctx, etcdstore.Cluster{Endpoints: f.Arbiter, CAFile: f.ArbiterCa, CertFile: f.ArbiterCert, KeyFile: f.ArbiterKey})
	if err != nil {
		return nil, &failure{fmt.Errorf("arbiter: %w", err), "lockstep arbiter --help  # a majority of its members must run"}
	}
	return &opened{file: f, arbiter: arbiter.New(cli, nil), close: func() { cli.Close() }}, nil
}

// with runs a command's work with the regions file and the arbiter open.
func (c *contextFile) with(e *env, work func(*env, *opened) error) error {
	o, err := c.open(e.ctx)
	if err != nil {
		return err
	}
	defer o.close()
	return work(e, o)
}

// within bounds one round of questions.
func (c *contextFile) within(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.Timeout)
}
