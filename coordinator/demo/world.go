package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"
	"gopkg.in/yaml.v3"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/region/topology"
)

// names of regions, in the order of their indexes; more are called region-N.
var regionNames = []string{"east", "west", "north", "south"}

const arbiterMembers = 3

// region is one region's processes.
type region struct {
	name   string
	dir    string
	addr   addresses
	kafka  string
	wallet string // base of the wallets' URLs
	db     string // address of the wallets' database
	file   string // its regions file: its own addresses, and the links to the others
	coord  *coordinator
	native *client.Client
	procs  []*process // broker and wallets
}

func (r *region) journal() string {
	return "sqlite:" + filepath.Join(r.dir, "coordinator", "data", "journal.db")
}

// world is the whole deployment.
type world struct {
	regions []*region
	context string // the operator's regions file: every address as it is
	arbiter []string
	procs   []*process // arbiter and links
	chaos   *chaos
}

func (w *world) named(name string) *region {
	for _, r := range w.regions {
		if r.name == name {
			return r
		}
	}
	return nil
}

// ports takes n free ports of the loopback at once, so that none is given twice.
func ports(n int) ([]string, error) {
	var out []string
	var errs []error
	var open []net.Listener
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			errs = append(errs, err)
			break
		}
		open = append(open, l)
		out = append(out, l.Addr().String())
	}
	for _, l := range open {
		errs = append(errs, l.Close())
	}
	return out, errors.Join(errs...)
}

// plan chooses addresses and writes the regions files.
func (d *demo) plan(ctx context.Context) (*world, error) {
	n := d.cfg.Regions
	free, err := ports(2*arbiterMembers + 5*n + 3*n*(n-1) + 2)
	if err != nil {
		return nil, err
	}
	next := func() string { a := free[0]; free = free[1:]; return a }
	w := &world{context: filepath.Join(d.dir, "regions.yaml")}
	for range 2 * arbiterMembers {
		w.arbiter = append(w.arbiter, next())
	}
	whole := topology.File{Arbiter: w.arbiter[:arbiterMembers], Regions: map[string]topology.Region{}}
	for i := range n {
		r := &region{name: "region-" + strconv.Itoa(i+1)}
		if i < len(regionNames) {
			r.name = regionNames[i]
		}
		r.dir = filepath.Join(d.dir, r.name)
		r.addr = addresses{HTTP: next(), GRPC: next(), Admin: next()}
		r.kafka, r.wallet, r.file = next(), "http://"+next(), filepath.Join(r.dir, "regions.yaml")
		if d.cfg.Kafka != "" {
			r.kafka = d.cfg.Kafka
		}
		if err := os.MkdirAll(r.dir, 0o700); err != nil {
			return nil, err
		}
		if r.db, err = d.walletDatabase(ctx, r); err != nil {
			return nil, err
		}
		w.regions = append(w.regions, r)
		whole.Regions[r.name] = topology.Region{Grpc: []string{r.addr.GRPC}, Admin: []string{"http://" + r.addr.Admin}, Kafka: []string{r.kafka}}
	}
	if err := writeYAML(w.context, whole); err != nil {
		return nil, err
	}
	w.chaos = &chaos{program: d.cfg.Chaos, control: next()}
	for _, r := range w.regions {
		own := topology.File{Arbiter: whole.Arbiter, Regions: map[string]topology.Region{}}
		for _, to := range w.regions {
			own.Regions[to.name] = whole.Regions[to.name]
			if to != r {
				link := r.name + "-" + to.name
				own.Regions[to.name] = topology.Region{
					Grpc:  []string{w.chaos.link(link+"/grpc", next(), to.addr.GRPC)},
					Admin: []string{"http://" + w.chaos.link(link+"/admin", next(), to.addr.Admin)},
					Kafka: []string{w.chaos.link(link+"/kafka", next(), to.kafka)},
				}
			}
		}
		if err := writeYAML(r.file, own); err != nil {
			return nil, err
		}
	}
	d.shopAddr = next()
	return w, nil
}

func writeYAML(path string, v any) error {
	raw, err := yaml.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o600)
}

