package payment

import (
	"context"
	"fmt"
	"strings"
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
		r, err := b.Refund(t.Context(), paid.ID, RefundRequest{RefundNo: fmt.Sprint(i), Amount: 1}, "")
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

// A key is known until its time is over, and then free for another request.
func TestIdempotencyKeysAreForgotten(t *testing.T) {
	b := onSQLite(t)
	now := time.Now()
	b.Now = func() time.Time { return now }
	b.f.executes = ended(apipb.Phase_PHASE_COMMITTING, "")
	pay := func(no string) error {
		_, err := b.Pay(t.Context(), request(no), "k")
		return err
	}
	if err := pay("1"); err != nil {
		t.Fatal(err)
	}
	now = now.Add(KeepKeys)
	for _, forgotten := range []bool{false, true} {
		if err := b.forgetKeys(t.Context(), now.Add(-KeepKeys)); err != nil {
			t.Fatal(err)
		}
		if err := pay("2"); (err == nil) != forgotten {
			t.Errorf("forgotten %t: %v", forgotten, err)
		}
		now = now.Add(time.Millisecond)
	}
}

// What is asked for again and again is found by an index, however many payments are done.
func TestOpenThingsAreFoundByIndexes(t *testing.T) {
	b := onSQLite(t)
	for index, q := range map[string]string{
		"payment_by_state":             "SELECT id FROM payment WHERE state = 'processing' AND created_ms < 5 AND id > 'x' ORDER BY id LIMIT 100",
		"payment_refund_by_state":      "SELECT payment FROM payment_refund WHERE state = 'processing' AND created_ms < 5 AND (payment > 'x' OR (payment = 'x' AND refund_no > 'y')) ORDER BY payment, refund_no LIMIT 100",
		"inventory_order_by_state":     "SELECT id FROM inventory_order WHERE state = 'reserved' AND expires_ms <= 5 LIMIT 100",
		"payment_refused_by_payment":   "SELECT gid FROM payment_refused WHERE payment = 'x'",
		"payment_key_by_time":          "DELETE FROM payment_key WHERE created_ms < 5",
		"merchant_booking_by_merchant": "SELECT settled_day, sum(amount) FROM merchant_booking WHERE merchant = 'm' AND state = 'posted' GROUP BY settled_day",
	} {
		var id, parent, unused int
		var plan string
		if err := b.DB.QueryRow("EXPLAIN QUERY PLAN "+q).Scan(&id, &parent, &unused, &plan); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(plan, " "+index+" ") || !strings.HasPrefix(plan, "SEARCH") {
			t.Errorf("%s: %s", q, plan)
		}
	}
}
