package conduct

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/failover"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// forced is a plan to take slots from whoever has them.
func forced(t *testing.T, a *arbiter.Arbiter, id, from, to string) failover.Plan {
	t.Helper()
	p := plan(id)
	p.Kind, p.From, p.To, p.Batch = failover.Forced, from, to, slot.Count
	p.Slots = nil
	m, err := a.Owners(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p.Loss = &failover.Loss{Evidence: failover.Power, Risk: slot.Risk{Policy: slot.Limit, Cap: 100}, Exposure: "x"}
	for n := range 50 { // more than one change's worth
		p.Slots, p.Loss.Epochs = append(p.Slots, n), append(p.Loss.Epochs, m[n].Epoch)
	}
	return p
}

// TestAForcedFailoverKilledAfterEachOfItsWritesIsEnded ends the tool after its first, second, third … write: resume finishes it,
// and abort ends what it has begun. No slot is left in nobody's hands.
func TestAForcedFailoverKilledAfterEachOfItsWritesIsEnded(t *testing.T) {
	a := newArbiter(t)
	ctx := t.Context()
	from, to, killed := "east", "west", 0
	for k := 1; ; k++ {
		ended := false
		for _, then := range []string{"resume", "abort"} {
			p := forced(t, a, fmt.Sprintf("op-%d-%s", k, then), from, to)
			c := conductor(a, world{})
			prepare(t, c)
			err := kill(c, k)(func() error {
				if err := c.Start(ctx, p, time.Now()); err != nil {
					return err
				}
				_, err := c.Drive(ctx, p.ID)
				return err
			})
			if !errors.Is(err, errKilled) {
				if err != nil {
					t.Fatalf("write %d: %v", k, err)
				}
				ended = true
				break
			}
			killed++
			if other := forced(t, a, "other", from, to); k > 1 {
				if err := conductor(a, world{}).Start(ctx, other, time.Now()); err != nil && (!errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), p.ID)) {
					t.Fatalf("a second operator, killed after write %d: %v", k, err)
				} else if err == nil { // killed behind its last write
					finish(t, a, "other", "resume")
				}
			}
			if r := finish(t, a, p.ID, then); r != nil && then == "resume" && r.Status != failover.Done {
				t.Fatalf("killed after write %d, resumed: %s", k, r.Status)
			}
			m, err := a.Owners(ctx)
			if err != nil {
				t.Fatal(err)
			}
			taken := 0
			for _, n := range p.Slots {
				switch o := m[n]; {
				case o.Status != slot.Active:
					t.Fatalf("killed after write %d, %s: slot %d is %+v", k, then, n, o)
				case o.Region == to && (o.Seal == nil || !o.Seal.Forced || o.Seal.Epoch != o.Lost):
					t.Fatalf("killed after write %d, %s: slot %d is served without its seal: %+v", k, then, n, o)
				case o.Region == to:
					taken++
					settled, err := o.Settled() // the return is worked off
					if err == nil {
						err = a.Change(ctx, arbiter.Change{Slot: n, From: o, To: settled})
					}
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			if then == "resume" && taken != len(p.Slots) || taken != 0 && taken != len(p.Slots) && then == "resume" {
				t.Fatalf("killed after write %d, %s: %d of %d slots were taken", k, then, taken, len(p.Slots))
			}
			if taken == len(p.Slots) {
				from, to = to, from
			} else if taken > 0 { // aborted between its changes: the rest follows
				rest := forced(t, a, p.ID+"-rest", from, to)
				for i := len(rest.Slots) - 1; i >= 0; i-- {
					if m[rest.Slots[i]].Region == to {
						rest.Slots, rest.Loss.Epochs = slices.Delete(rest.Slots, i, i+1), slices.Delete(rest.Loss.Epochs, i, i+1)
					}
				}
				if err := conductor(a, world{}).Start(ctx, rest, time.Now()); err != nil {
					t.Fatal(err)
				}
				finish(t, a, rest.ID, "resume")
				settleAll(t, a)
				from, to = to, from
			}
		}
		if ended {
			break
		}
	}
	if killed < 10 {
		t.Fatalf("it was killed %d times: not after each of its writes", killed)
	}
	if _, err := conductor(a, world{}).History(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("killed %d times", killed)
}

func settleAll(t *testing.T, a *arbiter.Arbiter) {
	t.Helper()
	m, err := a.Owners(t.Context())
	for n, o := range m {
		if err == nil && o.Lost != 0 {
			var settled slot.Owner
			if settled, err = o.Settled(); err == nil {
				err = a.Change(t.Context(), arbiter.Change{Slot: n, From: o, To: settled})
			}
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// finish is resume or abort by somebody else; nil where the operation had let the lock go already.
func finish(t *testing.T, a *arbiter.Arbiter, id, then string) *failover.Run {
	t.Helper()
	ctx, next := t.Context(), conductor(a, world{})
	r, err := next.Load(ctx, "")
	if errors.Is(err, ErrNone) || err == nil && r.Plan.ID != id {
		return nil
	}
	if err == nil && then == "abort" && !r.Status.Ended() {
		_, err = next.Set(ctx, id, failover.Aborting, "killed", time.Now())
	}
	if err == nil {
		r, err = next.Drive(ctx, id)
	}
	if err != nil || !r.Status.Ended() {
		t.Fatalf("%s of %s: %s, %v", then, id, r.Status, err)
	}
	return &r
}

func TestTheSealIsTheHighestEventThatAnyJournalHas(t *testing.T) {
	epochs := map[int]slot.Epoch{3: 101, 4: 101}
	seals, err := Seals(epochs, map[string][]Mark{
		"west":  {{Slot: 3, Epoch: 101, Seq: 7, Chain: "aa"}, {Slot: 4, Seq: 0, Chain: "00"}},
		"north": {{Slot: 3, Epoch: 101, Seq: 9, Chain: "bb"}, {Slot: 9, Seq: 1, Chain: "not asked for"}},
	})
	if err != nil || *seals[3] != (slot.Seal{Epoch: 101, Seq: 9, Chain: "bb", Forced: true}) || seals[4].Seq != 0 || len(seals) != 2 {
		t.Fatalf("%v, %v", seals, err)
	}
	for why, marks := range map[string]map[string][]Mark{
		"different chains": {"west": {{Slot: 3, Seq: 7, Chain: "aa"}, {Slot: 4}}, "north": {{Slot: 3, Seq: 7, Chain: "bb"}}},
		"no journal":       {"west": {{Slot: 3, Seq: 7, Chain: "aa"}}},
		"is at epoch 303":  {"west": {{Slot: 3, Epoch: 303, Seq: 7, Chain: "aa"}, {Slot: 4}}},
	} {
		if _, err := Seals(epochs, marks); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", why, err)
		}
	}
}

// blind is a world in which the target does not answer the freeze.
type blind struct{ world }

func (blind) Freeze(context.Context, string, string, map[int]slot.Epoch) (map[int]*slot.Seal, error) {
	return nil, errors.New("west does not answer")
}

// TestNothingIsServedWithoutASeal: where nobody freezes, the slots stay taken and the operation can go on later.
func TestNothingIsServedWithoutASeal(t *testing.T) {
	a := newArbiter(t)
	p := forced(t, a, "op", "east", "west")
	c := conductor(a, blind{})
	if err := c.Start(t.Context(), p, time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Drive(t.Context(), p.ID); err == nil {
		t.Fatal("it went on without a seal")
	}
	m, err := a.Owners(t.Context())
	if err != nil || m[0].Status != slot.Taken || m[0].Seal != nil {
		t.Fatalf("%+v, %v", m[0], err)
	}
	if r := finish(t, a, "op", "resume"); r == nil || r.Status != failover.Done {
		t.Fatalf("%+v", r)
	}
}

func TestAForcedFailoverIsNotPaused(t *testing.T) {
	a := newArbiter(t)
	p := forced(t, a, "whole", "east", "west")
	c := conductor(a, world{})
	if err := c.Start(t.Context(), p, time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := conductor(a, world{}).Set(t.Context(), p.ID, failover.Paused, "wait", time.Now()); !errors.Is(err, ErrAtOnce) {
		t.Fatalf("%v, want ErrAtOnce", err)
	}
	lines, err := c.History(t.Context())
	if err != nil || len(lines) != 1 {
		t.Fatalf("%d lines of history after a refused pause, %v", len(lines), err)
	}
	if r := finish(t, a, p.ID, "resume"); r == nil || r.Status != failover.Done {
		t.Fatalf("it ends as %+v", r)
	}
}

// TestASlotThatCameWithoutItsAccountsIsMadeOneThatWasTaken: the region that released them was lost before they were adopted.
func TestASlotThatCameWithoutItsAccountsIsMadeOneThatWasTaken(t *testing.T) {
	a := newArbiter(t)
	source(t, a)
	moved := plan("moved")
	c := conductor(a, world{})
	if err := c.Start(t.Context(), moved, time.Now()); err != nil {
		t.Fatal(err)
	}
	if r, err := c.Drive(t.Context(), moved.ID); err != nil || r.Status != failover.Done {
		t.Fatal(r.Status, err)
	}
	before, err := a.Owners(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := forced(t, a, "lost", "east", "west") // with the slots that are west's since
	if err := conductor(a, world{}).Start(t.Context(), p, time.Now()); err != nil {
		t.Fatal(err)
	}
	r := finish(t, a, p.ID, "resume")
	after, err := a.Owners(t.Context())
	if err != nil || r.Status != failover.Done || r.Failure != "" {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, n := range moved.Slots {
		was, is := before[n], after[n]
		if is.Region != "west" || is.Status != slot.Active || is.Epoch != was.Epoch.Next(2) || is.Lost != was.Seal.Epoch || is.Risk != p.Loss.Risk || !is.Forced() ||
			is.Seal.Seq != was.Seal.Seq || is.Seal.Chain != was.Seal.Chain {
			t.Errorf("slot %d was %+v and is %+v", n, was, is)
		}
		settled, err := is.Settled()
		if err != nil || !settled.Forced() {
			t.Errorf("slot %d after it is worked off: %+v, %v: its policy must be lifted", n, settled, err)
		}
		if _, err := is.Readopt(2, p.Loss.Risk); err == nil {
			t.Errorf("slot %d is readopted twice", n)
		}
	}
	if _, err := after[0].Readopt(2, p.Loss.Risk); err == nil {
		t.Error("a slot that was taken is readopted")
	}
}
