package journal

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/region/journal/sample"
)

// TestTrimKeepsWhatAPeerDoesNotHave: a region that is cut off reads its backlog from the peers' journals.
func TestTrimKeepsWhatAPeerDoesNotHave(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		j := open(t, url)
		ctx := context.Background()
		rows := inSlot(&sample.Maker{Epoch: 101}, "a", 0, 6)
		mustAppend(t, j, rows...)
		n := rows[0].Slot
		for _, peer := range []int{2, 3} {
			if err := j.Acknowledge(ctx, 1, peer, map[int]uint64{n: 0}); err != nil {
				t.Fatal(err)
			}
		}
		far := time.Now().UnixMilli()
		mustTrim(t, j, far, far, 100, 0)
		if err := j.Acknowledge(ctx, 1, 2, map[int]uint64{n: 12}); err != nil {
			t.Fatal(err)
		}
		mustTrim(t, j, far, far, 100, 0)
		if err := j.Acknowledge(ctx, 1, 3, map[int]uint64{n: 5}); err != nil { // two rows whole, of the third the decision
			t.Fatal(err)
		}
		if err := j.Acknowledge(ctx, 1, 3, map[int]uint64{n: 1}); err != nil { // it never goes back
			t.Fatal(err)
		}
		mustTrim(t, j, far, 0, 100, 2)
		if _, err := j.EventsAfter(ctx, 1, n, 0, 10); !errors.Is(err, ErrTrimmed) {
			t.Fatal(err)
		}
		if got, err := j.EventsAfter(ctx, 1, n, 4, 10); err != nil || len(got) != 8 {
			t.Fatal(len(got), err)
		}
		if err := j.ForgetPeer(ctx, 3); err != nil {
			t.Fatal(err)
		}
		mustTrim(t, j, far, 0, 100, 4)
	})
}

func TestPositionsNeverGoBack(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		j := open(t, url)
		ctx := context.Background()
		m := &sample.Maker{Epoch: 101}
		rows := append(inSlot(m, "a", 0, 3), inSlot(m, "b", 0, 1)...)
		mustAppend(t, j, rows[0], rows[2], rows[3]) // the second is not here yet
		n, o := rows[0].Slot, rows[3].Slot
		zero := []Mark{{Origin: 1, Slot: n}, {Origin: 1, Slot: o}}
		for range 2 {
			if err := j.SetPublished(ctx, zero); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := j.Unread(ctx, 1); err != nil || len(got) != 2 {
			t.Fatal(got, err)
		}
		if err := j.SetPublished(ctx, []Mark{{Origin: 1, Slot: n, Head: rows[0].Finish}, {Origin: 1, Slot: o, Head: rows[3].Finish}}); err != nil {
			t.Fatal(err)
		}
		if err := j.SetPublished(ctx, zero); err != nil {
			t.Fatal(err)
		}
		if got, err := j.Unread(ctx, 1); err != nil || len(got) != 0 {
			t.Fatal(got, err)
		}
		if got, err := j.EventsAfter(ctx, 1, n, 0, 10); err != nil || len(got) != 2 {
			t.Fatalf("%d events before the gap, %v", len(got), err)
		}
		mustAppend(t, j, rows[1])
		if got, err := j.Unread(ctx, 1); err != nil || len(got) != 1 || got[0] != n {
			t.Fatal(got, err)
		}
		marks, err := j.Published(ctx, 1)
		if err != nil || len(marks) != 2 {
			t.Fatal(marks, err)
		}
		for _, m := range marks {
			if m.Slot == n && m.Head != rows[0].Finish {
				t.Fatalf("%+v", m)
			}
		}
	})
}
