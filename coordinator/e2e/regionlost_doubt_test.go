package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// held is a transaction that a client has begun and tried itself.
type held struct {
	tx       client.Tx
	from, to string
	amount   int64
}

// hold begins a transaction in the slot of the account at, and makes its tries at the accounts' homes.
func (d *deployment) hold(c *client.Client, name, at, from, to string, amount int, durability string, owners *slot.Map) held {
	d.t.Helper()
	tx := d.payment(name, at, from, to, amount)
	tx.Options.Timeout = 10 * time.Minute
	if durability == "global" {
		tx.Options.Durability = client.Global
	}
	for i := range tx.Branches {
		tx.Branches[i].Try = ""
	}
	if _, err := stubborn(func(ctx context.Context) (client.State, error) { return c.Begin(ctx, tx) }); err != nil {
		d.t.Fatalf("%s could not be begun: %v", tx.Gid, err)
	}
	for _, b := range tx.Branches {
		d.call(tx.Gid, b, "try", durability, owners)
	}
	return held{tx, from, to, int64(amount)}
}

// call makes a branch call at the account's home, by the epochs that owners has.
func (d *deployment) call(gid string, b client.Branch, op, durability string, owners *slot.Map) {
	d.t.Helper()
	h := fences(gid, b.Account, owners)
	h["Lockstep-Durability"] = durability
	status, text, err := branchCall(d.wallet[owners[slot.Of(b.Account)].Region]+"/wallet/"+b.ID+"/"+op, gid, b.ID, op, b.Payload, h)
	if err != nil || status != http.StatusOK {
		d.t.Fatalf("%s of %s of %s: %d %s %v", op, b.ID, gid, status, text, err)
	}
}

// lockstep runs the operator's command line.
func (d *deployment) lockstep(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	return string(out), err
}

// resolve ends a transaction on an operator's word.
func (d *deployment) resolve(gid, decision string) {
	d.t.Helper()
	if out, err := d.lockstep("tx", "resolve", gid, "--"+decision, "--reason", "ticket 4711", "--admin-addr", d.coord["west"].addr.Admin); err != nil {
		d.t.Fatalf("resolve %s --%s: %v\n%s", gid, decision, err, out)
	}
}

// inDoubt lists what lockstep tx list --in-doubt lists.
func (d *deployment) inDoubt(region string) []string {
	d.t.Helper()
	out, err := d.lockstep("tx", "list", "--in-doubt", "--all", "--admin-addr", d.coord[region].addr.Admin)
	if err != nil {
		d.t.Fatalf("%v: %s", err, out)
	}
	var gids []string
	for line := range strings.SplitSeq(out, "\n") {
		if strings.HasPrefix(line, "{") {
			gids = append(gids, strings.Fields(line)[0])
		}
	}
	slices.Sort(gids)
	return gids
}

// written is what was ever written to the arbiter, as its revision counts it.
func (d *deployment) written() int64 {
	d.t.Helper()
	cli, err := clientv3.New(clientv3.Config{Endpoints: d.at, DialTimeout: 10 * time.Second})
	if err != nil {
		d.t.Fatal(err)
	}
	defer cli.Close()
	got, err := cli.Get(d.t.Context(), "nothing")
	if err != nil {
		d.t.Fatal(err)
	}
	return got.Header.Revision
}

var (
	planLine  = regexp.MustCompile(`(?m)^plan ([0-9a-f]+):`)
	heldLine  = regexp.MustCompile(`surviving participants hold (\d+) transactions without an end(?:, debits held: (\d+) CNY)?`)
	tryLine   = regexp.MustCompile(`(?m)^    (\{\S+): wallet branch`)
	countLine = regexp.MustCompile(`the arbiter has (\d+) decisions of global durability`)
)

// shown is what a dry run shows.
type shown struct {
	plan, decisions, count, debits string
	gids                           []string
	text                           string
}

