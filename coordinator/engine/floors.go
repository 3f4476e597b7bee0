package engine

import (
	"context"
	"errors"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// Floors gives, for every slot that this process certainly holds, the time in milliseconds since 1970 of its oldest
// unfinished transaction whose gid carries a time, or the present where there is none: what is older has ended, and
// participants may forget it. A slot whose term does not stand any more, by the store's own word, is left out, and so is
// one with a record that cannot be read: nobody knows how old the transaction is that it holds, or whether it has ended.
func (r *Runner) Floors(ctx context.Context) (map[int]int64, error) {
	floors := map[int]int64{}
	var guards []Guard
	limit := 0
	err := r.Ask(ctx, func(c *Core, at int64) {
		limit = c.lim.BatchOps
		unread := map[int]bool{}
		for gid := range c.poison {
			unread[slot.Of(string(gid))] = true
		}
		for _, n := range c.Held() {
			hs := c.slots[n]
			if !hs.ready || unread[n] {
				continue
			}
			oldest := at
			for gid, e := range hs.txs {
				if t, ok := slot.TimeOf(string(gid)); ok && !e.journal {
					oldest = min(oldest, t.UnixMilli())
				}
			}
			floors[n] = oldest
			guards = append(guards, Guard{Slot: n, Term: hs.term})
		}
	})
	if err != nil {
		return nil, err
	}
	for len(guards) > 0 {
		part := guards[:min(len(guards), limit)]
		var fenced *FencedError
		switch err := r.store.Commit(ctx, &Batch{Guards: part}); {
		case errors.As(err, &fenced):
			for _, n := range fenced.Slots {
				delete(floors, n)
			}
			if len(fenced.Slots) == 0 {
				return nil, err
			}
			guards = notOf(guards, fenced.Slots)
			continue
		case err != nil:
			return nil, err
		}
		guards = guards[len(part):]
	}
	return floors, nil
}

func notOf(guards []Guard, slots []int) []Guard {
	gone := map[int]bool{}
	for _, n := range slots {
		gone[n] = true
	}
	var left []Guard
	for _, g := range guards {
		if !gone[g.Slot] {
			left = append(left, g)
		}
	}
	return left
}
