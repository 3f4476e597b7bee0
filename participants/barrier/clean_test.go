package barrier_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/region/slot"
)

func gidTime(gid string) (int64, bool) {
	t, ok := slot.TimeOf(gid)
	return t.UnixMilli(), ok
}

// gidAt is a new gid of that time in slot n.
func gidAt(at time.Time, n int) string {
	return slot.NewGid(at, func(m int) bool { return m == n })
}

// Rule: rows go only at or below a floor that was raised before, which passes no unfinished transaction; what is below it
// is not taken for new.
func TestCleaning(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		ctx := context.Background()
		now := time.UnixMilli(1_790_000_000_000)
		c := openCounter(t, d, barrier.Options{GidTime: gidTime})
		old, open, behind, young, unknown, other := gidAt(now.Add(-50*time.Hour), 1), gidAt(now.Add(-40*time.Hour), 1), gidAt(now.Add(-30*time.Hour), 1),
			gidAt(now.Add(-time.Hour), 1), gidAt(now.Add(-50*time.Hour), 2), gidAt(now.Add(-30*time.Hour), 3)
		for i, gid := range []string{old, open, behind, young, unknown, other, "untimed"} {
			c.do(t, call("tcc", gid, "try", 1), barrier.Done, nil, i+1)
		}
		o := barrier.CleanOptions{
			Now: func() time.Time { return now }, Batch: 2,
			Floors: func(context.Context) (map[int]int64, error) {
				ms, _ := gidTime(open)
				return map[int]int64{1: ms, 3: now.UnixMilli()}, nil
			},
		}
		done, err := c.b.Clean(ctx, o)
		if err != nil || done != (barrier.Cleaned{Timed: 2, Raised: 2}) {
			t.Fatalf("%+v, %v", done, err)
		}
		left := map[string]bool{}
		rows, err := c.db.Query(c.sql(`SELECT gid FROM {barrier}`))
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var gid string
			if err := rows.Scan(&gid); err != nil {
				t.Fatal(err)
			}
			left[gid] = true
		}
		if rows.Close(); len(left) != 5 || left[old] || left[other] {
			t.Fatalf("left: %v", left)
		}
		// What was cleaned does not run again; what was not goes on.
		c.do(t, call("tcc", old, "try", 1), barrier.Unknown, barrier.ErrRefused, 7)
		for _, op := range []string{"confirm", "cancel"} {
			if got, err := c.b.Do(ctx, call("tcc", old, op, 1), c.effect(op)); got != barrier.Unknown || err == nil || errors.Is(err, barrier.ErrRefused) || c.effects(t, op) != 0 {
				t.Errorf("%s: %s, %v", op, got, err)
			}
		}
		c.do(t, call("tcc", open, "try", 1), barrier.Repeated, nil, 7)
		c.do(t, call("tcc", open, "confirm", 1), barrier.Done, nil, 1)
		c.do(t, call("tcc", behind, "confirm", 1), barrier.Done, nil, 2)
		c.do(t, call("tcc", gidAt(now.Add(-35*time.Hour), 1), "try", 1), barrier.Done, nil, 8) // above the floor
		if done, err = c.b.Clean(ctx, o); err != nil || done != (barrier.Cleaned{}) {
			t.Errorf("again: %+v, %v", done, err)
		}
	})
}

// monthAgo is more than 30 days ago, by the server's clock.
var monthAgo = map[barrier.Dialect]string{
	barrier.SQLite:     `datetime('now', '-31 days')`,
	barrier.PostgreSQL: `now() - interval '31 days'`,
	barrier.MySQL:      `now() - interval 31 day`,
}

// Rule: rows of gids that carry no time go by their age.
func TestCleaningOfUntimedRows(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		ctx := context.Background()
		c := openCounter(t, d, barrier.Options{GidTime: gidTime})
		for i := range 7 {
			c.do(t, call("tcc", fmt.Sprintf("g%d", i), "try", 1), barrier.Done, nil, i+1)
		}
		c.exec(t, `UPDATE {barrier} SET create_time = `+monthAgo[d]+` WHERE gid < 'g5'`)
		o := barrier.CleanOptions{Batch: 2, Floors: func(context.Context) (map[int]int64, error) { return nil, nil }}
		done, err := c.b.Clean(ctx, o)
		if n := c.rows(t); err != nil || done != (barrier.Cleaned{Untimed: 5}) || n != 2 {
			t.Errorf("%+v, %v, %d rows left", done, err, n)
		}
	})
}

