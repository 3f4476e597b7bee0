package arbiter

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lockstep-tx/lockstep/region/slot"
)

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// cluster starts n members in this process.
func cluster(t testing.TB, n int) ([]*Running, []string) {
	t.Helper()
	var all []Member
	var peers, clients []string
	for i := range n {
		m := Member{Name: fmt.Sprintf("m%d", i), Dir: t.TempDir(), Client: freeAddr(t), Peer: freeAddr(t), TickMillis: 50}
		all, clients = append(all, m), append(clients, m.Client)
		peers = append(peers, m.Name+"="+m.Peer)
	}
	out := make([]*Running, n)
	errs := make([]error, n)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i := range all {
		all[i].Cluster = peers
		wg.Go(func() { out[i], errs[i] = Start(ctx, all[i]) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, r := range out {
			r.Close()
		}
	})
	return out, clients
}

func client(t testing.TB, endpoints ...string) *clientv3.Client {
	t.Helper()
	cli, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop(), DialTimeout: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cli.Close() })
	return cli
}

func two(n int) string {
	if n%2 == 0 {
		return "east"
	}
	return "west"
}

// ready is an arbiter of one member with the regions east and west.
func ready(t testing.TB) *Arbiter {
	t.Helper()
	_, endpoints := cluster(t, 1)
	a := New(client(t, endpoints...), nil)
	if err := a.Init(t.Context(), []string{"east", "west"}, time.Now(), two); err != nil {
		t.Fatal(err)
	}
	return a
}

func TestEverySlotHasAnOwnerAfterInitAndInitCanBeRepeated(t *testing.T) {
	a := ready(t)
	ctx := t.Context()
	m, err := a.Owners(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for n, o := range m {
		if o.Region != two(n) || o.Status != slot.Active || o.Epoch != slot.Initial(1+n%2) {
			t.Fatalf("slot %d: %+v", n, o)
		}
	}
	d, err := m[0].Drain("west", "op", time.UnixMilli(9))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Change(ctx, Change{0, m[0], d}); err != nil {
		t.Fatal(err)
	}
	if err := a.Init(ctx, []string{"east", "west", "north"}, time.Now(), func(int) string { return "north" }); err != nil {
		t.Fatal(err)
	}
	if again, _ := a.Owners(ctx); !again[0].Equal(d) || again[1] != m[1] {
		t.Fatalf("a repeated Init changed owners: %+v, %+v", again[0], again[1])
	}
	if dep, err := a.Deployment(ctx); err != nil || dep.Index("north") != 3 || dep.Name(1) != "east" || dep.Name(4) != "" {
		t.Fatalf("%+v, %v", dep, err)
	}
	if err := a.Init(ctx, []string{"west", "east"}, time.Now(), two); err == nil {
		t.Fatal("the regions' order was changed: every epoch would name another region")
	}
}

func TestOneOfTwoChangesWinsAndARepeatOfItIsASuccess(t *testing.T) {
	a := ready(t)
	ctx := t.Context()
	m, err := a.Owners(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() {
			d, err := m[4].Drain("west", fmt.Sprint(i), time.UnixMilli(9))
			if err == nil {
				err = a.Change(ctx, Change{4, m[4], d})
			}
			errs[i] = err
		})
	}
	wg.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner >= 0:
			t.Fatalf("changes %d and %d have both won", winner, i)
		case err == nil:
			winner = i
		case !errors.Is(err, ErrChanged):
			t.Fatal(err)
		}
	}
	d, _ := m[4].Drain("west", fmt.Sprint(winner), time.UnixMilli(9))
	if err := a.Change(ctx, Change{4, m[4], d}); err != nil {
		t.Fatalf("the winner's repeat: %v", err)
	}
	// A change of many slots is all or nothing.
	d6, _ := m[6].Drain("west", "x", time.UnixMilli(9))
	d4, _ := m[4].Drain("west", "x", time.UnixMilli(9))
	if err := a.Change(ctx, Change{6, m[6], d6}, Change{4, m[4], d4}); !errors.Is(err, ErrChanged) {
		t.Fatalf("%v", err)
	}
	if now, _ := a.Owners(ctx); now[6] != m[6] {
		t.Fatal("half of a change was written")
	}
}

