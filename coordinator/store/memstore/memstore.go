// Package memstore is a Store in memory, for tests, simulation and unit benches. It keeps every rule of the interface
// but durability: a process that ends loses it.
//
// The law it keeps: a batch is applied under one lock, after every guard's term was compared. It passes storetest, as
// the etcd store does.
package memstore

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Store is one region's state. Several coordinators may share it. The zero value is not ready: use New.
type Store struct {
	mu      sync.Mutex
	rev     int64
	slots   [slot.Count]slotRow
	members map[string]engine.Member
	usage   engine.Usage
	kv      map[string]engine.KVPair
	changed chan struct{}
}

type slotRow struct {
	holder string
	term   engine.Term
	head   record.Head
	txs    map[txn.Gid][]byte
	events []record.Event
	// epoch is 0 until one was asked for, which means 1.
	epoch, imported uint64
	closed          bool
}

func (r *slotRow) epochNow() uint64 { return max(1, r.epoch) }

// New makes an empty store.
func New() *Store {
	return &Store{members: map[string]engine.Member{}, kv: map[string]engine.KVPair{}, changed: make(chan struct{})}
}

var _ engine.Store = (*Store)(nil)

// Commit is engine.Store's.
func (s *Store) Commit(ctx context.Context, b *engine.Batch) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var fenced []int
	for _, g := range b.Guards {
		if s.slots[g.Slot].term != g.Term {
			fenced = append(fenced, g.Slot)
		}
	}
	if fenced != nil {
		return &engine.FencedError{Slots: fenced}
	}
	s.rev++
	for _, g := range b.Guards {
		if g.Head != nil {
			s.slots[g.Slot].head = *g.Head
		}
	}
	for _, p := range b.Puts {
		row := &s.slots[p.Slot]
		if row.txs == nil {
			row.txs = map[txn.Gid][]byte{}
		}
		row.txs[p.Gid] = append([]byte(nil), p.Value...)
	}
	for _, d := range b.Deletes {
		delete(s.slots[d.Slot].txs, d.Gid)
	}
	for _, e := range b.Events {
		e.Body = append([]byte(nil), e.Body...)
		s.slots[e.Slot].events = append(s.slots[e.Slot].events, e)
	}
	for _, g := range b.Guards {
		row := &s.slots[g.Slot]
		if g.Imported != 0 {
			row.imported = g.Imported
		}
		if g.Close {
			row.holder, row.closed, row.term = "", true, engine.Term(s.rev)
			s.announce()
		}
	}
	return nil
}

// Claim is engine.Store's.
func (s *Store) Claim(ctx context.Context, holder string, slots []int, epoch func(n int) uint64) ([]engine.Claim, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []engine.Claim
	for _, n := range slots {
		row := &s.slots[n]
		want := row.epochNow()
		if epoch != nil && epoch(n) != 0 {
			want = epoch(n)
		}
		switch {
		case want < row.epochNow():
			continue
		case row.closed && want == row.epochNow():
			out = append(out, engine.Claim{Slot: n, Epoch: want, Head: row.head, Imported: row.imported, Closed: true})
			continue
		}
		s.rev++
		prev := row.term
		row.holder, row.term, row.epoch, row.closed = holder, engine.Term(s.rev), want, false
		out = append(out, engine.Claim{Slot: n, Term: row.term, Epoch: want, Head: row.head, Prev: prev, Imported: row.imported})
	}
	s.announce()
	return out, nil
}

// Events is engine.Store's.
func (s *Store) Events(_ context.Context, n int) ([]record.Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.slots[n].events), nil
}

// ForgetEvents is engine.Store's.
func (s *Store) ForgetEvents(_ context.Context, n int, upTo uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slots[n].events = slices.DeleteFunc(s.slots[n].events, func(e record.Event) bool { return e.Head.Seq <= upTo })
	return nil
}

// Purge is engine.Store's.
func (s *Store) Purge(_ context.Context, n int, epoch uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if row := &s.slots[n]; !row.closed || row.epochNow() != epoch {
		return &engine.FencedError{Slots: []int{n}}
	}
	s.slots[n].txs = nil
	return nil
}

