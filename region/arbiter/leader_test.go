package arbiter_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/coordinator/store/etcdstore"
	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/arbiter/arbitertest"
)

// TestAMemberWithoutALeaderRefusesAtOnce: a client that asks for a leader is not kept waiting by a member that is cut off from the
// others, and asks the next one.
func TestAMemberWithoutALeaderRefusesAtOnce(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	members := make([]arbiter.Member, 3)
	var peers []string
	for i := range members {
		members[i] = arbiter.Member{Name: string(rune('a' + i)), Dir: t.TempDir(), Client: arbitertest.FreeAddr(t), Peer: arbitertest.FreeAddr(t), TickMillis: 20}
		peers = append(peers, members[i].Name+"="+members[i].Peer)
	}
	closes := make([]func(), len(members))
	var g errgroup.Group
	for i, m := range members {
		m.Cluster = peers
		g.Go(func() error {
			running, err := arbiter.Start(ctx, m)
			if err == nil {
				closes[i] = running.Close
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	defer closes[0]()
	cli, err := etcdstore.Connect(ctx, etcdstore.Cluster{Endpoints: []string{members[0].Client}, RequireLeader: true})
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	closes[1]()
	closes[2]()
	for {
		pctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, err := cli.Put(pctx, "/key", "value")
		cancel()
		switch {
		case errors.Is(err, rpctypes.ErrNoLeader):
			return
		case errors.Is(err, context.DeadlineExceeded):
			t.Fatal("the member that is left keeps the caller waiting")
		case ctx.Err() != nil:
			t.Fatal("it has a leader for ever")
		}
		time.Sleep(20 * time.Millisecond) // it has not noticed yet
	}
}
