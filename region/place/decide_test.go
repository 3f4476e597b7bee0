package place

import (
	"context"
	"errors"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/region/arbiter"
)

// TestASlotIsNotTakenAgainForAnArbiterThatIsAway: a decision in a slot that was taken without the arbiter waits for it; taking
// the slot again and again would hold up what is not global.
func TestASlotIsNotTakenAgainForAnArbiterThatIsAway(t *testing.T) {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"127.0.0.1:1"}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	p := &Place{cfg: Config{Self: "west", Arbiter: arbiter.New(cli, nil)}}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := p.Decide(ctx, engine.GlobalDecision{Slot: 1, Gid: "g", Epoch: 102, Generation: -1, Body: []byte("x")}); err == nil || errors.Is(err, engine.ErrOutdated) {
		t.Fatalf("%v", err)
	}
}
