// Package netdrop has the kernel drop packets of TCP ports on loopback: what a proxy cannot show, because it answers
// handshakes and acknowledges what it swallows. Connections are not closed and nothing is refused; senders send again and
// again, and find out by their deadlines.
//
// Its law: it touches one nftables table of its own, whose name says which process made it; Close removes it, and Open
// removes those of processes that have ended without it. The counters are the kernel's, of packets that were dropped.
//
// Linux, CAP_NET_ADMIN and nf_tables are needed. Probe says whether they are there.
package netdrop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const prefix = "lockstep_chaos_"

// Where a TCP header has its ports.
const (
	sourcePort = 0
	destPort   = 2
)

// Table drops until it is closed. Its methods are for one caller at a time.
type Table struct {
	conn  *nftables.Conn
	table *nftables.Table
	chain *nftables.Chain
}

// serial tells several tables of one process apart.
var serial struct {
	sync.Mutex
	n int
}

// Open makes a table that drops nothing yet, and removes what processes that have ended have left.
func Open() (*Table, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	if err := sweep(conn); err != nil {
		return nil, err
	}
	serial.Lock()
	serial.n++
	name := fmt.Sprintf("%s%d_%d", prefix, os.Getpid(), serial.n)
	serial.Unlock()
	t := &Table{conn: conn, table: conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: name})}
	t.chain = conn.AddChain(&nftables.Chain{Name: "drop", Table: t.table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter})
	if err := conn.Flush(); err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return t, nil
}

// sweep removes the tables of processes that are no more.
func sweep(conn *nftables.Conn) error {
	all, err := conn.ListTables()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	for _, t := range all {
		rest, ours := strings.CutPrefix(t.Name, prefix)
		id, _, _ := strings.Cut(rest, "_")
		pid, err := strconv.Atoi(id)
		if ours && err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			conn.DelTable(t)
		}
	}
	return conn.Flush()
}

// Drop has every packet from and to a port on loopback dropped from now on.
func (t *Table) Drop(port int) error {
	for _, offset := range []uint32{sourcePort, destPort} {
		t.conn.AddRule(&nftables.Rule{Table: t.table, Chain: t.chain, Exprs: match(port, offset)})
	}
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("nftables: drop port %d: %w", port, err)
	}
	return nil
}

// match is: on lo, TCP, the port, count, drop.
func match(port int, offset uint32) []expr.Any {
	lo := make([]byte, unix.IFNAMSIZ)
	copy(lo, "lo")
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: lo},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, uint16(port))},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// Dropped is how many packets the kernel has dropped.
func (t *Table) Dropped() (n uint64, err error) {
	rules, err := t.conn.GetRules(t.table, t.chain)
	if err != nil {
		return 0, fmt.Errorf("nftables: %w", err)
	}
	for _, r := range rules {
		for _, e := range r.Exprs {
			if c, ok := e.(*expr.Counter); ok {
				n += c.Packets
			}
		}
	}
	return n, nil
}

// Lose has a share of the packets from and to a port on loopback dropped, in percent, by chance.
func (t *Table) Lose(port int, percent uint32) error {
	for _, offset := range []uint32{sourcePort, destPort} {
		e := match(port, offset)
		chance := []expr.Any{
			&expr.Numgen{Register: 1, Type: unix.NFT_NG_RANDOM, Modulus: 100},
			&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, percent)},
		}
		n := len(e) - 2 // before the counter and the verdict
		t.conn.AddRule(&nftables.Rule{Table: t.table, Chain: t.chain, Exprs: append(append(e[:n:n], chance...), e[n:]...)})
	}
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("nftables: lose %d %% of port %d: %w", percent, port, err)
	}
	return nil
}

// Close lets everything pass again. It may be called twice.
func (t *Table) Close() error {
	if t.table == nil {
		return nil
	}
	t.conn.DelTable(t.table)
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t.table = nil
	return nil
}

// ProbeLoss says why packets cannot be lost by chance here; nil where they can. It tries once.
var ProbeLoss = sync.OnceValue(func() error {
	t, err := Open()
	if err != nil {
		return err
	}
	return errors.Join(t.Lose(1, 5), t.Close())
})

// Probe says why packets cannot be dropped here; nil where they can. It tries once.
var Probe = sync.OnceValue(func() error {
	t, err := Open()
	if err != nil {
		return err
	}
	return errors.Join(t.Drop(1), t.Close())
})
