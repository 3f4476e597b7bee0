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

// Owned is a slot's owner as it was written once in the arbiter; Region "" where it was removed.
type Owned struct {
	Slot     int    `json:"slot"`
	Region   string `json:"region"`
	Epoch    uint64 `json:"epoch"`
	Revision int64  `json:"revision"`
}

// ReadOwners reads every owner that was ever written, in order: the arbiter keeps that for minutes. It asks one member for what a
// majority has.
func ReadOwners(ctx context.Context, endpoint string) (out []Owned, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	cli, err := dial(endpoint)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cli.Close()) }()
	now, err := cli.Get(ctx, ownKeys, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend), clientv3.WithLimit(1))
	if err != nil || len(now.Kvs) == 0 {
		return nil, err
	}
	last, from := now.Kvs[0].ModRevision, int64(1)
	for {
		out, err = ownersFrom(ctx, cli, from, last)
		var compacted compactedError
		if !errors.As(err, &compacted) {
			return out, err
		}
		from = int64(compacted) // what was before is not kept any more
	}
}

// compactedError is the first revision that there still is.
type compactedError int64

func (c compactedError) Error() string { return fmt.Sprintf("compacted up to %d", int64(c)) }

func ownersFrom(ctx context.Context, cli *clientv3.Client, from, last int64) (out []Owned, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for resp := range cli.Watch(ctx, ownKeys, clientv3.WithPrefix(), clientv3.WithRev(from)) {
		if err := resp.Err(); errors.Is(err, rpctypes.ErrCompacted) {
			return nil, compactedError(resp.CompactRevision)
		} else if err != nil {
			return nil, err
		}
		for _, ev := range resp.Events {
			o := Owned{Revision: ev.Kv.ModRevision}
			if o.Slot, err = strconv.Atoi(strings.TrimPrefix(string(ev.Kv.Key), ownKeys)); err != nil {
				return nil, err
			}
			if ev.Type == clientv3.EventTypePut {
				if err := json.Unmarshal(ev.Kv.Value, &o); err != nil {
					return nil, fmt.Errorf("owner of slot %d: %w", o.Slot, err)
				}
			}
			out = append(out, o)
		}
		if resp.Header.Revision >= last && len(out) > 0 && out[len(out)-1].Revision >= last {
			return out, nil
		}
	}
	return nil, fmt.Errorf("the history of owners up to revision %d did not come: %w", last, ctx.Err())
}

// forth is what the history of owners breaks: a slot's epoch never goes back, has one region, and no slot loses its owner.
func forth(all []Owned) (bad []string) {
	last := map[int]Owned{}
	for _, o := range all {
		was, known := last[o.Slot]
		last[o.Slot] = o
		switch {
		case o.Region == "":
			bad = append(bad, fmt.Sprintf("slot %d has no owner any more at revision %d", o.Slot, o.Revision))
		case known && o.Epoch < was.Epoch:
			bad = append(bad, fmt.Sprintf("slot %d: epoch %d of %s at revision %d, after epoch %d of %s at revision %d", o.Slot, o.Epoch, o.Region, o.Revision, was.Epoch, was.Region, was.Revision))
		case known && o.Epoch == was.Epoch && o.Region != was.Region:
			bad = append(bad, fmt.Sprintf("slot %d: epoch %d is %s's at revision %d, and %s's at revision %d", o.Slot, o.Epoch, was.Region, was.Revision, o.Region, o.Revision))
		}
	}
	return bad
}
