package e2e

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// TestAForcedFailoverIsRehearsedOnALivingDeployment takes slots by force from a region that lives, under load: what it would
// have lost is told and handed back, the slots go home, and every payment has its effects once.
func TestAForcedFailoverIsRehearsedOnALivingDeployment(t *testing.T) {
	d := newDeployment(t)
	l := d.pay(3)
	eventually(t, 30*time.Second, "payments run", func() bool { return l.count() > 100 })
	before := d.epochs()
	args := d.move("drill", "east", "west", "--forced", "--batch", "32", "--deadline", "30s")
	if dry := d.tool(append(args, "--dry-run")...); dry.ended(30*time.Second) != 0 || !strings.Contains(dry.text(), "nothing was written") || *d.epochs() != *before {
		t.Fatalf("a dry run:\n%s", dry.text())
	}
	drill := d.tool(args...)
	if code := drill.ended(150 * time.Second); code != 0 {
		t.Fatalf("the drill ended with %d:\n%s", code, drill.text())
	}
	t.Log(drill.text())
	if !regexp.MustCompile(`against what east had: \d+ decisions were past the seals`).MatchString(drill.text()) || !strings.Contains(drill.text(), "first success after") {
		t.Errorf("it does not say what it would have lost, or how long it took:\n%s", drill.text())
	}
	after := d.epochs()
	for n := 0; n < movingSlots; n += 2 {
		if o := after[n]; o.Region != "east" || o.Status != slot.Active || o.Epoch <= before[n].Epoch+100 || o.Lost != 0 {
			t.Fatalf("slot %d was %+v and is %+v: it was not taken and given back", n, before[n], o)
		}
	}
	for n := 64; n < slot.Count; n++ {
		if after[n].Epoch != before[n].Epoch {
			t.Fatalf("slot %d was not asked for and is %+v", n, after[n])
		}
	}
	l.endUnsure(60*time.Second, nil)
}
