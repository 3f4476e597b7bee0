package redisbarrier

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/region/slot"
)

var raiseFloor = redis.NewScript(`
local floor = redis.call('HGET', KEYS[1], 'floor')
if not floor then
	return redis.error_reply('no fence ' .. KEYS[1])
end
if tonumber(floor) < tonumber(ARGV[1]) then
	redis.call('HSET', KEYS[1], 'floor', ARGV[1])
end
return 'OK'
`)

// Clean forgets marks that nobody can ask for any more: of gids that carry their time, at or below a floor of their slot
// that is raised first; see barrier.Barrier's Clean. Marks of other gids expire by themselves, so that KeepUntimed of o
// says nothing here and Cleaned.Untimed is 0. It walks through all keys of the database with SCAN, o.Batch at a time, and
// may be interrupted at any point and run again.
func (b *Barrier) Clean(ctx context.Context, o barrier.CleanOptions) (barrier.Cleaned, error) {
	var done barrier.Cleaned
	if o.Floors == nil || b.options.GidTime == nil {
		return done, fmt.Errorf("%w: cleaning needs CleanOptions.Floors and Options.GidTime", barrier.ErrInvalid)
	}
	if o.Keep <= 0 {
		o.Keep = 24 * time.Hour
	}
	if o.Batch <= 0 {
		o.Batch = 500
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	unfinished, err := o.Floors(ctx)
	if err != nil {
		return done, fmt.Errorf("clean Redis barrier: ask for the floors: %w", err)
	}
	floors := maps.Clone(unfinished)
	for n, oldest := range floors {
		floors[n] = min(oldest-1, o.Now().Add(-o.Keep).UnixMilli())
	}
	raised := map[int]bool{}
	for cursor := uint64(0); ; {
		var keys []string
		keys, cursor, err = b.client.Scan(ctx, cursor, slot.GidPrefix+"*", int64(o.Batch)).Result()
		if err != nil {
			return done, fmt.Errorf("clean Redis barrier: %w", err)
		}
		var ended []string
		for _, key := range keys {
			gid, ok := gidOf(key)
			if !ok {
				continue
			}
			ms, ok := b.options.GidTime(gid)
			n := barrier.SlotOf(gid)
			floor, known := floors[n]
			if !ok || !known || ms > floor {
				continue
			}
			if !raised[n] {
				if err := raiseFloor.Run(ctx, b.client, []string{b.options.fence(n)}, floor).Err(); err != nil {
					return done, fmt.Errorf("clean Redis barrier: raise the floor of slot %d: %w", n, err)
				}
				raised[n] = true
				done.Raised++
			}
			ended = append(ended, key)
		}
		if len(ended) > 0 {
			n, err := b.client.Unlink(ctx, ended...).Result()
			if err != nil {
				return done, fmt.Errorf("clean Redis barrier: %w", err)
			}
			done.Timed += int(n)
		}
		if cursor == 0 {
			return done, nil
		}
	}
}

// gidOf takes a mark's name apart, from its end: a gid may have hyphens, the rest has none.
func gidOf(key string) (string, bool) {
	parts := strings.Split(key, "-")
	n := len(parts)
	if n < 4 || len(parts[n-1]) != 2 || strings.Trim(parts[n-1], "0123456789") != "" || slices.Contains(parts[n-3:], "") {
		return "", false
	}
	return strings.Join(parts[:n-3], "-"), true
}
