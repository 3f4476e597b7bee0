package proc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/netproxy"
	"github.com/lockstep-tx/lockstep/chaos/tap"
	"github.com/lockstep-tx/lockstep/coordinator/bench/proc"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Deposit is what each account has first. AccountsPer have their home in each region. Slots below Moving are those that a
// handover moves.
const (
	Deposit     = 1_000_000
	AccountsPer = 8
	Moving      = 64
)

// Config of a deployment.
type Config struct {
	// Dir gets everything that it writes; Bin is where lockstep and lockstep-participants are.
	Dir, Bin string
	// Env is added to every process' environment.
	Env []string
	// Pair gives the first region two coordinators on an etcd of their own, with Journal, a URL of PostgreSQL or MySQL.
	Pair    bool
	Journal string
	// Wallets are the databases of the regions' wallets; empty: SQLite. Barriers are the schemas of their barriers, which must
	// differ where both are on one MySQL or MariaDB server; empty: the default.
	Wallets, Barriers [2]string
	// Accounts have their home in each region; 0 means AccountsPer.
	Accounts int
	// Now is the run's clock.
	Now func() int64
}

// Region is one region.
type Region struct {
	Name         string
	Coordinators []*Node
	GRPC         []string // of the coordinators, as clients reach them
	Admin        []string
	Wallet       *Node
	DB, Barrier  string // address of the wallets' database, and the schema of its barrier
	Broker       string // its address, without a link before it
	Journal      string // address of the journal's database
	Tap          *tap.Tap
	Accounts     []string // with their home here; the first ones are of slots that a handover moves
	File         string   // its view of the deployment
	// EtcdLinks and PeerLinks are, where the region has two coordinators, how each reaches etcd and is reached by the other.
	EtcdLinks, PeerLinks []*netproxy.Link
}

// Deployment is two regions, east and west. Even slots are east's at first, odd ones west's.
type Deployment struct {
	Regions [2]*Region
	// Links between the regions, by name: east-west/grpc is how east reaches west.
	Links  []*netproxy.Link
	Opened int64 // money that there is

	cfg   Config
	mu    sync.Mutex
	undo  []func() error
	nodes []*Node
}

// New starts a deployment. The caller closes it, also after an error.
func New(ctx context.Context, cfg Config) (*Deployment, error) {
	d := &Deployment{cfg: cfg}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return d, err
	}
	return d, d.open(ctx)
}

// Close ends every process by its pid, and what carries between them. It may be called twice.
func (d *Deployment) Close() error {
	d.mu.Lock()
	undo := d.undo
	d.undo = nil
	d.mu.Unlock()
	var err error
	for i := len(undo) - 1; i >= 0; i-- {
		err = errors.Join(err, undo[i]())
	}
	return err
}

func (d *Deployment) defers(f func() error) {
	d.mu.Lock()
	d.undo = append(d.undo, f)
	d.mu.Unlock()
}

// node starts a program.
func (d *Deployment) node(ctx context.Context, name, addr, ready, program string, args ...string) (*Node, error) {
	n := &Node{Name: name, Addr: addr, ready: ready, spec: proc.Spec{Name: name, Path: filepath.Join(d.cfg.Bin, program), Args: args, Dir: d.cfg.Dir, Env: d.cfg.Env}}
	d.nodes = append(d.nodes, n)
	d.defers(n.stop)
	return n, n.Start(ctx)
}

func (d *Deployment) link(name, to string) (*netproxy.Link, error) {
	k, err := netproxy.Open(netproxy.Route{Name: name, Listen: "127.0.0.1:0", To: to, Kafka: strings.HasSuffix(name, "/kafka")})
	if err == nil {
		d.defers(k.Close)
	}
	return k, err
}

// Between are the links between the regions.
func (d *Deployment) Between() []*netproxy.Link { return d.Links }

