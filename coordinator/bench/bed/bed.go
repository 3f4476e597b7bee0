// Package bed is two regions on one machine for measurements: all processes of each on a core of its own, and what one sends
// the other, and both the arbiter, held back by proxies for half of a round trip.
package bed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/proc"
)

const readyLimit = 60 * time.Second

// Config of a bed.
type Config struct {
	// RTT is the round trip between the regions, and to the arbiter.
	RTT time.Duration
	// Kafka is "embedded" for a broker of ours per region, else Brokers is Apache Kafka of both, with a comma; one is used by both.
	Kafka, Brokers string
	// Dir is where the run's directory is made, Bin where the programs are.
	Dir, Bin string
	// Idle adds, for each region, participants that do nothing and a plain coordinator without regions, on the same core.
	Idle bool
	// Keep leaves the logs.
	Keep bool
}

// Region is one region's processes, all of them on one core.
type Region struct {
	Name   string
	File   string // its view of the deployment: the other region is behind the delay
	GRPC   string
	Admin  string
	Wallet string // base of the wallets' URLs
	// Noop and PlainGRPC are those of Config.Idle.
	Noop, PlainGRPC string

	core int
	own  []*proc.Process // what dies with it
}

// Kill ends everything of the region at once; an Apache Kafka that was given is not the bed's.
func (r *Region) Kill() {
	var all sync.WaitGroup
	for _, p := range r.own {
		all.Go(p.Kill)
	}
	all.Wait()
}

// Bed is the two regions, east and west.
type Bed struct {
	Regions [2]*Region
	// Arbiter is its client address, behind the delay.
	Arbiter string
	// Preferred says that each region's own Kafka runs before what it shares a core with (nice -10, which wants the right to).
	Preferred bool

	o      Config
	dir    string
	failed bool // it has not come up: the logs say why
	undo   []func() error
}

// New starts a bed. The caller closes it, also after an error.
func New(ctx context.Context, o Config) (*Bed, error) {
	b := &Bed{o: o}
	err := b.open(ctx)
	b.failed = err != nil
	return b, err
}

func (b *Bed) defers(f func() error) { b.undo = append(b.undo, f) }

// Close ends every process by its pid and removes the directory, unless that is to be kept or says why New failed.
func (b *Bed) Close() {
	for i := len(b.undo) - 1; i >= 0; i-- {
		if err := b.undo[i](); err != nil {
			fmt.Fprintln(os.Stderr, "bench: clean up:", err)
		}
	}
}

// start starts a program of bin/ on a core; -1 is any.
func (b *Bed) start(name string, core int, program string, args ...string) (*proc.Process, error) {
	path := filepath.Join(b.o.Bin, program)
	if core >= 0 {
		taskset, err := exec.LookPath("taskset")
		if err != nil {
			return nil, fmt.Errorf("each region is to have a core of its own: %w", err)
		}
		path, args = taskset, append([]string{"-c", strconv.Itoa(core), path}, args...)
	}
	p, err := proc.Start(proc.Spec{Name: name, Path: path, Args: args, Dir: b.dir})
	if err == nil {
		b.defers(p.Stop)
	}
	return p, err
}

// startOf starts a program of a region's, on its core.
func (b *Bed) startOf(r *Region, name, program string, args ...string) (*proc.Process, error) {
	p, err := b.start(name, r.core, program, args...)
	if err == nil {
		r.own = append(r.own, p)
	}
	return p, err
}

// listener is the process that listens at an address.
func listener(addr string) (pid int, err error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return 0, err
	}
	if pid, err = proc.ListenerPID(n); err != nil {
		err = fmt.Errorf("kafka at %s: %w", addr, err)
	}
	return pid, err
}

// pin puts the region's own Kafka on its core too.
func pin(addr string, core int) error {
	pid, err := listener(addr)
	if err != nil {
		return err
	}
	if out, err := exec.Command("taskset", "-a", "-c", "-p", strconv.Itoa(core), strconv.Itoa(pid)).CombinedOutput(); err != nil {
		return fmt.Errorf("kafka at %s: taskset: %w: %s", addr, err, out)
	}
	return nil
}

