package inventory_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
	"github.com/lockstep-tx/lockstep/participants/inventory"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// The epochs of a region before it was lost, and of the one that took its slots.
const lost, taken = 202, 301

// addresses make a database of each kind; servers_test.go adds those that need a server.
var addresses = map[string]func(t *testing.T) string{"SQLite": func(t *testing.T) string { return "sqlite:" + t.TempDir() + "/stock.db" }}

var places atomic.Int64

// onShop runs a test of a shop with 1,000 books on each kind of database.
func onShop(t *testing.T, f func(s *shop)) {
	for name, address := range addresses {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			db, d, err := sqldb.Open(ctx, address(t))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			schema := ""
			if d.Dialect != barrier.SQLite {
				schema = fmt.Sprintf("lsib_%d_%d", os.Getpid(), places.Add(1))
				t.Cleanup(func() {
					if _, err := db.Exec("DROP SCHEMA " + schema + map[barrier.Dialect]string{barrier.PostgreSQL: " CASCADE"}[d.Dialect]); err != nil {
						t.Error(err)
					}
				})
			}
			if err := errors.Join(barrier.MigrateSchema(ctx, db, d.Dialect, schema), inventory.Migrate(ctx, db, d)); err != nil {
				t.Fatal(err)
			}
			b, err := barrier.New(db, d.Dialect, barrier.Options{Schema: schema})
			if err != nil {
				t.Fatal(err)
			}
			v := inventory.New(d, nil)
			if err := v.Stock(ctx, db, "first", "book", 1000); err != nil {
				t.Fatal(err)
			}
			kit := branch.New(b, branch.Options{Workers: 4})
			t.Cleanup(kit.Close)
			branch.HandleTCC(kit, "stock", branch.TCC[inventory.Request]{Try: v.Reserve, Confirm: v.Deduct, Cancel: v.Release, Apply: v.Apply})
			kit.Move(inventory.Slots{Inventory: v})
			f(&shop{t, kit, b, kit.Handler()})
		})
	}
}

func (s *shop) tell(epoch int, here bool) {
	s.t.Helper()
	s.must("POST", "/lockstep/homes", fmt.Appendf(nil, `[{"slot":%d,"epoch":%d,"here":%v}]`, barrier.SlotOf("book"), epoch, here))
}

// call makes a call of a branch over so many books.
func (s *shop) call(gid, op string, n int64, epoch int64) error {
	c := &barrier.Call{TransType: "tcc", Gid: gid, BranchID: "01", Op: op, Fence: barrier.Fence{Slot: barrier.SlotOf(gid), Epoch: epoch}, Account: barrier.Fence{Slot: barrier.SlotOf("book"), Epoch: epoch}}
	return s.kit.Call(context.Background(), "/stock/"+op, c, fmt.Appendf(nil, `{"items":[{"sku":"book","n":%d}]}`, n))
}

func (s *shop) settle(gid, op string, epoch int) (int, string) {
	r := httptest.NewRequest("POST", "/lockstep/settle?trans_type=tcc&branch_id=01&gid="+gid+"&op="+op, bytes.NewReader(nil))
	r.Header.Set(barrier.HeaderSlot, fmt.Sprint(barrier.SlotOf(gid)))
	r.Header.Set(barrier.HeaderEpoch, fmt.Sprint(epoch))
	rec := httptest.NewRecorder()
	s.http.ServeHTTP(rec, r)
	return rec.Code, rec.Body.String()
}

