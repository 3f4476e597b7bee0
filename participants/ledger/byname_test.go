package ledger_test

import (
	"database/sql"
	"fmt"
	"sync"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
)

// What a settlement by name and an ordinary confirm or cancel leave of each other.

func TestASettlementAndAnOrdinaryEndExcludeEachOther(t *testing.T) {
	onSurvivor(t, func(s *survivor) {
		s.wallet("ann", 1000)
		s.homes(lost, true, "ann")
		for _, gid := range []string{"g1", "g2", "g3"} {
			s.want(200, "", "/pay", gid, "try", "ann", 10, lost)
		}
		for range 2 {
			s.settle(200, "g1", "confirm", "ann", lost)
			s.want(200, "", "/pay", "g1", "confirm", "ann", 10, lost)
		}
		s.settle(500, "g1", "cancel", "ann", lost)
		s.want(500, "contradict", "/pay", "g1", "cancel", "ann", 10, lost)
		for range 2 {
			s.settle(200, "g2", "cancel", "ann", lost)
			s.want(200, "", "/pay", "g2", "cancel", "ann", 10, lost)
		}
		s.settle(500, "g2", "confirm", "ann", lost)
		s.want(500, "contradict", "/pay", "g2", "confirm", "ann", 10, lost)
		s.want(200, "", "/pay", "g3", "confirm", "ann", 10, lost)
		s.settle(200, "g3", "confirm", "ann", lost)
		s.settle(500, "g3", "cancel", "ann", lost)
		if posted, held := s.balance("ann"); posted != 980 || held != 0 {
			s.t.Errorf("posted %d, held %d", posted, held)
		}
		s.settle(412, "g3", "confirm", "ann", 102)
		s.settle(400, "g3", "try", "ann", lost)
		s.sound()
	})
}

func TestASettlementOfWhatWasNeverTried(t *testing.T) {
	onSurvivor(t, func(s *survivor) {
		s.wallet("ann", 1000)
		s.homes(lost, true, "ann")
		for range 2 {
			s.want(422, "nothing was tried", "/lockstep/settle", "g1", "confirm", "ann", 0, lost)
		}
		s.want(200, "", "/pay", "g1", "try", "ann", 10, lost) // nothing was written
		for range 2 {
			s.settle(200, "g2", "cancel", "ann", lost)
		}
		s.want(409, "", "/pay", "g2", "try", "ann", 10, lost)
		if posted, held := s.balance("ann"); posted != 1000 || held != 10 {
			s.t.Errorf("posted %d, held %d", posted, held)
		}
	})
}

func TestAConfirmAndACancelByNameAtOnceEndOnce(t *testing.T) {
	onSurvivor(t, func(s *survivor) {
		s.wallet("ann", 1000)
		s.homes(lost, true, "ann")
		spent := int64(0)
		for i := range 12 {
			gid := fmt.Sprintf("g%d", i)
			s.want(200, "", "/pay", gid, "try", "ann", 10, lost)
			var wg sync.WaitGroup
			var confirmed, cancelled int
			wg.Go(func() { confirmed, _ = s.call("/lockstep/settle", gid, "confirm", "ann", 0, lost) })
			wg.Go(func() { cancelled, _ = s.call("/pay", gid, "cancel", "ann", 10, lost) })
			wg.Wait()
			if (confirmed == 200) == (cancelled == 200) {
				s.t.Errorf("%s: confirm by name %d, cancel %d", gid, confirmed, cancelled)
			}
			if confirmed == 200 {
				spent += 10
			}
		}
		if posted, held := s.balance("ann"); posted != 1000-spent || held != 0 {
			s.t.Errorf("posted %d, held %d, and %d were confirmed", posted, held, spent)
		}
		s.sound()
	})
}

// Without a barrier before it: the transfer's id alone has it posted once, and a hold that is here is what is posted.
func TestAnEffectPastALimitIsPostedOnceByItsID(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		b.open(t, ledger.Account{ID: "ann"}, ledger.Account{ID: "bob"})
		b.deposit(t, "ann", 100)
		post := func(gid string, minor int64) {
			t.Helper()
			c := &barrier.Call{TransType: "tcc", Gid: gid, BranchID: "01", Op: barrier.OpConfirm, Apply: true, Suspense: true}
			b.must(t, b.InTx(ctx, b.db, func(tx *sql.Tx) error { return b.Effect(ctx, tx, ledger.Of(c, leg("ann", "bob", minor))) }))
		}
		b.must(t, b.hold("held", leg("ann", "bob", 80)))
		for range 2 {
			post("past", 30) // of 20 that are free
			post("held", 80)
		}
		for id, want := range map[string]int64{"ann": 20, "bob": 110, ledger.Suspense("CNY"): -30} {
			if have, err := b.Balance(ctx, b.db, id); err != nil || have.Total() != want || have.DebitsPending != 0 {
				t.Errorf("%s has %d, %v; want %d", id, have.Total(), err, want)
			}
		}
		if faults, err := b.Audit(ctx, b.db); err != nil || len(faults) > 0 {
			t.Errorf("%v, %v", faults, err)
		}
	})
}
