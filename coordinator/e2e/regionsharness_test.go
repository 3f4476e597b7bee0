package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockstep-tx/lockstep/coordinator/api/apipb"
	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// child is a process of a deployment that is no coordinator.
type child struct {
	t    *testing.T
	log  string
	cmd  *exec.Cmd
	done chan struct{}
}

func startChild(t *testing.T, log, bin string, args ...string) *child {
	t.Helper()
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := &child{t: t, log: log, cmd: exec.Command(bin, args...), done: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = f, f
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = c.cmd.Wait(); close(c.done) }()
	t.Cleanup(c.kill)
	return c
}

func (c *child) kill() {
	_ = c.cmd.Process.Kill() // it may have ended
	<-c.done
}

func (c *child) signal(s syscall.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

// ended waits for the end and gives the exit code.
func (c *child) ended(within time.Duration) int {
	c.t.Helper()
	select {
	case <-c.done:
		return c.cmd.ProcessState.ExitCode()
	case <-time.After(within):
		c.t.Fatalf("%v did not end within %v:\n%s", c.cmd.Args, within, c.text())
		return -1
	}
}

func (c *child) text() string {
	raw, err := os.ReadFile(c.log)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(raw)
}

func freeAddrs(t *testing.T, n int) []string {
	t.Helper()
	out := make([]string, n)
	for i := range out {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out[i] = l.Addr().String()
	}
	return out
}

// deployment is regions as processes, east and west where nothing else is said: even slots are east's at first, odd ones west's.
type deployment struct {
	t       *testing.T
	names   []string // of the regions that are compared
	dir     string
	file    string
	members []*child
	at      []string // the arbiter's addresses
	coord   map[string]*coordinator
	broker  map[string]*child
	purse   map[string]*child // the wallets' processes
	wallet  map[string]string // base URLs
	serial  int
	opened  int64 // money that there is

	accounts struct{ moving, staying, west []string }
}

var regionNames = []string{"east", "west"}

// movingSlots are those that tests move: east's even ones of them, 32. deposit is what every account has first.
const (
	movingSlots = 64
	deposit     = 1_000_000
	perKind     = 6
)

func newDeployment(t *testing.T) *deployment { return deploy(t, regionNames, nil) }

// deploy starts a deployment of regions, the first of them east, in which east reaches the arbiter by what through gives of each
// address; nil: by the addresses.
func deploy(t *testing.T, names []string, through func(addr string) string) *deployment {
	t.Helper()
	shopBin, err := shopProgram()
	if err != nil {
		t.Fatal(err)
	}
	d := &deployment{t: t, names: names, dir: t.TempDir(), coord: map[string]*coordinator{}, broker: map[string]*child{}, purse: map[string]*child{}, wallet: map[string]string{}}
	d.file = filepath.Join(d.dir, "regions.yaml")
	const arbiters = 3
	a := freeAddrs(t, 2*arbiters+5*len(names))
	var cluster []string
	for i := range arbiters {
		d.at = append(d.at, a[2*i])
		cluster = append(cluster, fmt.Sprintf("m%d=%s", i, a[2*i+1]))
	}
	text := fmt.Sprintf("arbiter: [%s]\nregions:\n", strings.Join(d.at, ", "))
	for i, r := range names {
		p := a[2*arbiters+5*i:]
		text += fmt.Sprintf("  %s: {grpc: [%q], admin: [%q], kafka: [%q]}\n", r, p[0], "http://"+p[1], p[2])
	}
	if err := os.WriteFile(d.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range arbiters {
		name := fmt.Sprint("m", i)
		d.members = append(d.members, startChild(t, filepath.Join(d.dir, "arbiter-"+name), program, "arbiter", "--name", name, "--data-dir", filepath.Join(d.dir, name),
			"--client", a[2*i], "--peer", a[2*i+1], "--cluster", strings.Join(cluster, ",")))
	}
	for i, r := range names {
		p := a[2*arbiters+5*i:]
		d.broker[r] = startChild(t, filepath.Join(d.dir, "broker-"+r), program, "broker", "--data-dir", filepath.Join(d.dir, "b"+r), "--listen", p[2])
		d.purse[r] = startChild(t, filepath.Join(d.dir, "wallet-"+r), shopBin, "wallet", "--db", "sqlite:"+filepath.Join(d.dir, r+".db"), "--listen", p[3])
		d.wallet[r] = "http://" + p[3]
	}
	eventually(t, 30*time.Second, "the arbiter answers", func() bool {
		out, err := exec.Command(program, "region", "init", "--context", d.file, "--dry-run").CombinedOutput()
		return err == nil && strings.Contains(string(out), "there is no deployment yet")
	})
	eventually(t, 30*time.Second, "the deployment is made", func() bool {
		return exec.Command(program, "region", "init", "--context", d.file, "--regions", strings.Join(names, ",")).Run() == nil
	})
	for i, r := range names {
		p := a[2*arbiters+5*i:]
		c := &coordinator{t: t, dir: t.TempDir(), args: []string{"--embedded", "--data-dir", t.TempDir(), "--region", r, "--regions-file", d.file}}
		if r == "west" {
			c.args = append(c.args, "--arbiter-endpoints", strings.Join(d.at, ","))
		} else if r == "east" && through != nil {
			var at []string
			for _, addr := range d.at {
				at = append(at, through(addr))
			}
			c.args = append(c.args, "--arbiter-endpoints", strings.Join(at, ","))
		}
		c.addr.GRPC, c.addr.Admin, c.addr.HTTP = p[0], strings.TrimPrefix(p[1], "http://"), p[4]
		t.Cleanup(c.kill)
		d.coord[r] = c
		c.restart()
	}
	var last string
	eventually(t, 30*time.Second, "the wallets are registered", func() bool {
		var at []string
		for _, r := range names {
			at = append(at, r+"="+d.wallet[r])
		}
		set := []string{"participant", "set", "wallet", "--context", d.file, "--endpoint", strings.Join(at, ","), "--account-field", "account"}
		if last == "" {
			if out, err := exec.Command(program, append(set, "--dry-run")...).CombinedOutput(); err != nil {
				return false
			} else if list, lerr := exec.Command(program, "participant", "list", "--context", d.file).CombinedOutput(); lerr != nil || strings.Contains(string(list), "wallet") {
				t.Fatalf("a dry run wrote: %s%s%v", out, list, lerr)
			}
		}
		out, err := exec.Command(program, set...).CombinedOutput()
		last = string(out)
		return err == nil
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("registered: %s", last)
			for _, r := range names {
				t.Logf("%s's coordinator:\n%s", r, tail(d.coord[r].log()))
				if to := os.Getenv("LOCKSTEP_TEST_KEEP"); to != "" {
					_ = os.WriteFile(filepath.Join(to, strings.ReplaceAll(t.Name(), "/", "-")+"-"+r+".log"), []byte(d.coord[r].log()), 0o600)
				}
			}
		}
	})
	d.openAccounts()
	// A coordinator that has no slot yet, or has not heard of the wallets, would only make a test slow.
	for _, r := range regionNames {
		acct := d.accounts.staying[0]
		if r == "west" {
			acct = d.accounts.west[0]
		}
		c := d.coord[r].client()
		persist(t, 30*time.Second, func(ctx context.Context) (client.State, error) {
			return c.Execute(ctx, d.payment("first-"+r, acct, acct, d.accounts.moving[0], 1), client.Settled)
		})
	}
	return d
}

func tail(s string) string { return s[max(0, len(s)-3000):] }

// openAccounts opens accounts of slots that move, of east's that stay, and of west's, alike in both regions.
func (d *deployment) openAccounts() {
	d.t.Helper()
	for i := 0; len(d.accounts.moving) < perKind || len(d.accounts.staying) < perKind || len(d.accounts.west) < perKind; i++ {
		id := fmt.Sprintf("acct%d", i)
		into := &d.accounts.west
		switch n := slot.Of(id); {
		case n%len(d.names) == 0 && n < movingSlots:
			into = &d.accounts.moving
		case n%len(d.names) == 0:
			into = &d.accounts.staying
		case n%len(d.names) != 1:
			continue
		}
		if len(*into) == perKind {
			continue
		}
		*into = append(*into, id)
		d.opened += deposit
		for _, r := range d.names {
			resp, err := http.Post(d.wallet[r]+"/accounts", "application/json", strings.NewReader(fmt.Sprintf(`{"id":%q,"balance":%d}`, id, deposit)))
			if err != nil {
				d.t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				d.t.Fatalf("open %s in %s: %s", id, r, resp.Status)
			}
		}
	}
}

func walletBranch(id, op, account string, amount int) client.Branch {
	b := "lockstep://wallet/wallet/" + op
	return client.Branch{ID: id, Account: account, Try: b + "/try", Confirm: b + "/confirm", Cancel: b + "/cancel", Payload: fmt.Appendf(nil, `{"account":%q,"amount":%d}`, account, amount)}
}

// payment lives in the slot of the account at.
func (d *deployment) payment(name, at, from, to string, amount int) client.Tx {
	return client.Tx{Gid: "{" + at + "}" + name, Branches: []client.Branch{walletBranch("pay", "pay", from, amount), walletBranch("receive", "receive", to, amount)}}
}

// tool starts lockstep region ….
func (d *deployment) tool(args ...string) *child {
	d.t.Helper()
	d.serial++
	return startChild(d.t, filepath.Join(d.dir, fmt.Sprintf("tool-%d.log", d.serial)), program, append([]string{"region", args[0], "--context", d.file}, args[1:]...)...)
}

// move gives the arguments of a handover of the moving slots.
func (d *deployment) move(kind, from, to string, more ...string) []string {
	var slots []string
	for n := 0; n < movingSlots; n += 2 {
		slots = append(slots, strconv.Itoa(n))
	}
	return append([]string{kind, "--from", from, "--to", to, "--slots", strings.Join(slots, ","), "--max-lag", "30s"}, more...)
}

// arbiter reads what stands there.
func (d *deployment) arbiter() *arbiter.Arbiter {
	d.t.Helper()
	cli, err := clientv3.New(clientv3.Config{Endpoints: d.at, DialTimeout: 10 * time.Second})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { cli.Close() })
	return arbiter.New(cli, nil)
}

