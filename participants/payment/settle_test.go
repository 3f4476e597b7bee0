package payment

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/apipb"
	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/participants/inventory"
)

// One round asks for everything that is open, though more than a page of it is not decided, refunds included.
func TestARoundOfSettlingReachesEverything(t *testing.T) {
	b := onSQLite(t)
	const n = 2*settlePage + 7
	gids := map[string]bool{}
	b.f.executes = ended(apipb.Phase_PHASE_COMMITTING, "", "done")
	paid, err := b.Pay(t.Context(), request("paid"), "")
	if err != nil || paid.State != Paid {
		t.Fatalf("%+v, %v", paid, err)
	}
	b.f.executes = client.State{}
	for i := range n {
		gids[b.open(fmt.Sprint(i)).Gid] = true
		r, err := b.Refund(t.Context(), paid.ID, RefundRequest{RefundNo: fmt.Sprint(i), Amount: 1})
		if err != nil || r.State != Processing {
			t.Fatalf("%+v, %v", r, err)
		}
		gids[r.Gid] = true
	}
	clear(b.f.asked)
	if err := b.settleOnce(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	for gid := range gids {
		if b.f.asked[gid] != 1 {
			t.Fatalf("%s was asked for %d times; asked for %d of %d", gid, b.f.asked[gid], len(b.f.asked), len(gids))
		}
	}
}

// hung answers nothing until the caller gives up, and counts how many wait at once.
type hung struct {
	fake
	now, most int
}

func (h *hung) Watch(ctx context.Context, _ string, _ func(client.State) error) error {
	h.mu.Lock()
	h.now++
	h.most = max(h.most, h.now)
	h.mu.Unlock()
	<-ctx.Done()
	h.mu.Lock()
	h.now--
	h.mu.Unlock()
	return ctx.Err()
}

// While a coordinator answers nothing, so many payments are asked for at once and no more, and lapsed orders are released
// all the same.
func TestAHangingCoordinatorHoldsUpNothingElse(t *testing.T) {
	b := onSQLite(t)
	h := &hung{}
	for i := range 3 * settleTogether {
		b.open(fmt.Sprint(i))
	}
	b.Coordinator = h
	if err := b.Inventory.Stock(t.Context(), b.DB, "first", "book", 5); err != nil {
		t.Fatal(err)
	}
	if err := b.Inventory.ReserveOrder(t.Context(), b.DB, "o", []inventory.Item{{SKU: "book", N: 5}}, time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var settling sync.WaitGroup
	settling.Go(func() { b.Settle(ctx, 10*time.Millisecond, -time.Hour) })
	deadline := time.Now().Add(20 * time.Second)
	for released := false; !released; time.Sleep(10 * time.Millisecond) {
		state, _, err := b.Inventory.OrderState(t.Context(), b.DB, "o")
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("the order is %s, %v", state, err)
		}
		h.mu.Lock()
		released = state == "released" && h.most >= settleTogether
		h.mu.Unlock()
	}
	cancel()
	settling.Wait()
	if h.most != settleTogether {
		t.Errorf("%d payments were asked for at once, want %d", h.most, settleTogether)
	}
}
