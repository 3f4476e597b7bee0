package peer

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// slow answers nothing until its caller has left.
type slow struct{ got chan struct{} }

func (s slow) Do(ctx context.Context, _ engine.Request) (engine.Reply, error) {
	s.got <- struct{}{}
	<-ctx.Done()
	return engine.Reply{}, context.Cause(ctx)
}

func (s slow) ListLive(context.Context, engine.Filter, engine.LiveCursor, int) ([]engine.Reply, error) {
	return nil, nil
}

// hole is a link that can swallow everything and close nothing.
type hole struct {
	l        net.Listener
	swallows atomic.Bool
}

func openHole(t *testing.T, to string) *hole {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hole{l: l}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			t.Cleanup(func() { in.Close(); out.Close() })
			go h.carry(out, in)
			go h.carry(in, out)
		}
	}()
	return h
}

func (h *hole) carry(to, from net.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if !h.swallows.Load() {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
}

// TestARequestOverALinkThatIsCutEndsBeforeItsDeadline: the packets are lost, nothing is refused. The engine then looks again
// who holds the slot, and sends it again, marked as a repeat.
func TestARequestOverALinkThatIsCutEndsBeforeItsDeadline(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}))
	e := slow{make(chan struct{}, 1)}
	Register(g, e)
	go func() { _ = g.Serve(l) }()
	defer g.Stop()
	wan := openHole(t, l.Addr().String())
	c := NewClient(nil)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		<-e.got
		wan.swallows.Store(true)
	}()
	_, err = c.Forward(ctx, engine.Member{ID: "far", GRPC: wan.l.Addr().String()}, engine.Request{Gid: "g", Event: txn.Stop{}, Want: engine.WantAccepted})
	if !errors.Is(err, engine.ErrNotHolder) || ctx.Err() != nil {
		t.Fatalf("%v, the caller's context: %v", err, ctx.Err())
	}
}
