package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
)

// killRegion ends everything of a region at once.
func (d *deployment) killRegion(r string) {
	d.t.Helper()
	d.coord[r].kill()
	d.broker[r].kill()
	d.purse[r].kill()
}

// revive starts everything of a region again, from its disks.
func (d *deployment) revive(r string) {
	d.t.Helper()
	for _, of := range []map[string]*child{d.broker, d.purse} {
		of[r] = startChild(d.t, of[r].log, of[r].cmd.Path, of[r].cmd.Args[1:]...)
	}
	d.coord[r].restart()
}

// failover takes a region's slots by force.
func (d *deployment) failover(from, to string, more ...string) *child {
	d.t.Helper()
	if !slices.Contains(more, "--plan") {
		more = append(slices.Clone(more), "--plan", "any")
	}
	return d.tool(append([]string{"failover", "--from", from, "--to", to, "--confirm-region", from}, more...)...)
}

// settle waits until nothing of a loss is left to be worked off. What a lost region had committed and nobody knew is taken over
// as an operator would.
func (d *deployment) settle(within time.Duration) (resolved int) {
	d.t.Helper()
	a := d.arbiter()
	done := map[string]bool{}
	eventually(d.t, within, "the loss is worked off", func() bool {
		for _, r := range regionNames {
			for gid, why := range d.diverged(r) {
				if done[gid] {
					continue
				}
				d.proposed(gid)
				out, err := exec.Command(program, "tx", "resolve", gid, "--commit", "--reason", "its client was told so", "--admin-addr", d.coord[r].addr.Admin).CombinedOutput()
				d.t.Logf("%s (%s): %v %s", gid, why, err, tail(string(out)))
				done[gid] = err == nil
			}
		}
		m, err := a.Owners(d.t.Context())
		for _, o := range m {
			if err != nil || o.Lost != 0 {
				return false
			}
		}
		return true
	})
	return len(done)
}

// proposal is what `lockstep region divergence` proposes for a transaction.
type proposal struct {
	Gid, Theirs, Next string
	Legs              []struct {
		Amount int64
		Debit  bool
	}
}

// proposed reads what is proposed for a transaction that a region alone had committed: its payment, to the fen.
func (d *deployment) proposed(gid string) {
	d.t.Helper()
	out, err := d.lockstep("region", "divergence", "-o", "json", "--context", d.file)
	var all struct {
		Transactions []proposal
		Unheard      []string
	}
	if err == nil {
		err = json.Unmarshal([]byte(out), &all)
	}
	list := all.Transactions
	at := slices.IndexFunc(list, func(p proposal) bool { return p.Gid == gid })
	if err != nil || at < 0 {
		d.t.Errorf("%s is not proposed to be settled: %v\n%s", gid, err, out)
		return
	}
	p, sum := list[at], int64(0)
	for _, l := range p.Legs {
		if l.Debit {
			l.Amount = -l.Amount
		}
		sum += l.Amount
	}
	if len(p.Legs) < 2 || sum != 0 || p.Theirs != "commit" || !strings.Contains(p.Next, gid) {
		d.t.Errorf("proposed for %s: %+v", gid, p)
	}
}

// diverged are the transactions that a region had when it was lost and that were not taken over, with why.
func (d *deployment) diverged(region string) map[string]string {
	resp, err := http.Get("http://" + d.coord[region].addr.Admin + "/v1/region/status")
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	var st struct {
		Diverged []struct{ Gid, Why string } `json:"diverged"`
	}
	out := map[string]string{}
	if json.NewDecoder(resp.Body).Decode(&st) == nil {
		for _, x := range st.Diverged {
			out[x.Gid] = x.Why
		}
	}
	return out
}

