package ledger_test

import (
	"fmt"
	"sync"
	"testing"
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
