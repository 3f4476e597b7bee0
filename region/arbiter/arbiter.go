// Package arbiter keeps what the regions must agree on, in a small etcd cluster with a member in each of at least three
// failure domains: who owns a slot at which epoch, the decisions of global durability, and small shared tables (the
// participant registry, operations, their audit).
//
// The law it keeps: every change is one etcd transaction that compares what it is derived from, so that nothing here
// depends on a lease or a clock; a change whose answer was lost is sent again as it was, which is harmless, until its
// outcome is certain. A decision is written once and never changed (G1, G4).
//
// It is tested on one member and on three, one of them killed, and by a proxy that eats the answers of writes. Source:
// multi-region reference, sections 1.2 to 1.6; ADR 8.
package arbiter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// Prefix of every key of version 1 of the layout.
const Prefix = "/lockstep-arbiter/1/"

const (
	deploymentKey = Prefix + "deployment"
	ownPrefix     = Prefix + "own/"
	epochPrefix   = Prefix + "epoch/"
	sealPrefix    = Prefix + "seal/"
	decPrefix     = Prefix + "dec/"
	genPrefix     = Prefix + "decgen/"
	tablePrefix   = Prefix + "table/"
)

// Errors of this package. After ErrChanged and ErrEpoch nothing was written.
var (
	// ErrChanged: what the change was derived from is not what stands there now.
	ErrChanged = errors.New("it was changed by somebody else")
	// ErrEpoch: the slot is at another epoch.
	ErrEpoch = errors.New("the slot is at another epoch")
	// ErrGeneration: decisions of the slot were removed since its holder took it: the holder's view is too old.
	ErrGeneration = errors.New("decisions of the slot were removed meanwhile")
	// ErrNoDeployment: Init has not been called on this cluster.
	ErrNoDeployment = errors.New("the arbiter holds no deployment yet; run: lockstep region init")
)

// Deployment is fixed when it is created, but for regions that are added at the end.
type Deployment struct {
	// Regions by index, from 1 on: Regions[0] has index 1.
	Regions []string `json:"regions"`
	Slots   int      `json:"slots"`
	// BegunMillis (unix) is when the arbiter was made.
	BegunMillis int64 `json:"begun"`
	// RestoredEpoch is 0, or the least epoch since the arbiter was last restored from a backup: of transactions that began in
	// an earlier one, the absence of a decision proves nothing.
	RestoredEpoch slot.Epoch `json:"restored_epoch,omitempty"`
}

// Index of a region, from 1 on; 0 when the deployment has none of that name.
func (d *Deployment) Index(region string) int { return slices.Index(d.Regions, region) + 1 }

// Name of the region with an index; "" when there is none.
func (d *Deployment) Name(index int) string {
	if index < 1 || index > len(d.Regions) {
		return ""
	}
	return d.Regions[index-1]
}

// Grows says what is wrong with regions as the deployment's next; nil when they are its own, with or without new ones behind.
func (d *Deployment) Grows(regions []string) error {
	if len(regions) < len(d.Regions) || !slices.Equal(regions[:len(d.Regions)], d.Regions) {
		return fmt.Errorf("regions: the deployment has %v in this order; new ones go to the end", d.Regions)
	}
	return nil
}

// Arbiter is a client of the arbiter's cluster. It does not own the etcd client. Safe for concurrent use.
type Arbiter struct {
	cli *clientv3.Client
	log *slog.Logger
	dec batcher
}

// New makes an Arbiter on a client. It sends nothing. log may be nil.
func New(cli *clientv3.Client, log *slog.Logger) *Arbiter {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	a := &Arbiter{cli: cli, log: log}
	a.dec.a = a
	return a
}

func ownKey(n int) string             { return fmt.Sprintf("%s%04d", ownPrefix, n) }
func epochKey(n int) string           { return fmt.Sprintf("%s%04d", epochPrefix, n) }
func sealKey(n int, e uint64) string  { return fmt.Sprintf("%s%04d/%020d", sealPrefix, n, e) }
func decKey(n int, gid string) string { return fmt.Sprintf("%s%04d/%s", decPrefix, n, gid) }
func genKey(n int) string             { return fmt.Sprintf("%s%04d", genPrefix, n) }
func epochValue(e slot.Epoch) string  { return fmt.Sprintf("%020d", uint64(e)) }
func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own structs of texts and numbers
	}
	return string(b)
}

// attemptTimeout bounds one attempt of a change. etcd may carry it out later; the next attempt is the same, so that this
// does no harm.
const attemptTimeout = 2 * time.Second

// settle sends one transaction until its outcome is certain or ctx ends. Whoever calls it has written the transaction so
// that sending it again is harmless: it compares what it changes. An error means that the outcome is unknown.
func (a *Arbiter) settle(ctx context.Context, txn func(clientv3.Txn) clientv3.Txn) (*clientv3.TxnResponse, error) {
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		actx, cancel := context.WithTimeout(ctx, attemptTimeout)
		resp, err := txn(a.cli.Txn(actx)).Commit()
		cancel()
		if err == nil {
			return resp, nil
		}
		if errors.Is(err, rpctypes.ErrRequestTooLarge) || errors.Is(err, rpctypes.ErrTooManyOps) || errors.Is(err, rpctypes.ErrDuplicateKey) {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w (last attempt: %w)", context.Cause(ctx), err)
		}
		a.log.Debug("the arbiter did not answer; asking again", "err", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (last attempt: %w)", context.Cause(ctx), err)
		}
	}
}

