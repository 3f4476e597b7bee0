package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
)

func readAll(t *testing.T, resp *http.Response) string {
	t.Helper()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestKilledAtEachBranchCall kills the coordinator with SIGKILL just before and just after each call of a transaction
// takes effect, restarts it, and lets the client repeat its request: nothing is lost, nothing is done twice, everything
// ends, and the client's answer is the truth (G1, G2, G5, G8, G10).
func TestKilledAtEachBranchCall(t *testing.T) {
	bank := newBank(t)
	c := embedded(t)
	cl := c.client()
	for _, refuse := range []bool{false, true} {
		for _, branch := range []string{"a", "b"} {
			second := "confirm"
			if refuse {
				second = "cancel"
			}
			for _, op := range []string{"try", second} {
				for _, when := range []string{"before", "after"} {
					name := fmt.Sprintf("%s %s/%s", when, branch, op)
					bank.mu.Lock()
					bank.refuse["b/try"] = refuse
					bank.mu.Unlock()
					var once sync.Once
					killed := make(chan struct{})
					hook := func(_, gotBranch, gotOp string) {
						if gotBranch == branch && gotOp == op {
							once.Do(func() { c.kill(); close(killed) })
						}
					}
					if when == "before" {
						bank.hooks(hook, nil)
					} else {
						bank.hooks(nil, hook)
					}
					restarted := make(chan struct{})
					go func() {
						defer close(restarted)
						<-killed
						c.restart()
					}()
					gid := fmt.Sprintf("kill-%v-%s-%s-%s", refuse, branch, op, when)
					st := persist(t, 30*time.Second, func(ctx context.Context) (client.State, error) {
						return cl.Execute(ctx, client.Tx{Gid: gid, Branches: bank.branches(), Options: client.Options{RetryInterval: 50 * time.Millisecond}}, client.Finished)
					})
					if st.Committed() == refuse {
						t.Errorf("%s: %s", name, st.GetPhase())
					}
					bank.audit(gid, st.Committed())
					bank.hooks(nil, nil)
					select {
					case <-killed:
						<-restarted
					default:
						t.Fatalf("%s: the kill did not happen: nothing was tested", name)
					}
				}
			}
		}
	}
}

func post(t *testing.T, c *coordinator, path string, body any) (int, string) {
	t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post("http://"+c.addr.HTTP+"/api/dtmsvr/"+path, "application/json", bytes.NewReader(raw))
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	return resp.StatusCode, readAll(t, resp)
}

// TestKilledBetweenTheRequestsOfADTMClient kills the coordinator after each answer that a TCC client of DTM's wire got:
// what was answered is durable (G10), but for a prepare without branches, which is no fact yet.
func TestKilledBetweenTheRequestsOfADTMClient(t *testing.T) {
	bank := newBank(t)
	c := embedded(t)
	register := func(gid, branch string) map[string]string {
		return map[string]string{"gid": gid, "trans_type": "tcc", "branch_id": branch, "data": "{}", "confirm": bank.base + "/confirm", "cancel": bank.base + "/cancel"}
	}
	for kill := 1; kill <= 4; kill++ {
		gid := fmt.Sprintf("dtm-%d", kill)
		step := 0
		do := func(path string, body any, want int) {
			t.Helper()
			if status, text := post(t, c, path, body); status != want {
				t.Fatalf("killed after step %d: %s answered %d %s, want %d", kill, path, status, text, want)
			}
			if step++; step == kill {
				c.kill()
				c.restart()
			}
		}
		do("prepare", map[string]any{"gid": gid, "trans_type": "tcc"}, 200)
		if kill == 1 {
			// Nothing can have been tried: the client is told so, definitely, and gives up.
			do("registerBranch", register(gid, "a"), 409)
			continue
		}
		for _, b := range []string{"a", "b"} {
			do("registerBranch", register(gid, b), 200)
			bank.apply(gid, b, "try")
		}
		do("submit", map[string]any{"gid": gid, "trans_type": "tcc"}, 200)
		eventually(t, 20*time.Second, gid+" succeeds", func() bool { return dtmStatus(t, c, gid) == "succeed" })
		bank.audit(gid, true)
		// A late repeat gets its old answer, out of the journal.
		if code, text := post(t, c, "abort", map[string]any{"gid": gid, "trans_type": "tcc"}); code != 409 {
			t.Errorf("an abort of what has succeeded answers %d %s", code, text)
		}
	}
}

func dtmStatus(t *testing.T, c *coordinator, gid string) string {
	t.Helper()
	resp, err := http.Get("http://" + c.addr.HTTP + "/api/dtmsvr/query?gid=" + url.QueryEscape(gid))
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	var out struct {
		Transaction struct {
			Status string `json:"status"`
		} `json:"transaction"`
	}
	if json.Unmarshal([]byte(readAll(t, resp)), &out) != nil {
		return ""
	}
	return out.Transaction.Status
}

// TestKilledUnderLoad kills the coordinator five times under many clients, then counts: every answer that was given
// is true, every transaction has ended, each branch took effect at most once and on one side.
func TestKilledUnderLoad(t *testing.T) {
	bank := newBank(t)
	c := embedded(t)
	cl := c.client()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	told := map[string]bool{}
	for w := range 16 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				gid := fmt.Sprintf("load-%d-%d", w, i)
				st := persist(t, 60*time.Second, func(ctx context.Context) (client.State, error) {
					return cl.Execute(ctx, client.Tx{Gid: gid, Branches: bank.branches(), Options: client.Options{RetryInterval: 100 * time.Millisecond}}, client.Decided)
				})
				mu.Lock()
				told[gid] = st.Committed()
				mu.Unlock()
			}
		})
	}
	for range 5 {
		before := len(toldCopy(&mu, told))
		eventually(t, 30*time.Second, "work goes on", func() bool { return len(toldCopy(&mu, told)) > before+50 })
		c.kill()
		c.restart()
	}
	cancel()
	wg.Wait()
	eventually(t, 30*time.Second, "everything has ended", func() bool { return c.metric("lockstep_transactions_live") == 0 })
	for gid, committed := range told {
		bank.audit(gid, committed)
	}
	t.Logf("%d transactions over five kills", len(told))
}

func toldCopy(mu *sync.Mutex, m map[string]bool) map[string]bool {
	mu.Lock()
	defer mu.Unlock()
	out := make(map[string]bool, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// TestSIGTERMDrainsAndExitsZero: requests under way are finished, and what was answered is there after a restart.
func TestSIGTERMDrainsAndExitsZero(t *testing.T) {
	bank := newBank(t)
	c := embedded(t)
	cl := c.client()
	arrived, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	bank.hooks(func(_, branch, op string) {
		if branch == "a" && op == "confirm" {
			once.Do(func() { close(arrived) })
			<-release
		}
	}, nil)
	result := make(chan error, 1)
	go func() {
		st, err := cl.Execute(context.Background(), client.Tx{Gid: "drain", Branches: bank.branches()}, client.Finished)
		if err == nil && !st.Committed() {
			err = fmt.Errorf("it was %s", st.GetPhase())
		}
		result <- err
	}()
	<-arrived
	c.signal(15)
	close(release)
	if err := <-result; err != nil {
		t.Errorf("the request under way: %v", err)
	}
	select {
	case <-c.done:
	case <-time.After(20 * time.Second):
		t.Fatal("it did not stop within 20 s")
	}
	if code := c.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d\n%s", code, c.log())
	}
	c.restart()
	if st := dtmStatus(t, c, "drain"); st != "succeed" {
		t.Errorf("after the restart it is %q", st)
	}
}
