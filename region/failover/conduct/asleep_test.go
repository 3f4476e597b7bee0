package conduct

import (
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/region/failover"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// TestAToolThatSleptOverAnAbortChangesNothing: it had written that it takes the slots, slept, and meanwhile another operator aborted the
// operation. No slot may be left in the hands of an operation that has ended.
func TestAToolThatSleptOverAnAbortChangesNothing(t *testing.T) {
	a := newArbiter(t)
	p := forced(t, a, "op", "east", "west")
	c := conductor(a, world{})
	prepare(t, c)
	if err := c.Start(t.Context(), p, time.Now()); err != nil {
		t.Fatal(err)
	}
	slept := false
	c.After = func(step string) {
		if step != "save" || slept {
			return
		}
		slept = true
		other := conductor(a, world{})
		if _, err := other.Set(t.Context(), p.ID, failover.Aborting, "it sleeps", time.Now()); err != nil {
			t.Error(err)
		}
		if r, err := other.Drive(t.Context(), p.ID); err != nil || r.Status != failover.Aborted {
			t.Errorf("%s, %v", r.Status, err)
		}
	}
	if r, err := c.Drive(t.Context(), p.ID); err != nil || r.Status != failover.Aborted || !slept {
		t.Fatalf("%s, %v", r.Status, err)
	}
	m, err := a.Owners(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range p.Slots {
		if m[n].Region != "east" || m[n].Status != slot.Active {
			t.Fatalf("slot %d is %+v", n, m[n])
		}
	}
}

// TestSlotsOfAnOperationThatWasLeftCanBeTakenAgain: the target had gone too, the operation was ended with --leave, and the target is
// the one that comes back.
func TestSlotsOfAnOperationThatWasLeftCanBeTakenAgain(t *testing.T) {
	a := newArbiter(t)
	for _, bound := range []bool{false, true} { // how far the first one came
		p := forced(t, a, "left", "east", "west")
		if bound {
			p.ID = "left-bound"
		}
		c := conductor(a, world{})
		if err := c.Start(t.Context(), p, time.Now()); err != nil {
			t.Fatal(err)
		}
		after := "take"
		if bound {
			after = "bind"
		}
		c.After = func(step string) {
			if step == after {
				panic(errKilled)
			}
		}
		func() {
			defer func() { _ = recover() }() // the tool dies there
			_, _ = c.Drive(t.Context(), p.ID)
		}()
		other := conductor(a, world{})
		if _, err := other.Leave(t.Context(), p.ID, "the target is gone too", time.Now()); err != nil {
			t.Fatal(err)
		}
		if r, err := other.Drive(t.Context(), p.ID); err != nil || r.Status != failover.Aborted {
			t.Fatalf("%s, %v", r.Status, err)
		}
		again := forced(t, a, p.ID+"-again", "east", "west")
		if err := other.Start(t.Context(), again, time.Now()); err != nil {
			t.Fatal(err)
		}
		if r, err := other.Drive(t.Context(), again.ID); err != nil || r.Status != failover.Done || r.Failure != "" {
			t.Fatalf("after %s: %s, %q, %v", after, r.Status, r.Failure, err)
		}
		m, err := a.Owners(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i, n := range again.Slots {
			if o := m[n]; o.Region != "west" || o.Status != slot.Active || o.Epoch <= again.Loss.Epochs[i] || o.Seal == nil || o.Lost != p.Loss.Epochs[i] {
				t.Fatalf("after %s: slot %d is %+v", after, n, o)
			}
		}
		settleAll(t, a)
		back := forced(t, a, p.ID+"-back", "west", "east") // for the next round
		if err := other.Start(t.Context(), back, time.Now()); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Drive(t.Context(), back.ID); err != nil {
			t.Fatal(err)
		}
		settleAll(t, a)
	}
}
