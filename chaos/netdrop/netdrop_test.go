package netdrop

import (
	"net"
	"slices"
	"testing"
	"time"
)

// pipe is a connection over loopback and the port that it is to.
func pipe(t *testing.T) (from, to net.Conn, port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	from, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { from.Close() })
	if to, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { to.Close() })
	return from, to, l.Addr().(*net.TCPAddr).Port
}

// arrives says whether a byte comes through in time.
func arrives(t *testing.T, from, to net.Conn, limit time.Duration) bool {
	t.Helper()
	if _, err := from.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if err := to.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	_, err := to.Read(make([]byte, 1))
	return err == nil
}

// TestTheKernelDropsWhatItIsTold: one port and no other, both ways, counted, until it is closed, and then what was sent in
// between arrives.
func TestTheKernelDropsWhatItIsTold(t *testing.T) {
	if err := Probe(); err != nil {
		t.Skipf("no nftables here: %v", err)
	}
	a, b, port := pipe(t)
	c, d, _ := pipe(t)
	k, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}()
	if !arrives(t, a, b, 5*time.Second) {
		t.Fatal("nothing is dropped yet, and nothing comes")
	}
	if err := k.Drop(port); err != nil {
		t.Fatal(err)
	}
	if arrives(t, a, b, 300*time.Millisecond) || arrives(t, b, a, 300*time.Millisecond) {
		t.Error("what is to be dropped arrives")
	}
	if !arrives(t, c, d, 5*time.Second) {
		t.Error("another port is dropped")
	}
	if n, err := k.Dropped(); err != nil || n == 0 {
		t.Errorf("%d packets were dropped, %v", n, err)
	}
	name := k.table.Name
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	if !arrives(t, a, b, 10*time.Second) {
		t.Error("nothing comes after the end")
	}
	if slices.Contains(tables(t, k), name) {
		t.Errorf("the table %s is still there", name)
	}
}

func tables(t *testing.T, k *Table) (names []string) {
	t.Helper()
	all, err := k.conn.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range all {
		names = append(names, x.Name)
	}
	return names
}

// TestAShareIsLost: of many packets some are, and TCP carries everything through nevertheless.
func TestAShareIsLost(t *testing.T) {
	if err := ProbeLoss(); err != nil {
		t.Skipf("no numgen here: %v", err)
	}
	a, b, port := pipe(t)
	k, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if err := k.Lose(port, 20); err != nil {
		t.Fatal(err)
	}
	for range 60 {
		if !arrives(t, a, b, 20*time.Second) {
			t.Fatal("a connection that loses a fifth of its packets carries nothing")
		}
	}
	if n, err := k.Dropped(); err != nil || n == 0 || n > 100 {
		t.Errorf("%d packets of about 120 were lost, %v", n, err)
	}
}

// TestTablesOfTheDeadAreRemoved: a process that was killed has left its table; the next Open takes it away, and not those
// of the living.
func TestTablesOfTheDeadAreRemoved(t *testing.T) {
	if err := Probe(); err != nil {
		t.Skipf("no nftables here: %v", err)
	}
	mine, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	dead := *mine.table
	dead.Name = prefix + "4194305_1" // above the kernel's highest pid
	mine.conn.AddTable(&dead)
	if err := mine.conn.Flush(); err != nil {
		t.Fatal(err)
	}
	second, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	names := tables(t, mine)
	if slices.Contains(names, dead.Name) || !slices.Contains(names, mine.table.Name) || !slices.Contains(names, second.table.Name) {
		t.Errorf("there are %v", names)
	}
}
