package fault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/proc"
)

// Replaced loses a member of the first region's etcd with its disk, takes it out of the cluster and puts a new one in its place (O1).
type Replaced struct {
	// Flip loses it by one bit of its log, while it does not run (K5): it must not serve what it finds then.
	Flip bool
	off  bool
}

// Name is the fault's.
func (r Replaced) Name() string {
	if r.Flip {
		return "etcd-member-bit-flipped"
	}
	return "etcd-member-replaced"
}

// Available wants three members.
func (Replaced) Available(e Env) error { return KillMember{}.Available(e) }

func (r Replaced) disabled() Fault { r.off = true; return r }

// Inject kills the last member, and removes it and its data.
func (r Replaced) Inject(ctx context.Context, e Env) (Active, error) {
	a := last(e)
	if r.off {
		return a, nil
	}
	if err := a.kill(ctx); err != nil {
		return a, err
	}
	if r.Flip {
		if err := a.flip(ctx, e.rand(5)); err != nil {
			return a, err
		}
	}
	return a, a.remove(ctx)
}

// last is the last member of the first region's etcd.
func last(e Env) *replaced {
	r := e.Deployment.Regions[0]
	return &replaced{e: e, r: r, n: r.Etcd[len(r.Etcd)-1]}
}

// kill notes the member's id, and kills it.
func (a *replaced) kill(ctx context.Context) error {
	m, err := check.ReadMembers(ctx, "", []string{a.n.Addr})
	if err != nil {
		return err
	}
	a.was = m[0].ID
	a.n.Kill()
	return nil
}

// remove takes the member's data away, and the member out of the cluster.
func (a *replaced) remove(ctx context.Context) error {
	if err := os.RemoveAll(a.n.Data()); err != nil {
		return err
	}
	return at(ctx, a.r, func(ctx context.Context, cli *clientv3.Client) error {
		got, err := cli.MemberList(ctx)
		if err != nil {
			return err
		}
		for _, m := range got.Members {
			if m.ID == a.was {
				a.peers = m.PeerURLs
			}
		}
		_, err = cli.MemberRemove(ctx, a.was)
		return err
	})
}

// words are what the member has said last: the first line of a panic, if it was one.
func (a *replaced) words() string {
	said, err := os.ReadFile(a.n.Log())
	if err != nil {
		return fmt.Sprintf(" (%v)", err)
	}
	text := strings.TrimSpace(string(said))
	last := text[strings.LastIndexByte(text, '\n')+1:]
	for _, how := range []string{"panic: ", "fatal error: "} {
		if i := strings.LastIndex(text, "\n"+how); i >= 0 {
			last, _, _ = strings.Cut(text[i+1:], "\n")
		}
	}
	return fmt.Sprintf(" (%.200s)", last)
}

type replaced struct {
	e       Env
	r       *proc.Region
	n       *proc.Node
	was, is uint64
	peers   []string
	joined  bool
	flipped string // where, and what the member said to it
}

// flip turns one bit round in the first records of the newest file of the member's log, and starts the member: it must end.
func (a *replaced) flip(ctx context.Context, rnd *rand.Rand) error {
	files, err := filepath.Glob(filepath.Join(a.n.Data(), "*", "member", "wal", "*.wal"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("%s has no log: %w", a.n.Name, err)
	}
	slices.Sort(files)
	file, at := files[len(files)-1], 64+rnd.Int64N(256)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	if err == nil {
		b[0] ^= 1 << rnd.IntN(8)
		_, err = f.WriteAt(b, at)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	_ = a.n.Start(ctx) // that its port was open says nothing: it listens before it reads its log
	_, err = until(ctx, a.e.wait(10*time.Second), func() (Evidence, bool, error) { return Evidence{What: "it runs"}, !a.n.Alive(), nil })
	if err != nil {
		a.n.Kill()
		return fmt.Errorf("%s serves with a bit of %s at %d turned round: %w", a.n.Name, filepath.Base(file), at, err)
	}
	a.flipped = fmt.Sprintf("a bit of %s at %d was turned round, and it ended when it was started%s; ", filepath.Base(file), at, a.words())
	return nil
}

// members are the ids of the cluster's.
func (a *replaced) members(ctx context.Context) (ids []uint64, err error) {
	err = at(ctx, a.r, func(ctx context.Context, cli *clientv3.Client) error {
		got, err := cli.MemberList(ctx)
		if err != nil {
			return err
		}
		for _, m := range got.Members {
			ids = append(ids, m.ID)
		}
		return nil
	})
	return ids, err
}

// Effective wants the process reaped, and the cluster to know two members, none of them the one that was.
func (a *replaced) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(10*time.Second), func() (Evidence, bool, error) {
		ids, err := a.members(ctx)
		gone := a.was != 0
		for _, id := range ids {
			gone = gone && id != a.was
		}
		return Evidence{a.flipped + fmt.Sprintf("%s (%x) was reaped: %v, its data are away, and the cluster has the members %x", a.n.Name, a.was, !a.n.Alive(), ids), map[string]int64{"members": int64(len(ids))}},
			gone && len(ids) == len(a.r.Etcd)-1 && !a.n.Alive() && a.n.Refuses(), err
	})
}

