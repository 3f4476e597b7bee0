package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
)

// unadopted is what west's coordinator says of slots whose accounts did not come.
func (d *deployment) unadopted() (slots int) {
	d.t.Helper()
	var st struct {
		Unadopted []int `json:"unadopted"`
	}
	resp, err := http.Get("http://" + d.coord["west"].addr.Admin + "/v1/region/status")
	if err == nil {
		err = errors.Join(json.NewDecoder(resp.Body).Decode(&st), resp.Body.Close())
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return len(st.Unadopted)
}

// TestARegionIsLostBetweenReleaseAndAdoption: slots are handed over while the target's wallets are down, and then the source is
// lost, which has what it released. Until then nobody can spend from those accounts; the failover makes the target's copies of
// them homes, like those of the slots that it takes.
func TestARegionIsLostBetweenReleaseAndAdoption(t *testing.T) {
	d := newDeployment(t)
	d.level(20 * time.Second)
	tool := d.tool(d.move("handover", "east", "west", "--batch", "1", "--pause", "50ms")...)
	d.awaitMoving(tool, 2)
	d.purse["west"].kill()
	if code := tool.ended(120 * time.Second); code != 0 {
		t.Fatalf("the handover ended with %d:\n%s", code, tool.text())
	}
	eventually(t, 30*time.Second, "west says that accounts did not come", func() bool { return d.unadopted() > 0 })
	d.killRegion("east")
	d.again(d.purse, "west")

	pay := func(name, from string, within time.Duration) (client.State, error) {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		return d.coord["west"].client().Execute(ctx, d.payment(name, from, from, d.accounts.west[0], 10), client.Settled)
	}
	last := d.accounts.moving[len(d.accounts.moving)-1] // of the last slots that moved
	if s, err := pay("stuck", last, 3*time.Second); err == nil && s.Committed() {
		t.Fatal("an account spends whose counters are in the region that released it")
	}
	lost := d.failover("east", "west", "--fenced-by", "power", "--at-risk", "allow")
	if code := lost.ended(60 * time.Second); code != 0 || !strings.Contains(lost.text(), "came to west by plan and their accounts did not") {
		t.Fatalf("the failover ended with %d:\n%s", code, lost.text())
	}
	for i, from := range append(append([]string{}, d.accounts.moving...), d.accounts.staying...) {
		eventually(t, 30*time.Second, "a payment from "+from, func() bool {
			s, err := pay(fmt.Sprint("after-", i), from, 10*time.Second)
			return err == nil && s.Committed()
		})
	}
	if n := d.unadopted(); n != 0 {
		t.Errorf("the accounts of %d slots are still missed", n)
	}
	d.revive("east")
	d.settle(90 * time.Second)
	eventually(t, 30*time.Second, "the payment that was put off ends", func() bool {
		s, err := pay("stuck", last, 5*time.Second)
		return err == nil && s.Ended()
	})
	d.level(60 * time.Second)
}
