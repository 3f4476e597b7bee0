package inventory_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
	"github.com/lockstep-tx/lockstep/participants/inventory"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// shop is one region's stock behind the kit.
type shop struct {
	t    *testing.T
	kit  *branch.Participant
	b    *barrier.Barrier
	http http.Handler
}

func newShop(t *testing.T, skus ...string) *shop {
	t.Helper()
	ctx := t.Context()
	db, d, err := sqldb.Open(ctx, "sqlite:"+t.TempDir()+"/stock.db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if err := errors.Join(barrier.Migrate(ctx, db, d.Dialect), inventory.Migrate(ctx, db, d)); err != nil {
		t.Fatal(err)
	}
	b, err := barrier.New(db, d.Dialect, barrier.Options{})
	if err != nil {
		t.Fatal(err)
	}
	v := inventory.New(d, nil)
	for _, sku := range skus {
		if err := v.Stock(ctx, db, "first", sku, 1000); err != nil {
			t.Fatal(err)
		}
	}
	kit := branch.New(b, branch.Options{})
	t.Cleanup(kit.Close)
	branch.HandleTCC(kit, "stock", branch.TCC[inventory.Request]{Try: v.Reserve, Confirm: v.Deduct, Cancel: v.Release, Apply: v.Apply})
	kit.Move(inventory.Slots{Inventory: v})
	return &shop{t, kit, b, kit.Handler()}
}

func (s *shop) must(method, path string, body []byte) []byte {
	s.t.Helper()
	rec := httptest.NewRecorder()
	s.http.ServeHTTP(rec, httptest.NewRequest(method, path, bytes.NewReader(body)))
	out, err := io.ReadAll(rec.Result().Body)
	if err != nil || rec.Code != http.StatusOK {
		s.t.Fatalf("%s %s: %d %s %v", method, path, rec.Code, out, err)
	}
	return out
}

func (s *shop) stock() string {
	s.t.Helper()
	rows, err := s.b.DB().QueryContext(s.t.Context(), "SELECT sku, free, held, sold FROM inventory_stock ORDER BY sku")
	if err != nil {
		s.t.Fatal(err)
	}
	defer rows.Close()
	out := ""
	for rows.Next() {
		var sku string
		var free, held, sold int64
		if err := rows.Scan(&sku, &free, &held, &sold); err != nil {
			s.t.Fatal(err)
		}
		out += fmt.Sprintf("%s %d %d %d\n", sku, free, held, sold)
	}
	return out
}

// TestStockStaysEqualInTwoRegionsWhateverMoves reserves, sells and gives back articles whose slots move back and forth.
func TestStockStaysEqualInTwoRegionsWhateverMoves(t *testing.T) {
	skus := []string{"book", "pen", "cup"}
	shops := [2]*shop{newShop(t, skus...), newShop(t, skus...)}
	home, epoch := map[int]int{}, map[int]slot.Epoch{}
	for i, s := range shops {
		var homes []barrier.Home
		for n := range slot.Count {
			home[n], epoch[n] = n%2, slot.Initial(n%2+1)
			homes = append(homes, barrier.Home{Slot: n, Epoch: int64(epoch[n]), Here: n%2 == i})
		}
		raw, err := json.Marshal(homes)
		if err != nil {
			t.Fatal(err)
		}
		s.must("POST", "/lockstep/homes", raw)
	}
	type sale struct {
		gid, sku      string
		n             int
		commit, ended bool
		applied       [2]bool
	}
	call := func(x *sale, op string, at int) error {
		n := slot.Of(x.sku)
		c := &barrier.Call{TransType: "tcc", Gid: x.gid, BranchID: "01", Op: op,
			Fence: barrier.Fence{Slot: slot.Of(x.gid), Epoch: int64(epoch[slot.Of(x.gid)])}, Account: barrier.Fence{Slot: n, Epoch: int64(epoch[n])}}
		return shops[at].kit.Call(context.Background(), "/stock/"+op, c, fmt.Appendf(nil, `{"items":[{"sku":%q,"n":%d}]}`, x.sku, x.n))
	}
	var open, all []*sale
	for i := range 600 {
		sku := skus[rand.IntN(len(skus))]
		n := slot.Of(sku)
		switch k := rand.IntN(20); {
		case k == 0:
			from, to := home[n], 1-home[n]
			shops[from].must("POST", "/lockstep/release", fmt.Appendf(nil, `[{"slot":%d,"epoch":%d}]`, n, epoch[n].Released()))
			raw := shops[from].must("GET", fmt.Sprintf("/lockstep/released?slot=%d&epoch=%d", n, epoch[n].Released()), nil)
			for _, x := range open { // after a forced seal apply comes in confirm's place, also between release and adoption
				if x.commit && slot.Of(x.sku) == n && rand.IntN(2) == 0 {
					if err := call(x, branch.OpApply, to); err != nil {
						t.Fatal(err)
					}
				}
			}
			home[n], epoch[n] = to, epoch[n].Next(to+1)
			shops[to].must("POST", fmt.Sprintf("/lockstep/adopt?slot=%d&epoch=%d", n, epoch[n]), raw)
		case k < 9:
			x := &sale{gid: fmt.Sprintf("sale-%d", i), sku: sku, n: 1 + rand.IntN(5), commit: rand.IntN(3) > 0}
			if err := call(x, barrier.OpTry, home[n]); err != nil {
				t.Fatal(err)
			}
			open, all = append(open, x), append(all, x)
		case len(open) > 0:
			x := open[0]
			open = open[1:]
			op := barrier.OpCancel
			if x.commit {
				op = barrier.OpConfirm
			}
			for range 2 {
				if err := call(x, op, home[slot.Of(x.sku)]); err != nil {
					t.Fatal(err)
				}
			}
			x.ended = true
		}
	}
	for _, x := range open {
		op := barrier.OpCancel
		if x.commit {
			op = barrier.OpConfirm
		}
		if err := call(x, op, home[slot.Of(x.sku)]); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range all {
		for at := range shops {
			if x.commit {
				for range 2 {
					if err := call(x, branch.OpApply, at); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	if a, b := shops[0].stock(), shops[1].stock(); a != b {
		t.Errorf("east has\n%swest has\n%s", a, b)
	}
	if len(all) < 100 {
		t.Fatalf("only %d sales", len(all))
	}
}
