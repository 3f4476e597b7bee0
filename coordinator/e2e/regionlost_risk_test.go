package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// openSmall opens an account of east's with little money, in a slot of its own, alike in both regions.
func (d *deployment) openSmall(taken map[int]bool, balance int, globalOnly bool) string {
	d.t.Helper()
	for i := 0; ; i++ {
		id := fmt.Sprintf("small%d", i)
		n := slot.Of(id)
		if n%2 != 0 || taken[n] {
			continue
		}
		taken[n] = true
		for _, r := range regionNames {
			resp, err := http.Post(d.wallet[r]+"/accounts", "application/json", strings.NewReader(fmt.Sprintf(`{"id":%q,"balance":%d,"global_only":%v}`, id, balance, globalOnly)))
			if err != nil {
				d.t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				d.t.Fatalf("open %s in %s: %s", id, r, resp.Status)
			}
		}
		return id
	}
}

// money is what an account has in a region.
func (d *deployment) money(region, id string) int64 {
	d.t.Helper()
	st, err := d.state(region)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, a := range st.Accounts {
		if a.ID == id {
			return a.Total()
		}
	}
	return 0
}

// keptOpen are two accounts of the lost region of which transactions of the other one hold money, in that region's accounts
// alone. Their debits are all global, so that they may be spent from at once.
type keptOpen struct {
	commits, aborts held
}

