package proc

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// Ports are taken from below those that the kernel gives to whoever connects somewhere: one of those may be gone again
// before the process that it was found for listens.
const (
	portLow  = 18_000
	portHigh = 32_000
	portTry  = 2_000
)

// freeAddrs gives n different loopback addresses that nobody listens on.
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
		out = append(out, l.Addr().String())
	}
	return nil, errors.New("no free ports")
}
