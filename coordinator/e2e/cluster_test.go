//go:build servers

package e2e

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
)

// need reads a variable that make test sets.
func need(t *testing.T, name string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		t.Fatalf("%s is not set: these tests need real servers; run them with: make test", name)
	}
	return v
}

// region is one region's shared stores, emptied.
type region struct {
	endpoints string
	journal   string
}

func newRegion(t *testing.T) region {
	t.Helper()
	r := region{endpoints: need(t, "LOCKSTEP_TEST_ETCD_ENDPOINTS")}
	cli, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(r.endpoints, ","), DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := cli.Delete(ctx, "/lockstep/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	base := need(t, "LOCKSTEP_TEST_POSTGRES_URL")
	db, err := sql.Open("pgx", base)
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("e2e_%d", time.Now().UnixNano())
	if _, err := db.Exec("CREATE DATABASE " + name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := db.Exec("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			t.Error(err)
		}
		db.Close()
	})
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	r.journal = u.String()
	return r
}

func (r region) start(t *testing.T, endpoints string) *coordinator {
	t.Helper()
	return start(t, "--etcd-endpoints", endpoints, "--journal-url", r.journal, "--member-ttl", "2s")
}

// TestKilledAroundEachDurableWrite kills the coordinator just before etcd sees a write of the transaction, and just
// after etcd has it and before the coordinator knows: for every write of its life.
func TestKilledAroundEachDurableWrite(t *testing.T) {
	r := newRegion(t)
	bank := newBank(t)
	proxy := newEtcdProxy(t, strings.Split(r.endpoints, ",")[0])
	c := r.start(t, proxy.addr)
	cl := c.client()
	for _, when := range []string{"before", "after"} {
		for nth := int32(1); nth <= 3; nth++ { // begin, decision, finish
			var writes atomic.Int32
			killed, restarted := make(chan struct{}), make(chan struct{})
			hook := func(*pb.TxnRequest) error {
				if writes.Add(1) == nth {
					c.kill()
					close(killed)
					return errLost
				}
				return nil
			}
			if when == "before" {
				proxy.hooks(hook, nil)
			} else {
				proxy.hooks(nil, hook)
			}
			go func() {
				defer close(restarted)
				<-killed
				proxy.hooks(nil, nil)
				c.restart()
			}()
			gid := fmt.Sprintf("write-%s-%d", when, nth)
			st := persist(t, 60*time.Second, func(ctx context.Context) (client.State, error) {
				return cl.Execute(ctx, client.Tx{Gid: gid, Branches: bank.branches()}, client.Finished)
			})
			if !st.Committed() {
				t.Errorf("%s write %d: %s: %s", when, nth, st.GetPhase(), st.GetReason())
			}
			bank.audit(gid, true)
			select {
			case <-killed:
				<-restarted
			case <-time.After(20 * time.Second):
				t.Fatalf("%s write %d: the kill did not happen: nothing was tested", when, nth)
			}
		}
	}
}

