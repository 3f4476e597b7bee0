//go:build servers

package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
)

// TestACoordinatorThatJoinsUnderLoad: a third coordinator takes a share of the slots from two that are at work, while
// clients of DTM's wire and of the native API wait for results and confirms are in flight. Nobody hears anything wrong,
// nobody is left waiting, and begins go on.
func TestACoordinatorThatJoinsUnderLoad(t *testing.T) {
	r := newRegion(t)
	cs := []*coordinator{r.start(t, r.endpoints), r.start(t, r.endpoints)}
	spread(t, cs...)
	l := startDTMLoad(t, "join", cs, 2, 20) // nobody is lost here: none is to time out, however slow the machine

	// These wait for confirms that hang until the third has its slots.
	const held = 120
	native := newBank(t)
	release := make(chan struct{})
	var hanging atomic.Int32
	hang := func(gid, branch, op string) {
		if op == "confirm" && strings.HasPrefix(gid, "held-") {
			hanging.Add(1)
			<-release
		}
	}
	native.hooks(hang, nil)
	free := sync.OnceFunc(func() { close(release) })
	t.Cleanup(free)
	clients := []*client.Client{cs[0].client(), cs[1].client()}
	type answer struct {
		gid string
		err error
	}
	answers := make(chan answer, held)
	for i := range held {
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
			defer cancel()
			gid := fmt.Sprintf("held-%d", i)
			st, err := clients[i%2].Execute(ctx, client.Tx{Gid: gid, Branches: native.branches(), Options: client.Options{RequestTimeout: 40 * time.Second}}, client.Finished)
			if err == nil && !st.Committed() {
				err = fmt.Errorf("it says %s: %s", st.GetPhase(), st.GetReason())
			}
			answers <- answer{gid, err}
		}()
	}
	l.progress(5)
	eventually(t, 20*time.Second, "the confirms hang", func() bool { return hanging.Load() == 2*held })

	third := r.start(t, r.endpoints)
	all := append(cs, third)
	spread(t, all...)
	l.progress(10)
	if n := hanging.Load(); n == 2*held {
		t.Error("no confirm was made again by another holder: no waiter's slot has moved")
	}
	t.Logf("%d of %d confirms were made again by the third", hanging.Load()-2*held, 2*held)
	free()
	for range held {
		if a := <-answers; a.err != nil {
			t.Errorf("%s: %v", a.gid, a.err)
		}
	}
	for i := range held {
		native.audit(fmt.Sprintf("held-%d", i), true)
	}
	l.progress(10)
	l.audit(third)
	for gid, h := range l.outcomes() {
		if h == heardNothing || h == neverAsked && !strings.HasSuffix(gid, refusedSuffix) {
			t.Errorf("%s: an orderly change of holders left its client with %q: %v", gid, h, l.reason(gid))
		}
	}
}
