package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// inDoubt finds the gids of this package's loads in a table.
var inDoubt = regexp.MustCompile(`\{acct\d+\}[^\s']+`)

// wipe removes everything that a dead region had on its disks.
func (d *deployment) wipe(r string) {
	d.t.Helper()
	args := d.coord[r].args
	data := args[slices.Index(args, "--data-dir")+1]
	paths, err := filepath.Glob(filepath.Join(d.dir, r+".db*"))
	for _, path := range append(paths, filepath.Join(d.dir, "b"+r), data) {
		if err == nil {
			err = os.RemoveAll(path)
		}
	}
	if err == nil {
		err = os.MkdirAll(data, 0o700)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// open opens all accounts at a region's wallets, as an operator does from the first backup.
func (d *deployment) open(r string) {
	d.t.Helper()
	for _, id := range slices.Concat(d.accounts.moving, d.accounts.staying, d.accounts.west) {
		eventually(d.t, 20*time.Second, "the account is opened", func() bool {
			resp, err := http.Post(d.wallet[r]+"/accounts", "application/json", strings.NewReader(fmt.Sprintf(`{"id":%q,"balance":%d}`, id, deposit)))
			if err != nil {
				return false
			}
			resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		})
	}
}

// TestARegionIsRebuiltFromNothing: a region's disks are all gone, the broker's too; its wallets have what they were opened with.
func TestARegionIsRebuiltFromNothing(t *testing.T) {
	d := newDeployment(t)
	l := d.pay(3)
	eventually(t, 30*time.Second, "payments run", func() bool { return l.count() > 100 })
	d.killRegion("east")
	tool := d.failover("east", "west", "--fenced-by", "power", "--at-risk", "limit", "--cap", "100000")
	if code := tool.ended(60 * time.Second); code != 0 {
		t.Fatalf("the failover ended with %d:\n%s", code, tool.text())
	}
	before := l.count()
	eventually(t, 60*time.Second, "payments go on", func() bool { return l.count() > before+100 })
	d.wipe("east")
	for _, of := range []map[string]*child{d.broker, d.purse} {
		of["east"] = startChild(d.t, of["east"].log, of["east"].cmd.Path, of["east"].cmd.Args[1:]...)
	}
	d.open("east")
	d.coord["east"].restart()
	a := d.arbiter()
	lost := func() (n int) {
		m, err := a.Owners(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range m {
			if o.Lost != 0 {
				n++
			}
		}
		return n
	}
	eventually(t, 30*time.Second, "its coordinator says that its store is empty", func() bool {
		return strings.Contains(d.coord["east"].log(), "was it started with empty disks?")
	})
	if n := lost(); n != slot.Count/2 {
		t.Errorf("%d slots are by force before anybody gave up what east alone had", n)
	}
	lockstep := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(program, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	lockstep("region", "settle", "--from", "east", "--confirm-region", "east", "--why", "its disks are gone", "--context", d.file)
	if n := lost(); n != 0 {
		t.Errorf("%d slots are by force after it was given up", n)
	}
	// Nobody is left who knows what became of what is in doubt; no client was told anything of it.
	doubt := 0
	eventually(t, 60*time.Second, "nothing is in doubt", func() bool {
		admin := d.coord["west"].addr.Admin
		gids := inDoubt.FindAllString(lockstep("tx", "list", "--in-doubt", "--admin-addr", admin), -1)
		slices.Sort(gids)
		for _, gid := range slices.Compact(gids) {
			lockstep("tx", "resolve", gid, "--abort", "--reason", "the disks of east are gone", "--admin-addr", admin)
			doubt++
		}
		return len(gids) == 0
	})
	back := d.tool(d.move("failback", "west", "east", "--max-lag", "60s", "--pause", "100ms")...)
	if code := back.ended(120 * time.Second); code != 0 {
		t.Fatalf("the failback ended with %d:\n%s", code, back.text())
	}
	t.Logf("%d transactions were in doubt", doubt)
	l.stop()
	l.wg.Wait()
	d.fromNothing(l)
}

// unknownPosting is a finding that a participant has posted what no region knows.
type unknownPosting struct {
	Class, Region, Participant, Account, Status string
	Evidence                                    struct {
		Amount int64
		Debit  bool
	}
}

// fromNothing checks what stands after a region was rebuilt: its books are, account by account, what the payments that are known
// did; the other region's are that and what drift names: what the lost region alone had committed, told its client, and told
// that region's wallets.
func (d *deployment) fromNothing(l *load) {
	t := d.t
	t.Helper()
	want := map[string]int64{d.accounts.staying[0]: -1, d.accounts.west[0]: -1, d.accounts.moving[0]: 2} // the payments of the beginning
	paid, gone := l.known()                                                                              // regional durability: what is gone went with the disks
	for _, effect := range paid {
		for id, v := range effect {
			want[id] += v
		}
	}
	named := map[string]int64{}
	last := ""
	defer func() {
		if t.Failed() {
			t.Log(last)
		}
	}()
	eventually(t, 60*time.Second, "both regions have what is known, and drift names the rest", func() bool {
		out, err := exec.Command(program, "drift", "run", "--context", d.file, "--since", "15m", "-o", "json").Output()
		clear(named)
		for line := range strings.Lines(string(out)) {
			var f unknownPosting
			if json.Unmarshal([]byte(line), &f) != nil || f.Class == "" {
				continue
			}
			if f.Class != "D14" || f.Region != "west" || f.Participant != "wallet" || f.Status != "quarantined" {
				t.Fatalf("drift found %s", line)
			}
			if f.Evidence.Debit {
				f.Evidence.Amount = -f.Evidence.Amount
			}
			named[f.Account] += f.Evidence.Amount
		}
		east, err2 := d.state("east")
		west, err3 := d.state("west")
		if errors.Join(err2, err3) != nil || east.Open+west.Open > 0 {
			return false
		}
		wrong := ""
		for i, a := range east.Accounts {
			if b := west.Accounts[i]; strings.HasPrefix(a.ID, "acct") && (a.Total() != deposit+want[a.ID] || b.ID != a.ID || b.Total() != a.Total()+named[a.ID]) {
				wrong += fmt.Sprintf("%s: %d in east, %d in west, payments make %d, drift names %d; ", a.ID, a.Total(), b.Total(), deposit+want[a.ID], named[a.ID])
			}
		}
		last = fmt.Sprintf("%v %s\n%s", err, wrong, out)
		return wrong == "" && len(east.Faults)+len(west.Faults) == 0
	})
	t.Logf("%d payments asked for, %d told committed, of which %d went with the disks; drift names what they left at %d accounts", len(l.tried), len(l.ok), len(gone), len(named))
	if len(named) > 0 && len(gone) == 0 {
		t.Error("drift names what no payment did")
	}
}
