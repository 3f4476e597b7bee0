package sweep

import (
	"testing"
	"time"
)

// TestALookMeetsWhatIsAwaited: a seed's transaction that is older than a look usually goes back is in it, until its time is over.
func TestALookMeetsWhatIsAwaited(t *testing.T) {
	now := time.Now()
	w := &world{o: Options{Limit: time.Minute}}
	if got := w.since(now); got != lookBack {
		t.Errorf("%v without seeds", got)
	}
	planted := func(ago time.Duration) *Seed {
		return &Seed{class: &class{}, AgeMillis: 14_000, Injected: now.Add(-ago)}
	}
	w.seeds = []*Seed{planted(5 * time.Second), planted(50 * time.Second)}
	if got := w.since(now); got < 64*time.Second {
		t.Errorf("%v, and a transaction of 64 s is awaited", got)
	}
	w.seeds[1].Clean = now
	if got := w.since(now); got != lookBack {
		t.Errorf("%v, and nothing old is awaited", got)
	}
	w.seeds[1] = planted(time.Hour)
	if got := w.since(now); got != lookBack {
		t.Errorf("%v for a seed that was given up", got)
	}
}