// bringUp starts every process; what does not need another starts beside it.
func (d *demo) bringUp(ctx context.Context) error {
	var err error
	if d.world, err = d.plan(ctx); err != nil {
		return err
	}
	w := d.world
	if err := d.startBase(); err != nil {
		return err
	}
	if out, err := d.lockstep(ctx, "region", "init", "--context", w.context, "--timeout", startLimit.String(), "--regions", strings.Join(w.names(), ",")); err != nil {
		return fmt.Errorf("create the deployment: %w: %s%s", err, out, w.procs[0].tail())
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, r := range w.regions {
		g.Go(func() (err error) {
			if r.coord, err = startCoordinator(gctx, d.cfg.Lockstep, filepath.Join(r.dir, "coordinator"), r.addr, "--region", r.name, "--regions-file", r.file); err != nil {
				return fmt.Errorf("region %s: %w", r.name, err)
			}
			r.native, err = client.Dial(r.addr.GRPC)
			return err
		})
		g.Go(func() error { return d.openWallets(gctx, r) })
	}
	g.Go(func() (err error) {
		d.parts, err = startParticipants(gctx, d.cfg.Participants, d.dir, d.cfg.DB, d.shopAddr, w.regions[0].addr.GRPC)
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	var ends []string
	for _, r := range w.regions {
		ends = append(ends, r.name+"="+r.wallet)
	}
	_, err = d.lockstep(ctx, "participant", "set", "wallet", "--context", w.context, "--account-field", "account", "--endpoint", strings.Join(ends, ","))
	return err
}

// startBase starts what needs nothing: arbiter, links, brokers, wallets.
func (d *demo) startBase() error {
	w := d.world
	var cluster []string
	for i, peer := range w.arbiter[arbiterMembers:] {
		cluster = append(cluster, fmt.Sprintf("arbiter-%d=%s", i+1, peer))
	}
	begin := func(list *[]*process, program, log string, args ...string) error {
		p, err := start(program, filepath.Join(d.dir, log+".log"), args...)
		if err == nil {
			*list = append(*list, p)
		}
		return err
	}
	for i := range arbiterMembers {
		name := fmt.Sprintf("arbiter-%d", i+1)
		if err := begin(&w.procs, d.cfg.Lockstep, name, "arbiter", "--name", name, "--data-dir", filepath.Join(d.dir, name), "--client", w.arbiter[i],
			"--peer", w.arbiter[arbiterMembers+i], "--cluster", strings.Join(cluster, ",")); err != nil {
			return err
		}
	}
	if err := begin(&w.procs, d.cfg.Chaos, "links", w.chaos.proxyArgs()...); err != nil {
		return err
	}
	for _, r := range w.regions {
		if d.cfg.Kafka == "" {
			if err := begin(&r.procs, d.cfg.Lockstep, r.name+"-broker", "broker", "--data-dir", filepath.Join(r.dir, "broker"), "--listen", r.kafka); err != nil {
				return err
			}
		}
		if err := begin(&r.procs, d.cfg.Participants, r.name+"-wallets", "wallet", "--db", r.db, "--listen", strings.TrimPrefix(r.wallet, "http://")); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) names() []string {
	var out []string
	for _, r := range w.regions {
		out = append(out, r.name)
	}
	return out
}

// openWallets opens every account in a region's wallets: all regions have all of them alike.
func (d *demo) openWallets(ctx context.Context, r *region) error {
	p := r.procs[len(r.procs)-1]
	if err := p.await(ctx, "the wallets of "+r.name, func() bool { return ok(ctx, r.wallet+"/healthz") }); err != nil {
		return err
	}
	for _, id := range d.load.accounts {
		if err := openAccount(ctx, r.wallet, map[string]any{"id": id, "balance": firstDeposit}); err != nil {
			return fmt.Errorf("region %s: %w", r.name, err)
		}
	}
	return nil
}

// lockstep runs a command of the product's program and gives what it printed.
func (d *demo) lockstep(ctx context.Context, args ...string) (string, error) {
	return output(ctx, d.cfg.Lockstep, args...)
}

func output(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args[:min(2, len(args))], " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// close ends everything that was started: those that call before those that are called.
func (d *demo) close() error {
	var errs []error
	end := func(what string, p *process) {
		if p == nil {
			return
		}
		if err := p.end(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w: %s", what, err, p.tail()))
		}
	}
	if d.load != nil {
		d.load.halt()
	}
	if d.payer != nil {
		errs = append(errs, d.payer.stop())
	}
	if d.parts != nil {
		end("the participants", d.parts.process)
	}
	if d.gate != nil {
		d.gate.stop()
	}
	if d.world != nil {
		errs = append(errs, d.world.close(end)...)
	}
	if d.cfg.Keep {
		d.tell("databases and logs are kept: %s", d.dir)
	} else {
		errs = append(errs, os.RemoveAll(d.dir))
	}
	return errors.Join(errs...)
}

// close ends the coordinators, then what they call, then what they stand on; those of a kind side by side.
func (w *world) close(end func(string, *process)) []error {
	var errs []error
	together := func(what string, list []*process) {
		for _, p := range list {
			_ = p.cmd.Process.Signal(syscall.SIGTERM) // what has ended already is seen below
		}
		for _, p := range list {
			end(what, p)
		}
	}
	var coordinators, others []*process
	for _, r := range w.regions {
		if r.native != nil {
			errs = append(errs, r.native.Close())
		}
		if r.coord != nil {
			coordinators = append(coordinators, r.coord.process)
		}
		others = append(others, r.procs...)
	}
	together("a coordinator", coordinators)
	together("a broker or the wallets", others)
	for _, p := range w.procs {
		// Members that stop at once look in vain, for seconds, for one that takes over the lead. Nobody asks them any more.
		errs = append(errs, p.kill())
	}
	return errs
}