func (d *Deployment) open(ctx context.Context) error {
	a, err := proc.FreeAddrs(24)
	if err != nil {
		return err
	}
	next := func() string { s := a[0]; a = a[1:]; return s }
	arbiter, peer := next(), next()
	if _, err := d.node(ctx, "arbiter", arbiter, "", "lockstep", "arbiter", "--name", "a", "--data-dir", filepath.Join(d.cfg.Dir, "arbiter"),
		"--client", arbiter, "--peer", peer, "--cluster", "a="+peer); err != nil {
		return err
	}
	var brokers [2]string
	for i, name := range []string{"east", "west"} {
		r := &Region{Name: name, GRPC: []string{next()}, Admin: []string{next()}, DB: d.cfg.Wallets[i], Barrier: d.cfg.Barriers[i]}
		if d.cfg.Pair && i == 0 {
			r.GRPC, r.Admin = append(r.GRPC, next()), append(r.Admin, next())
		}
		d.Regions[i], brokers[i] = r, next()
		r.Broker = brokers[i]
		if _, err := d.node(ctx, "broker-"+name, brokers[i], "", "lockstep", "broker", "--data-dir", filepath.Join(d.cfg.Dir, "broker-"+name), "--listen", brokers[i]); err != nil {
			return err
		}
		if err := d.wallet(ctx, r, next()); err != nil {
			return err
		}
	}
	if err := d.files(arbiter, brokers); err != nil {
		return err
	}
	if err := d.persist(ctx, "region", "init", "--context", d.Regions[0].File); err != nil {
		return err
	}
	for i, r := range d.Regions {
		if err := d.coordinators(ctx, i, r, next); err != nil {
			return err
		}
	}
	at := "east=" + d.Regions[0].Tap.URL() + ",west=" + d.Regions[1].Tap.URL()
	if err := d.persist(ctx, "participant", "set", "wallet", "--context", d.Regions[0].File, "--endpoint", at, "--account-field", "account"); err != nil {
		return err
	}
	return d.accounts(ctx)
}

func (d *Deployment) wallet(ctx context.Context, r *Region, addr string) (err error) {
	if r.DB == "" {
		r.DB = "sqlite:" + filepath.Join(d.cfg.Dir, "wallet-"+r.Name+".db")
	}
	args := []string{"wallet", "--db", r.DB, "--listen", addr}
	if r.Barrier != "" {
		args = append(args, "--barrier-schema", r.Barrier)
	}
	if r.Wallet, err = d.node(ctx, "wallet-"+r.Name, addr, "http://"+addr+"/healthz", "lockstep-participants", args...); err != nil {
		return err
	}
	if r.Tap, err = tap.Open(r.Name, "127.0.0.1:0", "http://"+addr, d.cfg.Now); err != nil {
		return err
	}
	d.defers(r.Tap.Close)
	return nil
}

