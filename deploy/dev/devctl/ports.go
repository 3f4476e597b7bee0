package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Ports are from below the kernel's ephemeral range, where no outgoing connection can take them.
const (
	portFirst = 20000
	portCount = 12000
)

// freePorts picks ports that nobody listens on and no other set on this machine has for its own: its servers may be down
// right now. They are dir's for as long as the directory is there.
func freePorts(n int, dir string) (ports []int, err error) {
	claims := filepath.Join(os.TempDir(), fmt.Sprintf("lockstep-dev-ports-%d", os.Getuid()))
	if err := os.MkdirAll(claims, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(claims, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	for range 1000 {
		k, err := rand.Int(rand.Reader, big.NewInt(portCount))
		if err != nil {
			return nil, err
		}
		port := portFirst + int(k.Int64())
		claim := filepath.Join(claims, strconv.Itoa(port))
		switch owner, err := os.ReadFile(claim); {
		case err == nil && exists(string(owner)):
			continue // also where it is dir: it was picked a moment ago
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		l.Close()
		if err := os.WriteFile(claim, []byte(dir), 0o600); err != nil {
			return nil, err
		}
		if ports = append(ports, port); len(ports) == n {
			return ports, nil
		}
	}
	return nil, fmt.Errorf("no free ports between %d and %d", portFirst, portFirst+portCount)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
