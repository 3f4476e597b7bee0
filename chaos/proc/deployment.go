package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/lockstep-tx/lockstep/chaos/netproxy"
	"github.com/lockstep-tx/lockstep/chaos/netspace"
	"github.com/lockstep-tx/lockstep/chaos/syncfs"
	"github.com/lockstep-tx/lockstep/chaos/tap"
	"github.com/lockstep-tx/lockstep/chaos/volume"
	"github.com/lockstep-tx/lockstep/coordinator/bench/proc"
)

// Deposit is what each account has first. AccountsPer have their home in each region. Slots below Moving are those that a
// handover moves.
const (
	Deposit     = 1_000_000
	AccountsPer = 8
	Moving      = 64
	volumeBytes = 512 << 20
)

// The parts of a region that can have a volume: Config.Volumes.
const (
	Wallet      = "wallet"
	Coordinator = "coordinator"
	Broker      = "broker"
)

// Config of a deployment.
type Config struct {
	// Dir gets everything that it writes; Bin is where lockstep and lockstep-participants are.
	Dir, Bin string
	// Previous is where lockstep of the version before is: the coordinators of the first region start on it. Empty: on this version.
	Previous string
	// Env is added to every process' environment.
	Env []string
	// Pair gives the first region two coordinators on an etcd of their own, with Journal, a URL of PostgreSQL or MySQL.
	Pair    bool
	Journal string
	// Three gives the arbiter, and the etcd of a region with two coordinators, three members each instead of one.
	Three bool
	// Five gives the arbiter five members, each on a host of its own: Deployment.Hosts.
	Five bool
	// Wallets are the databases of the regions' wallets; empty: SQLite. Barriers are the schemas of their barriers, which must
	// differ where both are on one MySQL or MariaDB server; empty: the default.
	Wallets, Barriers [2]string
	// Brokers puts a link between the coordinators of each region and its own broker.
	Brokers bool
	// Volumes names those of the first region's parts (Wallet, Coordinator, Broker) whose data are on volumes of their own, so
	// that their power can be cut.
	Volumes []string
	// Syncs has the data on these volumes seen through a file system whose syncs can be slowed, and made to fail.
	Syncs bool
	// Clocks has coordinators whose clock can be moved.
	Clocks bool
	// Participant is started in place of our wallets; nil: ours.
	Participant *Participant
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
	Broker       *Node
	DB, Barrier  string // address of the wallets' database, and the schema of its barrier
	BrokerAddr   string // the broker's address, without a link before it
	BrokerDir    string // its data
	Journal      string // address of the journal's database
	Tap          *tap.Tap
	Accounts     []string // with their home here; the first ones are of slots that a handover moves
	File         string   // its view of the deployment
	// EtcdLinks and PeerLinks are, where the region has two coordinators, how each reaches the members of etcd and is reached by
	// the other.
	EtcdLinks [][]*netproxy.Link
	PeerLinks []*netproxy.Link
	// BrokerLink is how the region's coordinators reach its broker, where Config asks for one.
	BrokerLink *netproxy.Link
	// Etcd are the members of the region's etcd, where it is no coordinator's own.
	Etcd []*Node
	// Disks are the volumes that Config asks for.
	Disks []Disk
}

// Disk is a volume and the process whose data are on it.
type Disk struct {
	*volume.Volume
	Node *Node
	// Syncs is through what the process sees its data, where Config asks for it; else nil.
	Syncs *syncfs.Mount
}

// Restore mounts what is left, once nobody has a file there open any more.
func (d Disk) Restore() error {
	if d.Syncs == nil {
		return d.Volume.Restore()
	}
	if err := errors.Join(d.Syncs.Stop(), d.Volume.Restore()); err != nil {
		return err
	}
	return d.Syncs.Start()
}

// Deployment is two regions, east and west. Even slots are east's at first, odd ones west's.
type Deployment struct {
	Regions [2]*Region
	Arbiter []*Node
	// Hosts are those of the arbiter's members, where Config asks for five: the first one's is 0.
	Hosts *netspace.Net
	// Links between the regions, by name: east-west/grpc is how east reaches west.
	Links  []*netproxy.Link
	Opened int64 // money that there is
	// Participant is what keeps the accounts. Foreign says that it is not our wallet: nobody knows its tables.
	Participant *Participant
	Foreign     bool

	cfg   Config
	mu    sync.Mutex
	undo  []func() error
	nodes []*Node
}

