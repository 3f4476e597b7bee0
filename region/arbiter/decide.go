package arbiter

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// Decision is what the holder of a slot wants to decide for a transaction of global durability.
type Decision struct {
	Slot  int
	Gid   string
	Epoch slot.Epoch
	// Generation of the slot's decisions as it was when the holder took the slot; see Generation.
	Generation int64
	// Body is the closed transaction with the decision in it, at most DecisionBytesMax.
	Body []byte
}

// DecisionBytesMax bounds the closed transaction of a global decision.
const DecisionBytesMax = 64 << 10

// Generation gives the number that every removal of decisions of a slot changes. A holder reads it after it has taken
// the slot and before it reads the slot's records.
func (a *Arbiter) Generation(ctx context.Context, n int) (int64, error) {
	got, err := a.cli.Get(ctx, genKey(n))
	if err != nil {
		return 0, fmt.Errorf("read the generation of slot %d: %w", n, err)
	}
	if len(got.Kvs) == 0 {
		return 0, nil
	}
	return got.Kvs[0].ModRevision, nil
}

// Generations gives the generations of all slots that have one.
func (a *Arbiter) Generations(ctx context.Context) (map[int]int64, error) {
	got, err := a.cli.Get(ctx, genPrefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, fmt.Errorf("read the generations: %w", err)
	}
	out := map[int]int64{}
	for _, kv := range got.Kvs {
		n, err := strconv.Atoi(strings.TrimPrefix(string(kv.Key), genPrefix))
		if err != nil {
			return nil, fmt.Errorf("the arbiter's key %s: %w", kv.Key, err)
		}
		out[n] = kv.ModRevision
	}
	return out, nil
}

// Decide writes the decision if none stands, the slot is at its epoch and no decision of the slot was removed since
// Generation was read. It gives the decision that stands, durable: the caller's, or the first one's. ErrEpoch and
// ErrGeneration: nothing stands, nothing was written. Any other error: the outcome is unknown, and the caller must neither
// confirm nor cancel; a later call settles it, whatever it wants to decide. Calls that come at once share a transaction.
func (a *Arbiter) Decide(ctx context.Context, d Decision) ([]byte, error) {
	if len(d.Body) == 0 || len(d.Body) > DecisionBytesMax {
		return nil, fmt.Errorf("decide %q: the closed transaction has %d bytes, 1 to %d are possible", d.Gid, len(d.Body), DecisionBytesMax)
	}
	return a.dec.do(ctx, d)
}

// Decided reads a decision, linearizably; nil when none stands, which proves nothing while somebody may write it.
func (a *Arbiter) Decided(ctx context.Context, n int, gid string) ([]byte, error) {
	got, err := a.cli.Get(ctx, decKey(n, gid))
	if err != nil {
		return nil, fmt.Errorf("read the decision of %q: %w", gid, err)
	}
	if len(got.Kvs) == 0 {
		return nil, nil
	}
	return got.Kvs[0].Value, nil
}

// Decisions lists the gids of a slot that have a decision.
func (a *Arbiter) Decisions(ctx context.Context, n int) ([]string, error) {
	prefix := fmt.Sprintf("%s%04d/", decPrefix, n)
	got, err := a.cli.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, fmt.Errorf("read the decisions of slot %d: %w", n, err)
	}
	var out []string
	for _, kv := range got.Kvs {
		out = append(out, strings.TrimPrefix(string(kv.Key), prefix))
	}
	return out, nil
}

// DecisionsOf gives the decisions of a slot that stand, by gid.
func (a *Arbiter) DecisionsOf(ctx context.Context, n int) (map[string][]byte, error) {
	prefix := fmt.Sprintf("%s%04d/", decPrefix, n)
	got, err := a.cli.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("read the decisions of slot %d: %w", n, err)
	}
	out := map[string][]byte{}
	for _, kv := range got.Kvs {
		out[strings.TrimPrefix(string(kv.Key), prefix)] = kv.Value
	}
	return out, nil
}