// prefer lets a Kafka's threads run before others': it has hosts of its own elsewhere, and here it shares a core with the coordinator
// and the load.
func prefer(addr string) error {
	pid, err := listener(addr)
	if err != nil {
		return err
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, t := range tasks {
		tid, terr := strconv.Atoi(t.Name())
		if terr == nil {
			terr = syscall.Setpriority(syscall.PRIO_PROCESS, tid, brokerNice)
		}
		if terr != nil && !errors.Is(terr, syscall.ESRCH) {
			err = errors.Join(err, terr)
		}
	}
	return err
}

const brokerNice = -10

// link gives an address that reaches to with the delay.
func (b *Bed) link(to string) (string, error) {
	d, err := delay("127.0.0.1:0", to, b.o.RTT/2)
	if err != nil {
		return "", err
	}
	b.defers(d.Close)
	return d.l.Addr().String(), nil
}

func (b *Bed) open(ctx context.Context) (err error) {
	if b.dir, err = os.MkdirTemp(b.o.Dir, "lockstep-bench-bed-"); err != nil {
		return err
	}
	b.defers(func() error {
		if b.o.Keep || b.failed {
			fmt.Println("kept:", b.dir)
			return nil
		}
		return os.RemoveAll(b.dir)
	})
	a, err := proc.FreeAddrs(24)
	if err != nil {
		return err
	}
	next := func() string { s := a[0]; a = a[1:]; return s }
	client, peer := next(), next()
	if _, err := b.start("arbiter", -1, "lockstep", "arbiter", "--name", "a", "--data-dir", filepath.Join(b.dir, "arbiter"), "--client", client, "--peer", peer, "--cluster", "a="+peer); err != nil {
		return err
	}
	arbiter, err := b.link(client)
	if err != nil {
		return err
	}
	b.Arbiter = arbiter
	kafka := strings.Split(b.o.Brokers, ",")
	for i, name := range []string{"east", "west"} {
		r := &Region{Name: name, core: i, GRPC: next(), Admin: next()}
		b.Regions[i] = r
		if b.o.Kafka == "embedded" {
			addr := next()
			p, err := b.startOf(r, "broker-"+name, "lockstep", "broker", "--data-dir", filepath.Join(b.dir, "broker-"+name), "--listen", addr)
			if err != nil {
				return err
			}
			if err := p.AwaitTCP(ctx, addr, readyLimit); err != nil {
				return err
			}
			kafka = append(kafka[:i], addr)
		}
		if b.o.Kafka != "embedded" && len(kafka) == 2 {
			if err := pin(kafka[i], r.core); err != nil {
				return err
			}
			err := prefer(kafka[i])
			if err != nil && !errors.Is(err, os.ErrPermission) {
				return err
			}
			b.Preferred = err == nil
		}
		if !b.o.Idle {
			continue
		}
		r.Noop = next()
		p, err := b.startOf(r, "participants-"+name, "bench-participants", "-http-addr", r.Noop, "-grpc-addr", next())
		if err != nil {
			return err
		}
		if err := p.AwaitHTTP(ctx, "http://"+r.Noop+"/counts", readyLimit); err != nil {
			return err
		}
	}
	if len(kafka) < 2 {
		kafka = append(kafka, kafka[0])
	}
	if err := b.files(arbiter, kafka, next); err != nil {
		return err
	}
	return b.coordinators(ctx, next)
}

// files writes each region's view. Kafka names its own address to who asks, so that a proxy has to replace it.
func (b *Bed) files(arbiter string, kafka []string, next func() string) error {
	var routes []string
	for i, r := range b.Regions {
		text := fmt.Sprintf("arbiter: [%q]\nregions:\n", arbiter)
		for k, of := range b.Regions {
			grpc, admin, broker := of.GRPC, of.Admin, kafka[k]
			if i != k {
				var err error
				if grpc, err = b.link(of.GRPC); err != nil {
					return err
				}
				if admin, err = b.link(of.Admin); err != nil {
					return err
				}
				far, err := b.link(broker)
				if err != nil {
					return err
				}
				broker = next()
				routes = append(routes, "--route", fmt.Sprintf("%s-%s/kafka=%s>%s", r.Name, of.Name, broker, far))
			}
			text += fmt.Sprintf("  %s: {grpc: [%q], admin: [%q], kafka: [%q]}\n", of.Name, grpc, "http://"+admin, broker)
		}
		r.File = filepath.Join(b.dir, r.Name+".yaml")
		if err := os.WriteFile(r.File, []byte(text), 0o600); err != nil {
			return err
		}
	}
	_, err := b.start("links", -1, "lockstep-chaos", append([]string{"proxy", "--control", next()}, routes...)...)
	return err
}

func (b *Bed) coordinators(ctx context.Context, next func() string) error {
	until := time.Now().Add(readyLimit)
	for {
		out, err := b.Tool(ctx, "region", "init", "--context", b.Regions[0].File)
		if err == nil {
			break
		}
		if time.Now().After(until) {
			return fmt.Errorf("region init: %w\n%s", err, out)
		}
		time.Sleep(200 * time.Millisecond)
	}
	level := "warn"
	if b.o.Keep {
		level = "info"
	}
	for _, r := range b.Regions {
		plainAdmin := next()
		started := map[string][]string{"coordinator-" + r.Name: {"--grpc-addr", r.GRPC, "--admin-addr", r.Admin, "--region", r.Name, "--regions-file", r.File}}
		if b.o.Idle {
			r.PlainGRPC = next()
			started["plain-"+r.Name] = []string{"--grpc-addr", r.PlainGRPC, "--admin-addr", plainAdmin}
		}
		for name, args := range started {
			args = append([]string{"serve", "--embedded", "--data-dir", filepath.Join(b.dir, name), "--http-addr", "127.0.0.1:0", "--log-level", level}, args...)
			p, err := b.startOf(r, name, "lockstep", args...)
			if err != nil {
				return err
			}
			admin := r.Admin
			if strings.HasPrefix(name, "plain") {
				admin = plainAdmin
			}
			if err := p.AwaitHTTP(ctx, "http://"+admin+"/readyz", readyLimit); err != nil {
				return err
			}
		}
	}
	var endpoints []string
	for _, r := range b.Regions {
		addr := next()
		p, err := b.startOf(r, "wallet-"+r.Name, "lockstep-participants", "wallet", "--db", "sqlite:"+filepath.Join(b.dir, "wallet-"+r.Name+".db"), "--listen", addr)
		if err != nil {
			return err
		}
		if err := p.AwaitHTTP(ctx, "http://"+addr+"/healthz", readyLimit); err != nil {
			return err
		}
		r.Wallet = "http://" + addr
		endpoints = append(endpoints, r.Name+"="+r.Wallet)
	}
	out, err := b.Tool(ctx, "participant", "set", "wallet", "--context", b.Regions[0].File, "--endpoint", strings.Join(endpoints, ","), "--account-field", "account")
	if err != nil {
		return fmt.Errorf("participant set: %w\n%s", err, out)
	}
	return nil
}

// Tool runs lockstep to its end.
func (b *Bed) Tool(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(b.o.Bin, "lockstep"), args...).CombinedOutput()
	return string(out), err
}