// Recover adds a member and starts it.
func (a *replaced) Recover(ctx context.Context) error {
	if a.was == 0 || a.joined {
		return nil
	}
	err := at(ctx, a.r, func(ctx context.Context, cli *clientv3.Client) error {
		got, err := cli.MemberAdd(ctx, a.peers)
		if err == nil {
			a.is = got.Member.ID
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("add a member at %v: %w", a.peers, err)
	}
	a.joined = true
	a.n.With("--join")
	return a.n.Start(ctx)
}

// Recovered wants the new member to have what the others have.
func (a *replaced) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		same, all, err := alike(ctx, a.r.Etcd)
		ids, merr := a.members(ctx)
		return Evidence{What: fmt.Sprintf("%s is the member %x, was %x; %d of %d members have the same", a.n.Name, a.is, a.was, same, all)}, a.is != 0 && a.is != a.was && len(ids) == len(a.r.Etcd) && same == len(a.r.Etcd), errors.Join(err, merr)
	})
}

func (a *replaced) Cleanup() error { return nil }

// alike is how many members of an etcd follow a leader and have what the first has at one revision.
func alike(ctx context.Context, nodes []*proc.Node) (same, all int, err error) {
	m, err := check.ReadMembers(ctx, "", addresses(nodes))
	for i := range m {
		if m[i].Leader != 0 && m[i].Hash == m[0].Hash {
			same++
		}
	}
	return same, len(m), err
}

// Lagging kills a member of the first region's etcd, has so much written meanwhile that the others do not keep the log of it, and starts
// it again: it cannot read on and is sent a snapshot (O2).
type Lagging struct{ off bool }

// logKept is more entries than etcd keeps of its log for who lags: it makes a snapshot every 10,000 and keeps 5,000 before it.
const (
	logKept = 16_000
	writers = 96
)

// Name is the fault's.
func (Lagging) Name() string { return "etcd-member-lagging" }

// Available wants three members.
func (Lagging) Available(e Env) error { return KillMember{}.Available(e) }

func (l Lagging) disabled() Fault { l.off = true; return l }

// Inject kills the last member, and writes.
func (l Lagging) Inject(ctx context.Context, e Env) (Active, error) {
	r := e.Deployment.Regions[0]
	a := &lagging{e: e, r: r, n: r.Etcd[len(r.Etcd)-1]}
	if l.off {
		return a, nil
	}
	a.n.Kill()
	return a, a.write(ctx)
}

type lagging struct {
	e       Env
	r       *proc.Region
	n       *proc.Node
	written atomic.Int64
}

// write puts one small key again and again, beside the load. A put whose answer is lost is made once more: it says nothing of what is wanted.
func (a *lagging) write(ctx context.Context) (err error) {
	var rest []string
	for _, n := range a.r.Etcd {
		if n != a.n {
			rest = append(rest, n.Addr)
		}
	}
	cli, err := clientv3.New(clientv3.Config{Endpoints: rest, DialTimeout: etcdLimit})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cli.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, a.e.wait(time.Minute))
	defer cancel()
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	for range writers {
		wg.Go(func() {
			for a.written.Load() < logKept && ctx.Err() == nil {
				if _, err := cli.Put(ctx, suiteKey, "x"); err != nil {
					failed.Store(&err)
					continue
				}
				a.written.Add(1)
			}
		})
	}
	wg.Wait()
	if p := failed.Load(); p != nil && a.written.Load() < logKept {
		return fmt.Errorf("%d of %d entries were written: %w", a.written.Load(), logKept, *p)
	}
	return ctx.Err()
}

// Effective wants the process reaped, and the entries written without it.
func (a *lagging) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(5*time.Second), func() (Evidence, bool, error) {
		return Evidence{fmt.Sprintf("%s was reaped: %v; the others have written %d entries since, beside the load", a.n.Name, !a.n.Alive(), min(a.written.Load(), logKept)), map[string]int64{"entries": min(a.written.Load(), logKept)}},
			!a.n.Alive() && a.n.Refuses() && a.written.Load() >= logKept, nil
	})
}

// Recover starts it.
func (a *lagging) Recover(ctx context.Context) error {
	if a.n.Alive() {
		return nil
	}
	return a.n.Start(ctx)
}

// snapshots is how many snapshots the member was sent, as it counts them itself.
func (a *lagging) snapshots(ctx context.Context) (n int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.n.Addr+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	c := http.Client{Timeout: etcdLimit}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	for line := range strings.Lines(string(raw)) {
		var got int
		if name, value, _ := strings.Cut(strings.TrimSpace(line), "} "); strings.HasPrefix(name, "etcd_network_snapshot_receive_success{") {
			if _, err := fmt.Sscan(value, &got); err != nil {
				return n, err
			}
			n += got
		}
	}
	return n, err
}

// Recovered wants a snapshot to have come, and the member to have what the others have.
func (a *lagging) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(30*time.Second), func() (Evidence, bool, error) {
		n, err := a.snapshots(ctx)
		same, all, serr := alike(ctx, a.r.Etcd)
		return Evidence{fmt.Sprintf("%s was sent %d snapshots; %d of %d members have the same", a.n.Name, n, same, all), map[string]int64{"snapshots": int64(n)}}, n > 0 && same == len(a.r.Etcd), errors.Join(err, serr)
	})
}

func (a *lagging) Cleanup() error { return nil }