// Release is engine.Store's.
func (s *Store) Release(_ context.Context, n int, term engine.Term) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.slots[n].term != term {
		return &engine.FencedError{Slots: []int{n}}
	}
	s.rev++
	s.slots[n].holder, s.slots[n].term = "", engine.Term(s.rev)
	s.announce()
	return nil
}

// Load is engine.Store's.
func (s *Store) Load(_ context.Context, n int, each func(txn.Gid, []byte) error) error {
	s.mu.Lock()
	gids := make([]string, 0, len(s.slots[n].txs))
	values := make(map[string][]byte, len(s.slots[n].txs))
	for gid, v := range s.slots[n].txs {
		gids = append(gids, string(gid))
		values[string(gid)] = append([]byte(nil), v...)
	}
	s.mu.Unlock()
	sort.Strings(gids)
	for _, gid := range gids {
		if err := each(txn.Gid(gid), values[gid]); err != nil {
			return err
		}
	}
	return nil
}

// Get is engine.Store's.
func (s *Store) Get(_ context.Context, gid txn.Gid) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.slots[slot.Of(string(gid))].txs[gid]
	if !ok {
		return nil, nil
	}
	return append([]byte(nil), v...), nil
}

// Join is engine.Store's.
func (s *Store) Join(ctx context.Context, m engine.Member, _ time.Duration) error {
	s.mu.Lock()
	s.members[m.ID] = m
	s.announce()
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	delete(s.members, m.ID)
	s.announce()
	s.mu.Unlock()
	return ctx.Err()
}

// announce wakes the watchers; s.mu is held.
func (s *Store) announce() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Watch is engine.Store's.
func (s *Store) Watch(ctx context.Context) (<-chan engine.View, error) {
	out := make(chan engine.View)
	go func() {
		defer close(out)
		for {
			s.mu.Lock()
			v, changed := s.view(), s.changed
			s.mu.Unlock()
			select {
			case out <- v:
			case <-ctx.Done():
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

func (s *Store) view() engine.View {
	var v engine.View
	for _, m := range s.members {
		v.Members = append(v.Members, m)
	}
	sort.Slice(v.Members, func(i, j int) bool { return v.Members[i].ID < v.Members[j].ID })
	for n := range s.slots {
		v.Holders[n], v.Terms[n] = s.slots[n].holder, s.slots[n].term
		if s.slots[n].closed {
			v.Closed[n] = s.slots[n].epochNow()
		}
	}
	return v
}

// Usage is engine.Store's: unbounded and empty, or what Fill said.
func (s *Store) Usage(context.Context) (engine.Usage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.usage, nil
}

// Fill says how full the store claims to be.
func (s *Store) Fill(u engine.Usage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.usage = u
}

// KV is engine.Store's.
func (s *Store) KV() engine.KV { return kv{s} }

type kv struct{ s *Store }

func kvKey(cat, key string) string { return cat + "\x00" + key }

func (k kv) Find(_ context.Context, cat, key string) (engine.KVPair, bool, error) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	p, ok := k.s.kv[kvKey(cat, key)]
	return p, ok, nil
}

func (k kv) Scan(_ context.Context, cat, after string, limit int) ([]engine.KVPair, error) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	var out []engine.KVPair
	for _, p := range k.s.kv {
		if p.Cat == cat && p.Key > after {
			out = append(out, p)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Key < out[j].Key })
	return out[:min(limit, len(out))], nil
}

func (k kv) Set(_ context.Context, p engine.KVPair) error {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	old := k.s.kv[kvKey(p.Cat, p.Key)]
	if old.Rev != p.Rev {
		return fmt.Errorf("%s/%s: %w", p.Cat, p.Key, engine.ErrConflict)
	}
	k.s.rev++
	now := time.Now().UnixMilli()
	p.Rev, p.Version, p.CreatedAt, p.UpdatedAt = k.s.rev, old.Version+1, old.CreatedAt, now
	if p.CreatedAt == 0 {
		p.CreatedAt = now
	}
	k.s.kv[kvKey(p.Cat, p.Key)] = p
	return nil
}

func (k kv) Delete(_ context.Context, cat, key string, rev int64) error {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	if k.s.kv[kvKey(cat, key)].Rev != rev {
		return fmt.Errorf("%s/%s: %w", cat, key, engine.ErrConflict)
	}
	delete(k.s.kv, kvKey(cat, key))
	return nil
}
