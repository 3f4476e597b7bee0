package proc

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// Ports are taken from below those that the kernel gives to whoever connects somewhere: one of those may be gone again
// before the process that it was found for listens.
const (
	portLow  = 18_000
	portHigh = 32_000
	portTry  = 2_000
)

// given are those that this process has found: two deployments at once must not be given the same before they listen.
var given sync.Map

// freeAddrs gives n different loopback addresses that nobody listens on, and that it has not given before.
func freeAddrs(n int) ([]string, error) {
	var out []string
	var held []net.Listener
	defer func() {
		for _, l := range held {
			l.Close()
		}
	}()
	for range portTry {
		if len(out) == n {
			return out, nil
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", portLow+rand.IntN(portHigh-portLow)))
		if err != nil {
			continue // somebody's
		}
		held = append(held, l)
		if _, again := given.LoadOrStore(l.Addr().String(), true); again {
			continue
		}
		out = append(out, l.Addr().String())
	}
	return nil, errors.New("no free ports")
}