// owners counts the moving slots that are a region's and active, and those that are on their way.
func (d *deployment) owners(a *arbiter.Arbiter) (active map[string]int, onTheWay int) {
	d.t.Helper()
	m, err := a.Owners(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	active = map[string]int{}
	for n := 0; n < movingSlots; n += 2 {
		if m[n].Status == slot.Active {
			active[m[n].Region]++
		} else {
			onTheWay++
		}
	}
	return active, onTheWay
}

// state is a region's wallets.
func (d *deployment) state(region string) (ledger.WalletsState, error) {
	var s ledger.WalletsState
	resp, err := http.Get(d.wallet[region] + "/state")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// differences says what is not as it must be after quiescence: all regions have the same money in every account, all of
// it, and no hold.
func (d *deployment) differences() string {
	var all []string
	var totals []map[string]int64
	for _, r := range d.names {
		s, err := d.state(r)
		if err != nil {
			return err.Error()
		}
		if s.Open != 0 || s.Frozen["CNY"] != 0 || s.Passage["CNY"] != 0 || s.Balance["CNY"] != d.opened || len(s.Faults) > 0 {
			all = append(all, fmt.Sprintf("%s: open %d, frozen %v, passage %v, balance %v of %d, faults %v", r, s.Open, s.Frozen, s.Passage, s.Balance, d.opened, s.Faults))
		}
		m := map[string]int64{}
		for _, a := range s.Accounts {
			if strings.HasPrefix(a.ID, "acct") {
				m[a.ID] = a.Total()
				if a.DebitsPending != 0 || a.CreditsPending != 0 {
					all = append(all, fmt.Sprintf("%s: %s has pending %d and %d", r, a.ID, a.DebitsPending, a.CreditsPending))
				}
			}
		}
		totals = append(totals, m)
	}
	for id, v := range totals[0] {
		for i := range totals {
			if totals[i][id] != v {
				all = append(all, fmt.Sprintf("%s has %d in %s and %d in %s", id, v, d.names[0], totals[i][id], d.names[i]))
			}
		}
	}
	return strings.Join(all, "; ")
}

// level waits until the regions are level.
func (d *deployment) level(within time.Duration) {
	d.t.Helper()
	last := ""
	until := time.Now().Add(within)
	for time.Now().Before(until) {
		if last = d.differences(); last == "" {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	for _, r := range d.names {
		list, _, err := d.coord[r].client().List(context.Background(), &apipb.ListRequest{PageSize: 1000})
		for _, s := range list {
			if !s.Ended() {
				d.t.Logf("%s has open: %v", r, s.Transaction)
			}
		}
		d.t.Logf("%s lists %d (%v)", r, len(list), err)
	}
	if to := os.Getenv("LOCKSTEP_TEST_KEEP"); to != "" {
		_ = exec.Command("cp", "-r", d.dir, filepath.Join(to, filepath.Base(d.dir)+strconv.Itoa(os.Getpid()))).Run()
	}
	d.t.Fatalf("the regions are not level after %v: %s; %+v", within, last, d.accounts)
}

// load pays between accounts of all kinds from transactions in slots of all kinds, through both coordinators.
type load struct {
	d      *deployment
	stop   context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	ok     map[string]map[string]int64 // by gid of what was committed: what it did to which account
	tried  map[string]map[string]int64 // by gid of everything that was asked for, the same
	failed []string
	worst  time.Duration
}

// pay starts n clients at each coordinator. A client repeats a request until its answer is definite, and gives up when
// that takes a minute.
func (d *deployment) pay(n int) *load {
	d.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{d: d, stop: cancel, ok: map[string]map[string]int64{}, tried: map[string]map[string]int64{}}
	for _, r := range regionNames {
		c := d.coord[r].client()
		for i := range n {
			l.wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(i), uint64(len(r))))
				for k := 0; ctx.Err() == nil; k++ {
					l.one(ctx, c, rnd, fmt.Sprintf("%s-%d-%d", r, i, k))
				}
			})
		}
	}
	d.t.Cleanup(func() { cancel(); l.wg.Wait() })
	return l
}

