package replica

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// ended has a region's journal hold some chains of another one, and gives the owners as they are once those were taken by force: each
// ends where its seal says.
func ended(t *testing.T, from, in *area, chains int) (*slot.Map, map[int]slot.Seal) {
	t.Helper()
	a := in.journal.Applier(journal.ApplyConfig{Own: in.index, Seals: in.d.seals.of})
	m, seals := &slot.Map{}, map[int]slot.Seal{}
	for tag := 0; len(seals) < chains; tag++ {
		rows := from.tagged(fmt.Sprint("t", tag), 0, 2)
		n, events := rows[0].Slot, eventsOf(rows)
		if seals[n].Epoch != 0 {
			continue
		}
		if res, err := a.Apply(t.Context(), journal.Batch{Origin: from.index, Part: n % 4, Offset: -1, Events: events}); err != nil || res.Applied != len(events) {
			t.Fatal(res, err)
		}
		seal := forcedSeal(&events[len(events)-1])
		seals[n] = seal
		m[n] = slot.Owner{Region: in.name, Epoch: seal.Epoch.Next(in.index), Status: slot.Taken, Lost: seal.Epoch, Seal: &seal}
	}
	return m, seals
}

// marked makes a region's service without running it, which knows how far its journal is with an origin's chains.
func (a *area) marked(of *area) (*Service, *origin) {
	a.d.t.Helper()
	s := a.make(a.journal)
	o := s.origins[of.index]
	marks, err := a.journal.Marks(a.d.t.Context())
	if err != nil {
		a.d.t.Fatal(err)
	}
	o.settled(marks)
	return s, o
}

// TestChainsThatEndAtTheirSealsAreBoundInTheJournal: what memory says of it is gone with the process; the journal must say that nothing
// of the lost epoch is applied any more, and where the chain was cut.
func TestChainsThatEndAtTheirSealsAreBoundInTheJournal(t *testing.T) {
	d := &deployment{t: t, brokers: func(testing.TB) []string { return []string{"127.0.0.1:1"} }, url: databaseOf["sqlite"], suffix: "bind"}
	east, west := d.region("east"), d.region("west")
	owners, seals := ended(t, east, west, 3)
	s, o := west.marked(east)
	s.bindEnded(t.Context(), o, owners, nil)
	marks, err := west.journal.Marks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bound := 0
	for _, m := range marks {
		if want, ok := seals[m.Slot]; ok && m.Origin == east.index && m.Bounded == uint64(want.Epoch) && m.Frozen >= uint64(want.Epoch) && m.Head.Seq == want.Seq {
			bound++
		}
	}
	cuts, err := west.journal.Cuts(t.Context(), east.index)
	if err != nil || bound != len(seals) || len(cuts) != len(seals) {
		t.Fatalf("%d chains are bound and %d cut in the journal, of %d: %v", bound, len(cuts), len(seals), err)
	}
	for n, seal := range seals {
		if cuts[n] != seal {
			t.Errorf("slot %d is cut at %+v, want %+v", n, cuts[n], seal)
		}
		if o.boundedAt(n) != uint64(seal.Epoch) {
			t.Errorf("slot %d is not known to be bound", n)
		}
	}
}

// TestWhatCannotBeBoundIsTriedAtEase: the loop that brings chains to their seals runs ten times a second; a journal that does not
// answer, or chains that end in another event than their seals, are not tried and told of as often.
func TestWhatCannotBeBoundIsTriedAtEase(t *testing.T) {
	d := &deployment{t: t, brokers: func(testing.TB) []string { return []string{"127.0.0.1:1"} }, url: databaseOf["sqlite"], suffix: "ease"}
	east, west := d.region("east"), d.region("west")
	owners, _ := ended(t, east, west, 3)
	for n := range owners {
		if seal := owners[n].Seal; seal != nil {
			other := record.Chain{1}
			owners[n].Seal = slot.SealOf(seal.Epoch, seal.Seq, other[:])
			owners[n].Seal.Forced = true
		}
	}
	west.shape = func(c *Config) { c.Owners = func() *slot.Map { return owners } }
	s, o := west.marked(east)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	s.reach(ctx, o)
	if err := ctx.Err(); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	// three slots in 2 s, one try of each in reachPause and a round
	if tries := strings.Count(west.logs.String(), "a slot is not at its forced seal yet"); tries < 3 || tries > 3*(1+int(2*time.Second/reachPause)) {
		t.Errorf("%d tries of three slots in 2 s", tries)
	}
	waits := map[int]time.Time{}
	for n := range owners {
		waits[n] = time.Now().Add(time.Hour)
	}
	if err := s.cfg.Journal.Close(); err != nil {
		t.Fatal(err)
	}
	s.bindEnded(t.Context(), o, owners, nil)
	if n := strings.Count(west.logs.String(), "could not be bound together"); n != 1 {
		t.Errorf("%d times it is told that a journal that is closed did not bind", n)
	}
	s.bindEnded(t.Context(), o, owners, waits)
	if n := strings.Count(west.logs.String(), "could not be bound together"); n != 1 {
		t.Errorf("slots that are left for later were tried: told %d times", n)
	}
}