// New starts a deployment. The caller closes it, also after an error.
func New(ctx context.Context, cfg Config) (*Deployment, error) {
	d := &Deployment{cfg: cfg, Participant: &ours}
	if cfg.Participant != nil {
		d.Participant, d.Foreign = cfg.Participant, true
	}
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
	path := program // a user's own
	if !strings.Contains(program, "/") {
		path = filepath.Join(d.cfg.Bin, program)
	}
	return d.start(ctx, &Node{Name: name, Addr: addr, ready: ready, spec: proc.Spec{Name: name, Path: path, Args: args, Dir: d.cfg.Dir, Env: d.cfg.Env}})
}

func (d *Deployment) start(ctx context.Context, n *Node) (*Node, error) {
	d.nodes = append(d.nodes, n)
	d.defers(n.stop)
	return n, n.Start(ctx)
}

// Program is the path of one of this version's programs.
func (d *Deployment) Program(name string) string { return filepath.Join(d.cfg.Bin, name) }

// Before is Program of the version before; of no meaning where Config names none.
func (d *Deployment) Before(name string) string { return filepath.Join(d.cfg.Previous, name) }

func (d *Deployment) link(name, to string) (*netproxy.Link, error) {
	return d.route(netproxy.Route{Name: name, Listen: "127.0.0.1:0", To: to, Kafka: strings.HasSuffix(name, "/kafka")})
}

func (d *Deployment) route(r netproxy.Route) (*netproxy.Link, error) {
	k, err := netproxy.Open(r)
	if err == nil {
		d.defers(k.Close)
	}
	return k, err
}

// Clocks says that the coordinators' clocks can be moved.
func (d *Deployment) Clocks() bool { return d.cfg.Clocks }

// Between are the links between the regions.
func (d *Deployment) Between() []*netproxy.Link { return d.Links }