func (d *deployment) dryRun(more ...string) shown {
	d.t.Helper()
	tool := d.failover("east", "west", append([]string{"--dry-run"}, more...)...)
	if code := tool.ended(60 * time.Second); code != 0 {
		d.t.Fatalf("a dry run ended with %d:\n%s", code, tool.text())
	}
	s := shown{text: tool.text()}
	one := func(re *regexp.Regexp) []string {
		m := re.FindStringSubmatch(s.text)
		if m == nil {
			d.t.Fatalf("no %v in what a dry run shows:\n%s", re, s.text)
		}
		return m
	}
	s.plan, s.decisions = one(planLine)[1], one(countLine)[1]
	s.count, s.debits = one(heldLine)[1], one(heldLine)[2]
	for _, m := range tryLine.FindAllStringSubmatch(s.text, -1) {
		s.gids = append(s.gids, m[1])
	}
	slices.Sort(s.gids)
	return s
}

// TestTheExposureIsWhatIsHeldAndEverythingEndsByItsDurability loses a region whose decisions nobody has heard. What is shown is
// compared with what was done, and after the failover and the return every transaction has ended as its durability promises.
func TestTheExposureIsWhatIsHeldAndEverythingEndsByItsDurability(t *testing.T) {
	d := newDeployment(t)
	d.level(20 * time.Second)
	owners, c := d.epochs(), d.coord["east"].client()
	at, w := d.accounts.staying, d.accounts.west
	all := map[string]held{
		"abort":          d.hold(c, "abort", at[0], w[0], w[1], 11, "regional", owners),
		"commit":         d.hold(c, "commit", at[1], w[1], w[2], 13, "regional", owners),
		"half":           d.hold(c, "half", at[2], at[0], w[3], 7, "regional", owners), // its debit is in the lost region
		"decided":        d.hold(c, "decided", at[3], w[2], w[3], 17, "regional", owners),
		"undecided":      d.hold(c, "undecided", at[4], w[3], w[4], 19, "regional", owners),
		"evident":        d.hold(c, "evident", at[5], w[4], w[5], 23, "regional", owners),
		"global-decided": d.hold(c, "global-decided", at[1], at[1], w[0], 29, "global", owners),
		"global-open":    d.hold(c, "global-open", at[2], w[0], w[1], 31, "global", owners),
	}
	shop := d.openDTMShop()
	open, final := shop.hold(c, "open", at[3], w[1], client.Regional), shop.hold(c, "final", at[4], w[2], client.Global)
	// A coordinator's own tries say of what durability they are: this one hangs in another.
	hung := d.hang(c, at[5], w[2], w[4])
	all["global-hung"] = hung
	// From here on no event leaves the region, and no confirm of its coordinator arrives.
	d.broker["east"].kill()
	d.call(all["evident"].tx.Gid, all["evident"].tx.Branches[0], "confirm", "regional", owners)
	d.purse["west"].kill()
	shop.shut.Store(true)
	if s, err := stubborn(func(ctx context.Context) (client.State, error) { return c.Commit(ctx, final.Gid, client.Decided) }); err != nil || !s.Committed() {
		t.Fatalf("%s: %v %v", final.Gid, s.GetPhase(), err)
	}
	for _, name := range []string{"decided", "evident", "global-decided"} {
		if s, err := stubborn(func(ctx context.Context) (client.State, error) {
			return c.Commit(ctx, all[name].tx.Gid, client.Decided)
		}); err != nil || !s.Committed() {
			t.Fatalf("%s: %v %v", name, s.GetPhase(), err)
		}
	}
	// Nothing has ended, the shop's two neither; four are decided: those three and the shop's.
	last := lastWord{Open: len(all) + 2, Unpublished: 4}
	d.lastWordIs(last)
	d.coord["east"].kill()
	d.purse["east"].kill()
	d.again(d.purse, "west")
	d.lastWordIs(last)
	shop.shut.Store(false)

	d.exposureIsTrue(all, owners)
	d.endsByDurability(all)
	shop.ends(final.Gid, "confirm")
	if did := shop.did(open.Gid); did != "try" {
		t.Errorf("what is regional and stands at an unfenced participant alone did %q before the return", did)
	}
	d.revive("east")
	n := d.settle(60 * time.Second)
	t.Logf("%d were settled by an operator", n)
	d.endedAs(all, map[string]bool{"abort": false, "commit": true, "half": true, "decided": true, "undecided": false, "evident": true, "global-decided": true, "global-open": false, "global-hung": false})
	shop.ends(open.Gid, "cancel")
	if left := d.inDoubt("west"); len(left) > 0 {
		t.Errorf("in doubt after the return: %v", left)
	}
	more := map[string]int64{}
	for _, name := range []string{"commit", "half", "decided", "evident", "global-decided"} {
		more[all[name].from] -= all[name].amount
		more[all[name].to] += all[name].amount
	}
	(&load{d: d, stop: func() {}}).end(30*time.Second, more)
}

