//go:build servers

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/lockstep-tx/lockstep/coordinator/record"
)

// spread waits until every coordinator holds its share of the slots.
func spread(t *testing.T, cs ...*coordinator) {
	t.Helper()
	eventually(t, 60*time.Second, "the slots are spread over all coordinators", func() bool {
		sum := 0.0
		for _, c := range cs {
			n := c.metric("lockstep_slots_held")
			if n < 600/float64(len(cs)) {
				return false
			}
			sum += n
		}
		return sum == 1024
	})
}

// killEtcdMember kills one member of the shared cluster; back brings it up again, at the latest when the test ends.
func killEtcdMember(t *testing.T, n int) (back func()) {
	t.Helper()
	dir := need(t, "LOCKSTEP_TEST_SERVERS")
	raw, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("etcd%d.pid.json", n+1))) // not the environment: a test may have restarted it
	if err != nil {
		t.Fatal(err)
	}
	var who struct{ Pid int }
	if err := json.Unmarshal(raw, &who); err != nil || who.Pid <= 0 {
		t.Fatalf("%s: %v", raw, err)
	}
	if err := syscall.Kill(who.Pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill etcd member %d: %v", who.Pid, err)
	}
	var once sync.Once
	back = func() {
		once.Do(func() {
			if out, err := exec.Command(need(t, "LOCKSTEP_TEST_DEVCTL"), "up", "--dir", dir).CombinedOutput(); err != nil {
				t.Errorf("bring the etcd member back: %v\n%s", err, out)
			}
		})
	}
	t.Cleanup(back)
	return back
}

// TestDTMClientsWaitThroughACluster: DTM's own SDK waits for results through three coordinators over a three-member
// etcd. A coordinator is killed and comes back, then an etcd member is: whatever a client heard is what happened (G1,
// G2, G10), nothing is mixed (G5), everything ends (G8).
func TestDTMClientsWaitThroughACluster(t *testing.T) {
	r := newRegion(t)
	cs := []*coordinator{r.start(t, r.endpoints), r.start(t, r.endpoints), r.start(t, r.endpoints)}
	spread(t, cs...)
	l := startDTMLoad(t, "cluster", cs, 1, 5)
	l.progress(10)
	cs[0].kill()
	l.progress(10)
	cs[0].restart()
	l.progress(10)
	back := killEtcdMember(t, 1)
	l.progress(20)
	back()
	l.progress(10)
	l.audit(cs[1])
}

// TestDTMClientsWaitWhileDecidingAnswersAreLost: etcd's answer to exactly the write that decides is lost, under load, of
// every fifth transaction, in the first half after etcd has carried it out and in the second before it has seen it. The
// clients ask once and wait: what they hear is what happened, and nobody goes without an answer (G1, G2).
func TestDTMClientsWaitWhileDecidingAnswersAreLost(t *testing.T) {
	r := newRegion(t)
	members := strings.Split(r.endpoints, ",")
	var cs []*coordinator
	var proxies []*etcdProxy
	for _, m := range members {
		p := newEtcdProxy(t, m)
		proxies = append(proxies, p)
		cs = append(cs, r.start(t, p.addr))
	}
	spread(t, cs...)
	var mu sync.Mutex
	eaten := map[string]bool{}
	eat := func(req *pb.TxnRequest) error {
		mu.Lock()
		defer mu.Unlock()
		var lost error
		for _, gid := range decides(t, req) {
			if n := len(eaten); !eaten[gid] && strings.HasSuffix(strings.TrimSuffix(gid, refusedSuffix), "4") && n < 1000 {
				eaten[gid], lost = true, errLost
			}
		}
		return lost
	}
	l := startDTMLoad(t, "eaten", cs, 1, 5)
	total := 0
	for _, landed := range []bool{true, false} {
		for _, p := range proxies {
			if landed {
				p.hooks(nil, eat)
			} else {
				p.hooks(eat, nil)
			}
		}
		l.progress(25)
		mu.Lock()
		if len(eaten) < total+12 {
			t.Errorf("landed %v: %d answers were eaten: too few to test anything", landed, len(eaten)-total)
		}
		total = len(eaten)
		mu.Unlock()
	}
	l.Stop()
	for _, p := range proxies {
		p.hooks(nil, nil)
	}
	l.audit(cs[1])
	doubtful := 0.0
	for _, c := range cs {
		doubtful += c.metric(`lockstep_store_batches_total{verdict="doubtful"}`)
	}
	if doubtful == 0 {
		t.Error("no write was in doubt: nothing was tested")
	}
	unheard := 0
	for gid, h := range l.outcomes() {
		mu.Lock()
		if eaten[gid] && h == heardNothing {
			unheard++
		}
		mu.Unlock()
	}
	t.Logf("%d deciding answers were eaten, %v batches were in doubt, %d of their clients heard nothing definite", total, doubtful, unheard)
	if unheard > 0 {
		t.Errorf("%d clients whose deciding write was in doubt got no answer", unheard)
	}
}

// decides lists the gids whose decision a transaction of etcd would write.
func decides(t *testing.T, req *pb.TxnRequest) []string {
	var gids []string
	for _, op := range req.Success {
		put := op.GetRequestPut()
		if put == nil || !strings.HasPrefix(string(put.Key), "/lockstep/1/tx/") {
			continue
		}
		tx, err := record.Decode(put.Value)
		if err != nil {
			t.Errorf("%s: %v", put.Key, err)
			continue
		}
		if tx.State.Phase.Decided() {
			gids = append(gids, string(tx.State.Gid))
		}
	}
	return gids
}