func (d *Deployment) open(ctx context.Context) error {
	a, err := proc.FreeAddrs(32)
	if err != nil {
		return err
	}
	next := func() string { s := a[0]; a = a[1:]; return s }
	if d.Arbiter, err = d.arbiter(ctx, next); err != nil {
		return err
	}
	var brokers [2]string
	for i, name := range []string{"east", "west"} {
		r := &Region{Name: name, GRPC: []string{next()}, Admin: []string{next()}, DB: d.cfg.Wallets[i], Barrier: d.cfg.Barriers[i]}
		if d.cfg.Pair && i == 0 {
			r.GRPC, r.Admin = append(r.GRPC, next()), append(r.Admin, next())
		}
		d.Regions[i], brokers[i] = r, next()
		r.BrokerAddr = brokers[i]
		dir, on, err := d.dir(i, Broker, "broker-"+name)
		if err != nil {
			return err
		}
		n, err := d.node(ctx, "broker-"+name, brokers[i], "", "lockstep", "broker", "--data-dir", dir, "--listen", brokers[i])
		if err != nil {
			return err
		}
		r.Broker, r.BrokerDir = n, dir
		on(n)
		if err := d.wallet(ctx, i, r, next()); err != nil {
			return err
		}
	}
	if err := d.files(brokers); err != nil {
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
	if err := d.persist(ctx, "participant", "set", "wallet", "--context", d.Regions[0].File, "--endpoint", at, "--account-field", d.Participant.Account); err != nil {
		return err
	}
	if err := d.accounts(ctx); err != nil {
		return err
	}
	// What was there before the load is there after a power cut, whoever forgot to sync it.
	for _, v := range d.Regions[0].Disks {
		err = errors.Join(err, v.Sync())
	}
	return err
}

// dir is where a part of a region keeps its data: name under the deployment's directory, or a volume of its own. on says
// whose data they are.
func (d *Deployment) dir(region int, part, name string) (dir string, on func(*Node), err error) {
	if region != 0 || !slices.Contains(d.cfg.Volumes, part) {
		return filepath.Join(d.cfg.Dir, name), func(*Node) {}, nil
	}
	v, err := volume.Open(filepath.Join(d.cfg.Dir, "volume-"+part), volumeBytes)
	if v != nil {
		d.defers(v.Close)
	}
	if err != nil {
		return "", nil, err
	}
	disk, dir := Disk{Volume: v}, v.Dir()
	if d.cfg.Syncs {
		if disk.Syncs, err = syncfs.Open(dir, filepath.Join(d.cfg.Dir, "syncs-"+part)); disk.Syncs != nil {
			d.defers(disk.Syncs.Close)
		}
		if err != nil {
			return "", nil, err
		}
		dir = disk.Syncs.Dir()
	}
	return dir, func(n *Node) {
		disk.Node = n
		d.Regions[0].Disks = append(d.Regions[0].Disks, disk)
	}, nil
}

func (d *Deployment) wallet(ctx context.Context, i int, r *Region, addr string) (err error) {
	on := func(*Node) {}
	if r.DB == "" {
		var dir string
		if dir, on, err = d.dir(i, Wallet, ""); err != nil {
			return err
		}
		r.DB = "sqlite:" + filepath.Join(dir, "wallet-"+r.Name+".db")
	}
	args := []string{"wallet", "--db", r.DB, "--listen", addr}
	if r.Barrier != "" {
		args = append(args, "--barrier-schema", r.Barrier)
	}
	program := "lockstep-participants"
	if d.Foreign {
		dir := filepath.Join(d.cfg.Dir, "participant-"+r.Name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		args = d.Participant.args(addr, r.DB, dir)
		program, args = args[0], args[1:]
	}
	if r.Wallet, err = d.node(ctx, "wallet-"+r.Name, addr, "http://"+addr+d.Participant.Ready, program, args...); err != nil {
		return err
	}
	on(r.Wallet)
	if r.Tap, err = tap.Open(r.Name, "127.0.0.1:0", "http://"+addr, d.cfg.Now); err != nil {
		return err
	}
	d.defers(r.Tap.Close)
	return nil
}

// files writes each region's view: the other region is behind links.
func (d *Deployment) files(brokers [2]string) error {
	var arbiter []string
	for _, n := range d.Arbiter {
		arbiter = append(arbiter, n.Addr)
	}
	for i, r := range d.Regions {
		text := fmt.Sprintf("arbiter: %s\nregions:\n", list(arbiter))
		for k, of := range d.Regions {
			grpc, admin, broker := of.GRPC, of.Admin, brokers[k]
			if i == k && d.cfg.Brokers {
				var err error
				if r.BrokerLink, err = d.link(r.Name+"/kafka", broker); err != nil {
					return err
				}
				broker = r.BrokerLink.Addr()
			} else if i != k {
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

func (d *Deployment) coordinators(ctx context.Context, i int, r *Region, next func() string) error {
	if len(r.GRPC) > 1 {
		var err error
		if r.Etcd, err = d.cluster(ctx, "etcd-"+r.Name, next); err != nil {
			return err
		}
		r.Journal = d.cfg.Journal
	}
	for n := range r.GRPC {
		name := fmt.Sprintf("coordinator-%s-%d", r.Name, n)
		args := []string{"serve", "--grpc-addr", r.GRPC[n], "--admin-addr", r.Admin[n], "--http-addr", "127.0.0.1:0", "--region", r.Name, "--regions-file", r.File,
			"--member-ttl", "2s", "--log-level", "info"}
		if d.cfg.Clocks {
			args = append(args, "--debug-clock")
		}
		on := func(*Node) {}
		if len(r.Etcd) == 0 {
			var dir string
			var err error
			if dir, on, err = d.dir(i, Coordinator, name); err != nil {
				return err
			}
			r.Journal = "sqlite:" + filepath.Join(dir, "journal.db")
			args = append(args, "--embedded", "--data-dir", dir)
		} else {
			var members []*netproxy.Link
			for _, m := range r.Etcd {
				k, err := d.link(name+"/etcd", m.Addr)
				if err != nil {
					return err
				}
				members = append(members, k)
				args = append(args, "--etcd-endpoints", k.Addr())
			}
			r.EtcdLinks = append(r.EtcdLinks, members)
			own, err := d.link(name+"/grpc", r.GRPC[n])
			if err != nil {
				return err
			}
			r.PeerLinks = append(r.PeerLinks, own)
			args = append(args, "--journal-url", r.Journal, "--advertise-grpc", own.Addr())
		}
		program := "lockstep"
		if d.cfg.Previous != "" && i == 0 {
			program = d.Before(program)
		}
		c, err := d.node(ctx, name, r.GRPC[n], "http://"+r.Admin[n]+"/readyz", program, args...)
		if err != nil {
			return err
		}
		on(c)
		r.Coordinators = append(r.Coordinators, c)
	}
	return nil
}

// Disk is where all that a region has is: what of it is not in files of the suite's is an error.
func (d *Deployment) Disk(r *Region) ([]string, error) {
	file, ok := strings.CutPrefix(r.DB, "sqlite:")
	if !ok || d.Foreign || len(r.Etcd) > 0 || len(r.Disks) > 0 {
		return nil, fmt.Errorf("not all that %s has is in files that can be erased", r.Name)
	}
	paths, err := filepath.Glob(file + "*")
	paths = append(paths, r.BrokerDir)
	for _, c := range r.Coordinators {
		paths = append(paths, c.Data())
	}
	return paths, err
}
