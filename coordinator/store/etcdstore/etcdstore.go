// Package etcdstore keeps a region's live transactions in etcd.
//
// The law it keeps: every write of a slot compares, inside the etcd transaction itself, the revision at which the slot
// was taken (G3). Leases announce members and prompt takeovers; nothing here trusts one. No read inside a transaction
// names a revision (etcd-io/etcd#18667).
//
// It is tested by storetest on an embedded member and on an external cluster of three, and by a proxy that eats the
// answer of a write. Source: multi-region reference, sections 1 and 2; ADR 0002.
package etcdstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Prefix of every key of version 1 of the layout.
const Prefix = "/lockstep/1/"

// Store is one region's etcd. Safe for concurrent use. It does not own the client.
type Store struct {
	cli  *clientv3.Client
	log  *slog.Logger
	keys [slot.Count]slotKeys
}

type slotKeys struct{ slot, head, tx string }

// New makes a Store on a client. It sends nothing. log may be nil.
func New(cli *clientv3.Client, log *slog.Logger) *Store {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Store{cli: cli, log: log}
	for n := range s.keys {
		s.keys[n] = slotKeys{
			slot: fmt.Sprintf("%sslot/%04d", Prefix, n), head: fmt.Sprintf("%southead/%04d", Prefix, n), tx: fmt.Sprintf("%stx/%04d/", Prefix, n),
		}
	}
	return s
}

var _ engine.Store = (*Store)(nil)

// slotValue is what slot/<n> holds.
type slotValue struct {
	Holder string `json:"holder"`
	Epoch  uint64 `json:"epoch"`
}

// Commit is engine.Store's.
func (s *Store) Commit(ctx context.Context, b *engine.Batch) error {
	cmps := make([]clientv3.Cmp, 0, len(b.Guards))
	ops := make([]clientv3.Op, 0, len(b.Guards)+len(b.Puts)+len(b.Deletes))
	orElse := make([]clientv3.Op, 0, len(b.Guards))
	for i := range b.Guards {
		g := &b.Guards[i]
		k := &s.keys[g.Slot]
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(k.slot), "=", int64(g.Term)))
		orElse = append(orElse, clientv3.OpGet(k.slot, clientv3.WithKeysOnly()))
		if g.Head != nil {
			ops = append(ops, clientv3.OpPut(k.head, string(g.Head.Encode())))
		}
	}
	for i := range b.Puts {
		p := &b.Puts[i]
		ops = append(ops, clientv3.OpPut(s.keys[p.Slot].tx+string(p.Gid), string(p.Value)))
	}
	for i := range b.Deletes {
		ops = append(ops, clientv3.OpDelete(s.keys[b.Deletes[i].Slot].tx+string(b.Deletes[i].Gid)))
	}
	resp, err := s.cli.Txn(ctx).If(cmps...).Then(ops...).Else(orElse...).Commit()
	if err != nil {
		return classify(err)
	}
	if resp.Succeeded {
		return nil
	}
	fenced := &engine.FencedError{}
	for i, r := range resp.Responses {
		kvs := r.GetResponseRange().GetKvs()
		if len(kvs) == 0 || kvs[0].ModRevision != int64(b.Guards[i].Term) {
			fenced.Slots = append(fenced.Slots, b.Guards[i].Slot)
		}
	}
	return fenced
}

// classify keeps apart what is certain not to have been written. All else is unknown.
func classify(err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrTooManyRequests):
		return fmt.Errorf("%w: %w", engine.ErrBusy, err)
	case errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps):
		return fmt.Errorf("%w: %w", engine.ErrTooLarge, err)
	}
	return err
}

// claimChunk slots go into one transaction: each is one put and one get of at most 128 operations.
const claimChunk = 60

// Claim is engine.Store's.
func (s *Store) Claim(ctx context.Context, holder string, slots []int) ([]engine.Claim, error) {
	var out []engine.Claim
	for len(slots) > 0 {
		n := min(claimChunk, len(slots))
		claims, err := s.claim(ctx, holder, slots[:n])
		out = append(out, claims...)
		if err != nil {
			return out, fmt.Errorf("claim slots for %q: %w", holder, err)
		}
		slots = slots[n:]
	}
	return out, nil
}