// files writes each region's view: the other region is behind links.
func (d *Deployment) files(arbiter string, brokers [2]string) error {
	for i, r := range d.Regions {
		text := fmt.Sprintf("arbiter: [%q]\nregions:\n", arbiter)
		for k, of := range d.Regions {
			grpc, admin, broker := of.GRPC, of.Admin, brokers[k]
			if i != k {
				far, err := d.far(r.Name+"-"+of.Name, []*[]string{&grpc, &admin}, broker)
				if err != nil {
					return err
				}
				broker = far
			}
			var urls []string
			for _, x := range admin {
				urls = append(urls, "http://"+x)
			}
			text += fmt.Sprintf("  %s: {grpc: %s, admin: %s, kafka: [%q]}\n", of.Name, list(grpc), list(urls), broker)
		}
		r.File = filepath.Join(d.cfg.Dir, r.Name+".yaml")
		if err := os.WriteFile(r.File, []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func list(all []string) string {
	var q []string
	for _, s := range all {
		q = append(q, fmt.Sprintf("%q", s))
	}
	return "[" + strings.Join(q, ", ") + "]"
}

// far puts links before addresses of another region, and gives the one before its broker.
func (d *Deployment) far(name string, all []*[]string, broker string) (string, error) {
	for n, addrs := range all {
		var behind []string
		for _, to := range *addrs {
			k, err := d.link(name+"/"+[]string{"grpc", "admin"}[n], to)
			if err != nil {
				return "", err
			}
			d.Links = append(d.Links, k)
			behind = append(behind, k.Addr())
		}
		*addrs = behind
	}
	k, err := d.link(name+"/kafka", broker)
	if err != nil {
		return "", err
	}
	d.Links = append(d.Links, k)
	return k.Addr(), nil
}

// Tool runs lockstep to its end.
func (d *Deployment) Tool(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(d.cfg.Bin, "lockstep"), args...)
	cmd.Env = append(os.Environ(), d.cfg.Env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// persist runs lockstep until it succeeds: what it asks may just be starting.
func (d *Deployment) persist(ctx context.Context, args ...string) error {
	until := time.Now().Add(readyLimit)
	for {
		out, err := d.Tool(ctx, args...)
		if err == nil {
			return nil
		}
		if time.Now().After(until) || ctx.Err() != nil {
			return fmt.Errorf("lockstep %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (d *Deployment) coordinators(ctx context.Context, i int, r *Region, next func() string) error {
	var etcd string
	if len(r.GRPC) > 1 {
		var peer string
		etcd, peer, r.Journal = next(), next(), d.cfg.Journal
		if _, err := d.node(ctx, "etcd-"+r.Name, etcd, "", "lockstep", "arbiter", "--name", "e", "--data-dir", filepath.Join(d.cfg.Dir, "etcd-"+r.Name),
			"--client", etcd, "--peer", peer, "--cluster", "e="+peer); err != nil {
			return err
		}
	}
	for n := range r.GRPC {
		name := fmt.Sprintf("coordinator-%s-%d", r.Name, n)
		args := []string{"serve", "--grpc-addr", r.GRPC[n], "--admin-addr", r.Admin[n], "--http-addr", "127.0.0.1:0", "--region", r.Name, "--regions-file", r.File,
			"--member-ttl", "2s", "--log-level", "info"}
		if etcd == "" {
			dir := filepath.Join(d.cfg.Dir, name)
			r.Journal = "sqlite:" + filepath.Join(dir, "journal.db")
			args = append(args, "--embedded", "--data-dir", dir)
		} else {
			k, err := d.link(name+"/etcd", etcd)
			if err != nil {
				return err
			}
			r.EtcdLinks = append(r.EtcdLinks, k)
			own, err := d.link(name+"/grpc", r.GRPC[n])
			if err != nil {
				return err
			}
			r.PeerLinks = append(r.PeerLinks, own)
			args = append(args, "--etcd-endpoints", k.Addr(), "--journal-url", r.Journal, "--advertise-grpc", own.Addr())
		}
		c, err := d.node(ctx, name, r.GRPC[n], "http://"+r.Admin[n]+"/readyz", "lockstep", args...)
		if err != nil {
			return err
		}
		r.Coordinators = append(r.Coordinators, c)
	}
	return nil
}

// accounts opens accounts with their homes in both regions, alike in both; half of east's are of slots below Moving.
func (d *Deployment) accounts(ctx context.Context) error {
	var moving, staying, west []string
	per := cmp.Or(d.cfg.Accounts, AccountsPer)
	for i := 0; len(moving) < per/2 || len(staying) < per/2 || len(west) < per; i++ {
		id := fmt.Sprintf("acct%d", i)
		into, most := &west, per
		switch n := slot.Of(id); {
		case n%2 == 0 && n < Moving:
			into, most = &moving, per/2
		case n%2 == 0:
			into, most = &staying, per/2
		}
		if len(*into) == most {
			continue
		}
		*into = append(*into, id)
		d.Opened += Deposit
		for _, r := range d.Regions {
			if err := openAccount(ctx, r, id); err != nil {
				return err
			}
		}
	}
	d.Regions[0].Accounts, d.Regions[1].Accounts = append(moving, staying...), west
	return nil
}

func openAccount(ctx context.Context, r *Region, id string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.Tap.URL()+"/accounts", strings.NewReader(fmt.Sprintf(`{"id":%q,"balance":%d}`, id, Deposit)))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("open %s in %s: %s", id, r.Name, resp.Status)
	}
	return nil
}