func (d *deployment) keepOpen(taken map[int]bool, opened, amount int) keptOpen {
	d.t.Helper()
	c := d.coord["west"].client()
	owners, err := d.arbiter().Owners(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	open := func(name string) held {
		return d.hold(c, name, d.accounts.west[0], d.openSmall(taken, opened, true), d.accounts.west[0], amount, "global", owners)
	}
	return keptOpen{open("open-commits"), open("open-aborts")}
}

// TestNoAccountOfALostRegionGoesFurtherThanItsPolicy has accounts spend in a region whose debits nobody hears of, and spend again
// after its loss, each under a policy of its own. When it returns, what it had told its clients is settled, and an account has
// gone as far below its limit as its policy lets it and no further.
func TestNoAccountOfALostRegionGoesFurtherThanItsPolicy(t *testing.T) {
	const opened, spent, limit = 100, 80, 50
	d := newDeployment(t)
	d.level(20 * time.Second)
	taken := map[int]bool{}
	for _, id := range append(append([]string{}, d.accounts.moving...), d.accounts.staying...) {
		taken[slot.Of(id)] = true
	}
	block, capped, allowed := d.openSmall(taken, opened, false), d.openSmall(taken, opened, false), d.openSmall(taken, opened, false)
	global := d.openSmall(taken, opened, true)
	kept := d.keepOpen(taken, opened, spent)
	pay := func(region, name, from string, amount int, durability client.Durability) client.State {
		t.Helper()
		tx := d.payment(name, from, from, d.accounts.west[0], amount)
		tx.Options.Durability = durability
		c := d.coord[region].client()
		return persist(t, 30*time.Second, func(ctx context.Context) (client.State, error) { return c.Execute(ctx, tx, client.Settled) })
	}
	must := func(s client.State, committed bool, why string) {
		t.Helper()
		if s.Committed() != committed || !committed && !strings.Contains(s.GetReason(), why) {
			t.Fatalf("%s is %v, committed should be %v: %s", s.GetGid(), s.GetPhase(), committed, s.GetReason())
		}
	}
	d.broker["east"].kill() // nothing is heard of what follows
	for _, from := range []string{block, capped, allowed} {
		// To an account of the same region: the whole of it is lost.
		tx := d.payment("unheard", from, from, d.accounts.staying[0], spent)
		c := d.coord["east"].client()
		must(persist(t, 20*time.Second, func(ctx context.Context) (client.State, error) { return c.Execute(ctx, tx, client.Settled) }), true, "")
	}
	must(pay("east", "regional", global, 1, client.Regional), false, "global")
	must(pay("east", "unheard", global, spent, client.Global), true, "")
	d.killRegion("east")
	for _, args := range [][]string{
		{"--at-risk", "limit", "--cap", strconv.Itoa(limit), "--slots", strconv.Itoa(slot.Of(capped))},
		{"--at-risk", "allow", "--slots", strconv.Itoa(slot.Of(allowed))},
		{"--at-risk", "block"},
	} {
		tool := d.failover("east", "west", append(args, "--fenced-by", "power")...)
		if code := tool.ended(60 * time.Second); code != 0 {
			t.Fatalf("the failover with %v ended with %d:\n%s", args, code, tool.text())
		}
	}
	must(pay("west", "free", global, 10, client.Global), true, "")
	must(pay("west", "dear", global, 30, client.Global), false, "") // there are 10
	// What the living transactions hold is held here too: until they end, no more than the rest is spent.
	for _, k := range []held{kept.commits, kept.aborts} {
		must(pay("west", "dear-"+k.from, k.from, opened-spent+1, client.Global), false, "")
		must(pay("west", "rest-"+k.from, k.from, opened-spent, client.Global), true, "")
	}
	c := d.coord["west"].client()
	must(persist(t, 30*time.Second, func(ctx context.Context) (client.State, error) {
		return c.Commit(ctx, kept.commits.tx.Gid, client.Settled)
	}), true, "")
	must(persist(t, 30*time.Second, func(ctx context.Context) (client.State, error) {
		return c.Abort(ctx, kept.aborts.tx.Gid, "enough", client.Settled)
	}), false, "")
	must(pay("west", "free-again", kept.aborts.from, spent, client.Global), true, "")
	must(pay("west", "again", block, 1, client.Regional), false, "lost")
	must(pay("west", "again", capped, 30, client.Regional), true, "")
	must(pay("west", "more", capped, 30, client.Regional), false, "lost")
	must(pay("west", "again", allowed, 60, client.Regional), true, "")
	if n := d.money("west", global); n != opened-spent-10 {
		t.Errorf("the account whose debits are all global has %d, not %d", n, opened-spent-10)
	}

	// How far each account would be below 0 by both histories: what it spent here is read from its balance, not from the test.
	for id, atMost := range map[string]int64{block: 0, capped: limit, allowed: opened} {
		here := opened - d.money("west", id)
		if below := spent + here - opened; below > atMost {
			t.Errorf("%s spent %d here and %d in the lost region, of %d: %d below its limit, at most %d are let", id, here, spent, opened, below, atMost)
		}
	}
	d.revive("east")
	// The lost region's 80 can be taken from the blocked account at once, and from the other two when somebody has paid them.
	eventually(t, 60*time.Second, "what the lost region alone had is told", func() bool { return len(d.diverged("east")) >= 2 })
	for _, id := range []string{capped, allowed} {
		tx := d.payment("settles-"+id, d.accounts.west[0], d.accounts.west[0], id, spent)
		c := d.coord["west"].client()
		must(persist(t, 30*time.Second, func(ctx context.Context) (client.State, error) { return c.Execute(ctx, tx, client.Settled) }), true, "")
	}
	d.settle(90 * time.Second)
	for id, want := range map[string]int64{block: opened - spent, capped: opened - 30, allowed: opened - 60, global: opened - spent - 10, kept.commits.from: 0, kept.aborts.from: 0} {
		if n := d.money("west", id); n != want {
			t.Errorf("%s has %d, not %d", id, n, want)
		}
	}
	// What is told is lifted: nothing is at risk any more.
	eventually(t, 30*time.Second, "the policy is lifted", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		s, err := d.coord["west"].client().Execute(ctx, d.payment(fmt.Sprint("lifted-", time.Now().UnixNano()), block, block, d.accounts.west[0], 20), client.Settled)
		return err == nil && s.Committed()
	})
	eventually(t, 60*time.Second, "the copies of all accounts are equal", func() bool {
		for _, id := range []string{block, capped, allowed, global, kept.commits.from, kept.aborts.from} {
			if d.money("east", id) != d.money("west", id) {
				return false
			}
		}
		return true
	})
}