// TestALostAnswerIsSettledByANewTerm: the proxy eats the answer of exactly the write that decides. The coordinator takes
// a new term and reads what stands; it neither guesses nor decides again (G2).
func TestALostAnswerIsSettledByANewTerm(t *testing.T) {
	r := newRegion(t)
	bank := newBank(t)
	proxy := newEtcdProxy(t, strings.Split(r.endpoints, ",")[0])
	c := r.start(t, proxy.addr)
	cl := c.client()
	for _, landed := range []bool{true, false} {
		gid := fmt.Sprintf("lost-%v", landed)
		var writes, eaten atomic.Int32
		eat := func(*pb.TxnRequest) error {
			if writes.Add(1) == 2 {
				eaten.Add(1)
				return errLost
			}
			return nil
		}
		if landed {
			proxy.hooks(nil, eat) // etcd has it, the answer is lost
		} else {
			proxy.hooks(eat, nil) // it never reached etcd
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		st, err := cl.Execute(ctx, client.Tx{Gid: gid, Branches: bank.branches()}, client.Finished)
		cancel()
		proxy.hooks(nil, nil)
		if err != nil || !st.Committed() {
			t.Fatalf("landed %v: %v, %v", landed, st.Transaction, err)
		}
		bank.audit(gid, true)
		if eaten.Load() != 1 {
			t.Errorf("landed %v: no answer was eaten: nothing was tested", landed)
		}
	}
	if n := c.metric(`lockstep_store_batches_total{verdict="doubtful"}`); n != 2 {
		t.Errorf("%v writes were in doubt, want 2\n%s", n, c.log())
	}
}

// gidOn makes a gid whose slot is held by the coordinator given.
func gidOn(t *testing.T, c *coordinator) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	gid, err := c.client().NewGid(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return gid
}

// TestThreeCoordinatorsAndThreeMembers: three coordinators share a region; each forwards in one hop. One is killed, then
// one etcd member: work goes on, a killed holder's slots within 5 s.
func TestThreeCoordinatorsAndThreeMembers(t *testing.T) {
	r := newRegion(t)
	bank := newBank(t)
	cs := []*coordinator{r.start(t, r.endpoints), r.start(t, r.endpoints), r.start(t, r.endpoints)}
	eventually(t, 20*time.Second, "the slots are spread over three", func() bool {
		for _, c := range cs {
			if n := c.metric("lockstep_slots_held"); n < 200 || n > 500 {
				return false
			}
		}
		return true
	})
	// One hop: a transaction of the third's, asked for at the first, over DTM's wire and the native API.
	far := gidOn(t, cs[2])
	if code, text := post(t, cs[0], "prepare", map[string]any{"gid": far, "trans_type": "tcc"}); code != 200 {
		t.Fatalf("forwarded prepare: %d %s", code, text)
	}
	if code, text := post(t, cs[1], "submit", map[string]any{"gid": far, "trans_type": "tcc", "wait_result": true}); code != 200 {
		t.Fatalf("forwarded submit: %d %s", code, text)
	}

	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var mu sync.Mutex
	told := map[string]bool{}
	clients := []*client.Client{cs[0].client(), cs[1].client(), cs[2].client()}
	for w := range 9 {
		wg.Go(func() {
			at := w % 3
			for i := 0; ctx.Err() == nil; i++ {
				gid := fmt.Sprintf("three-%d-%d", w, i)
				st := persist(t, 60*time.Second, func(ctx context.Context) (client.State, error) {
					rctx, cancel := context.WithTimeout(ctx, 10*time.Second)
					defer cancel()
					st, err := clients[at].Execute(rctx, client.Tx{Gid: gid, Branches: bank.branches(), Options: client.Options{RetryInterval: 100 * time.Millisecond}}, client.Decided)
					if err != nil {
						at = (at + 1) % 3 // as a client with three addresses does
					}
					return st, err
				})
				mu.Lock()
				told[gid] = st.Committed()
				mu.Unlock()
			}
		})
	}
	progress := func(n int) {
		t.Helper()
		before := len(toldCopy(&mu, told))
		eventually(t, 30*time.Second, "work goes on", func() bool { return len(toldCopy(&mu, told)) > before+n })
	}
	progress(100)
	victims := gidsOf(t, cs[0], 5)
	cs[0].kill()
	killed := time.Now()
	for _, gid := range victims {
		persist(t, 15*time.Second, func(ctx context.Context) (client.State, error) {
			return clients[1].Execute(ctx, client.Tx{Gid: gid, Branches: bank.branches()}, client.Decided)
		})
	}
	took := time.Since(killed)
	t.Logf("a killed holder's slots were served again after %v", took)
	if took > 5*time.Second {
		t.Errorf("a killed holder's slots were served again after %v, want at most 5 s", took)
	}
	progress(100)

	killEtcdMember(t, 2)
	progress(200)
	cancel()
	wg.Wait()
	eventually(t, 30*time.Second, "everything has ended", func() bool {
		return cs[1].metric("lockstep_transactions_live")+cs[2].metric("lockstep_transactions_live") == 0
	})
	for gid, committed := range told {
		bank.audit(gid, committed)
	}
	t.Logf("%d transactions", len(told))
}

// gidsOf makes gids that a coordinator holds.
func gidsOf(t *testing.T, c *coordinator, n int) []string {
	var out []string
	for range n {
		out = append(out, gidOn(t, c))
	}
	return out
}

// TestAHolderThatSleptWritesNothing: a holder is stopped with SIGSTOP for longer than its lease, in the middle of a
// transaction, while another takes its slots and ends the transaction the other way. One write of the sleeper is on its
// way to etcd all the time and arrives late; continued, and before any news of the other holder reaches it, the sleeper
// carries out the commits that wait in its sockets. etcd is watched: every write of the old terms is refused (G3).
func TestAHolderThatSleptWritesNothing(t *testing.T) {
	r := newRegion(t)
	bank := newBank(t)
	proxy := newEtcdProxy(t, strings.Split(r.endpoints, ",")[0])
	a, b := r.start(t, proxy.addr), r.start(t, r.endpoints)
	spread(t, a, b)
	gids := gidsOf(t, a, 20)
	ca, cb := a.client(), b.client()
	for _, gid := range gids {
		persist(t, 20*time.Second, func(ctx context.Context) (client.State, error) {
			return ca.Begin(ctx, client.Tx{Gid: gid, Branches: withoutTry(bank.branches())})
		})
	}
	// The commits of the old terms, as etcd answers them from now on.
	oldTerms := r.revision(t)
	var mu sync.Mutex
	refused := map[string]bool{}
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(refused) }
	proxy.results(func(req *pb.TxnRequest, succeeded bool) {
		old := false
		for _, cmp := range req.Compare {
			old = old || cmp.GetModRevision() <= oldTerms
		}
		for _, gid := range decides(t, req) {
			if old && succeeded {
				t.Errorf("%s: a write of an old term was carried out", gid)
			} else if old {
				mu.Lock()
				refused[gid] = true
				mu.Unlock()
			}
		}
	})
	onItsWay, arrives := make(chan struct{}), make(chan struct{})
	var once sync.Once
	proxy.hooks(func(req *pb.TxnRequest) error {
		if len(decides(t, req)) > 0 {
			once.Do(func() { close(onItsWay); <-arrives })
		}
		return nil
	}, nil)
	late := make(chan error, len(gids))
	commit := func(gid string) {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		st, err := ca.Commit(ctx, gid, client.Decided)
		if err == nil && st.Committed() {
			late <- fmt.Errorf("%s: the sleeper says committed", gid)
			return
		}
		late <- nil
	}
	go commit(gids[0])
	<-onItsWay
	a.signal(syscall.SIGSTOP)
	t.Cleanup(func() { _ = a.cmd.Process.Signal(syscall.SIGCONT) }) // it may have ended
	eventually(t, 10*time.Second, "every thread of it sleeps", a.asleep)
	// From here on, or the news would wait in the sleeper's socket beside the commits, and might be read before them.
	news := proxy.holdWatches()
	t.Cleanup(news)
	for _, gid := range gids[1:] {
		go commit(gid) // waits in the sleeper's sockets: it will believe that it holds the slot
	}
	eventually(t, 20*time.Second, "the other has taken its slots", func() bool { return b.metric("lockstep_slots_held") == 1024 })
	for _, gid := range gids {
		st := persist(t, 30*time.Second, func(ctx context.Context) (client.State, error) {
			rctx, cancel := context.WithTimeout(ctx, 8*time.Second)
			defer cancel()
			return cb.Abort(rctx, gid, "the other one sleeps", client.Finished)
		})
		if !st.Aborted() {
			t.Fatalf("%s: %s", gid, st.GetPhase())
		}
	}
	close(arrives)
	eventually(t, 10*time.Second, "the write that was on its way is refused", func() bool { return count() == 1 })
	a.signal(syscall.SIGCONT)
	eventually(t, 20*time.Second, "writes of the sleeper's old terms are refused after it woke", func() bool { return count() > 1 })
	news()
	for range gids {
		if err := <-late; err != nil {
			t.Error(err)
		}
	}
	for _, gid := range gids {
		bank.audit(gid, false)
	}
	if !strings.Contains(a.log(), "slots were taken by another holder") {
		t.Errorf("the sleeper does not say that it was refused:\n%s", a.log())
	}
	t.Logf("%d commits of old terms were tried and refused", count())
}

// revision is etcd's at the moment: every term that stands was taken at or before it.
func (r region) revision(t *testing.T) int64 {
	t.Helper()
	cli, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(r.endpoints, ","), DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	got, err := cli.Get(ctx, "/lockstep/")
	if err != nil {
		t.Fatal(err)
	}
	return got.Header.Revision
}

// asleep says that every thread of the process is stopped: the signal is not there at once.
func (c *coordinator) asleep() bool {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", c.cmd.Process.Pid))
	if err != nil || len(stats) == 0 {
		return false
	}
	for _, file := range stats {
		raw, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		_, after, ok := strings.Cut(string(raw), ") ")
		if !ok || !strings.HasPrefix(after, "T") {
			return false
		}
	}
	return true
}

func withoutTry(bs []client.Branch) []client.Branch {
	for i := range bs {
		bs[i].Try = ""
	}
	return bs
}