// AllDecisions lists the gids that have a decision, by slot.
func (a *Arbiter) AllDecisions(ctx context.Context) (map[int][]string, error) {
	got, err := a.cli.Get(ctx, decPrefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, fmt.Errorf("read the decisions: %w", err)
	}
	out := map[int][]string{}
	for _, kv := range got.Kvs {
		name, gid, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), decPrefix), "/")
		n, err := strconv.Atoi(name)
		if err != nil {
			return nil, fmt.Errorf("the arbiter's key %s: %w", kv.Key, err)
		}
		out[n] = append(out[n], gid)
	}
	return out, nil
}

// Remove takes away the decisions of transactions whose branches have all ended and whose finish is in every region's
// journal: the caller has made sure of that. It gives the slot's new generation. ErrEpoch and ErrGeneration as Decide; on
// any other error they may or may not be gone, and the slot must be taken again.
func (a *Arbiter) Remove(ctx context.Context, n int, epoch slot.Epoch, generation int64, gids []string) (int64, error) {
	if len(gids) == 0 || len(gids) > 100 {
		return 0, fmt.Errorf("%d decisions to remove; 1 to 100 are possible", len(gids))
	}
	ops := []clientv3.Op{clientv3.OpPut(genKey(n), fmt.Sprint(time.Now().UnixNano()))}
	for _, g := range gids {
		ops = append(ops, clientv3.OpDelete(decKey(n, g)))
	}
	// Sent once: a second one would meet the generation that the first has written and not know whose it is.
	resp, err := a.cli.Txn(ctx).If(conditions(n, epoch, generation)...).Then(ops...).Else(clientv3.OpGet(epochKey(n))).Commit()
	if err != nil {
		return 0, fmt.Errorf("remove decisions of slot %d: %w", n, err)
	}
	if !resp.Succeeded {
		if kvs := resp.Responses[0].GetResponseRange().GetKvs(); len(kvs) == 0 || string(kvs[0].Value) != epochValue(epoch) {
			return 0, fmt.Errorf("remove decisions of slot %d: %w (asked in epoch %d)", n, ErrEpoch, epoch)
		}
		return 0, fmt.Errorf("remove decisions of slot %d: %w", n, ErrGeneration)
	}
	return resp.Header.Revision, nil
}

func conditions(n int, epoch slot.Epoch, generation int64) []clientv3.Cmp {
	return []clientv3.Cmp{
		clientv3.Compare(clientv3.Value(epochKey(n)), "=", epochValue(epoch)),
		clientv3.Compare(clientv3.ModRevision(genKey(n)), "=", generation),
	}
}

// underWay bounds the transactions with decisions that are under way at once: what comes is sent at once, and waits for none
// before it, since the arbiter may be a long round trip away.
const underWay = 16

// batcher shares transactions between decisions that come while underWay others are on their way. Their order means nothing:
// each compares what it writes.
type batcher struct {
	a       *Arbiter
	mu      sync.Mutex
	waiting []*deciding
	running int
}

type deciding struct {
	ctx  context.Context
	d    Decision
	done chan decided
}

type decided struct {
	body []byte
	err  error
}

// sharedMax bounds the decisions of one transaction: three compares at most and one write each, and 1 MiB together.
const (
	sharedMax      = 40
	sharedBytesMax = 1 << 20
)