// lastWord is what the west says that the east said last of itself.
type lastWord struct{ Open, Unpublished int }

// lastWordIs waits until the upper bound of what is exposed is what was done.
func (d *deployment) lastWordIs(want lastWord) {
	d.t.Helper()
	var got lastWord
	for until := time.Now().Add(20 * time.Second); got != want; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(until) {
			d.t.Fatalf("the east's last word is %+v, true is %+v", got, want)
		}
		if resp, err := http.Get("http://" + d.coord["west"].addr.Admin + "/v1/region/exposure?origin=east"); err == nil {
			err = json.NewDecoder(resp.Body).Decode(&got)
			if resp.Body.Close(); err != nil {
				d.t.Fatal(err)
			}
		}
	}
}

// exposureIsTrue compares what a dry run shows with what is held, and sees that a consent is to what was shown and nothing else.
func (d *deployment) exposureIsTrue(all map[string]held, owners *slot.Map) {
	t := d.t
	t.Helper()
	was := d.written()
	truth := func() (gids []string, debits int64) {
		for _, x := range all {
			gids = append(gids, x.tx.Gid)
			if slices.Contains(d.accounts.west, x.from) && !strings.Contains(x.tx.Gid, "evident") { // its debit is posted
				debits += x.amount
			}
		}
		slices.Sort(gids)
		return gids, debits
	}
	same := func(s shown) {
		t.Helper()
		gids, debits := truth()
		st, err := d.state("west")
		if err != nil || st.Frozen["CNY"] != debits {
			t.Fatalf("west holds %v, %d were tried there: %v", st.Frozen, debits, err)
		}
		if !slices.Equal(s.gids, gids) || s.count != fmt.Sprint(len(gids)) || s.debits != fmt.Sprint(debits) || s.decisions != "2" || !strings.Contains(s.text, "unfenced: what is open at shop stays in doubt") {
			t.Errorf("shown: %s decisions, %s transactions, %s held, %v\ntrue: 2 decisions, %d held, %v\n%s", s.decisions, s.count, s.debits, s.gids, debits, gids, s.text)
		}
	}
	first := d.dryRun("--at-risk", "block")
	same(first)
	if want := fmt.Sprintf("%d transactions open, 4 decisions not published", len(all)+2); !strings.Contains(first.text, want) {
		t.Errorf("the bound at the last word is not %q:\n%s", want, first.text)
	}

	// One more try changes what is exposed.
	late := d.payment("late", d.accounts.staying[3], d.accounts.west[5], d.accounts.west[0], 37)
	for _, b := range late.Branches {
		d.call(late.Gid, b, "try", "regional", owners)
	}
	all["late"] = held{late, d.accounts.west[5], d.accounts.west[0], 37}
	void := d.failover("east", "west", "--at-risk", "block", "--fenced-by", "power", "--plan", first.plan)
	if code := void.ended(60 * time.Second); code == 0 || !strings.Contains(void.text(), "the consent is void") {
		t.Fatalf("with the plan of another exposure it ended with %d:\n%s", code, void.text())
	}
	second := d.dryRun("--at-risk", "block")
	same(second)
	wrong := d.tool("failover", "--from", "east", "--to", "west", "--at-risk", "block", "--fenced-by", "power", "--plan", second.plan, "--confirm-region", "west")
	if code := wrong.ended(60 * time.Second); code == 0 || !strings.Contains(wrong.text(), "--confirm-region") {
		t.Fatalf("with another region's name it ended with %d:\n%s", code, wrong.text())
	}
	if now := d.written(); now != was || *d.epochs() != *owners {
		t.Fatalf("the arbiter was written to by what shows or is refused: revision %d, then %d", was, now)
	}
	tool := d.failover("east", "west", "--at-risk", "block", "--fenced-by", "power", "--plan", second.plan)
	if code := tool.ended(60 * time.Second); code != 0 {
		t.Fatalf("the failover to a plan that stands ended with %d:\n%s", code, tool.text())
	}
}

