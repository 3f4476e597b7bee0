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
	"strconv"
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

type slotKeys struct{ slot, head, tx, events, imported string }

// New makes a Store on a client. It sends nothing. log may be nil.
func New(cli *clientv3.Client, log *slog.Logger) *Store {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Store{cli: cli, log: log}
	for n := range s.keys {
		s.keys[n] = slotKeys{
			slot: fmt.Sprintf("%sslot/%04d", Prefix, n), head: fmt.Sprintf("%southead/%04d", Prefix, n), tx: fmt.Sprintf("%stx/%04d/", Prefix, n),
			events: fmt.Sprintf("%sev/%04d/", Prefix, n), imported: fmt.Sprintf("%simported/%04d", Prefix, n),
		}
	}
	return s
}

var _ engine.Store = (*Store)(nil)

// slotValue is what slot/<n> holds.
type slotValue struct {
	Holder string `json:"holder"`
	Epoch  uint64 `json:"epoch"`
	Closed bool   `json:"closed,omitempty"`
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
		if g.Imported != 0 {
			ops = append(ops, clientv3.OpPut(k.imported, strconv.FormatUint(g.Imported, 10)))
		}
		if g.Close {
			op, err := s.closing(ctx, g)
			if err != nil {
				return err
			}
			ops = append(ops, op)
		}
	}
	for i := range b.Events {
		e := &b.Events[i]
		value, err := record.EncodeEvent(e)
		if err != nil {
			return err
		}
		ops = append(ops, clientv3.OpPut(fmt.Sprintf("%s%020d", s.keys[e.Slot].events, e.Head.Seq), string(value)))
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

// closing writes the slot's record as closed; the batch compares that it is what was read here.
func (s *Store) closing(ctx context.Context, g *engine.Guard) (clientv3.Op, error) {
	got, err := s.cli.Get(ctx, s.keys[g.Slot].slot)
	if err != nil {
		return clientv3.Op{}, fmt.Errorf("close slot %d: %w", g.Slot, err)
	}
	if len(got.Kvs) == 0 || got.Kvs[0].ModRevision != int64(g.Term) {
		return clientv3.Op{}, &engine.FencedError{Slots: []int{g.Slot}}
	}
	var v slotValue
	if err := json.Unmarshal(got.Kvs[0].Value, &v); err != nil {
		return clientv3.Op{}, fmt.Errorf("slot %d: %w: %w", g.Slot, record.ErrCorrupt, err)
	}
	v.Holder, v.Closed = "", true
	value, err := json.Marshal(v)
	return clientv3.OpPut(s.keys[g.Slot].slot, string(value)), err
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
