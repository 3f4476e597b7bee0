// Package netspace is hosts on one machine: network namespaces, each with an address of its own, joined by another one that
// forwards between them. Any pair of them can be cut from each other while both are reached from outside, which ports on loopback
// cannot show where all senders have one address.
//
// Its law: nothing of it is seen outside of its namespaces, and nothing outlives the processes. The namespaces have no name: they are
// there while this process has them open or a process runs in them, and their links and rules go with them, however that ends. What a
// cut drops is counted by the kernel, each way by itself.
//
// Linux, CAP_SYS_ADMIN and CAP_NET_ADMIN, veth and nf_tables are needed. Probe says whether they are there, by doing it once.
package netspace

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// HostsMax is how many hosts there can be.
const HostsMax = 200

// linkLimit is how long is waited for a link.
const linkLimit = 5 * time.Second

// Offsets of an IPv4 header's addresses.
const (
	sourceAddress = 12
	destAddress   = 16
)

// Net is some hosts. Dial is safe for concurrent use, the other methods are for one caller at a time.
type Net struct {
	hub   *os.File
	hosts []*os.File
	rules *nftables.Conn
	table *nftables.Table
	chain *nftables.Chain
}

// Open makes so many hosts, all of which reach each other. The caller closes it.
func Open(hosts int) (n *Net, err error) {
	if hosts < 1 || hosts > HostsMax {
		return nil, fmt.Errorf("%d hosts: 1 to %d are possible", hosts, HostsMax)
	}
	n = &Net{}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if n.hub, err = unshare(); err != nil {
		return n, err
	}
	err = enter(n.hub, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644) })
	if err != nil {
		return n, fmt.Errorf("forward between hosts: %w", err)
	}
	for i := range hosts {
		h, err := unshare()
		if err != nil {
			return n, err
		}
		n.hosts = append(n.hosts, h)
		if err := n.join(i); err != nil {
			return n, fmt.Errorf("host %d: %w", i, err)
		}
	}
	return n, n.filter()
}

// Addr is a host's address. They are of the range for measurements between networks (RFC 2544), which nobody else has in there.
func (n *Net) Addr(host int) string { return address(host, 2).String() }

func address(host int, end byte) net.IP { return net.IPv4(198, 18, byte(host), end) }

// Space is a host's namespace, for who starts a process there; it stays the Net's.
func (n *Net) Space(host int) *os.File { return n.hosts[host] }

// join connects a host with the hub.
func (n *Net) join(host int) error {
	hub, err := netlink.NewHandleAt(netns.NsHandle(n.hub.Fd()))
	if err != nil {
		return err
	}
	defer hub.Close()
	far, err := netlink.NewHandleAt(netns.NsHandle(n.hosts[host].Fd()))
	if err != nil {
		return err
	}
	defer far.Close()
	name := fmt.Sprintf("host%d", host)
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: name})
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(n.hosts[host].Fd())
	if err := hub.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	if err := up(hub, name, address(host, 1)); err != nil {
		return err
	}
	if err := errors.Join(up(far, "lo", nil), up(far, "eth0", address(host, 2))); err != nil {
		return err
	}
	if err := far.RouteAdd(&netlink.Route{Gw: address(host, 1)}); err != nil {
		return err
	}
	return errors.Join(carries(hub, name), carries(far, "eth0"))
}

// carries waits for a link to carry: the kernel drops what is sent before it has noted that both ends are on.
func carries(h *netlink.Handle, name string) error {
	for end := time.Now().Add(linkLimit); ; time.Sleep(5 * time.Millisecond) {
		link, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is %s after %v", name, link.Attrs().OperState, linkLimit)
		}
	}
}

// up gives a link an address, where there is one, and switches it on.
func up(h *netlink.Handle, name string, ip net.IP) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if ip != nil {
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: ip.To4(), Mask: net.CIDRMask(24, 32)}}); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return h.LinkSetUp(link)
}

