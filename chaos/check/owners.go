package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// ownKeys is where the arbiter has the slots' owners.
const ownKeys = "/lockstep-arbiter/1/own/"

// Owned is what was written of a slot's owner at a revision of the arbiter's etcd; Region "" where it was removed.
type Owned struct {
	Slot     int    `json:"slot"`
	Revision int64  `json:"revision"`
	Region   string `json:"region"`
	Epoch    int64  `json:"epoch"`
}

// ReadOwners reads everything that was written of slots' owners, in the order in which it was: from the first revision, or from the
// oldest one that the arbiter still keeps.
func ReadOwners(ctx context.Context, endpoints []string) (out []Owned, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*lookLimit)
	defer cancel()
	cli, err := dial(endpoints...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cli.Close()) }()
	got, err := cli.Get(ctx, ownKeys, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	last := int64(0)
	for _, kv := range got.Kvs {
		last = max(last, kv.ModRevision)
	}
	for from := int64(1); last > 0; {
		again := int64(0)
		for resp := range cli.Watch(ctx, ownKeys, clientv3.WithPrefix(), clientv3.WithRev(from)) {
			if errors.Is(resp.Err(), rpctypes.ErrCompacted) {
				again = resp.CompactRevision
				break
			}
			if resp.Err() != nil {
				return nil, resp.Err()
			}
			for _, e := range resp.Events {
				o := Owned{Revision: e.Kv.ModRevision}
				if o.Slot, err = strconv.Atoi(strings.TrimPrefix(string(e.Kv.Key), ownKeys)); err != nil {
					return nil, err
				}
				if e.Type == clientv3.EventTypePut {
					if err := json.Unmarshal(e.Kv.Value, &o); err != nil {
						return nil, fmt.Errorf("%s: %w", e.Kv.Key, err)
					}
				}
				out = append(out, o)
			}
			if len(out) > 0 && out[len(out)-1].Revision >= last {
				return out, nil
			}
		}
		if again <= from {
			return nil, fmt.Errorf("the owners are written up to revision %d, and the watch of them ended: %w", last, ctx.Err())
		}
		from = again
	}
	return nil, nil
}

// ReadMoving counts the slots that are on their way from one region to another.
func ReadMoving(ctx context.Context, endpoints []string) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	cli, err := dial(endpoints...)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, cli.Close()) }()
	got, err := cli.Get(ctx, ownKeys, clientv3.WithPrefix())
	if err != nil {
		return 0, err
	}
	for _, kv := range got.Kvs {
		var o struct {
			To string `json:"to"`
		}
		if err := json.Unmarshal(kv.Value, &o); err != nil {
			return 0, fmt.Errorf("%s: %w", kv.Key, err)
		}
		if o.To != "" {
			n++
		}
	}
	return n, nil
}

// owners (I14, the register of a slot's owner and epoch): epochs only grow, each is one region's alone, no slot loses its owner, and no call
// was made at an epoch that the arbiter never gave.
func (v *view) owners(r *Result) {
	last, first := map[int]Owned{}, map[int]int64{}
	of, given := map[[2]int64]string{}, map[[2]int64]bool{}
	for _, o := range v.Owned {
		r.Examined++
		if o.Region == "" {
			r.bad("slot %d has no owner any more at revision %d", o.Slot, o.Revision)
			continue
		}
		was, known := last[o.Slot]
		if !known {
			first[o.Slot] = o.Epoch
		}
		if known && o.Epoch < was.Epoch {
			r.bad("slot %d: epoch %d of %s was written after %d of %s", o.Slot, o.Epoch, o.Region, was.Epoch, was.Region)
		}
		key := [2]int64{int64(o.Slot), o.Epoch}
		if other, used := of[key]; used && other != o.Region {
			r.bad("slot %d: epoch %d is %s's and had been %s's", o.Slot, o.Epoch, o.Region, other)
		}
		last[o.Slot], of[key], given[key] = o, o.Region, true
	}
	told := map[[2]int64]bool{}
	for _, c := range v.Calls {
		key := [2]int64{int64(c.Slot), c.Epoch}
		oldest, known := first[c.Slot]
		if !known || c.Epoch < oldest || told[key] {
			continue // of before the oldest revision that the arbiter keeps
		}
		told[key] = true
		r.Examined++
		if !given[key] {
			r.bad("%s: a %s of %s came at epoch %d, which the arbiter never gave slot %d", c.Region, c.Op, c.Key(), c.Epoch, c.Slot)
		}
	}
}
