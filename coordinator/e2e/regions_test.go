package e2e

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/region/slot"
)

var openFor = flag.Duration("regions.open", 30*time.Second, "how long the transactions stay open over which slots are handed over")

// epochs of the slots, as the arbiter has them.
func (d *deployment) epochs() *slot.Map {
	d.t.Helper()
	m, err := d.arbiter().Owners(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	return m
}

// TestHandoverUnderLoad moves slots there and back while payments run, with transactions in the moving slots that are open
// all the while, and others from slots that stay on accounts that move.
func TestHandoverUnderLoad(t *testing.T) {
	d := newDeployment(t)
	before := d.epochs()
	l := d.pay(4)
	var mu sync.Mutex
	ends := time.Now().Add(*openFor)
	var opened atomic.Int32
	gate := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("op") == "try" {
			opened.Add(1)
			select {
			case <-time.After(time.Until(ends)):
			case <-r.Context().Done():
			}
		}
	}))
	t.Cleanup(gate.Close)
	// Half are begun and committed by their client, which calls the tries itself; half wait in a try.
	more := map[string]int64{}
	var open []string
	var long sync.WaitGroup
	c := d.coord["east"].client()
	const count = 24
	for i := range count {
		at, from, to := d.accounts.moving[i%perKind], d.accounts.moving[(i+1)%perKind], d.accounts.staying[i%perKind]
		if i%4 >= 2 {
			at, from, to = d.accounts.staying[i%perKind], d.accounts.west[i%perKind], d.accounts.moving[i%perKind]
		}
		tx := d.payment(fmt.Sprintf("open-%d", i), at, from, to, 100+i)
		tx.Options.Timeout, tx.Options.RequestTimeout, tx.Options.RetryInterval = 2*time.Minute, *openFor+10*time.Second, 200*time.Millisecond
		open = append(open, tx.Gid)
		more[from] -= int64(100 + i)
		more[to] += int64(100 + i)
		long.Go(func() {
			var s client.State
			var err error
			if i%2 == 0 {
				tx.Branches = append(tx.Branches, client.Branch{ID: "gate", Try: gate.URL, Confirm: gate.URL, Cancel: gate.URL, Payload: []byte(`{}`)})
				s, err = stubborn(func(ctx context.Context) (client.State, error) { return c.Execute(ctx, tx, client.Decided) })
			} else {
				s, err = d.own(c, tx, before, func() { opened.Add(1) }, ends)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil || !s.Committed() {
				t.Errorf("%s stayed open over a handover: %v %s %v", tx.Gid, s.GetPhase(), s.GetReason(), err)
			}
		})
	}
	eventually(t, 20*time.Second, "all of them are open", func() bool { return opened.Load() >= count })
	tool := d.tool(d.move("handover", "east", "west", "--batch", "16", "--pause", "200ms")...)
	if code := tool.ended(60 * time.Second); code != 0 {
		t.Fatalf("the handover ended with %d:\n%s", code, tool.text())
	}
	if time.Now().After(ends) {
		t.Errorf("the handover took longer than the %v for which transactions stay open: nothing was shown of them", *openFor)
	}
	t.Log(tool.text())
	long.Wait()
	l.end(30*time.Second, more)
	d.oldEpochsAreRefused(before, open)
}

// stubborn repeats a request for two minutes.
func stubborn(f func(context.Context) (client.State, error)) (s client.State, err error) {
	for began := time.Now(); time.Since(began) < 2*time.Minute; time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		s, err = f(ctx)
		cancel()
		if err == nil || !client.Retryable(err) {
			return s, err
		}
	}
	return s, err
}

// own begins a transaction, makes its tries at the accounts' homes as one who knows their epochs, says so, and commits it when
// it is time.
func (d *deployment) own(c *client.Client, tx client.Tx, owners *slot.Map, tried func(), ends time.Time) (client.State, error) {
	tx.Branches = slices.Clone(tx.Branches)
	for i := range tx.Branches {
		tx.Branches[i].Try = ""
	}
	if s, err := stubborn(func(ctx context.Context) (client.State, error) { return c.Begin(ctx, tx) }); err != nil {
		return s, err
	}
	for _, b := range tx.Branches {
		o := owners[slot.Of(b.Account)]
		status, text, err := branchCall(d.wallet[o.Region]+"/wallet/"+b.ID+"/try", tx.Gid, b.ID, "try", b.Payload, fences(tx.Gid, b.Account, owners))
		if err != nil || status != http.StatusOK {
			return client.State{}, fmt.Errorf("the client's own try of %s: %d %s %v", b.ID, status, text, err)
		}
	}
	tried()
	time.Sleep(time.Until(ends))
	return stubborn(func(ctx context.Context) (client.State, error) { return c.Commit(ctx, tx.Gid, client.Decided) })
}

