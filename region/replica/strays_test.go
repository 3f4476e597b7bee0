package replica

import (
	"context"
	"slices"
	"strings"
	"testing"
)

// TestWhatIsAppendedPastACutIsTakenOut: a process of the region that slept while another one cut the chain appends what it had in
// its hands; and one that ended before it looked leaves that to whoever starts next.
func TestWhatIsAppendedPastACutIsTakenOut(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, _ := d.region("east"), d.region("west")
		rows := east.tagged("a", 0, 6)
		old := eventsOf(rows)
		n := rows[0].Slot
		seal := forcedSeal(&old[5])
		east.append(rows[:4]...)
		east.start()
		other := east.make(east.open()) // which does the cutting
		if past, err := other.Returned(context.Background(), n, seal); err != nil || len(past) != 2 {
			t.Fatal(len(past), err)
		}
		east.chainIs(east.index, n, old[:6])
		east.append(rows[4])
		east.chainIs(east.index, n, old[:6])
		east.diverged(east.index, n, old[6:10])
		if !strings.Contains(east.logs.String(), "appended past a cut") {
			t.Error("the log does not say it")
		}
		// What the next epoch appends stays.
		next, again := numbered(old[5].Head, uint64(seal.Epoch.Next(east.index)), east.tagged("a", 100, 2))
		east.append(next...)
		east.append(rows[3])
		east.chainIs(east.index, n, slices.Concat(old[:6], again))
		east.stop()
		east.append(rows[5])
		east.journal = east.open()
		east.start()
		east.diverged(east.index, n, old[6:])
		east.chainIs(east.index, n, slices.Concat(old[:6], again))
	})
}