// claim takes one chunk; when a slot in it moved meanwhile, one by one.
func (s *Store) claim(ctx context.Context, holder string, slots []int) ([]engine.Claim, error) {
	reads := make([]clientv3.Op, len(slots))
	for i, n := range slots {
		reads[i] = clientv3.OpGet(s.keys[n].slot)
	}
	now, err := s.cli.Txn(ctx).Then(reads...).Commit()
	if err != nil {
		return nil, err
	}
	var cmps []clientv3.Cmp
	var ops []clientv3.Op
	epochs, prev := make([]uint64, len(slots)), make([]engine.Term, len(slots))
	for i, n := range slots {
		rev, v := int64(0), slotValue{Epoch: 1}
		if kvs := now.Responses[i].GetResponseRange().GetKvs(); len(kvs) > 0 {
			rev = kvs[0].ModRevision
			if err := json.Unmarshal(kvs[0].Value, &v); err != nil {
				return nil, fmt.Errorf("slot %d: %w: %w", n, record.ErrCorrupt, err)
			}
		}
		v.Holder = holder
		epochs[i], prev[i] = v.Epoch, engine.Term(rev)
		value, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(s.keys[n].slot), "=", rev))
		ops = append(ops, clientv3.OpPut(s.keys[n].slot, string(value)), clientv3.OpGet(s.keys[n].head))
	}
	resp, err := s.cli.Txn(ctx).If(cmps...).Then(ops...).Commit()
	if err != nil {
		return nil, err
	}
	if !resp.Succeeded {
		if len(slots) == 1 {
			return nil, nil
		}
		var out []engine.Claim
		for _, n := range slots {
			c, err := s.claim(ctx, holder, []int{n})
			out = append(out, c...)
			if err != nil {
				return out, err
			}
		}
		return out, nil
	}
	out := make([]engine.Claim, len(slots))
	for i, n := range slots {
		out[i] = engine.Claim{Slot: n, Term: engine.Term(resp.Header.Revision), Epoch: epochs[i], Prev: prev[i]}
		if kvs := resp.Responses[2*i+1].GetResponseRange().GetKvs(); len(kvs) > 0 {
			if out[i].Head, err = record.DecodeHead(kvs[0].Value); err != nil {
				return nil, fmt.Errorf("outbox head of slot %d: %w", n, err)
			}
		}
	}
	return out, nil
}

// Release is engine.Store's.
func (s *Store) Release(ctx context.Context, n int, term engine.Term) error {
	got, err := s.cli.Get(ctx, s.keys[n].slot)
	if err != nil {
		return fmt.Errorf("release slot %d: %w", n, err)
	}
	var v slotValue
	if len(got.Kvs) == 0 || got.Kvs[0].ModRevision != int64(term) {
		return &engine.FencedError{Slots: []int{n}}
	}
	if err := json.Unmarshal(got.Kvs[0].Value, &v); err != nil {
		return fmt.Errorf("slot %d: %w: %w", n, record.ErrCorrupt, err)
	}
	v.Holder = ""
	value, err := json.Marshal(v)
	if err != nil {
		return err
	}
	resp, err := s.cli.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(s.keys[n].slot), "=", int64(term))).
		Then(clientv3.OpPut(s.keys[n].slot, string(value))).Commit()
	if err != nil {
		return fmt.Errorf("release slot %d: %w", n, err)
	}
	if !resp.Succeeded {
		return &engine.FencedError{Slots: []int{n}}
	}
	return nil
}

// loadPage bounds one read of records.
const loadPage = 2000

// Load is engine.Store's.
func (s *Store) Load(ctx context.Context, n int, each func(txn.Gid, []byte) error) error {
	prefix := s.keys[n].tx
	from, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
	for {
		got, err := s.cli.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(loadPage))
		if err != nil {
			return fmt.Errorf("load slot %d: %w", n, err)
		}
		for _, kv := range got.Kvs {
			if err := each(txn.Gid(strings.TrimPrefix(string(kv.Key), prefix)), kv.Value); err != nil {
				return err
			}
		}
		if !got.More || len(got.Kvs) == 0 {
			return nil
		}
		from = string(got.Kvs[len(got.Kvs)-1].Key) + "\x00"
	}
}

// Get is engine.Store's.
func (s *Store) Get(ctx context.Context, gid txn.Gid) ([]byte, error) {
	got, err := s.cli.Get(ctx, s.keys[slot.Of(string(gid))].tx+string(gid))
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", string(gid), err)
	}
	if len(got.Kvs) == 0 {
		return nil, nil
	}
	return got.Kvs[0].Value, nil
}

// Usage is engine.Store's: the bytes in use, without the free pages, against the backend's quota.
func (s *Store) Usage(ctx context.Context) (engine.Usage, error) {
	endpoint := ""
	if eps := s.cli.Endpoints(); len(eps) > 0 {
		endpoint = eps[0]
	}
	var last error
	for range max(1, len(s.cli.Endpoints())) {
		st, err := s.cli.Status(ctx, endpoint)
		if err == nil {
			return engine.Usage{UsedBytes: st.DbSizeInUse, QuotaBytes: st.DbSizeQuota}, nil
		}
		last = err
		if eps := s.cli.Endpoints(); len(eps) > 1 {
			endpoint = eps[1+int(time.Now().UnixNano())%(len(eps)-1)]
		}
	}
	return engine.Usage{}, fmt.Errorf("etcd status: %w", last)
}

// Maintain compacts the history every interval until ctx ends: nothing here reads the past but the watches, which
// follow closely. Several coordinators may do it at once.
func (s *Store) Maintain(ctx context.Context, interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var before int64
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		cctx, cancel := context.WithTimeout(ctx, interval)
		got, err := s.cli.Get(cctx, Prefix+"compact", clientv3.WithCountOnly())
		if err == nil {
			if before > 0 && before < got.Header.Revision {
				if _, err = s.cli.Compact(cctx, before); errors.Is(err, rpctypes.ErrCompacted) {
					err = nil
				}
			}
			before = got.Header.Revision
		}
		cancel()
		if err != nil && ctx.Err() == nil {
			s.log.Warn("etcd was not compacted", "err", err)
		}
	}
}
