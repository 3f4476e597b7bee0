package etcdstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/mutant"
	"github.com/lockstep-tx/lockstep/region/slot"
)

const (
	memberPrefix = Prefix + "member/"
	slotPrefix   = Prefix + "slot/"
)

// Join is engine.Store's: a key on a lease. etcd raises a ttl below one and a half election timeouts.
func (s *Store) Join(ctx context.Context, m engine.Member, ttl time.Duration) error {
	value, err := json.Marshal(m)
	if err != nil {
		return err
	}
	gctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	lease, err := s.cli.Grant(gctx, int64(math.Ceil(ttl.Seconds())))
	if err == nil {
		_, err = s.cli.Put(gctx, memberPrefix+m.ID, string(value), clientv3.WithLease(lease.ID))
	}
	cancel()
	if err != nil {
		return fmt.Errorf("announce member %q: %w", m.ID, err)
	}
	defer func() {
		// The lease outlives ctx: give it back, so that an orderly stop is seen at once.
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if _, err := s.cli.Revoke(rctx, lease.ID); err != nil {
			s.log.Debug("the lease was not revoked and will expire", "err", err)
		}
	}()
	alive, err := s.cli.KeepAlive(ctx, lease.ID)
	if err != nil {
		return fmt.Errorf("keep member %q announced: %w", m.ID, err)
	}
	for range alive {
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.New("the lease ended")
}

// Watch is engine.Store's.
func (s *Store) Watch(ctx context.Context) (<-chan engine.View, error) {
	w := &watcher{s: s, out: make(chan engine.View), members: map[string]engine.Member{}}
	rev, err := w.list(ctx)
	if err != nil {
		return nil, fmt.Errorf("read members and slots: %w", err)
	}
	go w.run(ctx, rev)
	return w.out, nil
}

// watcher keeps a view up to date.
type watcher struct {
	s       *Store
	out     chan engine.View
	members map[string]engine.Member
	holders [slot.Count]string
	terms   [slot.Count]engine.Term
	closed  [slot.Count]uint64
}

// list reads everything and gives the revision at which it stood.
func (w *watcher) list(ctx context.Context) (int64, error) {
	lctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	got, err := w.s.cli.Txn(lctx).Then(clientv3.OpGet(memberPrefix, clientv3.WithPrefix()), clientv3.OpGet(slotPrefix, clientv3.WithPrefix())).Commit()
	if err != nil {
		return 0, err
	}
	clear(w.members)
	for _, kv := range got.Responses[0].GetResponseRange().Kvs {
		w.member(string(kv.Key), kv.Value)
	}
	for _, kv := range got.Responses[1].GetResponseRange().Kvs {
		w.slot(string(kv.Key), kv.Value, kv.ModRevision)
	}
	return got.Header.Revision, nil
}

func (w *watcher) member(key string, value []byte) {
	id := strings.TrimPrefix(key, memberPrefix)
	var m engine.Member
	if value == nil {
		delete(w.members, id)
	} else if err := json.Unmarshal(value, &m); err != nil {
		w.s.log.Error("a member's announcement cannot be read", "member", id, "err", err)
	} else {
		w.members[id] = m
	}
}

func (w *watcher) slot(key string, value []byte, rev int64) {
	n, err := strconv.Atoi(strings.TrimPrefix(key, slotPrefix))
	var v slotValue
	if err == nil && value != nil {
		err = json.Unmarshal(value, &v)
	}
	if err != nil || n < 0 || n >= slot.Count {
		w.s.log.Error("a slot's record cannot be read", "key", key, "err", err)
		return
	}
	w.holders[n], w.terms[n], w.closed[n] = v.Holder, engine.Term(rev), 0
	if v.Closed {
		w.closed[n] = v.Epoch
	}
}

func (w *watcher) view() engine.View {
	v := engine.View{Holders: w.holders, Terms: w.terms, Closed: w.closed}
	for _, m := range w.members {
		v.Members = append(v.Members, m)
	}
	sort.Slice(v.Members, func(i, j int) bool { return v.Members[i].ID < v.Members[j].ID })
	return v
}

// run sends the view when it has changed and somebody takes it. A watch that breaks is begun anew from a list.
func (w *watcher) run(ctx context.Context, rev int64) {
	defer close(w.out)
	dirty := true
	for ctx.Err() == nil {
		wctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
		members := w.s.cli.Watch(wctx, memberPrefix, clientv3.WithPrefix(), clientv3.WithRev(rev+1))
		slots := w.s.cli.Watch(wctx, slotPrefix, clientv3.WithPrefix(), clientv3.WithRev(rev+1))
		err := w.follow(ctx, members, slots, &dirty)
		cancel()
		if ctx.Err() != nil {
			return
		}
		w.s.log.Warn("the watch of members and slots broke; reading them again", "err", err)
		for {
			if rev, err = w.again(ctx); err == nil || ctx.Err() != nil {
				break
			}
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		dirty = true
	}
}

// again is list, for a watch that has broken.
func (w *watcher) again(ctx context.Context) (int64, error) {
	if mutant.On(mutant.CacheIgnoresCompaction) {
		got, err := w.s.cli.Get(ctx, Prefix)
		if err != nil {
			return 0, err
		}
		return got.Header.Revision, nil
	}
	return w.list(ctx)
}

func (w *watcher) follow(ctx context.Context, members, slots clientv3.WatchChan, dirty *bool) error {
	for {
		var out chan engine.View
		var v engine.View
		if *dirty {
			out, v = w.out, w.view()
		}
		var resp clientv3.WatchResponse
		var ok, isMember bool
		select {
		case out <- v:
			*dirty = false
			continue
		case resp, ok = <-members:
			isMember = true
		case resp, ok = <-slots:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !ok {
			return errors.New("watch closed")
		}
		if err := resp.Err(); err != nil {
			return err
		}
		for _, ev := range resp.Events {
			value := ev.Kv.Value
			if ev.Type == clientv3.EventTypeDelete {
				value = nil
			}
			if isMember {
				w.member(string(ev.Kv.Key), value)
			} else {
				w.slot(string(ev.Kv.Key), value, ev.Kv.ModRevision)
			}
			*dirty = true
		}
	}
}

// ForgetMembers removes every announcement. It is for a process that knows that it is alone: the one that has the
// embedded member's directory locked. Slots of a predecessor that was killed are free at once then.
func (s *Store) ForgetMembers(ctx context.Context) error {
	if _, err := s.cli.Delete(ctx, memberPrefix, clientv3.WithPrefix()); err != nil {
		return fmt.Errorf("forget the members of before: %w", err)
	}
	return nil
}
