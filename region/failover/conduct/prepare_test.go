package conduct

import (
	"context"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/failover"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// prepare reads what the tool reads while it waits for consent.
func prepare(t *testing.T, c *Conductor) {
	t.Helper()
	m, err := c.Arbiter.Owners(t.Context())
	if err == nil {
		err = c.Prepare(t.Context(), m)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestWhatChangedWhileConsentWasAskedForIsReadAgain: what Prepare has read is a guess, and every write names what it is over.
func TestWhatChangedWhileConsentWasAskedForIsReadAgain(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, a *arbiter.Arbiter, id string) // after Prepare and Start
		want   failover.Status
		taken  int
	}{
		{"the audit", func(t *testing.T, a *arbiter.Arbiter, _ string) {
			if err := conductor(a, world{}).Audit(t.Context(), "note", "somebody else's", "", time.Now()); err != nil {
				t.Fatal(err)
			}
		}, failover.Done, 50},
		{"an owner", func(t *testing.T, a *arbiter.Arbiter, _ string) {
			m, err := a.Owners(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			to, err := m[7].Drain("west", "another", time.Now().Add(time.Hour))
			if err == nil {
				err = a.Change(t.Context(), arbiter.Change{Slot: 7, From: m[7], To: to})
			}
			if err != nil {
				t.Fatal(err)
			}
		}, failover.Done, 50},
		{"the operation", func(t *testing.T, a *arbiter.Arbiter, id string) {
			if _, err := conductor(a, world{}).Set(t.Context(), id, failover.Aborting, "a second thought", time.Now()); err != nil {
				t.Fatal(err)
			}
		}, failover.Aborted, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := newArbiter(t)
			p := forced(t, a, "op", "east", "west")
			c := conductor(a, world{})
			prepare(t, c)
			if err := c.Start(t.Context(), p, time.Now()); err != nil {
				t.Fatal(err)
			}
			tc.change(t, a, p.ID)
			r, err := c.Drive(t.Context(), p.ID)
			if err != nil || r.Status != tc.want {
				t.Fatalf("%s, %v", r.Status, err)
			}
			m, err := a.Owners(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			taken := 0
			for _, n := range p.Slots {
				if m[n].Region == "west" && m[n].Status == slot.Active {
					taken++
				}
			}
			if taken != tc.taken {
				t.Errorf("%d slots were taken, want %d", taken, tc.taken)
			}
			if lines, err := c.History(t.Context()); err != nil {
				t.Errorf("the audit of %d lines: %v", len(lines), err)
			}
		})
	}
}

// TestAPreparedFailoverReadsNothingOverAgain: an operator waits for every round trip to an arbiter that is far away.
func TestAPreparedFailoverReadsNothingOverAgain(t *testing.T) {
	a := newArbiter(t)
	p := forced(t, a, "op", "east", "west")
	asked := 0
	c := conductor(a, counting{world{}, &asked})
	prepare(t, c)
	looks := 0
	c.Looked = func() { looks++ }
	if err := c.Start(t.Context(), p, time.Now()); err != nil {
		t.Fatal(err)
	}
	if r, err := c.Drive(t.Context(), p.ID); err != nil || r.Status != failover.Done {
		t.Fatalf("%s, %v", r.Status, err)
	}
	if looks != 0 || asked != 1 {
		t.Errorf("the owners were read again %d times, and the target was asked %d times what it has", looks, asked)
	}
}

// counting counts how often the target is asked what it has.
type counting struct {
	world
	asked *int
}

func (w counting) Reached(ctx context.Context, region string, seals map[int]*slot.Seal) map[int]bool {
	*w.asked++
	return w.world.Reached(ctx, region, seals)
}
