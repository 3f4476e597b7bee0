package barrier_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// shopTime is a clock that every transaction moves on by a minute, and knows which transactions are open.
type shopTime struct {
	mu   sync.Mutex
	now  time.Time
	made int
	open map[string]time.Time
}

func (s *shopTime) begin(slot int) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made++
	s.now = s.now.Add(time.Minute)
	gid := gidAt(s.now, slot)
	s.open[gid] = s.now
	return gid
}

func (s *shopTime) end(gid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, gid)
}

func (s *shopTime) look() (now time.Time, made int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now, s.made
}

// floors is what coordinators would say: the oldest open transaction, for every slot in use.
func (s *shopTime) floors(slots int) map[int]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	oldest := s.now
	for _, t := range s.open {
		if t.Before(oldest) {
			oldest = t
		}
	}
	out := map[int]int64{}
	for n := range slots {
		out[n] = oldest.UnixMilli()
	}
	return out
}

// Rule: however many transactions go by, the table holds those of the time that is kept, those that are open, and those that
// came while it was cleaned.
func TestTheTableStaysBoundedUnderLoad(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		const workers, slots, total, kept, rowsEach = 4, 3, 3000, 60, 3
		c := openCounter(t, d, barrier.Options{GidTime: gidTime})
		clock := &shopTime{now: time.UnixMilli(1_790_000_000_000), open: map[string]time.Time{}}
		o := barrier.CleanOptions{
			Keep: kept * time.Minute, Now: func() time.Time { now, _ := clock.look(); return now },
			Floors: func(context.Context) (map[int]int64, error) { return clock.floors(slots), nil },
		}
		var load sync.WaitGroup
		for w := range workers {
			load.Go(func() {
				for i := range total / workers {
					gid := clock.begin((w + i) % slots)
					for _, op := range []string{"try", "confirm"} {
						for attempt := 0; ; attempt++ { // as a coordinator repeats what was not answered with success
							_, err := c.b.Do(t.Context(), call("tcc", gid, op, 1), c.effect(op))
							if err == nil {
								break
							}
							if attempt == 50 {
								t.Errorf("%s of %s: %v", op, gid, err)
								break
							}
						}
					}
					clock.end(gid)
				}
			})
		}
		done := make(chan struct{})
		go func() { load.Wait(); close(done) }()
		most := 0
		for loading := true; loading; {
			select {
			case <-done:
				loading = false
			default:
			}
			_, before := clock.look()
			if _, err := c.b.Clean(t.Context(), o); err != nil && !deadlock(err) {
				t.Fatal(err)
			} else if err != nil {
				continue
			}
			n := c.rows(t)
			_, after := clock.look()
			if limit := rowsEach * (kept + 2*workers + after - before); n > limit {
				t.Errorf("after %d transactions there are %d rows, want %d at most", after, n, limit)
			}
			most = max(most, n)
		}
		if n := c.rows(t); n > rowsEach*(kept+workers) {
			t.Errorf("in the end there are %d rows of the last %d transactions", n, kept)
		}
		if got := c.effects(t, "confirm"); got != total {
			t.Errorf("%d of %d confirms ran", got, total)
		}
		t.Logf("%d transactions, %d rows at most", total, most)
	})
}
