package arbiter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// Change is one slot's next owner: it is written if From is what stands there.
type Change struct {
	Slot     int
	From, To slot.Owner
}

// Change writes new owners, all of them or none: at most 20 slots at once. A change of epoch writes the epoch's key and the
// seal of the epoch before in the same transaction. Durable on nil. ErrChanged when a slot stands otherwise; what stands
// as To already counts as changed by this call, so that a call whose answer was lost can be repeated.
func (a *Arbiter) Change(ctx context.Context, changes ...Change) error {
	return a.change(ctx, nil, changes)
}

// ChangeUnder is Change on the condition that a row of a table has the Rev given; its Value is not looked at. ErrChanged also where it has
// another one.
func (a *Arbiter) ChangeUnder(ctx context.Context, row In, changes ...Change) error {
	return a.change(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(tablePrefix+row.Table+"/"+row.Key), "=", row.Rev)}, changes)
}

func (a *Arbiter) change(ctx context.Context, cmps []clientv3.Cmp, changes []Change) error {
	if len(changes) == 0 || len(changes) > 20 {
		return fmt.Errorf("%d changes at once; 1 to 20 are possible", len(changes))
	}
	changes = reused(changes)
	var ops, reads []clientv3.Op
	for _, c := range changes {
		cmps = append(cmps, clientv3.Compare(clientv3.Value(ownKey(c.Slot)), "=", mustJSON(c.From)))
		ops = append(ops, clientv3.OpPut(ownKey(c.Slot), mustJSON(c.To)))
		if c.To.Epoch != c.From.Epoch {
			if c.To.Epoch < c.From.Epoch {
				return fmt.Errorf("slot %d: epoch %d after %d", c.Slot, c.To.Epoch, c.From.Epoch)
			}
			ops = append(ops, clientv3.OpPut(epochKey(c.Slot), epochValue(c.To.Epoch)))
		}
		if s := c.To.Seal; s != nil && (c.To.Epoch != c.From.Epoch && s.Epoch == c.From.Epoch || c.To.Status == slot.Taken) {
			ops = append(ops, clientv3.OpPut(sealKey(c.Slot, uint64(s.Epoch)), mustJSON(s)))
		}
		reads = append(reads, clientv3.OpGet(ownKey(c.Slot)))
	}
	resp, err := a.settle(ctx, func(t clientv3.Txn) clientv3.Txn { return t.If(cmps...).Then(ops...).Else(reads...) })
	if err != nil {
		return fmt.Errorf("change the owner of slot %d: %w", changes[0].Slot, err)
	}
	if resp.Succeeded {
		return nil
	}
	for i, r := range resp.Responses {
		kvs := r.GetResponseRange().GetKvs()
		if len(kvs) == 0 || string(kvs[0].Value) != mustJSON(changes[i].To) {
			stands := "nothing"
			if len(kvs) > 0 {
				stands = string(kvs[0].Value)
			}
			return fmt.Errorf("slot %d: %w: %s stands there", changes[i].Slot, ErrChanged, stands)
		}
	}
	return nil
}

// Owners reads all slots, linearizably.
func (a *Arbiter) Owners(ctx context.Context) (*slot.Map, error) {
	m, _, err := a.owners(ctx)
	return m, err
}

func (a *Arbiter) owners(ctx context.Context) (*slot.Map, int64, error) {
	got, err := a.cli.Get(ctx, ownPrefix, clientv3.WithPrefix())
	if err != nil {
		return nil, 0, fmt.Errorf("read the owners: %w", err)
	}
	m := &slot.Map{}
	for _, kv := range got.Kvs {
		if err := put(m, string(kv.Key), kv.Value); err != nil {
			return nil, 0, err
		}
	}
	return m, got.Header.Revision, nil
}

func put(m *slot.Map, key string, value []byte) error {
	n, err := strconv.Atoi(strings.TrimPrefix(key, ownPrefix))
	if err != nil || n < 0 || n >= slot.Count {
		return fmt.Errorf("the arbiter's key %s names no slot", key)
	}
	var o slot.Owner // a field that is not there says nothing: what stood in the map before is gone
	if err := json.Unmarshal(value, &o); err != nil {
		return fmt.Errorf("the owner of slot %d: %w", n, err)
	}
	m[n] = o
	return nil
}

// Seals gives the seals of a slot's past epochs, oldest first.
func (a *Arbiter) Seals(ctx context.Context, n int) ([]slot.Seal, error) {
	got, err := a.cli.Get(ctx, fmt.Sprintf("%s%04d/", sealPrefix, n), clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("read the seals of slot %d: %w", n, err)
	}
	var out []slot.Seal
	for _, kv := range got.Kvs {
		var s slot.Seal
		if err := json.Unmarshal(kv.Value, &s); err != nil {
			return nil, fmt.Errorf("a seal of slot %d: %w", n, err)
		}
		out = append(out, s)
	}
	return out, nil
}

