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
	must(pay("west", "again", block, 1, client.Regional), false, "lost")
	must(pay("west", "again", capped, 30, client.Regional), true, "")
	must(pay("west", "more", capped, 30, client.Regional), false, "lost")
	must(pay("west", "again", allowed, 60, client.Regional), true, "")
	if n := d.money("west", global); n != opened-spent-10 {
		t.Errorf("the account whose debits are all global has %d, not %d", n, opened-spent-10)
	}

	d.revive("east")
	d.settle(60 * time.Second)
	for _, c := range []struct {
		policy, id string
		balance    int64 // of the account at its home
		below      int64 // how far the account would be below 0, by both histories
		atMost     int64
	}{
		{"block", block, opened - spent, 0, 0},
		{"limit", capped, opened - 30, spent + 30 - opened, limit},
		{"allow", allowed, opened - 60, spent + 60 - opened, opened},
		{"global", global, opened - spent - 10, 0, 0},
	} {
		if n := d.money("west", c.id); n != c.balance {
			t.Errorf("%s: the account has %d, not %d", c.policy, n, c.balance)
		}
		if c.below > c.atMost {
			t.Errorf("%s: %d below its limit, at most %d are let", c.policy, c.below, c.atMost)
		}
	}
	if n := d.money("west", "suspense:CNY"); n != -2*spent {
		t.Errorf("suspense has %d; what could not be taken from the two accounts is %d", n, 2*spent)
	}
	// What is told is lifted: nothing is at risk any more.
	eventually(t, 30*time.Second, "the policy is lifted", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		s, err := d.coord["west"].client().Execute(ctx, d.payment(fmt.Sprint("lifted-", time.Now().UnixNano()), block, block, d.accounts.west[0], 20), client.Settled)
		return err == nil && s.Committed()
	})
	eventually(t, 30*time.Second, "the copies of accounts that kept their limits are equal", func() bool {
		return d.money("east", block) == 0 && d.money("east", global) == opened-spent-10
	})
	// Not level are the copies of accounts that went through suspense: the lost region had debited the accounts themselves (ADR 9).
	t.Logf("at its home and in the lost region: limit %d and %d, allow %d and %d, suspense %d and %d", d.money("west", capped), d.money("east", capped),
		d.money("west", allowed), d.money("east", allowed), d.money("west", "suspense:CNY"), d.money("east", "suspense:CNY"))
}