// Init creates the deployment: its regions by name, and for every slot its first owner, which assign names. It may be
// repeated, also with regions added at the end; slots that have an owner keep it. Durable on nil.
func (a *Arbiter) Init(ctx context.Context, regions []string, now time.Time, assign func(n int) string) error {
	if len(regions) == 0 || len(regions) > slot.RegionsMax {
		return fmt.Errorf("regions: %d names, 1 to %d are possible", len(regions), slot.RegionsMax)
	}
	for i, r := range regions {
		if r == "" || slices.Contains(regions[:i], r) {
			return fmt.Errorf("regions: name %q is empty or stands twice", r)
		}
	}
	d, err := a.initDeployment(ctx, Deployment{Regions: regions, Slots: slot.Count, BegunMillis: now.UnixMilli()})
	if err != nil {
		return err
	}
	for first := 0; first < slot.Count; first += slotsPerTxn {
		if err := a.initSlots(ctx, &d, first, min(slot.Count, first+slotsPerTxn), assign); err != nil {
			return err
		}
	}
	return nil
}

// slotsPerTxn keeps a transaction over slots under etcd's 128 operations: two writes each.
const slotsPerTxn = 60

func (a *Arbiter) initDeployment(ctx context.Context, want Deployment) (Deployment, error) {
	for {
		got, rev, err := a.deployment(ctx)
		if err != nil && !errors.Is(err, ErrNoDeployment) {
			return got, err
		}
		if err == nil {
			if err := got.Grows(want.Regions); err != nil {
				return got, err
			}
			if len(want.Regions) == len(got.Regions) {
				return got, nil
			}
			want.BegunMillis = got.BegunMillis
		}
		resp, err := a.settle(ctx, func(t clientv3.Txn) clientv3.Txn {
			return t.If(clientv3.Compare(clientv3.ModRevision(deploymentKey), "=", rev)).Then(clientv3.OpPut(deploymentKey, mustJSON(want)))
		})
		if err != nil {
			return got, fmt.Errorf("write the deployment: %w", err)
		}
		if resp.Succeeded {
			return want, nil
		}
	}
}

func (a *Arbiter) initSlots(ctx context.Context, d *Deployment, from, to int, assign func(n int) string) error {
	got, err := a.cli.Get(ctx, ownKey(from), clientv3.WithRange(ownKey(to)))
	if err != nil {
		return fmt.Errorf("read the owners: %w", err)
	}
	have := map[string]bool{}
	for _, kv := range got.Kvs {
		have[string(kv.Key)] = true
	}
	var cmps []clientv3.Cmp
	var ops []clientv3.Op
	for n := from; n < to; n++ {
		if have[ownKey(n)] {
			continue
		}
		region := assign(n)
		index := d.Index(region)
		if index == 0 {
			return fmt.Errorf("slot %d: no region %q in %v", n, region, d.Regions)
		}
		o := slot.Owner{Region: region, Epoch: slot.Initial(index), Status: slot.Active}
		cmps = append(cmps, clientv3.Compare(clientv3.CreateRevision(ownKey(n)), "=", 0))
		ops = append(ops, clientv3.OpPut(ownKey(n), mustJSON(o)), clientv3.OpPut(epochKey(n), epochValue(o.Epoch)))
	}
	if len(ops) == 0 {
		return nil
	}
	// Where somebody else was faster, theirs stands.
	_, err = a.settle(ctx, func(t clientv3.Txn) clientv3.Txn { return t.If(cmps...).Then(ops...) })
	if err != nil {
		return fmt.Errorf("write the first owners: %w", err)
	}
	return nil
}

// Restored notes that the arbiter was restored from a backup: absence of a decision proves nothing about transactions that began
// in an epoch below the one given. It never goes back. Durable on nil.
func (a *Arbiter) Restored(ctx context.Context, epoch slot.Epoch) error {
	for {
		d, rev, err := a.deployment(ctx)
		if err != nil || d.RestoredEpoch >= epoch {
			return err
		}
		d.RestoredEpoch = epoch
		resp, err := a.settle(ctx, func(t clientv3.Txn) clientv3.Txn {
			return t.If(clientv3.Compare(clientv3.ModRevision(deploymentKey), "=", rev)).Then(clientv3.OpPut(deploymentKey, mustJSON(d)))
		})
		if err != nil {
			return fmt.Errorf("note that the arbiter was restored: %w", err)
		}
		if resp.Succeeded {
			return nil
		}
	}
}

// Deployment reads the deployment; ErrNoDeployment before Init.
func (a *Arbiter) Deployment(ctx context.Context) (Deployment, error) {
	d, _, err := a.deployment(ctx)
	return d, err
}

func (a *Arbiter) deployment(ctx context.Context) (Deployment, int64, error) {
	var d Deployment
	got, err := a.cli.Get(ctx, deploymentKey)
	if err != nil {
		return d, 0, fmt.Errorf("read the deployment: %w", err)
	}
	if len(got.Kvs) == 0 {
		return d, 0, ErrNoDeployment
	}
	if err := json.Unmarshal(got.Kvs[0].Value, &d); err != nil {
		return d, 0, fmt.Errorf("the deployment's record: %w", err)
	}
	if d.Slots != slot.Count {
		return d, 0, fmt.Errorf("the deployment has %d slots, this program %d", d.Slots, slot.Count)
	}
	return d, got.Kvs[0].ModRevision, nil
}
