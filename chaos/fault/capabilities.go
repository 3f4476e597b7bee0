package fault

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/lockstep-tx/lockstep/chaos/netdrop"
	"github.com/lockstep-tx/lockstep/chaos/netspace"
	"github.com/lockstep-tx/lockstep/chaos/syncfs"
	"github.com/lockstep-tx/lockstep/chaos/volume"
)

// Capability is something that a host may lack.
type Capability struct {
	Name string
	// Probe tries it: nil where it is there, else why not. Nothing is assumed from what is installed.
	Probe func() error
	// Absent is what happens where it is not; Scenarios are those that need it.
	Absent    string
	Scenarios string
}

// Capabilities are those that are looked for, those that scenarios need first.
func Capabilities() []Capability {
	return []Capability{
		{"loop device, ext4 and its shutdown", volume.Probe, "skipped: nothing else shows a missing sync", "K1, K2, K3, K4, K7"},
		{"CAP_NET_ADMIN and nf_tables", netdrop.Probe, "skipped: N1 does the same by a proxy", "N1k"},
		{"numgen of nf_tables", netdrop.ProbeLoss, "skipped", "N20"},
		{"libfaketime", Skewed{}.Needs, "skipped: it moves a database server's clock; coordinators' are moved by their debug address (C1, C3)", "C2, C2-mariadb, C4, C4-mariadb"},
		{"network namespaces, joined by veth and cut by nf_tables", netspace.Probe, "skipped: on loopback all members of an etcd have one address", "N4, N5, N6"},
		{"FUSE", syncfs.Probe, "skipped: nothing else has a sync fail, or take longer", "K4, K7"},
		{"loopback aliases", func() error { return listens("127.1.1.1:0") }, "ports tell links apart, which is what is done here", ""},
		{"network namespace", func() error { return namespace(syscall.CLONE_NEWNET) }, "nftables on loopback, which is what is done here", ""},
		{"network namespace of a user's own", func() error { return namespace(syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET) }, "privileges are needed for kernel faults", ""},
		{"netem", func() error { return qdisc("netem", "delay", "1ms") }, "not needed: the suite's own links are long (N11)", ""},
		{"tbf", func() error { return qdisc("tbf", "rate", "1mbit", "burst", "10kb", "latency", "50ms") }, "not needed: the suite's own links are thin (N12)", ""},
		{"device mapper", func() error { return exists("/dev/mapper/control") }, "not needed: the shutdown of ext4 covers its use", ""},
		{"cgroup freezer", freezer, "SIGSTOP, which is what is done here", ""},
	}
}

func listens(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return l.Close()
}

// namespace runs a program in new namespaces.
func namespace(flags uintptr) error { return run(flags, "true") }

// qdisc puts a queueing discipline on the loopback of a namespace that ends with the program.
func qdisc(args ...string) error {
	return run(syscall.CLONE_NEWNET, "tc", append([]string{"qdisc", "add", "dev", "lo", "root"}, args...)...)
}

func run(flags uintptr, program string, args ...string) error {
	cmd := exec.Command(program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w %s", err, bytes.TrimSpace(out))
	}
	return nil
}

func exists(file string) error {
	_, err := os.Stat(file)
	return err
}

// freezer makes a group in the first hierarchy that has a freezer, and removes it.
func freezer() error {
	if err := exists("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return group("/sys/fs/cgroup", "cgroup.freeze")
	}
	return group("/sys/fs/cgroup/freezer", "freezer.state")
}

func group(under, file string) error {
	dir, err := os.MkdirTemp(under, "lockstep-chaos-")
	if err != nil {
		return err
	}
	return errors.Join(exists(filepath.Join(dir, file)), os.Remove(dir))
}
