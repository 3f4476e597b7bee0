package fault

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockstep-tx/lockstep/chaos/proc"
)

// etcdLimit is how long the suite waits for an etcd.
const etcdLimit = 5 * time.Second

// suiteKey is where the suite tries to write: the product looks nowhere near.
const suiteKey = "/chaos/probe"

// at calls f with a client of the first region's etcd, through no link.
func at(ctx context.Context, r *proc.Region, f func(ctx context.Context, cli *clientv3.Client) error) (err error) {
	var all []string
	for _, n := range r.Etcd {
		all = append(all, n.Addr)
	}
	cli, err := clientv3.New(clientv3.Config{Endpoints: all, DialTimeout: etcdLimit})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cli.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, etcdLimit)
	defer cancel()
	return f(ctx, cli)
}

// NoSpace raises the alarm of a full disk in the first region's etcd, as its quota does: it refuses every write and answers every read,
// until the alarm is disarmed (S4).
type NoSpace struct{ off bool }

// Name is the fault's.
func (NoSpace) Name() string { return "etcd-no-space" }

// Available wants an etcd that can be reached from outside.
func (NoSpace) Available(e Env) error { return paired(e, 0) }

func (n NoSpace) disabled() Fault { n.off = true; return n }

// Inject raises the alarm.
func (n NoSpace) Inject(ctx context.Context, e Env) (Active, error) {
	a := &full{e: e, r: e.Deployment.Regions[0]}
	if n.off {
		return a, nil
	}
	return a, a.alarm(ctx, etcdserverpb.AlarmRequest_ACTIVATE)
}

type full struct {
	e Env
	r *proc.Region
}

func (a *full) alarm(ctx context.Context, do etcdserverpb.AlarmRequest_AlarmAction) error {
	return at(ctx, a.r, func(ctx context.Context, cli *clientv3.Client) error {
		st, err := cli.Status(ctx, cli.Endpoints()[0])
		if err != nil {
			return err
		}
		_, err = etcdserverpb.NewMaintenanceClient(cli.ActiveConnection()).Alarm(ctx, &etcdserverpb.AlarmRequest{Action: do, MemberID: st.Header.MemberId, Alarm: etcdserverpb.AlarmType_NOSPACE})
		return err
	})
}

// writes says what a write of the suite's own meets; the reads are to work all the same.
func (a *full) writes(ctx context.Context) (refused error, err error) {
	err = at(ctx, a.r, func(ctx context.Context, cli *clientv3.Client) error {
		_, refused = cli.Put(ctx, suiteKey, "x")
		_, err := cli.Get(ctx, suiteKey)
		return err
	})
	return refused, err
}

// Effective wants a write to be refused for want of space, and a read to be answered.
func (a *full) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(10*time.Second), func() (Evidence, bool, error) {
		refused, err := a.writes(ctx)
		return Evidence{What: fmt.Sprintf("a write to %s's etcd meets: %v; a read is answered", a.r.Name, refused)}, errors.Is(refused, rpctypes.ErrNoSpace), err
	})
}

// Recover disarms the alarm.
func (a *full) Recover(ctx context.Context) error {
	return a.alarm(ctx, etcdserverpb.AlarmRequest_DEACTIVATE)
}

// Recovered wants a write to be taken.
func (a *full) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(15*time.Second), func() (Evidence, bool, error) {
		refused, err := a.writes(ctx)
		return Evidence{What: fmt.Sprintf("a write to %s's etcd meets: %v", a.r.Name, refused)}, refused == nil, err
	})
}

func (a *full) Cleanup() error { return nil }

// LeaseLost revokes the lease of the first coordinator of the first region, again and again for a while, and leaves its process and its
// links alone: it is told that it is no member any more while it lives (S5).
type LeaseLost struct{ off bool }

// revocations are wanted.
const revocations = 3

// memberKeys is where coordinators announce themselves.
const memberKeys = "/lockstep/1/member/"

// Name is the fault's.
func (LeaseLost) Name() string { return "lease-revoked" }

// Available wants a region with two coordinators.
func (LeaseLost) Available(e Env) error { return paired(e, 0) }

func (l LeaseLost) disabled() Fault { l.off = true; return l }

// Inject revokes.
func (l LeaseLost) Inject(ctx context.Context, e Env) (Active, error) {
	r := e.Deployment.Regions[0]
	a := &revoked{e: e, r: r, n: r.Coordinators[0], pid: r.Coordinators[0].PID(), before: held(r.Admin[1])}
	if l.off {
		return a, nil
	}
	_, err := until(ctx, e.wait(30*time.Second), func() (Evidence, bool, error) {
		lease, err := a.lease(ctx)
		if err == nil && lease != 0 {
			err = at(ctx, r, func(ctx context.Context, cli *clientv3.Client) error {
				_, err := cli.Revoke(ctx, lease)
				return err
			})
			if err == nil {
				a.leases = append(a.leases, lease)
			}
		}
		a.most = max(a.most, held(r.Admin[1]))
		return Evidence{What: fmt.Sprintf("revoked %x; the other coordinator held %v slots at most, %v before", a.leases, a.most, a.before)}, len(a.leases) >= revocations && a.most > a.before, err
	})
	if errors.Is(err, ErrNoEffect) {
		err = ctx.Err() // Effective says so
	}
	return a, err
}

type revoked struct {
	e            Env
	r            *proc.Region
	n            *proc.Node
	pid          int
	leases       []clientv3.LeaseID
	before, most float64 // slots that the other one holds
}

// lease is the one under which the coordinator is announced; 0: it is not.
func (a *revoked) lease(ctx context.Context) (id clientv3.LeaseID, err error) {
	err = at(ctx, a.r, func(ctx context.Context, cli *clientv3.Client) error {
		got, err := cli.Get(ctx, memberKeys, clientv3.WithPrefix())
		if err != nil {
			return err
		}
		for _, kv := range got.Kvs {
			if strings.Contains(string(kv.Value), a.r.PeerLinks[0].Addr()) { // where it says that it is
				id = clientv3.LeaseID(kv.Lease)
			}
		}
		return nil
	})
	return id, err
}

// Effective wants the leases to be gone, the process to be the one that it was, and its slots to have been taken over.
func (a *revoked) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(10*time.Second), func() (Evidence, bool, error) {
		gone := 0
		err := at(ctx, a.r, func(ctx context.Context, cli *clientv3.Client) error {
			for _, id := range a.leases {
				left, err := cli.TimeToLive(ctx, id)
				if err != nil {
					return err
				}
				if left.TTL <= 0 {
					gone++
				}
			}
			return nil
		})
		return Evidence{fmt.Sprintf("%d leases of %s were revoked, %d of them are gone; it lives: %v (pid %d); the other coordinator held %v slots, %v before", len(a.leases), a.n.Name, gone, a.n.Alive(), a.n.PID(), a.most, a.before),
			map[string]int64{"revoked": int64(gone)}}, gone >= revocations && a.n.Alive() && a.n.PID() == a.pid && a.most > a.before, err
	})
}

// Recover has nothing to do: the coordinator announces itself again.
func (a *revoked) Recover(context.Context) error { return nil }

// Recovered wants it to be a member again, by another lease, and to hold slots.
func (a *revoked) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(30*time.Second), func() (Evidence, bool, error) {
		id, err := a.lease(ctx)
		n := held(a.r.Admin[0])
		return Evidence{What: fmt.Sprintf("%s is a member by the lease %x, and holds %v slots", a.n.Name, id, n)}, id != 0 && n > 0 && a.n.PID() == a.pid, err
	})
}

func (a *revoked) Cleanup() error { return nil }