func (l *load) one(ctx context.Context, c *client.Client, rnd *rand.Rand, name string) {
	kinds := [][]string{l.d.accounts.moving, l.d.accounts.staying, l.d.accounts.west}
	any := func() string { return kinds[rnd.IntN(len(kinds))][rnd.IntN(perKind)] }
	at, from, to, amount := any(), any(), any(), 1+rnd.IntN(9)
	for to == from {
		to = any()
	}
	tx := l.d.payment(name, at, from, to, amount)
	began := time.Now()
	effect := map[string]int64{from: -int64(amount), to: int64(amount)}
	l.mu.Lock()
	l.tried[tx.Gid] = effect
	l.mu.Unlock()
	for {
		cctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		s, err := c.Execute(cctx, tx, client.Decided)
		cancel()
		if err != nil && client.Retryable(err) && time.Since(began) < time.Minute {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.worst = max(l.worst, time.Since(began))
		switch {
		case err != nil:
			l.failed = append(l.failed, fmt.Sprintf("%s: %v", tx.Gid, err))
		case !s.Committed():
			l.failed = append(l.failed, fmt.Sprintf("%s: %s: %s", tx.Gid, s.GetPhase(), s.GetReason()))
		default:
			l.ok[tx.Gid] = effect
		}
		return
	}
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ok)
}