func fences(gid, account string, owners *slot.Map) map[string]string {
	tx, acct := slot.Of(gid), slot.Of(account)
	return map[string]string{
		"Lockstep-Slot": strconv.Itoa(tx), "Lockstep-Epoch": fmt.Sprint(uint64(owners[tx].Epoch)),
		"Lockstep-Account-Slot": strconv.Itoa(acct), "Lockstep-Account-Epoch": fmt.Sprint(uint64(owners[acct].Epoch)),
	}
}

// oldEpochsAreRefused makes calls with the epochs that were before a handover, at the old home and at the new one.
func (d *deployment) oldEpochsAreRefused(before *slot.Map, gids []string) {
	d.t.Helper()
	for _, gid := range append(gids, "never-been-here") {
		for _, id := range d.accounts.moving {
			for _, op := range []string{"try", "confirm", "cancel"} {
				for _, r := range regionNames {
					h := fences(gid, id, before)
					delete(h, "Lockstep-Slot")
					delete(h, "Lockstep-Epoch")
					h["Lockstep-Slot"], h["Lockstep-Epoch"] = strconv.Itoa(slot.Of(gid)), fmt.Sprint(uint64(before[slot.Of(gid)].Epoch))
					status, text, err := branchCall(d.wallet[r]+"/wallet/pay/"+op, gid, "pay", op, fmt.Appendf(nil, `{"account":%q,"amount":100}`, id), h)
					if err != nil || (status != http.StatusPreconditionFailed && status != http.StatusMisdirectedRequest) {
						d.t.Fatalf("%s of %s on %s in %s with the old epoch: %d %s %v", op, gid, id, r, status, text, err)
					}
				}
			}
		}
	}
	d.level(5 * time.Second)
}

// awaitMoving waits until slots are on their way and, in a direction drawn by lot, a little longer.
func (d *deployment) awaitMoving(tool *child, first int) {
	d.t.Helper()
	a := d.arbiter()
	eventually(d.t, 30*time.Second, "slots are on their way", func() bool {
		active, moving := d.owners(a)
		return moving > 0 && active["west"] >= first
	})
	time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
}

// TestTheToolIsKilled kills the tool in the middle of a handover: resume finishes it. Killed again on the way back, abort
// ends it with every slot in somebody's hands.
func TestTheToolIsKilled(t *testing.T) {
	d := newDeployment(t)
	a := d.arbiter()
	l := d.pay(2)
	tool := d.tool(d.move("handover", "east", "west", "--batch", "8", "--pause", "100ms")...)
	d.awaitMoving(tool, 8)
	tool.kill()
	if text := tool.text(); strings.Contains(text, "moved in") {
		t.Fatalf("the tool was killed too late:\n%s", text)
	}
	resume := d.tool("resume")
	if code := resume.ended(60 * time.Second); code != 0 {
		t.Fatalf("resume ended with %d:\n%s", code, resume.text())
	}
	if active, moving := d.owners(a); active["west"] != movingSlots/2 || moving != 0 {
		t.Fatalf("after resume: active %v, on their way %d\n%s", active, moving, resume.text())
	}
	tool = d.tool(d.move("failback", "west", "east", "--batch", "8", "--pause", "100ms")...)
	eventually(t, 30*time.Second, "slots are on their way back", func() bool {
		active, moving := d.owners(a)
		return moving > 0 && active["east"] >= 8
	})
	tool.kill()
	abort := d.tool("abort")
	if code := abort.ended(60 * time.Second); code == 0 || !strings.Contains(abort.text(), "aborted") {
		t.Fatalf("abort ended with %d:\n%s", code, abort.text())
	}
	if active, moving := d.owners(a); moving != 0 || active["east"] < 8 || active["west"] == 0 {
		t.Fatalf("after abort: active %v, on their way %d\n%s", active, moving, abort.text())
	}
	again := d.tool(d.move("failback", "west", "east", "--batch", "32")...)
	if code := again.ended(60 * time.Second); code != 0 {
		t.Fatalf("a failback after an abort ended with %d:\n%s", code, again.text())
	}
	l.end(30*time.Second, nil)
	history := d.tool("history")
	if code := history.ended(20 * time.Second); code != 0 || !strings.Contains(history.text(), "the chain is whole") {
		t.Fatalf("history ended with %d:\n%s", code, history.text())
	}
}