func TestAMoveLeavesItsSealAndTheNewEpoch(t *testing.T) {
	a := ready(t)
	ctx := t.Context()
	m, _ := a.Owners(ctx)
	d, _ := m[2].Drain("west", "op", time.UnixMilli(9))
	s, _ := d.Close(slot.SealOf(d.Epoch, 77, []byte{1, 2}))
	g, err := s.Give(2)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []Change{{2, m[2], d}, {2, d, s}, {2, s, g}} {
		if err := a.Change(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	seals, err := a.Seals(ctx, 2)
	if err != nil || len(seals) != 1 || seals[0].Seq != 77 || seals[0].Epoch != m[2].Epoch {
		t.Fatalf("%+v, %v", seals, err)
	}
	if all, err := a.AllSeals(ctx); err != nil || len(all) != 1 || len(all[2]) != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	if err := a.Change(ctx, Change{2, g, m[2]}); err == nil {
		t.Fatal("an epoch went back")
	}
}

func TestADecisionIsWrittenOnceUnderTheSlotsEpochAndGeneration(t *testing.T) {
	a := ready(t)
	ctx := t.Context()
	m, _ := a.Owners(ctx)
	commit := Decision{Slot: 8, Gid: "g", Epoch: m[8].Epoch, Body: []byte("commit")}
	abort := commit
	abort.Body = []byte("abort")
	if got, err := a.Decide(ctx, commit); err != nil || string(got) != "commit" {
		t.Fatalf("%s, %v", got, err)
	}
	if got, err := a.Decide(ctx, abort); err != nil || string(got) != "commit" {
		t.Fatalf("the first decision does not stand: %s, %v", got, err)
	}
	gen, err := a.Remove(ctx, 8, m[8].Epoch, 0, []string{"g"})
	if err != nil {
		t.Fatal(err)
	}
	// One that hung since before the removal must not decide a transaction that has ended.
	if got, err := a.Decide(ctx, abort); !errors.Is(err, ErrGeneration) {
		t.Fatalf("a decision older than a removal: %s, %v", got, err)
	}
	other := Decision{Slot: 8, Gid: "h", Epoch: m[8].Epoch, Generation: gen, Body: []byte("abort")}
	if _, err := a.Decide(ctx, other); err != nil {
		t.Fatal(err)
	}
	d, _ := m[8].Drain("west", "op", time.UnixMilli(9))
	u, _ := d.Undo()
	if err := errors.Join(a.Change(ctx, Change{8, m[8], d}), a.Change(ctx, Change{8, d, u})); err != nil {
		t.Fatal(err)
	}
	late := other
	late.Gid = "late"
	if got, err := a.Decide(ctx, late); !errors.Is(err, ErrEpoch) {
		t.Fatalf("a decision of an older epoch: %s, %v", got, err)
	}
	if got, err := a.Decide(ctx, other); err != nil || string(got) != "abort" {
		t.Fatalf("a decision that stands is answered in every epoch: %s, %v", got, err)
	}
	if _, err := a.Remove(ctx, 8, m[8].Epoch, gen, []string{"h"}); !errors.Is(err, ErrEpoch) {
		t.Fatalf("removed by an old epoch: %v", err)
	}
	if gids, err := a.Decisions(ctx, 8); err != nil || len(gids) != 1 || gids[0] != "h" {
		t.Fatalf("%v, %v", gids, err)
	}
}

func TestManyDecisionsAtOnceEachGetTheirOwnAnswer(t *testing.T) {
	a := ready(t)
	ctx := t.Context()
	m, _ := a.Owners(ctx)
	var wg sync.WaitGroup
	type result struct {
		gid, body string
		err       error
	}
	results := make(chan result, 400)
	for i := range 200 {
		for _, word := range []string{"commit", "abort"} {
			wg.Go(func() {
				gid := fmt.Sprintf("g%d", i)
				n := slot.Of(gid)
				epoch := m[n].Epoch
				if i%50 == 7 {
					epoch++ // stands in the way of whoever shares its transaction
				}
				body, err := a.Decide(ctx, Decision{Slot: n, Gid: gid, Epoch: epoch, Body: []byte(word)})
				results <- result{gid, string(body), err}
			})
		}
	}
	wg.Wait()
	close(results)
	first := map[string]string{}
	stale := 0
	for r := range results {
		if errors.Is(r.err, ErrEpoch) {
			stale++
			continue
		}
		if r.err != nil {
			t.Fatal(r.err)
		}
		if was, ok := first[r.gid]; ok && was != r.body {
			t.Fatalf("%s was decided %s and %s", r.gid, was, r.body)
		}
		first[r.gid] = r.body
	}
	if stale != 8 || len(first) != 196 {
		t.Fatalf("%d stale, %d decided", stale, len(first))
	}
}

func TestTheArbiterGoesOnWithoutOneOfThreeMembers(t *testing.T) {
	members, endpoints := cluster(t, 3)
	a := New(client(t, endpoints...), nil)
	ctx := t.Context()
	if err := a.Init(ctx, []string{"east", "west"}, time.Now(), two); err != nil {
		t.Fatal(err)
	}
	seen := make(chan *slot.Map, 100)
	fctx, stop := context.WithCancel(ctx)
	defer stop()
	go a.Follow(fctx, func(m *slot.Map) { seen <- m }, nil)
	m := <-seen
	members[0].Close()
	d, _ := m[10].Drain("west", "op", time.UnixMilli(9))
	if err := a.Change(ctx, Change{10, m[10], d}); err != nil {
		t.Fatal(err)
	}
	timeout := time.After(20 * time.Second)
	for {
		select {
		case now := <-seen:
			if now[10].Equal(d) {
				return
			}
		case <-timeout:
			t.Fatal("the change was not followed")
		}
	}
}

// TestTheMembersAreThoseOfTheClusterAndNotOfAList: a member's address that is listed three times is one member; one of three that is down
// is still one of three.
func TestTheMembersAreThoseOfTheClusterAndNotOfAList(t *testing.T) {
	_, one := cluster(t, 1)
	if got, err := New(client(t, one[0], one[0], one[0]), nil).Voters(t.Context()); err != nil || !slices.Equal(got, []string{"m0"}) {
		t.Errorf("%v, %v", got, err)
	}
	running, three := cluster(t, 3)
	a := New(client(t, three[0]), nil)
	for range 2 {
		got, err := a.Voters(t.Context())
		if slices.Sort(got); err != nil || !slices.Equal(got, []string{"m0", "m1", "m2"}) {
			t.Errorf("%v, %v", got, err)
		}
		running[2].Close()
	}
}

func TestRowsOfATableChangeByCompareAndSet(t *testing.T) {
	a := ready(t)
	ctx := t.Context()
	rev, err := a.Put(ctx, "participant", Row{Key: "ledger", Value: []byte("1")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Put(ctx, "participant", Row{Key: "ledger", Value: []byte("2")}); !errors.Is(err, ErrChanged) {
		t.Fatalf("%v", err)
	}
	if _, err := a.Put(ctx, "participant", Row{Key: "ledger", Value: []byte("2"), Rev: rev}); err != nil {
		t.Fatal(err)
	}
	if err := a.Delete(ctx, "participant", "ledger", rev); !errors.Is(err, ErrChanged) {
		t.Fatalf("%v", err)
	}
	rows, err := a.List(ctx, "participant", "")
	if err != nil || len(rows) != 1 || rows[0].Key != "ledger" || string(rows[0].Value) != "2" {
		t.Fatalf("%+v, %v", rows, err)
	}
	if err := a.Delete(ctx, "participant", "ledger", rows[0].Rev); err != nil {
		t.Fatal(err)
	}
	if row, err := a.Get(ctx, "participant", "ledger"); err != nil || row.Rev != 0 {
		t.Fatalf("%+v, %v", row, err)
	}
}