// end stops the load and checks it: everything was committed, and both regions have, account by account, what was.
// more are transactions beside the load's.
func (l *load) end(within time.Duration, more map[string]int64) {
	t := l.d.t
	t.Helper()
	l.stop()
	l.wg.Wait()
	if len(l.failed) > 0 {
		t.Errorf("%d payments were not committed, such as %s", len(l.failed), l.failed[0])
	}
	l.exact(l.ok, more, within)
	t.Logf("%d payments were committed, the slowest took %v", len(l.ok), l.worst)
}

// exact checks that both regions have, account by account, what payments did, and nothing else.
func (l *load) exact(paid map[string]map[string]int64, more map[string]int64, within time.Duration) {
	t := l.d.t
	t.Helper()
	l.d.level(within)
	want := map[string]int64{}
	for _, r := range regionNames { // the two that every deployment begins with
		from := l.d.accounts.staying[0]
		if r == "west" {
			from = l.d.accounts.west[0]
		}
		want[from]--
		want[l.d.accounts.moving[0]]++
	}
	for _, m := range paid {
		for id, v := range m {
			want[id] += v
		}
	}
	for id, v := range more {
		want[id] += v
	}
	for _, r := range l.d.names {
		s, err := l.d.state(r)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range s.Accounts {
			if strings.HasPrefix(a.ID, "acct") && a.Total() != deposit+want[a.ID] {
				t.Errorf("%s: %s has %d, acknowledged payments make %d", r, a.ID, a.Total(), deposit+want[a.ID])
			}
		}
	}
}

// branchCall calls a participant as a client does with its own try, or a coordinator of an epoch with anything.
func branchCall(url, gid, branch, op string, payload []byte, headers map[string]string) (int, string, error) {
	req, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(payload))
	if err != nil {
		return 0, "", err
	}
	q := req.URL.Query()
	q.Set("gid", gid)
	q.Set("trans_type", "tcc")
	q.Set("branch_id", branch)
	q.Set("op", op)
	req.URL.RawQuery = q.Encode()
	req.Header.Set("Content-Type", "application/json")
	for k, v := range headers {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(raw), errors.Join(err)
}