// AllSeals gives the seals of every slot's past epochs, oldest first.
func (a *Arbiter) AllSeals(ctx context.Context) (map[int][]slot.Seal, error) {
	got, err := a.cli.Get(ctx, sealPrefix, clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("read the seals: %w", err)
	}
	out := map[int][]slot.Seal{}
	for _, kv := range got.Kvs {
		name, _, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), sealPrefix), "/")
		n, err := strconv.Atoi(name)
		var s slot.Seal
		if err == nil {
			err = json.Unmarshal(kv.Value, &s)
		}
		if err != nil {
			return nil, fmt.Errorf("the arbiter's key %s: %w", kv.Key, err)
		}
		out[n] = append(out[n], s)
	}
	return out, nil
}

// PutSeals writes seals that the arbiter has lost, by slot; those that stand stay as they are. Durable on nil; on an error some may
// be written, and the call may be repeated.
func (a *Arbiter) PutSeals(ctx context.Context, seals map[int][]slot.Seal) error {
	var puts []clientv3.Op
	for n, list := range seals {
		for _, s := range list {
			key := sealKey(n, uint64(s.Epoch))
			absent := clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
			puts = append(puts, clientv3.OpTxn([]clientv3.Cmp{absent}, []clientv3.Op{clientv3.OpPut(key, mustJSON(s))}, nil))
		}
	}
	for part := range slices.Chunk(puts, sealsAtOnce) {
		if _, err := a.settle(ctx, func(t clientv3.Txn) clientv3.Txn { return t.Then(part...) }); err != nil {
			return fmt.Errorf("write %d seals: %w", len(part), err)
		}
	}
	return nil
}

// sealsAtOnce is how many seals one transaction writes: etcd takes 128 operations.
const sealsAtOnce = 50

// FirstOwners gives the region that had each slot first: by the seal of its oldest epoch, or where nothing ever sealed it, the
// one that has it.
func (a *Arbiter) FirstOwners(ctx context.Context) (*[slot.Count]string, error) {
	d, err := a.Deployment(ctx)
	if err != nil {
		return nil, err
	}
	// The owners come before the seals: what moves in between has a seal by then.
	owners, err := a.Owners(ctx)
	if err != nil {
		return nil, err
	}
	seals, err := a.AllSeals(ctx)
	if err != nil {
		return nil, err
	}
	var out [slot.Count]string
	for n, o := range owners {
		out[n] = o.Region
		if len(seals[n]) > 0 {
			out[n] = d.Name(seals[n][0].Epoch.Region())
		}
	}
	return &out, nil
}

// Follow calls each with the owners now and after every change, until ctx ends; maps may be skipped, the latest never is.
// The map belongs to the callee. heard, which may be nil, is called about once a second while the arbiter answers. It
// returns when ctx ends.
func (a *Arbiter) Follow(ctx context.Context, each func(*slot.Map), heard func()) {
	for ctx.Err() == nil {
		if err := a.follow(ctx, each, heard); err != nil && ctx.Err() == nil {
			a.log.Warn("the arbiter's owners cannot be followed; what was known stays", "err", err)
			select {
			case <-time.After(500 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}
}

func (a *Arbiter) follow(ctx context.Context, each func(*slot.Map), heard func()) error {
	rctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	m, rev, err := a.owners(rctx)
	cancel()
	if err != nil {
		return err
	}
	wctx, stop := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer stop()
	changes := a.cli.Watch(wctx, ownPrefix, clientv3.WithPrefix(), clientv3.WithRev(rev+1))
	tell := func() { c := *m; each(&c) }
	tell()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case resp, ok := <-changes:
			if !ok {
				return errors.New("the watch ended")
			}
			if err := resp.Err(); err != nil {
				return err
			}
			for _, ev := range resp.Events {
				if ev.Type == clientv3.EventTypePut {
					if err := put(m, string(ev.Kv.Key), ev.Kv.Value); err != nil {
						return err
					}
				}
			}
			if len(resp.Events) > 0 {
				tell()
			}
			rev = max(rev, resp.Header.Revision)
		case <-tick.C:
			// A watch that is cut off says nothing for long; a read finds out.
			rctx, cancel := context.WithTimeout(ctx, 3*time.Second)
			got, err := a.cli.Get(rctx, deploymentKey)
			cancel()
			if err != nil {
				return err
			}
			if got.Header.Revision < rev {
				// It was restored from a backup without a bump of its revision: the watch says nothing until it has caught up.
				return fmt.Errorf("the arbiter is at revision %d, and was at %d before", got.Header.Revision, rev)
			}
			if heard != nil {
				heard()
			}
		case <-ctx.Done():
			return nil
		}
	}
}
