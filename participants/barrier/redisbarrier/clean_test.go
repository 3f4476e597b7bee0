//go:build servers

package redisbarrier_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/barrier/redisbarrier"
	"github.com/lockstep-tx/lockstep/region/slot"
)

func gidTime(gid string) (int64, bool) {
	at, ok := slot.TimeOf(gid)
	return at.UnixMilli(), ok
}

func gidAt(at time.Time, n int) string { return slot.NewGid(at, func(m int) bool { return m == n }) }

// Rule: marks of gids that carry a time go by cleaning alone, at or below a floor that was raised before, which passes
// no unfinished transaction; what is below it is not taken for new. Others live for the time documented.
func TestExpiryAndCleaning(t *testing.T) {
	f := open(t, redisbarrier.Options{GidTime: gidTime})
	ctx, now := t.Context(), time.UnixMilli(1_790_000_000_000)
	old, unfinished, behind, unknown, other := gidAt(now.Add(-50*time.Hour), 1), gidAt(now.Add(-40*time.Hour), 1), gidAt(now.Add(-30*time.Hour), 1),
		gidAt(now.Add(-50*time.Hour), 2), gidAt(now.Add(-30*time.Hour), 3)
	for i, gid := range []string{old, unfinished, behind, unknown, other, "untimed"} {
		f.do(t, call("tcc", gid, "try", 1), barrier.Done, nil, i+1)
	}
	if ttl := f.client.TTL(ctx, old+"-01-try-01").Val(); ttl != -1 {
		t.Errorf("a timed mark expires in %s", ttl)
	}
	if ttl := f.client.TTL(ctx, f.name+"untimed-01-try-01").Val(); ttl < 30*24*time.Hour-time.Minute || ttl > 30*24*time.Hour {
		t.Errorf("an untimed mark expires in %s", ttl)
	}
	o := barrier.CleanOptions{Batch: 20, Now: func() time.Time { return now }, Floors: func(context.Context) (map[int]int64, error) {
		ms, _ := gidTime(unfinished)
		return map[int]int64{1: ms, 3: now.UnixMilli()}, nil
	}}
	done, err := f.b.Clean(ctx, o)
	if err != nil || done != (barrier.Cleaned{Timed: 2, Raised: 2}) {
		t.Fatalf("%+v, %v", done, err)
	}
	f.do(t, call("tcc", old, "try", 1), barrier.Unknown, barrier.ErrRefused, 6)
	for _, op := range []string{"confirm", "cancel"} {
		if got, err := f.b.Do(ctx, call("tcc", old, op, 1), f.effect(op)); got != barrier.Unknown || err == nil || errors.Is(err, barrier.ErrRefused) || f.effects(t, op) != 0 {
			t.Errorf("%s: %s, %v", op, got, err)
		}
	}
	f.do(t, call("tcc", unfinished, "try", 1), barrier.Repeated, nil, 6)
	f.do(t, call("tcc", unfinished, "confirm", 1), barrier.Done, nil, 1)
	f.do(t, call("tcc", behind, "confirm", 1), barrier.Done, nil, 2)
	f.do(t, call("tcc", unknown, "try", 1), barrier.Repeated, nil, 6)
	if done, err = f.b.Clean(ctx, o); err != nil || done != (barrier.Cleaned{}) {
		t.Errorf("again: %+v, %v", done, err)
	}
	for _, gid := range []string{unfinished, behind, unknown} { // the database is shared with later runs
		f.client.Del(ctx, gid+"-01-try-01", gid+"-01-confirm-01")
	}
	if _, err := f.b.Clean(ctx, barrier.CleanOptions{}); !errors.Is(err, barrier.ErrInvalid) {
		t.Error(err)
	}
}