// filter makes the chain that cuts go into. What the hub itself sends, for Dial, does not come by there.
func (n *Net) filter() (err error) {
	if n.rules, err = nftables.New(nftables.WithNetNSFd(int(n.hub.Fd()))); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	n.table = n.rules.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "cuts"})
	n.chain = n.rules.AddChain(&nftables.Chain{Name: "cuts", Table: n.table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	return n.flush("make a table")
}

func (n *Net) flush(what string) error {
	if err := n.rules.Flush(); err != nil {
		return fmt.Errorf("nftables: %s: %w", what, err)
	}
	return nil
}

// Cut has every packet between two hosts dropped from now on, in both directions. Nothing is closed and nothing refused.
func (n *Net) Cut(a, b int) error {
	for _, way := range [][2]int{{a, b}, {b, a}} {
		n.rules.AddRule(&nftables.Rule{Table: n.table, Chain: n.chain, UserData: []byte{byte(way[0]), byte(way[1])}, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: sourceAddress, Len: 4},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: address(way[0], 2).To4()},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: destAddress, Len: 4},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: address(way[1], 2).To4()},
			&expr.Counter{},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	}
	return n.flush(fmt.Sprintf("cut %d from %d", a, b))
}

// Dropped is how many packets from a to b the kernel has dropped since they were cut from each other; 0 where they are not.
func (n *Net) Dropped(a, b int) (packets uint64, err error) {
	rules, err := n.rules.GetRules(n.table, n.chain)
	if err != nil {
		return 0, fmt.Errorf("nftables: %w", err)
	}
	for _, r := range rules {
		if len(r.UserData) != 2 || int(r.UserData[0]) != a || int(r.UserData[1]) != b {
			continue
		}
		for _, e := range r.Exprs {
			if c, ok := e.(*expr.Counter); ok {
				packets += c.Packets
			}
		}
	}
	return packets, nil
}

// Heal lets everything pass again.
func (n *Net) Heal() error {
	n.rules.FlushChain(n.chain)
	return n.flush("heal")
}

// Dial connects from outside to an address of a host, whatever is cut.
func (n *Net) Dial(address string, limit time.Duration) (c net.Conn, err error) {
	err = enter(n.hub, func() error {
		c, err = net.DialTimeout("tcp", address, limit)
		return err
	})
	return c, err
}

// enter calls f on a thread in a namespace.
func enter(space *os.File, f func() error) error {
	return locked(func() error {
		if err := unix.Setns(int(space.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

// unshare makes a network namespace that is there while the file is open or a process runs in it.
func unshare() (space *os.File, err error) {
	err = locked(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		space, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return space, err
}

// locked calls f on a thread of its own, and puts that back into the namespace that it was in; one that cannot be put back ends with
// its goroutine.
func locked(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		own, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err = f()
		back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET)
		if back == nil {
			runtime.UnlockOSThread()
		}
		done <- errors.Join(err, back, own.Close())
	}()
	return <-done
}

// Close lets the namespaces go; those in which processes run stay until these have ended. It may be called twice.
func (n *Net) Close() (err error) {
	for _, f := range append(n.hosts, n.hub) {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	n.hosts, n.hub = nil, nil
	return err
}

// Probe says why hosts cannot be had here; nil where they can. It tries once.
var Probe = sync.OnceValue(func() (err error) {
	n, err := Open(2)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	if err := n.Cut(0, 1); err != nil {
		return err
	}
	var l net.Listener
	err = enter(n.hosts[0], func() (err error) {
		l, err = net.Listen("tcp", n.Addr(0)+":0")
		return err
	})
	if err != nil {
		return err
	}
	defer l.Close()
	return try(n, l.Addr().String())
})

// try wants a connection from outside to the first host, none from the second one, and what was dropped of that to be counted.
func try(n *Net, address string) error {
	c, err := n.Dial(address, 5*time.Second)
	if err != nil {
		return err
	}
	c.Close()
	err = enter(n.hosts[1], func() error {
		c, err := net.DialTimeout("tcp", address, 50*time.Millisecond)
		if err == nil {
			c.Close()
		}
		return err
	})
	if packets, derr := n.Dropped(1, 0); err == nil || derr != nil || packets == 0 {
		return errors.Join(fmt.Errorf("a cut host connects, or %d packets of it were dropped", packets), derr)
	}
	return nil
}
