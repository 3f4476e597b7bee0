package proc

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/lockstep-tx/lockstep/chaos/netproxy"
	"github.com/lockstep-tx/lockstep/chaos/netspace"
	"github.com/lockstep-tx/lockstep/coordinator/bench/proc"
)

// Ports of a member that has a host of its own.
const (
	clientPort = "2379"
	peerPort   = "2380"
)

// arbiter starts the arbiter.
func (d *Deployment) arbiter(ctx context.Context, next func() string) ([]*Node, error) {
	if d.cfg.Five {
		return d.apart(ctx, "arbiter", 5)
	}
	return d.cluster(ctx, "arbiter", next)
}

// cluster starts an etcd of one member, or of three.
func (d *Deployment) cluster(ctx context.Context, name string, next func() string) (nodes []*Node, err error) {
	names := []string{name}
	if d.cfg.Three {
		names = []string{name + "-0", name + "-1", name + "-2"}
	}
	var clients, all []string
	for _, n := range names {
		clients, all = append(clients, next()), append(all, n+"="+next())
	}
	for i, n := range names {
		member, err := d.node(ctx, n, clients[i], "", "lockstep", d.member(n, clients[i], all)...)
		if err != nil {
			return nodes, err
		}
		nodes = append(nodes, member)
	}
	return nodes, nil
}

// member is the command line of one of all members, given as NAME=PEER.
func (d *Deployment) member(name, client string, all []string) []string {
	args := []string{"arbiter", "--name", name, "--data-dir", filepath.Join(d.cfg.Dir, name), "--client", client}
	for _, m := range all {
		if peer, own := strings.CutPrefix(m, name+"="); own {
			args = append(args, "--peer", peer)
		}
		args = append(args, "--cluster", m)
	}
	return args
}

// apart starts an etcd whose members have a host each, so that any two of them can be cut from each other. Everybody else reaches
// them by links on loopback, whatever is cut.
func (d *Deployment) apart(ctx context.Context, name string, members int) (nodes []*Node, err error) {
	if d.Hosts, err = netspace.Open(members); err != nil {
		return nil, err
	}
	d.defers(d.Hosts.Close)
	var all []string
	for i := range members {
		all = append(all, fmt.Sprintf("%s-%d=%s:%s", name, i, d.Hosts.Addr(i), peerPort))
	}
	for i := range members {
		n, client := fmt.Sprintf("%s-%d", name, i), d.Hosts.Addr(i)+":"+clientPort
		k, err := d.route(netproxy.Route{Name: n, Listen: "127.0.0.1:0", To: client, Dial: d.Hosts.Dial})
		if err != nil {
			return nodes, err
		}
		member, err := d.start(ctx, &Node{Name: n, Addr: k.Addr(), spec: proc.Spec{Name: n, Path: filepath.Join(d.cfg.Bin, "lockstep"), Args: d.member(n, client, all), Dir: d.cfg.Dir, Env: d.cfg.Env, Space: d.Hosts.Space(i)}})
		if err != nil {
			return nodes, err
		}
		nodes = append(nodes, member)
	}
	return nodes, nil
}
