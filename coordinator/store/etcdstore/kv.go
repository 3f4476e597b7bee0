package etcdstore

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
)

// KV is engine.Store's: rows under kv/<category>/<key>, changed by compare-and-set.
func (s *Store) KV() engine.KV { return kv{s} }

type kv struct{ s *Store }

type kvValue struct {
	Value     string `json:"v"`
	Version   int64  `json:"version"`
	CreatedAt int64  `json:"created_at"`
	UpdatedAt int64  `json:"updated_at"`
}

// prefix of a category: escaped, so that no category is the beginning of another.
func (k kv) prefix(cat string) string { return Prefix + "kv/" + url.PathEscape(cat) + "/" }

func (k kv) decode(cat, key string, value []byte, rev int64) (engine.KVPair, error) {
	var v kvValue
	if err := json.Unmarshal(value, &v); err != nil {
		return engine.KVPair{}, fmt.Errorf("row %s/%s: %w: %w", cat, key, record.ErrCorrupt, err)
	}
	return engine.KVPair{Cat: cat, Key: key, Value: v.Value, Version: v.Version, Rev: rev, CreatedAt: v.CreatedAt, UpdatedAt: v.UpdatedAt}, nil
}

// Find is engine.KV's.
func (k kv) Find(ctx context.Context, cat, key string) (engine.KVPair, bool, error) {
	got, err := k.s.cli.Get(ctx, k.prefix(cat)+key)
	if err != nil {
		return engine.KVPair{}, false, fmt.Errorf("read row %s/%s: %w", cat, key, err)
	}
	if len(got.Kvs) == 0 {
		return engine.KVPair{}, false, nil
	}
	p, err := k.decode(cat, key, got.Kvs[0].Value, got.Kvs[0].ModRevision)
	return p, err == nil, err
}

// Scan is engine.KV's.
func (k kv) Scan(ctx context.Context, cat, after string, limit int) ([]engine.KVPair, error) {
	prefix := k.prefix(cat)
	got, err := k.s.cli.Get(ctx, prefix+after+"\x00", clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(int64(limit)))
	if err != nil {
		return nil, fmt.Errorf("list rows of %s: %w", cat, err)
	}
	var out []engine.KVPair
	for _, row := range got.Kvs {
		p, err := k.decode(cat, strings.TrimPrefix(string(row.Key), prefix), row.Value, row.ModRevision)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// Set is engine.KV's.
func (k kv) Set(ctx context.Context, p engine.KVPair) error {
	key := k.prefix(p.Cat) + p.Key
	v := kvValue{Value: p.Value, Version: p.Version + 1, CreatedAt: p.CreatedAt, UpdatedAt: time.Now().UnixMilli()}
	if p.Rev == 0 {
		v.Version, v.CreatedAt = 1, v.UpdatedAt
	}
	value, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return k.swap(ctx, p.Cat, p.Key, p.Rev, clientv3.OpPut(key, string(value)))
}

// Delete is engine.KV's.
func (k kv) Delete(ctx context.Context, cat, key string, rev int64) error {
	return k.swap(ctx, cat, key, rev, clientv3.OpDelete(k.prefix(cat)+key))
}

func (k kv) swap(ctx context.Context, cat, key string, rev int64, op clientv3.Op) error {
	resp, err := k.s.cli.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(k.prefix(cat)+key), "=", rev)).Then(op).Commit()
	if err != nil {
		return fmt.Errorf("write row %s/%s: %w", cat, key, err)
	}
	if !resp.Succeeded {
		return fmt.Errorf("row %s/%s: %w", cat, key, engine.ErrConflict)
	}
	return nil
}