// endUnsure stops the load and checks it by what the deployment says of each payment: what a client was told is committed is
// committed, and what is committed has its effects once, in both regions.
func (l *load) endUnsure(within time.Duration, more map[string]int64) {
	t := l.d.t
	t.Helper()
	l.stop()
	l.wg.Wait()
	l.d.level(within)
	paid, lost := l.known()
	if len(lost) > 0 {
		t.Errorf("clients were told that these were committed, and they are not: %v", lost)
	}
	l.exact(paid, more, within)
	t.Logf("%d payments asked for, %d told committed, %d committed, %d told and lost; the slowest took %v", len(l.tried), len(l.ok), len(paid), len(lost), l.worst)
}

// known asks the west for each payment of a load that has ended: what the committed ones did, by gid, and which were told committed
// and are not.
func (l *load) known() (paid map[string]map[string]int64, lost []string) {
	l.d.t.Helper()
	paid = map[string]map[string]int64{}
	c := l.d.coord["west"].client()
	for gid, effect := range l.tried {
		s := persist(l.d.t, 20*time.Second, func(ctx context.Context) (client.State, error) {
			s, err := c.Get(ctx, gid)
			if status.Code(err) == codes.NotFound {
				err = nil
			}
			return s, err
		})
		switch {
		case s.Committed():
			paid[gid] = effect
		case l.ok[gid] != nil:
			lost = append(lost, fmt.Sprintf("%s: %v", gid, s.GetPhase()))
		}
	}
	return paid, lost
}

// TestARegionIsLost kills a region whole under load, after the other region's Kafka, takes its slots, pays on, brings it back from its
// disks and moves its slots back; no Kafka is there until it returns. Every payment that anybody was told is committed has its effects in both regions, once, and there are no others.
func TestARegionIsLost(t *testing.T) {
	d := newDeployment(t)
	l := d.pay(3)
	eventually(t, 30*time.Second, "payments run", func() bool { return l.count() > 100 })
	d.broker["west"].kill()
	d.killRegion("east")
	refused := d.failover("east", "west", "--at-risk", "limit", "--cap", "100000")
	if code := refused.ended(30 * time.Second); code == 0 || !strings.Contains(refused.text(), "--fenced-by") {
		t.Fatalf("without evidence it ended with %d:\n%s", code, refused.text())
	}
	tool := d.failover("east", "west", "--fenced-by", "power", "--at-risk", "limit", "--cap", "100000")
	if code := tool.ended(60 * time.Second); code != 0 {
		t.Fatalf("the failover ended with %d:\n%s", code, tool.text())
	}
	t.Log(tool.text())
	c := d.coord["west"].client()
	before := l.count()
	more := map[string]int64{}
	for i, from := range d.accounts.staying {
		to := d.accounts.moving[i]
		s := persist(t, 30*time.Second, func(ctx context.Context) (client.State, error) {
			return c.Execute(ctx, d.payment(fmt.Sprintf("after-%d", i), from, from, to, 5), client.Settled)
		})
		if !s.Committed() {
			t.Fatalf("a payment from an account of the lost region: %v %s", s.GetPhase(), s.GetReason())
		}
		more[from] -= 5
		more[to] += 5
	}
	eventually(t, 60*time.Second, "payments go on", func() bool { return l.count() > before+100 })
	d.broker["west"] = startChild(t, d.broker["west"].log, d.broker["west"].cmd.Path, d.broker["west"].cmd.Args[1:]...)
	d.revive("east")
	t.Logf("%d transactions had been committed in the lost region alone", d.settle(90*time.Second))
	out, err := exec.Command(program, "tx", "list", "--in-doubt", "--admin-addr", d.coord["west"].addr.Admin).CombinedOutput()
	if err != nil || strings.Contains(string(out), "in-doubt") {
		t.Fatalf("in doubt after the return: %v\n%s", err, out)
	}
	back := d.tool(d.move("failback", "west", "east", "--max-lag", "60s", "--pause", "100ms")...)
	if code := back.ended(120 * time.Second); code != 0 {
		t.Fatalf("the failback ended with %d:\n%s", code, back.text())
	}
	l.endUnsure(60*time.Second, more)
}
