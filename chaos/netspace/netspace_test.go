package netspace

import (
	"net"
	"os"
	"testing"
	"time"
)

// TestACutIsOfOnePair: of three hosts two are cut from each other; all else goes on, packets are counted for that pair alone, and
// after the healing it is as it was.
func TestACutIsOfOnePair(t *testing.T) {
	if err := Probe(); err != nil {
		t.Skip(err)
	}
	n, err := Open(3)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	addrs := make([]string, 3)
	for i := range addrs {
		if err := enter(n.Space(i), func() error {
			l, err := net.Listen("tcp", n.Addr(i)+":0")
			if err == nil {
				addrs[i] = l.Addr().String()
				t.Cleanup(func() { l.Close() })
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	look := func(cut bool) {
		t.Helper()
		for from := range addrs {
			for to := range addrs {
				pair := from+to == 1 // the first two
				err := enter(n.Space(from), func() error { return reach(addrs[to]) })
				if (err != nil) != (cut && pair && from != to) {
					t.Errorf("cut %v: from %d to %d: %v", cut, from, to, err)
				}
				packets, derr := n.Dropped(from, to)
				if derr != nil || (packets > 0) != (cut && pair && from != to) {
					t.Errorf("cut %v: %d packets from %d to %d were dropped: %v", cut, packets, from, to, derr)
				}
			}
			if c, err := n.Dial(addrs[from], time.Second); err != nil {
				t.Errorf("cut %v: from outside to %d: %v", cut, from, err)
			} else {
				c.Close()
			}
		}
	}
	look(false)
	if err := n.Cut(0, 1); err != nil {
		t.Fatal(err)
	}
	look(true)
	if err := n.Heal(); err != nil {
		t.Fatal(err)
	}
	look(false)
}

func reach(address string) error {
	c, err := net.DialTimeout("tcp", address, 300*time.Millisecond)
	if err == nil {
		err = c.Close()
	}
	return err
}

// TestThisProcessStaysWhereItWas: its threads are in the namespace that they were in.
func TestThisProcessStaysWhereItWas(t *testing.T) {
	if err := Probe(); err != nil {
		t.Skip(err)
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, th := range threads {
		if got, err := os.Readlink("/proc/self/task/" + th.Name() + "/ns/net"); err == nil && got != own {
			t.Errorf("thread %s is in %s, this process in %s", th.Name(), got, own)
		}
	}
}
