package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/proc"
)

const readyLimit = 60 * time.Second

// region is one region's processes, all of them on one core, and beside them a plain coordinator without regions, which is
// idle while the others are measured, as they are while it is.
type region struct {
	name              string
	core              int
	file              string // its view of the deployment: the other region is behind the delay
	grpc, admin, noop string
	plainGRPC         string
}

// bed is the two regions.
type bed struct {
	o       options
	dir     string
	regions [2]*region
	undo    []func() error
}

func (b *bed) defers(f func() error) { b.undo = append(b.undo, f) }

// Close ends every process by its pid and removes the directory.
func (b *bed) Close() {
	for i := len(b.undo) - 1; i >= 0; i-- {
		if err := b.undo[i](); err != nil {
			fmt.Fprintln(os.Stderr, "bench-regions: clean up:", err)
		}
	}
}

// start starts a program of bin/ on a core; -1 is any.
func (b *bed) start(name string, core int, program string, args ...string) (*proc.Process, error) {
	path := filepath.Join(b.o.bin, program)
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

// pin puts the region's own Kafka on its core too.
func pin(addr string, core int) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	pid, err := proc.ListenerPID(n)
	if err != nil {
		return fmt.Errorf("kafka at %s: %w", addr, err)
	}
	if out, err := exec.Command("taskset", "-a", "-c", "-p", strconv.Itoa(core), strconv.Itoa(pid)).CombinedOutput(); err != nil {
		return fmt.Errorf("kafka at %s: taskset: %w: %s", addr, err, out)
	}
	return nil
}

// link gives an address that reaches to with the delay.
func (b *bed) link(to string) (string, error) {
	d, err := delay("127.0.0.1:0", to, b.o.rtt/2)
	if err != nil {
		return "", err
	}
	b.defers(d.Close)
	return d.l.Addr().String(), nil
}

func (b *bed) open(ctx context.Context) (err error) {
	if b.dir, err = os.MkdirTemp(b.o.dir, "lockstep-bench-regions-"); err != nil {
		return err
	}
	b.defers(func() error {
		if b.o.keep {
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
	kafka := strings.Split(b.o.brokers, ",")
	for i, name := range []string{"east", "west"} {
		r := &region{name: name, core: i, grpc: next(), admin: next(), noop: next()}
		b.regions[i] = r
		if b.o.kafka == "embedded" {
			addr := next()
			p, err := b.start("broker-"+name, r.core, "lockstep", "broker", "--data-dir", filepath.Join(b.dir, "broker-"+name), "--listen", addr)
			if err != nil {
				return err
			}
			if err := p.AwaitTCP(ctx, addr, readyLimit); err != nil {
				return err
			}
			kafka = append(kafka[:i], addr)
		}
		if b.o.kafka != "embedded" && len(kafka) == 2 {
			if err := pin(kafka[i], r.core); err != nil {
				return err
			}
		}
		p, err := b.start("participants-"+name, r.core, "bench-participants", "-http-addr", r.noop, "-grpc-addr", next())
		if err != nil {
			return err
		}
		if err := p.AwaitHTTP(ctx, "http://"+r.noop+"/counts", readyLimit); err != nil {
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
func (b *bed) files(arbiter string, kafka []string, next func() string) error {
	var routes []string
	for i, r := range b.regions {
		text := fmt.Sprintf("arbiter: [%q]\nregions:\n", arbiter)
		for k, of := range b.regions {
			grpc, admin, broker := of.grpc, of.admin, kafka[k]
			if i != k {
				var err error
				if grpc, err = b.link(of.grpc); err != nil {
					return err
				}
				if admin, err = b.link(of.admin); err != nil {
					return err
				}
				far, err := b.link(broker)
				if err != nil {
					return err
				}
				broker = next()
				routes = append(routes, "--route", fmt.Sprintf("%s-%s/kafka=%s>%s", r.name, of.name, broker, far))
			}
			text += fmt.Sprintf("  %s: {grpc: [%q], admin: [%q], kafka: [%q]}\n", of.name, grpc, "http://"+admin, broker)
		}
		r.file = filepath.Join(b.dir, r.name+".yaml")
		if err := os.WriteFile(r.file, []byte(text), 0o600); err != nil {
			return err
		}
	}
	_, err := b.start("links", -1, "lockstep-chaos", append([]string{"proxy", "--control", next()}, routes...)...)
	return err
}

func (b *bed) coordinators(ctx context.Context, next func() string) error {
	until := time.Now().Add(readyLimit)
	for {
		out, err := b.tool(ctx, "region", "init", "--context", b.regions[0].file)
		if err == nil {
			break
		}
		if time.Now().After(until) {
			return fmt.Errorf("region init: %w\n%s", err, out)
		}
		time.Sleep(200 * time.Millisecond)
	}
	for _, r := range b.regions {
		plainAdmin := next()
		r.plainGRPC = next()
		for name, args := range map[string][]string{
			"coordinator-" + r.name: {"--grpc-addr", r.grpc, "--admin-addr", r.admin, "--region", r.name, "--regions-file", r.file},
			"plain-" + r.name:       {"--grpc-addr", r.plainGRPC, "--admin-addr", plainAdmin},
		} {
			args = append([]string{"serve", "--embedded", "--data-dir", filepath.Join(b.dir, name), "--http-addr", "127.0.0.1:0", "--log-level", "warn"}, args...)
			p, err := b.start(name, r.core, "lockstep", args...)
			if err != nil {
				return err
			}
			admin := r.admin
			if strings.HasPrefix(name, "plain") {
				admin = plainAdmin
			}
			if err := p.AwaitHTTP(ctx, "http://"+admin+"/readyz", readyLimit); err != nil {
				return err
			}
		}
	}
	var endpoints []string
	for _, r := range b.regions {
		addr := next()
		p, err := b.start("wallet-"+r.name, r.core, "lockstep-participants", "wallet", "--db", "sqlite:"+filepath.Join(b.dir, "wallet-"+r.name+".db"), "--listen", addr)
		if err != nil {
			return err
		}
		if err := p.AwaitHTTP(ctx, "http://"+addr+"/healthz", readyLimit); err != nil {
			return err
		}
		endpoints = append(endpoints, r.name+"=http://"+addr)
	}
	out, err := b.tool(ctx, "participant", "set", "wallet", "--context", b.regions[0].file, "--endpoint", strings.Join(endpoints, ","), "--account-field", "account")
	if err != nil {
		return fmt.Errorf("participant set: %w\n%s", err, out)
	}
	return nil
}

// tool runs lockstep to its end.
func (b *bed) tool(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(b.o.bin, "lockstep"), args...).CombinedOutput()
	return string(out), err
}
