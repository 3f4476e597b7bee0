package conduct

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/arbiter/arbitertest"
	"github.com/lockstep-tx/lockstep/region/failover"
	"github.com/lockstep-tx/lockstep/region/slot"
)

func newArbiter(t *testing.T) *arbiter.Arbiter {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	a, _ := arbitertest.Start(t)
	if err := a.Init(ctx, []string{"east", "west"}, time.Now(), func(int) string { return "east" }); err != nil {
		t.Fatal(err)
	}
	return a
}

// source does what the coordinators of the regions do: it seals what drains, and undoes what has taken too long.
func source(t *testing.T, a *arbiter.Arbiter) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			m, err := a.Owners(ctx)
			if err != nil {
				continue
			}
			for n, o := range m {
				var to slot.Owner
				switch {
				case o.Status == slot.Taken: // by force, and not its to judge
					continue
				case o.Status != slot.Active && time.Now().UnixMilli() > o.DeadlineMillis:
					to, err = o.Undo()
				case o.Status == slot.Draining:
					to, err = o.Close(slot.SealOf(o.Epoch, 1, []byte{1}))
				default:
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				_ = a.Change(ctx, arbiter.Change{Slot: n, From: o, To: to}) // the tool may have been faster
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

type world struct{ deaf bool }

func (w world) Reached(_ context.Context, _ string, seals map[int]*slot.Seal) map[int]bool {
	out := map[int]bool{}
	for n := range seals {
		out[n] = !w.deaf
	}
	return out
}

func (w world) Canary(context.Context, string, int) error { return nil }

func plan(id string) failover.Plan {
	return failover.Plan{ID: id, Kind: failover.Handover, From: "east", To: "west", Slots: []int{3, 4, 5, 6, 7}, Batch: 2, DeadlineMillis: 5000, Who: "test", Why: "practice"}
}

func conductor(a *arbiter.Arbiter, w World) *Conductor {
	return &Conductor{Arbiter: a, World: w, Who: "test", Every: 5 * time.Millisecond}
}

var errKilled = errors.New("killed")

// kill ends the tool after its k-th write, as a panic that leaves nothing behind but what is written.
func kill(c *Conductor, k int) (run func(func() error) error) {
	n := 0
	c.After = func(string) {
		if n++; n == k {
			panic(errKilled)
		}
	}
	return func(f func() error) (err error) {
		defer func() {
			if r := recover(); r != nil {
				err = r.(error)
			}
		}()
		return f()
	}
}

// Freeze finds the lost region's chains empty.
func (world) Freeze(_ context.Context, _, _ string, epochs map[int]slot.Epoch) (map[int]*slot.Seal, error) {
	out := map[int]*slot.Seal{}
	for n, e := range epochs {
		out[n] = &slot.Seal{Epoch: e, Chain: "00", Forced: true}
	}
	return out, nil
}

func where(t *testing.T, a *arbiter.Arbiter, region string, slots []int) bool {
	t.Helper()
	m, err := a.Owners(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range slots {
		if m[n].Region != region || m[n].Status != slot.Active {
			return false
		}
	}
	return true
}

// TestTheToolKilledAfterEachOfItsWritesCanGoOnOrBeAborted ends it after its first, second, third … write, and another one
// takes over: once to finish, once to abort.
func TestTheToolKilledAfterEachOfItsWritesCanGoOnOrBeAborted(t *testing.T) {
	a := newArbiter(t)
	source(t, a)
	ctx := t.Context()
	killed := 0
	for k, round := 1, 0; ; k++ {
		ended := false
		for _, then := range []string{"resume", "abort"} {
			round++
			from, to := "east", "west"
			if !where(t, a, "east", plan("").Slots) {
				from, to = to, from
			}
			p := plan(time.Now().Format("150405.000000"))
			p.From, p.To = from, to
			c := conductor(a, world{})
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
			next := conductor(a, world{})
			r, err := next.Load(ctx, "")
			if errors.Is(err, ErrNone) && k > 1 {
				continue // killed behind its last write: nothing is left to do
			}
			if err != nil {
				t.Fatalf("killed after write %d, and it cannot be found: %v", k, err)
			}
			if then == "abort" && !r.Status.Ended() {
				if _, err := next.Set(ctx, p.ID, failover.Aborting, "killed", time.Now()); err != nil {
					t.Fatal(err)
				}
			}
			r, err = next.Drive(ctx, p.ID)
			if err != nil {
				t.Fatalf("killed after write %d, %s: %v", k, then, err)
			}
			switch {
			case !r.Status.Ended():
				t.Fatalf("killed after write %d, %s: %s", k, then, r.Status)
			case then == "resume" && (r.Status != failover.Done || !where(t, a, to, p.Slots)):
				t.Fatalf("killed after write %d: %s", k, r.Status)
			}
			if then == "abort" && r.Status == failover.Aborted {
				// What has moved stays; bring the rest to one side for the next round.
				back := plan(time.Now().Format("150405.000000") + "b")
				m, err := a.Owners(ctx)
				if err != nil {
					t.Fatal(err)
				}
				back.From, back.To, back.Slots = "west", "east", nil
				for _, n := range p.Slots {
					if m[n].Region == "west" {
						back.Slots = append(back.Slots, n)
					}
				}
				if len(back.Slots) > 0 {
					if err := next.Start(ctx, back, time.Now()); err != nil {
						t.Fatal(err)
					}
					if _, err := next.Drive(ctx, back.ID); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		if ended {
			break
		}
	}
	if killed < 15 {
		t.Fatalf("it was killed %d times: not after each of its writes", killed)
	}
	entries, err := conductor(a, world{}).History(ctx)
	if err != nil || len(entries) < killed {
		t.Fatalf("%d audit lines, %v", len(entries), err)
	}
	t.Logf("killed %d times, %d audit lines", killed, len(entries))
}

func TestOneOperationAtATime(t *testing.T) {
	a := newArbiter(t)
	ctx := t.Context()
	c := conductor(a, world{})
	if err := c.Start(ctx, plan("first"), time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := conductor(a, world{}).Start(ctx, plan("second"), time.Now()); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "first") {
		t.Fatalf("%v", err)
	}
	if err := conductor(a, world{}).Start(ctx, plan("first"), time.Now()); err != nil {
		t.Fatalf("the same plan does not go on: %v", err)
	}
	if lines, err := c.History(ctx); err != nil || len(lines) != 1 {
		t.Fatalf("%v, %v", lines, err)
	}
}

// TestAnOperatorsWordIsWrittenWhileTheToolSaves: the tool writes the run again and again, and every change of status is there.
func TestAnOperatorsWordIsWrittenWhileTheToolSaves(t *testing.T) {
	a := newArbiter(t)
	ctx := t.Context()
	if err := conductor(a, world{}).Start(ctx, plan("raced"), time.Now()); err != nil {
		t.Fatal(err)
	}
	tool := make(chan error, 1)
	stop := make(chan struct{})
	go func() {
		c := conductor(a, world{})
		for {
			r, err := c.Load(ctx, "raced")
			if err == nil {
				err = c.save(ctx, r, nil)
			}
			if err != nil && !errors.Is(err, arbiter.ErrChanged) {
				tool <- err
				return
			}
			select {
			case <-stop:
				tool <- nil
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	for i := range 60 {
		to := []failover.Status{failover.Paused, failover.Running}[i%2]
		if _, err := conductor(a, world{}).Set(ctx, "raced", to, "why", time.Now()); err != nil {
			t.Fatalf("the %d. change: %v", i+1, err)
		}
		if r, err := conductor(a, world{}).Load(ctx, "raced"); err != nil || r.Status != to {
			t.Fatalf("the %d. change: %s, %v", i+1, r.Status, err)
		}
	}
	close(stop)
	if err := <-tool; err != nil {
		t.Fatal(err)
	}
	if lines, err := conductor(a, world{}).History(ctx); err != nil || len(lines) != 61 {
		t.Fatalf("%d lines, %v", len(lines), err)
	}
}

func TestAnEndedOperationTakesNoWord(t *testing.T) {
	a := newArbiter(t)
	source(t, a)
	c := conductor(a, world{})
	if err := c.Start(t.Context(), plan("over"), time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Drive(t.Context(), "over"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Set(t.Context(), "over", failover.Aborting, "late", time.Now()); !errors.Is(err, ErrEnded) {
		t.Fatal(err)
	}
}

func TestABatchThatNeverArrivesIsUndoneAndTheOperationGivesUp(t *testing.T) {
	a := newArbiter(t)
	source(t, a)
	p := plan("deaf")
	p.DeadlineMillis = 1000
	c := conductor(a, world{deaf: true})
	if err := c.Start(t.Context(), p, time.Now()); err != nil {
		t.Fatal(err)
	}
	r, err := c.Drive(t.Context(), p.ID)
	if err != nil || r.Status != failover.Aborted || !where(t, a, "east", p.Slots) {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := c.Load(t.Context(), ""); !errors.Is(err, ErrNone) {
		t.Fatalf("the lock is still held: %v", err)
	}
}

func TestAnAuditThatWasChangedIsFound(t *testing.T) {
	a := newArbiter(t)
	ctx := t.Context()
	c := conductor(a, world{})
	for _, act := range []string{"one", "two", "three"} {
		if err := c.Audit(ctx, act, "text", "op", time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := c.History(ctx); err != nil || len(got) != 3 {
		t.Fatalf("%v, %v", got, err)
	}
	rows, err := a.List(ctx, auditTable, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Delete(ctx, auditTable, rows[1].Key, rows[1].Rev); err != nil {
		t.Fatal(err)
	}
	if _, err := c.History(ctx); err == nil {
		t.Fatal("a line that was taken out was not missed")
	}
}

// TestALockWithoutItsOperationIsTakenByTheSameOne: nothing here leaves one, and nobody waits for it for ever.
func TestALockWithoutItsOperationIsTakenByTheSameOne(t *testing.T) {
	a := newArbiter(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := a.Put(ctx, opTable, arbiter.Row{Key: lockKey, Value: []byte("left")}); err != nil {
		t.Fatal(err)
	}
	c := conductor(a, world{})
	if err := c.Start(ctx, plan("left"), time.Now()); err != nil {
		t.Fatal(err)
	}
	if r, err := c.Load(ctx, ""); err != nil || r.Plan.ID != "left" {
		t.Fatalf("%+v, %v", r, err)
	}
}
