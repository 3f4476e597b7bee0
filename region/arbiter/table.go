package arbiter

import (
	"context"
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Row is one row of a small shared table.
type Row struct {
	Key   string
	Value []byte
	// Rev is opaque, for Put and Delete; 0 for a row that is not there.
	Rev int64
}

// Get reads a row of a table, linearizably; Rev 0 when there is none.
func (a *Arbiter) Get(ctx context.Context, table, key string) (Row, error) {
	row := Row{Key: key}
	got, err := a.cli.Get(ctx, tablePrefix+table+"/"+key)
	if err != nil {
		return row, fmt.Errorf("read %s %q: %w", table, key, err)
	}
	if len(got.Kvs) > 0 {
		row.Value, row.Rev = got.Kvs[0].Value, got.Kvs[0].ModRevision
	}
	return row, nil
}

// List reads the rows of a table whose keys begin with prefix, in the order of keys.
func (a *Arbiter) List(ctx context.Context, table, prefix string) ([]Row, error) {
	base := tablePrefix + table + "/"
	got, err := a.cli.Get(ctx, base+prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", table, err)
	}
	out := make([]Row, 0, len(got.Kvs))
	for _, kv := range got.Kvs {
		out = append(out, Row{Key: strings.TrimPrefix(string(kv.Key), base), Value: kv.Value, Rev: kv.ModRevision})
	}
	return out, nil
}

// Put writes a row if its stored Rev is still row.Rev (0: it must not exist) and gives the new Rev. ErrChanged when it
// stands otherwise; a row that stands as it should counts as written, so that a call whose answer was lost can be repeated.
func (a *Arbiter) Put(ctx context.Context, table string, row Row) (int64, error) {
	return a.PutAll(ctx, In{table, row})
}

// In is a row of a table.
type In struct {
	Table string
	Row
}

// PutAll is Put for rows of one or several tables: all of them or none. Their new Rev is the same.
func (a *Arbiter) PutAll(ctx context.Context, rows ...In) (int64, error) {
	var cmps []clientv3.Cmp
	var puts, gets []clientv3.Op
	for _, r := range rows {
		key := tablePrefix + r.Table + "/" + r.Key
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(key), "=", r.Rev))
		puts, gets = append(puts, clientv3.OpPut(key, string(r.Value))), append(gets, clientv3.OpGet(key))
	}
	resp, err := a.settle(ctx, func(t clientv3.Txn) clientv3.Txn { return t.If(cmps...).Then(puts...).Else(gets...) })
	if err != nil {
		return 0, fmt.Errorf("write %s %q: %w", rows[0].Table, rows[0].Key, err)
	}
	if resp.Succeeded {
		return resp.Header.Revision, nil
	}
	rev := int64(0)
	for i, r := range rows {
		kvs := resp.Responses[i].GetResponseRange().GetKvs()
		if len(kvs) == 0 || string(kvs[0].Value) != string(r.Value) || rev != 0 && kvs[0].ModRevision != rev {
			return 0, fmt.Errorf("%s %q: %w", r.Table, r.Key, ErrChanged)
		}
		rev = kvs[0].ModRevision
	}
	return rev, nil
}

// Last reads the last row of a table in the order of keys; Rev 0 when the table is empty.
func (a *Arbiter) Last(ctx context.Context, table string) (Row, error) {
	base := tablePrefix + table + "/"
	got, err := a.cli.Get(ctx, base, append(clientv3.WithLastKey(), clientv3.WithPrefix())...)
	if err != nil {
		return Row{}, fmt.Errorf("read %s: %w", table, err)
	}
	if len(got.Kvs) == 0 {
		return Row{}, nil
	}
	kv := got.Kvs[0]
	return Row{Key: strings.TrimPrefix(string(kv.Key), base), Value: kv.Value, Rev: kv.ModRevision}, nil
}

// Delete removes a row if its stored Rev is still rev. A row that is gone already counts as deleted.
func (a *Arbiter) Delete(ctx context.Context, table, key string, rev int64) error {
	full := tablePrefix + table + "/" + key
	resp, err := a.settle(ctx, func(t clientv3.Txn) clientv3.Txn {
		return t.If(clientv3.Compare(clientv3.ModRevision(full), "=", rev)).Then(clientv3.OpDelete(full)).Else(clientv3.OpGet(full))
	})
	if err != nil {
		return fmt.Errorf("delete %s %q: %w", table, key, err)
	}
	if !resp.Succeeded && len(resp.Responses[0].GetResponseRange().GetKvs()) > 0 {
		return fmt.Errorf("%s %q: %w", table, key, ErrChanged)
	}
	return nil
}

// Watch calls each after every change of a table (and once at once), until ctx ends; a hint, not the content.
func (a *Arbiter) Watch(ctx context.Context, table string, each func()) {
	for ctx.Err() == nil {
		each()
		wctx, stop := context.WithCancel(clientv3.WithRequireLeader(ctx))
		for resp := range a.cli.Watch(wctx, tablePrefix+table+"/", clientv3.WithPrefix()) {
			if resp.Err() != nil {
				break
			}
			each()
		}
		stop()
		a.pause(ctx)
	}
}
