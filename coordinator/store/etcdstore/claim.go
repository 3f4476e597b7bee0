package etcdstore

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
)

// claimChunk slots go into one transaction: each is one put and two gets of at most 128 operations.
const claimChunk = 40

// Claim is engine.Store's.
func (s *Store) Claim(ctx context.Context, holder string, slots []int, epoch func(n int) uint64) ([]engine.Claim, error) {
	var out []engine.Claim
	for len(slots) > 0 {
		n := min(claimChunk, len(slots))
		claims, err := s.claim(ctx, holder, slots[:n], epoch)
		out = append(out, claims...)
		if err != nil {
			return out, fmt.Errorf("claim slots for %q: %w", holder, err)
		}
		slots = slots[n:]
	}
	return out, nil
}

// wanted is a slot that may be taken as it stands.
type wanted struct {
	n     int
	rev   int64
	epoch uint64
}

// claim takes one chunk; when a slot in it moved meanwhile, one by one.
func (s *Store) claim(ctx context.Context, holder string, slots []int, epoch func(n int) uint64) ([]engine.Claim, error) {
	take, out, err := s.claimable(ctx, slots, epoch)
	if err != nil || len(take) == 0 {
		return out, err
	}
	var cmps []clientv3.Cmp
	var ops []clientv3.Op
	for _, w := range take {
		value, err := json.Marshal(slotValue{Holder: holder, Epoch: w.epoch})
		if err != nil {
			return nil, err
		}
		k := &s.keys[w.n]
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(k.slot), "=", w.rev))
		ops = append(ops, clientv3.OpPut(k.slot, string(value)), clientv3.OpGet(k.head), clientv3.OpGet(k.imported))
	}
	resp, err := s.cli.Txn(ctx).If(cmps...).Then(ops...).Commit()
	if err != nil {
		return out, err
	}
	if !resp.Succeeded {
		if len(slots) == 1 {
			return out, nil
		}
		out = out[:0]
		for _, n := range slots {
			c, err := s.claim(ctx, holder, []int{n}, epoch)
			out = append(out, c...)
			if err != nil {
				return out, err
			}
		}
		return out, nil
	}
	for i, w := range take {
		c := engine.Claim{Slot: w.n, Term: engine.Term(resp.Header.Revision), Epoch: w.epoch, Prev: engine.Term(w.rev)}
		if err := beside(&c, resp.Responses[3*i+1].GetResponseRange().GetKvs(), resp.Responses[3*i+2].GetResponseRange().GetKvs()); err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// claimable reads slots and tells which may be taken at the epoch wanted; those that are closed are given as such.
func (s *Store) claimable(ctx context.Context, slots []int, epoch func(n int) uint64) ([]wanted, []engine.Claim, error) {
	reads := make([]clientv3.Op, 0, 3*len(slots))
	for _, n := range slots {
		k := &s.keys[n]
		reads = append(reads, clientv3.OpGet(k.slot), clientv3.OpGet(k.head), clientv3.OpGet(k.imported))
	}
	now, err := s.cli.Txn(ctx).Then(reads...).Commit()
	if err != nil {
		return nil, nil, err
	}
	var take []wanted
	var closed []engine.Claim
	for i, n := range slots {
		rev, v := int64(0), slotValue{Epoch: 1}
		if kvs := now.Responses[3*i].GetResponseRange().GetKvs(); len(kvs) > 0 {
			rev = kvs[0].ModRevision
			if err := json.Unmarshal(kvs[0].Value, &v); err != nil {
				return nil, nil, fmt.Errorf("slot %d: %w: %w", n, record.ErrCorrupt, err)
			}
		}
		want := v.Epoch
		if epoch != nil && epoch(n) != 0 {
			want = epoch(n)
		}
		switch {
		case want < v.Epoch:
		case v.Closed && want == v.Epoch:
			c := engine.Claim{Slot: n, Epoch: v.Epoch, Closed: true}
			if err := beside(&c, now.Responses[3*i+1].GetResponseRange().GetKvs(), now.Responses[3*i+2].GetResponseRange().GetKvs()); err != nil {
				return nil, nil, err
			}
			closed = append(closed, c)
		default:
			take = append(take, wanted{n, rev, want})
		}
	}
	return take, closed, nil
}

// beside fills in what stands beside a slot's record.
func beside(c *engine.Claim, head, imported []*mvccpb.KeyValue) (err error) {
	if len(head) > 0 {
		if c.Head, err = record.DecodeHead(head[0].Value); err != nil {
			return fmt.Errorf("outbox head of slot %d: %w", c.Slot, err)
		}
	}
	if len(imported) > 0 {
		if c.Imported, err = strconv.ParseUint(string(imported[0].Value), 10, 64); err != nil {
			return fmt.Errorf("slot %d: %w: imported: %w", c.Slot, record.ErrCorrupt, err)
		}
	}
	return nil
}

// Events is engine.Store's.
func (s *Store) Events(ctx context.Context, n int) ([]record.Event, error) {
	prefix := s.keys[n].events
	from, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
	var out []record.Event
	for {
		got, err := s.cli.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(loadPage))
		if err != nil {
			return nil, fmt.Errorf("read the events of slot %d: %w", n, err)
		}
		for _, kv := range got.Kvs {
			e, err := record.DecodeEvent(kv.Value)
			if err != nil {
				return nil, fmt.Errorf("event %s: %w", kv.Key, err)
			}
			out = append(out, *e)
		}
		if !got.More || len(got.Kvs) == 0 {
			return out, nil
		}
		from = string(got.Kvs[len(got.Kvs)-1].Key) + "\x00"
	}
}

// ForgetEvents is engine.Store's.
func (s *Store) ForgetEvents(ctx context.Context, n int, upTo uint64) error {
	prefix := s.keys[n].events
	if _, err := s.cli.Delete(ctx, prefix, clientv3.WithRange(fmt.Sprintf("%s%020d", prefix, upTo+1))); err != nil {
		return fmt.Errorf("forget the events of slot %d up to %d: %w", n, upTo, err)
	}
	return nil
}

// Purge is engine.Store's.
func (s *Store) Purge(ctx context.Context, n int, epoch uint64) error {
	value, err := json.Marshal(slotValue{Epoch: epoch, Closed: true})
	if err != nil {
		return err
	}
	resp, err := s.cli.Txn(ctx).If(clientv3.Compare(clientv3.Value(s.keys[n].slot), "=", string(value))).
		Then(clientv3.OpDelete(s.keys[n].tx, clientv3.WithPrefix())).Commit()
	if err != nil {
		return fmt.Errorf("purge slot %d: %w", n, err)
	}
	if !resp.Succeeded {
		return &engine.FencedError{Slots: []int{n}}
	}
	return nil
}