// TestACoordinatorIsKilledInAHandover kills the source's coordinator in the middle of a handover, and the target's in the
// middle of the way back. Everything ends, also what was being paid.
func TestACoordinatorIsKilledInAHandover(t *testing.T) {
	d := newDeployment(t)
	a := d.arbiter()
	l := d.pay(2)
	for _, way := range [][3]string{{"handover", "east", "west"}, {"failback", "west", "east"}} {
		tool := d.tool(d.move(way[0], way[1], way[2], "--batch", "16", "--pause", "100ms", "--deadline", "20s")...)
		eventually(t, 30*time.Second, "slots are on their way", func() bool {
			_, moving := d.owners(a)
			return moving > 0
		})
		time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond)
		d.coord["east"].kill() // source first, then target
		at := l.count()
		d.coord["east"].restart()
		if code := tool.ended(90 * time.Second); code != 0 {
			resume := d.tool("resume")
			if rc := resume.ended(90 * time.Second); rc != 0 {
				t.Fatalf("%s ended with %d, and resume with %d:\n%s\n%s", way[0], code, rc, tool.text(), resume.text())
			}
		}
		if active, moving := d.owners(a); active[way[2]] != movingSlots/2 || moving != 0 {
			t.Fatalf("after %s: active %v, on their way %d\n%s", way[0], active, moving, tool.text())
		}
		eventually(t, 30*time.Second, "payments go on", func() bool { return l.count() > at+10 })
	}
	l.end(60*time.Second, nil)
}

// TestGlobalNeedsTheArbiter kills one member of the arbiter, which changes nothing, and stops a second, so that it has no
// majority: a global payment waits and is not cancelled, also when its time is up; a regional one goes on. When the arbiter
// is back it is decided, and no decision stays there.
func TestGlobalNeedsTheArbiter(t *testing.T) {
	d := newDeployment(t)
	a := d.arbiter()
	c := d.coord["east"].client()
	from, to, west := d.accounts.staying[1], d.accounts.staying[2], d.accounts.west[1]
	global := func(name, from, to string) client.Tx {
		tx := d.payment(name, from, from, to, 50)
		tx.Options.Durability, tx.Options.Timeout = client.Global, 2*time.Second
		return tx
	}
	more := map[string]int64{}
	did := func(from, to string, n int64) { more[from] -= n; more[to] += n }
	for i := range 6 {
		if i == 3 {
			d.members[2].kill()
		}
		s := persist(t, 20*time.Second, func(ctx context.Context) (client.State, error) {
			return c.Execute(ctx, global(fmt.Sprintf("global-%d", i), from, west), client.Decided)
		})
		if !s.Committed() {
			t.Fatalf("a global payment with an arbiter: %v %s", s.GetPhase(), s.GetReason())
		}
		did(from, west, 50)
	}
	d.members[0].signal(syscall.SIGSTOP)
	stopped := time.Now()
	waits := global("waits", from, to)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	s, err := c.Execute(ctx, waits, client.Decided)
	cancel()
	if err == nil {
		t.Fatalf("a global payment was decided without the arbiter: %v %s", s.GetPhase(), s.GetReason())
	}
	s = persist(t, 10*time.Second, func(ctx context.Context) (client.State, error) {
		return c.Execute(ctx, d.payment("regional", from, from, to, 7), client.Decided)
	})
	if !s.Committed() {
		t.Fatalf("a regional payment without the arbiter: %v %s", s.GetPhase(), s.GetReason())
	}
	did(from, to, 7)
	for time.Since(stopped) < 6*time.Second { // three times its timeout
		st, err := d.state("east")
		if err != nil {
			t.Fatal(err)
		}
		if st.Frozen["CNY"] < 50 {
			t.Fatalf("%v after the arbiter was stopped the hold of the global payment is gone: %+v", time.Since(stopped), st.Frozen)
		}
		time.Sleep(100 * time.Millisecond)
	}
	// What is begun now fails fast, and says why.
	eventually(t, 10*time.Second, "a new global payment is refused at once", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := c.Execute(ctx, global(fmt.Sprint("late-", time.Now().UnixNano()), from, to), client.Decided)
		return err != nil && ctx.Err() == nil && strings.Contains(err.Error(), "the arbiter was not heard")
	})
	if tool := d.tool(d.move("handover", "east", "west")...); tool.ended(60*time.Second) == 0 {
		t.Errorf("slots moved without the arbiter:\n%s", tool.text())
	}
	d.members[0].signal(syscall.SIGCONT)
	s = persist(t, 30*time.Second, func(ctx context.Context) (client.State, error) { return c.Execute(ctx, waits, client.Decided) })
	t.Logf("the payment that waited is %v", s.GetPhase())
	if s.Committed() {
		did(from, to, 50)
	} else if !s.Aborted() {
		t.Fatalf("it is neither committed nor aborted: %v", s.GetPhase())
	}
	(&load{d: d, stop: func() {}}).end(30*time.Second, more)
	n := slot.Of(waits.Gid)
	eventually(t, 30*time.Second, "no decision stays in the arbiter", func() bool {
		left, err := a.Decisions(t.Context(), n)
		return err == nil && len(left) == 0
	})
}
