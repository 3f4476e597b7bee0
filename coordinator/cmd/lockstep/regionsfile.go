package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/store/etcdstore"
	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/failover/conduct"
	"github.com/lockstep-tx/lockstep/region/topology"
)

// contextFile names the file that says where everything is: it works with a region, its coordinators and Kafka gone.
type contextFile struct {
	Context          string        `help:"File with the addresses of the arbiter and the regions, the same that coordinators get as --regions-file." required:"" placeholder:"FILE" env:"LOCKSTEP_REGIONS_FILE"`
	ArbiterEndpoints []string      `help:"Client addresses of the arbiter's members, in place of those in the file." placeholder:"HOST:PORT"`
	Timeout          time.Duration `help:"How long to wait for an answer." default:"10s"`
}

// here is the flags that name this file and how it is used, for a command to paste.
func (c *contextFile) here() string {
	out := flagOf("context", c.Context)
	if len(c.ArbiterEndpoints) > 0 {
		out += " " + flagOf("arbiter-endpoints", strings.Join(c.ArbiterEndpoints, ","))
	}
	if c.Timeout != 10*time.Second {
		out += " --timeout " + c.Timeout.String()
	}
	return out
}

// dryRun is for commands that write.
type dryRun struct {
	DryRun bool   `help:"Do every read and every check, and write nothing."`
	Who    string `help:"Who does it, for the audit. Defaults to the user."`
}

// whoFlag is --who as it was given, for a command to paste; "" where it was not.
func whoFlag(name string) string {
	if name == "" {
		return ""
	}
	return " " + flagOf("who", name)
}

// whoOr is who does it, for the audit: the user where nobody was named.
func whoOr(name string) string {
	if name != "" {
		return name
	}
	name = "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}

// audited writes into the audit what is about to be done, and does it; where that fails, a second line says so.
func (o *opened) audited(ctx context.Context, who, act, text string, work func() error) error {
	c := &conduct.Conductor{Arbiter: o.arbiter, Who: whoOr(who)}
	if err := c.Audit(ctx, act, text, "", time.Now()); err != nil {
		return err
	}
	err := work()
	if err != nil {
		return errors.Join(err, c.Audit(ctx, act, text+": not done: "+cut(err.Error(), 300), "", time.Now()))
	}
	return nil
}

// opened is a context file with the arbiter behind it.
type opened struct {
	file    *topology.File
	arbiter *arbiter.Arbiter
	close   func()
	heard   heard
}

// open reads the file and asks the arbiter a first time.
func (c *contextFile) open(ctx context.Context) (*opened, error) {
	f, err := topology.Load(c.Context, c.ArbiterEndpoints...)
	if err != nil {
		return nil, usageError{err}
	}
	cctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, errors.New("the arbiter did not answer in time"))
	defer cancel()
	cli, err := etcdstore.Connect(cctx, etcdstore.Cluster{Endpoints: f.Arbiter, CAFile: f.ArbiterCa, CertFile: f.ArbiterCert, KeyFile: f.ArbiterKey, RequireLeader: true})
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