// endsByDurability sees what the new owner ends by itself, and what it leaves in doubt until an operator speaks.
func (d *deployment) endsByDurability(all map[string]held) {
	t := d.t
	t.Helper()
	var want []string
	for _, name := range []string{"abort", "commit", "half", "decided", "undecided", "late"} {
		want = append(want, all[name].tx.Gid)
	}
	slices.Sort(want)
	var got []string
	eventually(t, 30*time.Second, "what is regional and proves nothing is in doubt", func() bool {
		got = d.inDoubt("west")
		return len(got) >= len(want)
	})
	if !slices.Equal(got, want) {
		t.Fatalf("in doubt are %v, not %v", got, want)
	}
	d.endedAs(all, map[string]bool{"evident": true, "global-decided": true, "global-open": false, "global-hung": false})
	// What is global and what is proved has its effects in the region that is left, and nothing of it is held.
	var frozen, debit int64
	for _, name := range []string{"abort", "commit", "decided", "undecided", "late"} {
		frozen += all[name].amount
	}
	eventually(t, 20*time.Second, "the effects of what has ended stand, and its holds are gone", func() bool {
		st, err := d.state("west")
		for _, a := range st.Accounts {
			if a.ID == all["global-decided"].from {
				debit = deposit - a.Total()
			}
		}
		return err == nil && st.Frozen["CNY"] == frozen && debit == all["global-decided"].amount
	})
	c := d.coord["west"].client()
	asks := map[string]func(context.Context, string) (client.State, error){
		"commit": func(ctx context.Context, gid string) (client.State, error) { return c.Commit(ctx, gid, client.Decided) },
		"abort": func(ctx context.Context, gid string) (client.State, error) {
			return c.Abort(ctx, gid, "no", client.Decided)
		},
	}
	for name, ask := range asks {
		_, err := stubborn(func(ctx context.Context) (client.State, error) { return ask(ctx, all["decided"].tx.Gid) })
		if err == nil || !strings.Contains(err.Error(), "lockstep tx resolve") {
			t.Errorf("a client's %s of one in doubt: %v", name, err)
		}
	}
	d.resolve(all["abort"].tx.Gid, "abort")
	d.resolve(all["late"].tx.Gid, "abort")
	d.resolve(all["commit"].tx.Gid, "commit")
	d.resolve(all["half"].tx.Gid, "commit")
	d.endedAs(all, map[string]bool{"abort": false, "late": false, "commit": true, "half": true})
	eventually(t, 20*time.Second, "nothing is held but of what is still in doubt", func() bool {
		st, err := d.state("west")
		return err == nil && st.Frozen["CNY"] == all["decided"].amount+all["undecided"].amount
	})
}

// endedAs waits until transactions have ended as they should.
func (d *deployment) endedAs(all map[string]held, want map[string]bool) {
	d.t.Helper()
	c := d.coord["west"].client()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		var s client.State
		for until := time.Now().Add(20 * time.Second); !s.Ended(); time.Sleep(20 * time.Millisecond) {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			s, _ = c.Get(ctx, all[name].tx.Gid) // asked again
			cancel()
			if !s.Ended() && time.Now().After(until) {
				out, err := d.lockstep("tx", "show", all[name].tx.Gid, "--admin-addr", d.coord["west"].addr.Admin)
				d.t.Fatalf("%s does not end: %v\n%s", name, err, out)
			}
		}
		if s.Committed() != want[name] || s.Aborted() == want[name] {
			d.t.Errorf("%s is %v, committed should be %v: %s", name, s.GetPhase(), want[name], s.GetReason())
		}
	}
}

// again starts a child once more.
func (d *deployment) again(of map[string]*child, r string) {
	of[r] = startChild(d.t, of[r].log, of[r].cmd.Path, of[r].cmd.Args[1:]...)
}
