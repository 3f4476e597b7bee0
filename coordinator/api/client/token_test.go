package client_test

import (
	"context"
	"crypto/tls"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
)

// A token goes to another machine over TLS or not at all, unless somebody says so aloud; with WithToken and with WithAuth.
func TestATokenDoesNotGoToAnotherMachineInTheClear(t *testing.T) {
	secure := client.WithTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	for _, c := range []struct {
		addr    string
		opts    []client.Option
		refused bool
	}{
		{"192.0.2.1:36790", nil, true},
		{"coordinator.example:36790", nil, true},
		{"dns:///coordinator.example:36790", nil, true},
		{"[2001:db8::1]:36790", nil, true},
		{"192.0.2.1:36790", []client.Option{secure}, false},
		{"192.0.2.1:36790", []client.Option{client.WithTokenInTheClear()}, false},
		{"127.0.0.1:1", nil, false},
		{"localhost:1", nil, false},
		{"passthrough:///127.0.0.1:1", nil, false},
		{"[::1]:1", nil, false},
		{"unix:/nowhere.sock", nil, false},
	} {
		cl, err := client.Dial(c.addr, append(c.opts, client.WithToken("lk_secret"))...)
		if refused := errors.Is(err, client.ErrTokenInTheClear); refused != c.refused || err != nil && !refused {
			t.Errorf("%s: %v", c.addr, err)
		}
		if err == nil {
			cl.Close()
		}
		if cl, err = client.Dial(c.addr, c.opts...); err != nil { // without a token it may be dialled
			t.Errorf("%s without a token: %v", c.addr, err)
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		_, err = cl.NewGid(client.WithAuth(ctx, "lk_secret"))
		watched := cl.Watch(client.WithAuth(ctx, "lk_secret"), "g", func(client.State) error { return nil })
		for what, err := range map[string]error{"NewGid": err, "Watch": watched} {
			if refused := errors.Is(err, client.ErrTokenInTheClear); refused != c.refused {
				t.Errorf("%s: %s with a token of its own: %v", c.addr, what, err)
			}
		}
		if _, err := cl.NewGid(ctx); errors.Is(err, client.ErrTokenInTheClear) || status.Code(err) == codes.OK {
			t.Errorf("%s: a call without a token: %v", c.addr, err)
		}
		cancel()
		cl.Close()
	}
}
