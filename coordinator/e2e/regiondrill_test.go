package e2e

import (
	"regexp"
	"strconv"
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
	// Without its Kafka the east tells nobody what it decides: all of it is past the seals.
	moved := func(gids map[string]map[string]int64) (n int) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for gid := range gids {
			if s := slot.Of(gid); s < movingSlots && s%2 == 0 {
				n++
			}
		}
		return n
	}
	known := moved(l.ok)
	time.Sleep(time.Second) // what is known by now is published
	cut := time.Now()
	d.broker["east"].kill()
	published := moved(l.tried)
	eventually(t, 30*time.Second, "the east pays on", func() bool { return moved(l.ok) >= published+10 })
	least := moved(l.ok) - published
	began := time.Now()
	drill := d.tool(args...)
	eventually(t, 60*time.Second, "the slots are taken", func() bool {
		select {
		case <-drill.done:
			t.Fatalf("the drill ended:\n%s", drill.text())
		default:
		}
		m := d.epochs()
		for n := 0; n < movingSlots; n += 2 {
			if m[n].Region != "west" || m[n].Status != slot.Active {
				return false
			}
		}
		return true
	})
	most, longest := moved(l.tried)-known, time.Since(cut)+time.Second
	d.again(d.broker, "east")
	if code := drill.ended(150 * time.Second); code != 0 {
		t.Fatalf("the drill ended with %d:\n%s", code, drill.text())
	}
	t.Log(drill.text())
	says := regexp.MustCompile(`against what east had: (\d+) decisions were past the seals, the oldest of them made (\d+) ms before`).FindStringSubmatch(drill.text())
	if says == nil || !strings.Contains(drill.text(), "first success after") {
		t.Fatalf("it does not say what it would have lost, or how long it took:\n%s", drill.text())
	}
	if lost, err := strconv.Atoi(says[1]); err != nil || lost < least || lost > most {
		t.Errorf("it says that %s decisions would have been lost (%v); by what clients know it is %d to %d", says[1], err, least, most)
	} else {
		t.Logf("%d decisions would have been lost; by what clients know %d to %d", lost, least, most)
	}
	// The first of them was made before the drill began, and none before the Kafka was away.
	if ms, err := strconv.Atoi(says[2]); err != nil || time.Duration(ms)*time.Millisecond > longest || ms <= 0 {
		t.Errorf("it says that the oldest was made %s ms before the slots were taken (%v); Kafka was away for %v at most, %v of it before the drill", says[2], err, longest, began.Sub(cut))
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