// deadlock says that the call is to be repeated: on MySQL two inserts of a row that a third is just deleting deadlock.
func deadlock(err error) bool { return strings.Contains(err.Error(), "Deadlock") }

// Rule (G5): repeats that race with a cleaning whose floors rise are refused or repeated, and never run again.
func TestCleaningRacesWithRepeats(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		p := freshPlace(t, d)
		start := time.UnixMilli(1_790_000_000_000)
		o := barrier.Options{GidTime: gidTime}
		const gids = 60
		var all []string
		for i := range gids {
			all = append(all, gidAt(start.Add(time.Duration(i)*time.Minute), i%3))
		}
		var wg sync.WaitGroup
		for range 3 {
			c := p.open(t, o)
			wg.Go(func() {
				for n := range gids { // each gid several times, while the floors pass it
					for _, gid := range all[max(0, n-6) : n+1] {
						got, err := c.b.Do(context.WithoutCancel(t.Context()), call("tcc", gid, "try", 1), p.effect(gid))
						if err != nil && !errors.Is(err, barrier.ErrRefused) && !deadlock(err) {
							t.Errorf("%s: %s, %v", gid, got, err)
						}
					}
				}
			})
		}
		cleaner := p.open(t, o)
		wg.Go(func() {
			for n := range gids {
				floor := start.Add(time.Duration(n) * time.Minute)
				if _, err := cleaner.b.Clean(context.WithoutCancel(t.Context()), barrier.CleanOptions{
					Now: func() time.Time { return floor.Add(24 * time.Hour) }, Batch: 7,
					Floors: func(context.Context) (map[int]int64, error) {
						ms := floor.UnixMilli()
						return map[int]int64{0: ms, 1: ms, 2: ms}, nil
					},
				}); err != nil && !deadlock(err) {
					t.Errorf("clean: %v", err)
				}
			}
		})
		wg.Wait()
		for _, gid := range all {
			if n := cleaner.effects(t, gid); n > 1 {
				t.Errorf("%s ran %d times", gid, n)
			}
		}
	})
}

// Rule: without the holders' word nothing is cleaned.
func TestCleaningNeedsFloors(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		ctx := context.Background()
		c := openCounter(t, d, barrier.Options{GidTime: gidTime})
		c.do(t, call("tcc", gidAt(time.UnixMilli(1), 1), "try", 1), barrier.Done, nil, 1)
		if _, err := c.b.Clean(ctx, barrier.CleanOptions{}); !errors.Is(err, barrier.ErrInvalid) {
			t.Error(err)
		}
		down := errors.New("nobody answers")
		if _, err := c.b.Clean(ctx, barrier.CleanOptions{Floors: func(context.Context) (map[int]int64, error) { return nil, down }}); !errors.Is(err, down) {
			t.Error(err)
		}
		if n := c.rows(t); n != 1 {
			t.Errorf("%d rows left", n)
		}
	})
}

func TestFloorsFromCoordinators(t *testing.T) {
	serve := func(status int, body string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v1/floors" || r.Header.Get("Authorization") != "Bearer secret" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	a, b := serve(200, `{"floors":{"1":100,"2":200}}`), serve(200, `{"floors":{"2":150,"3":300}}`)
	down, odd := serve(503, "not ready"), serve(200, `{"floors":{"1024":1}}`)
	got, err := barrier.FloorsFrom([]string{a, down, b + "/", odd}, "secret", nil)(context.Background())
	if err != nil || !maps.Equal(got, map[int]int64{1: 100, 2: 150, 3: 300}) {
		t.Errorf("%v, %v", got, err)
	}
	for name, urls := range map[string][]string{"down": {down}, "odd": {odd}, "none": {}} {
		if got, err := barrier.FloorsFrom(urls, "secret", nil)(context.Background()); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
	if _, err := barrier.FloorsFrom([]string{a}, "wrong", nil)(context.Background()); err == nil {
		t.Error("a wrong token was taken")
	}
}