func (b *batcher) do(ctx context.Context, d Decision) ([]byte, error) {
	w := &deciding{ctx: ctx, d: d, done: make(chan decided, 1)}
	b.mu.Lock()
	b.waiting = append(b.waiting, w)
	if b.running < underWay {
		b.running++
		go b.run()
	}
	b.mu.Unlock()
	select {
	case r := <-w.done:
		return r.body, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (b *batcher) run() {
	for {
		b.mu.Lock()
		if len(b.waiting) == 0 {
			b.running--
			b.mu.Unlock()
			return
		}
		n, size := 0, 0
		for n < len(b.waiting) && n < sharedMax && (n == 0 || size+len(b.waiting[n].d.Body) <= sharedBytesMax) {
			size += len(b.waiting[n].d.Body)
			n++
		}
		batch := append([]*deciding(nil), b.waiting[:n]...)
		b.waiting = append(b.waiting[:0:0], b.waiting[n:]...)
		b.mu.Unlock()
		b.write(batch)
	}
}

// write tries all at once; one that cannot be written stands in the way of all, so then each goes by itself.
func (b *batcher) write(batch []*deciding) {
	if len(batch) > 1 && distinct(batch) && b.shared(batch) {
		return
	}
	var wg sync.WaitGroup
	for _, w := range batch {
		wg.Go(func() {
			body, err := b.a.decide(w.ctx, w.d)
			w.done <- decided{body, err}
		})
	}
	wg.Wait()
}

// distinct says that no gid stands twice: etcd takes a key once in a transaction.
func distinct(batch []*deciding) bool {
	seen := map[string]bool{}
	for _, w := range batch {
		if seen[w.d.Gid] {
			return false
		}
		seen[w.d.Gid] = true
	}
	return true
}

func (b *batcher) shared(batch []*deciding) bool {
	var cmps []clientv3.Cmp
	var ops []clientv3.Op
	slots := map[int]Decision{}
	for _, w := range batch {
		if first, ok := slots[w.d.Slot]; ok && (first.Epoch != w.d.Epoch || first.Generation != w.d.Generation) {
			return false
		} else if !ok {
			slots[w.d.Slot] = w.d
			cmps = append(cmps, conditions(w.d.Slot, w.d.Epoch, w.d.Generation)...)
		}
		key := decKey(w.d.Slot, w.d.Gid)
		cmps = append(cmps, clientv3.Compare(clientv3.CreateRevision(key), "=", 0))
		ops = append(ops, clientv3.OpPut(key, string(w.d.Body)))
	}
	ctx, cancel := context.WithTimeout(batch[0].ctx, attemptTimeout)
	defer cancel()
	resp, err := b.a.cli.Txn(ctx).If(cmps...).Then(ops...).Commit()
	if err != nil || !resp.Succeeded {
		return false // each by itself finds out, also what this one may have written
	}
	for _, w := range batch {
		w.done <- decided{body: w.d.Body}
	}
	return true
}

// decide repeats one decision until its outcome is certain.
func (a *Arbiter) decide(ctx context.Context, d Decision) ([]byte, error) {
	key := decKey(d.Slot, d.Gid)
	resp, err := a.settle(ctx, func(t clientv3.Txn) clientv3.Txn {
		cmps := append(conditions(d.Slot, d.Epoch, d.Generation), clientv3.Compare(clientv3.CreateRevision(key), "=", 0))
		return t.If(cmps...).Then(clientv3.OpPut(key, string(d.Body))).Else(clientv3.OpGet(key), clientv3.OpGet(epochKey(d.Slot)))
	})
	if err != nil {
		return nil, fmt.Errorf("decide %q: %w", d.Gid, err)
	}
	if resp.Succeeded {
		return d.Body, nil
	}
	if kvs := resp.Responses[0].GetResponseRange().GetKvs(); len(kvs) > 0 {
		return kvs[0].Value, nil
	}
	if kvs := resp.Responses[1].GetResponseRange().GetKvs(); len(kvs) == 0 || string(kvs[0].Value) != epochValue(d.Epoch) {
		return nil, fmt.Errorf("decide %q: slot %d: %w (asked in epoch %d)", d.Gid, d.Slot, ErrEpoch, d.Epoch)
	}
	return nil, fmt.Errorf("decide %q: slot %d: %w", d.Gid, d.Slot, ErrGeneration)
}

func (a *Arbiter) pause(ctx context.Context) {
	select {
	case <-time.After(300 * time.Millisecond):
	case <-ctx.Done():
	}
}

// Certain says that after err nothing was written by the call that returned it.
func Certain(err error) bool {
	return errors.Is(err, ErrEpoch) || errors.Is(err, ErrGeneration) || errors.Is(err, ErrChanged)
}