func TestACapOfStockHoldsHowManyReserveAtOnce(t *testing.T) {
	onShop(t, func(s *shop) {
		s.tell(lost, false)
		s.must("POST", fmt.Sprintf("/lockstep/adopt?slot=%d&epoch=%d&forced=true&at_risk=limit&cap=50", barrier.SlotOf("book"), taken), nil)
		burst := func(round string) (held []string) {
			var mu sync.Mutex
			var wg sync.WaitGroup
			for i := range 24 {
				wg.Go(func() {
					gid := fmt.Sprintf("%s-%d", round, i)
					err := s.call(gid, "try", 4, taken)
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						held = append(held, gid)
					} else if !errors.Is(err, barrier.ErrRefused) || !strings.Contains(err.Error(), "account_at_risk book") {
						s.t.Errorf("%s: %v", gid, err)
					}
				})
			}
			wg.Wait()
			return held
		}
		held := burst("first")
		if len(held) != 12 {
			s.t.Fatalf("%d of 4 are held under a cap of 50", len(held))
		}
		for i, gid := range held {
			if err := s.call(gid, []string{"confirm", "cancel"}[i%2], 4, taken); err != nil {
				s.t.Fatal(err)
			}
		}
		if again := burst("second"); len(again) != 6 {
			s.t.Errorf("%d more are held after six were released", len(again))
		}
		if stock := s.stock(); stock != "book 952 24 24\n" {
			s.t.Errorf("the stock is %s", stock)
		}
	})
}

func TestStockAtRiskIsBlockedUntilItIsLifted(t *testing.T) {
	onShop(t, func(s *shop) {
		s.tell(lost, false)
		s.must("POST", fmt.Sprintf("/lockstep/adopt?slot=%d&epoch=%d&forced=true&at_risk=block", barrier.SlotOf("book"), taken), nil)
		if err := s.call("g1", "try", 1, taken); !errors.Is(err, barrier.ErrRefused) || !strings.Contains(err.Error(), "account_at_risk book") || !strings.Contains(err.Error(), "lost region's settlement") {
			s.t.Errorf("blocked: %v", err)
		}
		s.must("POST", "/lockstep/risk", fmt.Appendf(nil, `{"slots":[{"slot":%d,"epoch":%d}]}`, barrier.SlotOf("book"), taken))
		if err := s.call("g2", "try", 1, taken); err != nil {
			s.t.Errorf("lifted: %v", err)
		}
	})
}

func TestStockIsListedSettledByNameAndLetGo(t *testing.T) {
	onShop(t, func(s *shop) {
		s.tell(lost, true)
		for _, gid := range []string{"{s}-1", "{s}-2", "{s}-3"} {
			if err := s.call(gid, "try", 10, lost); err != nil {
				s.t.Fatal(err)
			}
		}
		tries := string(s.must("POST", "/lockstep/tries", fmt.Appendf(nil, `{"slots":[%d]}`, barrier.SlotOf("{s}"))))
		if strings.Count(tries, `"account":"book","amount":10,"debit":true`) != 3 {
			s.t.Errorf("the tries: %s", tries)
		}
		for range 2 {
			if status, text := s.settle("{s}-1", "confirm", lost); status != 200 {
				s.t.Errorf("%d %s", status, text)
			}
			if status, text := s.settle("{s}-2", "cancel", lost); status != 200 {
				s.t.Errorf("%d %s", status, text)
			}
			if err := s.call("{s}-1", "confirm", 10, lost); err != nil {
				s.t.Error(err)
			}
		}
		if status, _ := s.settle("{s}-1", "cancel", lost); status == 200 {
			s.t.Error("a cancel by name after the confirm is a success")
		}
		if status, text := s.settle("{s}-9", "confirm", lost); status != 422 {
			s.t.Errorf("a confirm of nothing: %d %s", status, text)
		}
		if stock := s.stock(); stock != "book 980 10 10\n" {
			s.t.Errorf("the stock is %s", stock)
		}
		s.tell(taken, false)
		if stock := s.stock(); stock != "book 990 0 10\n" {
			s.t.Errorf("the demoted stock is %s", stock)
		}
		for range 2 {
			if err := s.call("{s}-3", "apply", 10, taken); err != nil {
				s.t.Fatal(err)
			}
		}
		if stock := s.stock(); stock != "book 980 0 20\n" {
			s.t.Errorf("the stock after the apply is %s", stock)
		}
	})
}
