package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// arbiterOff kills all members of the arbiter; arbiterOn starts them on their disks.
func (d *deployment) arbiterOff() {
	for _, m := range d.members {
		m.kill()
	}
}

func (d *deployment) arbiterOn() {
	d.t.Helper()
	for i, m := range d.members {
		d.members[i] = startChild(d.t, m.log, m.cmd.Path, m.cmd.Args[1:]...)
	}
	eventually(d.t, 30*time.Second, "the arbiter answers", func() bool {
		ctx, cancel := context.WithTimeout(d.t.Context(), 5*time.Second)
		defer cancel()
		_, err := d.arbiter().Owners(ctx)
		return err == nil
	})
}

// copyMembers copies the members' disks; they are off.
func (d *deployment) copyMembers(from, to string) {
	d.t.Helper()
	for _, name := range []string{"m0", "m1", "m2"} {
		dst := filepath.Join(to, name)
		err := os.RemoveAll(dst)
		if err == nil {
			err = os.CopyFS(dst, os.DirFS(filepath.Join(from, name)))
		}
		if err == nil {
			err = os.Chmod(dst, 0o700)
		}
		if err != nil {
			d.t.Fatal(err)
		}
	}
}

// TestAnArbiterFromABackupKnowsTheFailoverSince: the arbiter's disks are lost after a forced failover, and the backup is of before.
// West goes on with what it has heard; afterwards the slots are still its, at risk as they were, and what the lost region had is
// worked off when it returns.
func TestAnArbiterFromABackupKnowsTheFailoverSince(t *testing.T) {
	const opened, limit = 100, 50
	d := newDeployment(t)
	d.level(20 * time.Second)
	taken := map[int]bool{}
	for _, id := range append(append([]string{}, d.accounts.moving...), d.accounts.staying...) {
		taken[slot.Of(id)] = true
	}
	capped := d.openSmall(taken, opened, false)
	d.opened += opened
	backup := t.TempDir()
	d.arbiterOff()
	d.copyMembers(d.dir, backup)
	d.arbiterOn()

	pay := func(name string, amount int) client.State {
		t.Helper()
		c := d.coord["west"].client()
		return persist(t, 30*time.Second, func(ctx context.Context) (client.State, error) {
			return c.Execute(ctx, d.payment(name, capped, capped, d.accounts.west[0], amount), client.Settled)
		})
	}
	d.killRegion("east")
	if tool := d.failover("east", "west", "--fenced-by", "power", "--at-risk", "limit", "--cap", "50"); tool.ended(60*time.Second) != 0 {
		t.Fatal(tool.text())
	}
	if s := pay("before", 30); !s.Committed() {
		t.Fatal(s.GetPhase(), s.GetReason())
	}
	before := d.epochs()

	d.arbiterOff()
	d.copyMembers(backup, d.dir)
	d.arbiterOn()
	eventually(t, 20*time.Second, "west says that the arbiter is one of before", func() bool {
		return strings.Contains(d.coord["west"].log(), "it was restored from a backup")
	})
	if s := pay("meanwhile", 10); !s.Committed() {
		t.Fatalf("west does not go on with what it has heard: %v %s", s.GetPhase(), s.GetReason())
	}
	out, err := d.lockstep("region", "restored", "--context", d.file, "--without", "east")
	if err != nil || !strings.Contains(out, "512 slots had moved since the backup") {
		t.Fatalf("%v\n%s", err, out)
	}
	after := d.epochs()
	for n, o := range after {
		was := before[n]
		if o.Region != "west" || o.Epoch <= was.Epoch || o.Lost != was.Lost || o.Risk != was.Risk || (o.Seal == nil) != (was.Seal == nil) || was.Seal != nil && *o.Seal != *was.Seal {
			t.Fatalf("slot %d was %+v and is %+v", n, was, o)
		}
	}
	eventually(t, 20*time.Second, "payments at the new epochs", func() bool { return pay("after", 5).Committed() })
	if s := pay("more", limit-30-10-5+1); s.Committed() || !strings.Contains(s.GetReason(), "lost") {
		t.Fatalf("the cap is forgotten: %v %s", s.GetPhase(), s.GetReason())
	}
	d.revive("east")
	d.settle(60 * time.Second)
	d.level(60 * time.Second)
	if n := d.money("east", capped); n != opened-45 {
		t.Errorf("the account has %d, not %d", n, opened-45)
	}
}
