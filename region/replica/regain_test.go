package replica

import (
	"context"
	"slices"
	"testing"

	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// TestARegionWithANewJournalHasItsChainBack: its disks are gone, also its broker's; up to the seal everything of its own chain is
// in the others' journals. Afterwards it goes on behind the seal as if it had kept it.
func TestARegionWithANewJournalHasItsChainBack(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west, north := d.region("east"), d.region("west"), d.region("north")
		var owners owned
		for _, a := range d.regions {
			a.shape = func(c *Config) { c.Owners = owners.Load }
		}
		d.start()
		rows := east.tagged("a", 0, 260) // more than one answer holds
		old := eventsOf(rows)
		n := rows[0].Slot
		east.append(rows...)
		west.has(rows)
		north.chainIs(east.index, n, old)
		east.stop()
		seal := forcedSeal(&old[len(old)-3])
		for _, a := range []*area{west, north} {
			if _, err := a.service.Freeze(context.Background(), FreezeRequest{Origin: east.name, Slots: []FreezeSlot{{n, seal.Epoch}}}); err != nil {
				t.Fatal(err)
			}
		}
		d.seals.add(n, seal)
		owners.taken(n, west, seal)
		west.maker.Epoch = uint64(seal.Epoch.Next(west.index))
		mine := west.tagged("a", 1000, 3)
		west.append(mine...)
		north.has(mine)

		east.url, east.brokers = d.url(t), d.brokers(t)
		east.journal = east.open()
		for _, a := range []*area{west, north} { // they read from where it is now
			a.stop()
			a.start()
		}
		east.start()
		if ok, err := east.journal.Reached(context.Background(), n, &seal); ok || err != nil {
			t.Fatal("the new journal has the chain already", ok, err)
		}
		for range 2 {
			if got, err := east.service.Returned(context.Background(), n, seal); err != nil || len(got) != 0 {
				t.Fatal(len(got), err)
			}
		}
		east.chainIs(east.index, n, old[:seal.Seq])
		east.has(mine)
		if marks, err := east.journal.Marks(context.Background()); err != nil || slices.ContainsFunc(marks, func(m journal.Mark) bool { return m.Origin == east.index }) {
			t.Errorf("its own chain counts as another region's: %v, %v", marks, err)
		}
		// It is given back, and goes on behind the seal.
		back, _ := west.sealsBack(n, mine)
		m := &slot.Map{}
		m[n] = slot.Owner{Region: east.name, Epoch: back.Epoch.Next(east.index), Status: slot.Active, Seal: &back}
		owners.Store(m)
		next, events := numbered(old[seal.Seq-1].Head, uint64(back.Epoch.Next(east.index)), east.tagged("a", 2000, 3))
		for _, r := range next {
			east.append(r)
		}
		for _, a := range d.regions {
			a.chainIs(east.index, n, slices.Concat(old[:seal.Seq], events))
		}
	})
}

// TestWhatNobodyHasOfALostChainIsNotMadeUp: the others' journals do not reach the seal, so that it is refused, and can be asked for again.
func TestWhatNobodyHasOfALostChainIsNotMadeUp(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west := d.region("east"), d.region("west")
		d.start()
		rows := east.tagged("a", 0, 6)
		old := eventsOf(rows)
		n := rows[0].Slot
		seal := forcedSeal(&old[7])
		d.seals.add(n, seal)
		if _, err := east.service.Returned(context.Background(), n, seal); err == nil {
			t.Fatal("a chain that is nowhere was taken for had back")
		}
		if cuts, err := east.journal.Cuts(context.Background(), east.index); err != nil || len(cuts) != 0 {
			t.Fatalf("it was cut: %v, %v", cuts, err)
		}
		if err := west.journal.Append(context.Background(), rows[:4]); err != nil { // as copies are
			t.Fatal(err)
		}
		if _, err := east.service.Returned(context.Background(), n, seal); err != nil {
			t.Fatal(err)
		}
		east.chainIs(east.index, n, old[:8])
	})
}
