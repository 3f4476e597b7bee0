// Package dtm has DTM's own servers as the system under test of the chaos suite: one or two of them on one of its stores, a
// participant with DTM's SDK and its barrier on PostgreSQL and one on MariaDB, clients that speak DTM's HTTP interface, faults,
// and what is left at the end, in the form that the suite's checkers read.
//
// Its law: nothing of Lockstep's coordinator or participants takes part, and the checkers are the same that judge Lockstep.
// What DTM does not have (epochs, regions, events) is not applicable, and said to be so; it never counts as passed. What is
// known to go wrong is written down with the scenario, and a run in which it does not show is red too.
package dtm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/netproxy"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/scenario"
	"github.com/lockstep-tx/lockstep/chaos/tap"
	"github.com/lockstep-tx/lockstep/coordinator/bench/peer"
	bench "github.com/lockstep-tx/lockstep/coordinator/bench/proc"
)

// Store is where DTM's servers keep their transactions.
type Store string

// The stores. Boltdb is DTM's default, a file of one server; with the others two servers share a store. RedisAOF is a Redis
// that appends each write to a file and syncs it before it answers.
const (
	Boltdb   Store = "boltdb"
	Postgres Store = "postgres"
	MariaDB  Store = "mysql"
	Redis    Store = "redis"
	RedisAOF Store = "redis-aof"
)

// Stores are all of them.
func Stores() []Store { return []Store{Boltdb, Postgres, MariaDB, Redis, RedisAOF} }

const (
	deposit     = 1_000_000 // minor units that each account has first
	accountsPer = 8         // in each of the two databases
	storeConns  = 24        // of one server to its store
	// timeoutToFail is what clients ask of DTM, in seconds; its default is 35. requestTimeout bounds a branch call.
	timeoutToFail  = 3
	requestTimeout = 2
	// stays is how long what is held by transactions that have ended must be the same to be taken for what stays.
	stays = 4 * time.Second
)

// Config of a system.
type Config struct {
	// Bin is where dtmpeer, DTM's server, and dtm-wallet are.
	Bin   string
	Store Store
	// Postgres and MySQL are servers for the wallets and the store. Each gets databases of its own there, which are dropped.
	Postgres, MySQL string
	// Bare calls the participants' business without DTM's barrier: a test of the suite itself.
	Bare bool
}

// System is a deployment of DTM. Make it with New; it is for one scenario.
type System struct {
	c   Config
	log *history.Log
	d   *proc.Deployment
	hab habits

	servers []*proc.Node
	apis    []string           // of the servers: http://…/api/dtmsvr, behind the clients' links
	direct  []string           // the same without the links
	clients []*netproxy.Link   // before the servers
	branch  [2]*netproxy.Link  // by which servers, and nobody else, reach the taps
	store   *netproxy.Link     // before the store's server; nil for boltdb
	engine  *proc.Node         // the store's server, where it is ours to kill
	dbs     [2]string          // the wallets' databases
	schemas [2]string          // of their barriers
	seen    map[string]verdict // by gid, what is known to have ended

	held      int // transactions of which something was held at the last look of Settled
	heldSince time.Time

	undo []func() error
	http http.Client
}

var _ scenario.System = (*System)(nil)

// New makes a system that is not started.
func New(c Config) *System {
	return &System{c: c, seen: map[string]verdict{}, http: http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
}

// Lacks is why a scenario on this store cannot run here; "" where it can.
func (c *Config) Lacks() string {
	switch {
	case c.Postgres == "":
		return "one of the participants is on PostgreSQL: set LOCKSTEP_TEST_POSTGRES_URL"
	case c.MySQL == "":
		return "one of the participants is on MariaDB: set LOCKSTEP_TEST_MYSQL_URL"
	}
	if c.Store == Redis || c.Store == RedisAOF {
		if _, err := redisServer(); err != nil {
			return err.Error()
		}
	}
	return ""
}

// Start starts it. It has two wallets: the first one's accounts are on PostgreSQL, the second one's on MariaDB.
func (s *System) Start(ctx context.Context, dir string, log *history.Log) (*proc.Deployment, error) {
	s.log, s.d = log, &proc.Deployment{Opened: 2 * accountsPer * deposit}
	addrs, err := bench.FreeAddrs(8)
	if err != nil {
		return s.d, err
	}
	next := func() string { a := addrs[0]; addrs = addrs[1:]; return a }
	for i, name := range []string{"one", "two"} {
		s.d.Regions[i] = &proc.Region{Name: name}
		if err := s.wallet(ctx, i, dir, next()); err != nil {
			return s.d, err
		}
	}
	store, err := s.openStore(ctx, dir, next)
	if err != nil {
		return s.d, err
	}
	n := 2
	if s.c.Store == Boltdb {
		n = 1 // the file is locked by its server
	}
	for i := range n {
		if err := s.server(ctx, i, dir, store, next(), next()); err != nil {
			return s.d, err
		}
	}
	return s.d, nil
}

// Close ends all of it. It may be called twice.
func (s *System) Close() (err error) {
	for i := len(s.undo) - 1; i >= 0; i-- {
		err = errors.Join(err, s.undo[i]())
	}
	s.undo = nil
	return err
}

func (s *System) defers(f func() error) { s.undo = append(s.undo, f) }

func (s *System) node(ctx context.Context, addr, ready string, spec bench.Spec) (*proc.Node, error) {
	n := proc.NewNode(addr, ready, spec)
	s.defers(n.Close)
	return n, n.Start(ctx)
}

func (s *System) link(name, to string) (*netproxy.Link, error) {
	k, err := netproxy.Open(netproxy.Route{Name: name, Listen: "127.0.0.1:0", To: to})
	if err == nil {
		s.defers(k.Close)
	}
	return k, err
}

// wallet starts a participant with its tap, and the link by which DTM's servers reach that.
func (s *System) wallet(ctx context.Context, i int, dir, addr string) error {
	r := s.d.Regions[i]
	base := []string{s.c.Postgres, s.c.MySQL}[i]
	drop := func() error { return nil }
	var err error
	if s.dbs[i], drop, err = scenario.Database(ctx, base, "dtm_"+r.Name, &s.schemas[i]); err != nil {
		return err
	}
	s.defers(drop)
	for n := range accountsPer {
		r.Accounts = append(r.Accounts, fmt.Sprintf("%s-%d", r.Name, n))
	}
	args := []string{"-listen", addr, "-db", s.dbs[i], "-accounts", strings.Join(r.Accounts, ","), "-deposit", strconv.Itoa(deposit)}
	if s.schemas[i] != "" {
		args = append(args, "-barrier-schema", s.schemas[i])
	}
	if s.c.Bare {
		args = append(args, "-no-barrier")
	}
	r.DB, r.Barrier = s.dbs[i], s.schemas[i]
	if r.Wallet, err = s.node(ctx, addr, "http://"+addr+"/healthz", bench.Spec{Name: "wallet-" + r.Name, Path: filepath.Join(s.c.Bin, "dtm-wallet"), Args: args, Dir: dir}); err != nil {
		return err
	}
	if r.Tap, err = tap.Open(r.Name, "127.0.0.1:0", "http://"+addr, s.log.Now); err != nil {
		return err
	}
	s.defers(r.Tap.Close)
	s.branch[i], err = s.link("branch-"+r.Name, strings.TrimPrefix(r.Tap.URL(), "http://"))
	return err
}

// server starts one of DTM's servers.
func (s *System) server(ctx context.Context, i int, dir string, store peer.StoreConfig, web, rpc string) error {
	port := func(addr string) int {
		_, p, _ := net.SplitHostPort(addr) // FreeAddrs' own
		n, _ := strconv.Atoi(p)
		return n
	}
	o := peer.Options{HTTPPort: port(web), GRPCPort: port(rpc), LogLevel: "warn", Env: []string{"TRANS_CRON_INTERVAL=1"}}
	direct := "http://" + web + "/api/dtmsvr"
	n, err := s.node(ctx, web, direct+"/version", peer.Spec(filepath.Join(s.c.Bin, "dtmpeer"), fmt.Sprintf("dtm-%d", i+1), store, dir, o))
	if err != nil {
		return err
	}
	k, err := s.link(fmt.Sprintf("clients-%d", i+1), web)
	if err != nil {
		return err
	}
	s.servers, s.clients = append(s.servers, n), append(s.clients, k)
	s.direct, s.apis = append(s.direct, direct), append(s.apis, "http://"+k.Addr()+"/api/dtmsvr")
	s.d.Regions[i].Coordinators = []*proc.Node{n}
	return nil
}

// openStore makes what the servers keep their transactions in, behind a link where it is a server.
func (s *System) openStore(ctx context.Context, dir string, next func() string) (peer.StoreConfig, error) {
	address := "boltdb"
	switch s.c.Store {
	case Boltdb:
	case Postgres:
		address = s.c.Postgres
	case MariaDB:
		address = s.c.MySQL
	case Redis, RedisAOF:
		at := next()
		if err := s.startRedis(ctx, dir, at); err != nil {
			return peer.StoreConfig{}, err
		}
		address = "redis://" + at
	default:
		return peer.StoreConfig{}, fmt.Errorf("there is no store %q: %v", s.c.Store, Stores())
	}
	c, drop, err := peer.CreateStore(ctx, address)
	if err != nil || c.Port == 0 {
		return c, err
	}
	if s.engine == nil { // else it goes with its server
		s.defers(func() error { return drop(context.WithoutCancel(ctx)) })
	}
	if s.store, err = s.link("store", net.JoinHostPort(c.Host, strconv.Itoa(c.Port))); err != nil {
		return c, err
	}
	host, at, err := net.SplitHostPort(s.store.Addr())
	if err != nil {
		return c, err
	}
	c.Host, c.MaxOpenConns = host, storeConns
	c.Port, err = strconv.Atoi(at)
	return c, err
}

// redisServer is where Redis is.
func redisServer() (string, error) {
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/bin", "/usr/local/bin") {
		if at := filepath.Join(dir, "redis-server"); executable(at) {
			return at, nil
		}
	}
	return "", errors.New("there is no redis-server")
}

func executable(path string) bool {
	i, err := os.Stat(path)
	return err == nil && i.Mode()&0o111 != 0 && !i.IsDir()
}

// startRedis starts a Redis of the scenario's own, which can be killed: with the settings that it has by itself (snapshots of
// the memory, at the soonest a minute after 10,000 writes), or with a file to which each write is appended and synced.
func (s *System) startRedis(ctx context.Context, dir, at string) (err error) {
	program, err := redisServer()
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(at)
	if err != nil {
		return err
	}
	args := []string{"--bind", host, "--port", port, "--dir", dir}
	if s.c.Store == RedisAOF {
		args = append(args, "--appendonly", "yes", "--appendfsync", "always")
	}
	s.engine, err = s.node(ctx, at, "", bench.Spec{Name: "redis", Path: program, Args: args, Dir: dir})
	return err
}

// Snapshot looks at both databases: in each of them alone no money comes or goes, so neither does it in both, whenever each was
// looked at.
func (s *System) Snapshot(ctx context.Context) (check.Snapshot, error) {
	var wg sync.WaitGroup
	var each [2]check.Snapshot
	var errs [2]error
	for i, db := range s.dbs {
		wg.Go(func() { each[i], errs[i] = check.ReadSnapshot(ctx, s.d.Regions[i].Name, db, s.log.Now) })
	}
	wg.Wait()
	return check.Snapshot{Region: "both", At: max(each[0].At, each[1].At), Accounts: slices.Concat(each[0].Accounts, each[1].Accounts)}, errors.Join(errs[:]...)
}

// Open counts the transactions of which something is held. What cannot be read counts as none.
func (s *System) Open(ctx context.Context) int {
	held := map[string]bool{}
	if b, err := s.book(ctx); err == nil {
		for _, t := range b.Transfers {
			if t.State == "pending" {
				held[t.Gid] = true
			}
		}
	}
	return len(held)
}

// book is both databases as one: a transaction's two branches may be in either.
func (s *System) book(ctx context.Context) (check.Book, error) {
	whole := check.Book{Region: "both"}
	for i, r := range s.d.Regions {
		b, err := check.ReadBook(ctx, r.Name, s.dbs[i], s.schemas[i])
		if err != nil {
			return whole, err
		}
		whole.Accounts, whole.Transfers = append(whole.Accounts, b.Accounts...), append(whole.Transfers, b.Transfers...)
		whole.Entries, whole.Rows = append(whole.Entries, b.Entries...), append(whole.Rows, b.Rows...)
	}
	return whole, nil
}

// Settled says that DTM has ended all that it knows, and that nothing is held; or that what is held stays so: for what has ended
// DTM does nothing any more.
func (s *System) Settled(ctx context.Context) bool {
	all, err := s.verdicts(ctx)
	if err != nil {
		return false
	}
	for _, v := range all {
		if !v.ended() && v.known() {
			return false
		}
	}
	n := s.Open(ctx)
	if n != s.held {
		s.held, s.heldSince = n, time.Now()
	}
	return n == 0 || time.Since(s.heldSince) > stays
}

// lacks is what DTM has not, by checker.
var lacks = map[string]string{
	"I9":  "not applicable: DTM has no events",
	"I10": "not applicable: DTM has one region",
	"I11": "not applicable: DTM's calls carry no epoch",
	"I12": "not applicable: DTM's servers share one store, and keep nothing of it",
	"I13": "not applicable: DTM repairs nothing",
}

// Read gathers what is left: both databases as one book, and each transaction as DTM's query answers.
func (s *System) Read(ctx context.Context, e *check.Evidence, dir string) error {
	e.Lacks, e.LateAnswer = lacks, http.StatusOK
	for _, r := range s.d.Regions {
		e.Calls = append(e.Calls, r.Tap.Calls()...)
	}
	whole, err := s.book(ctx)
	if err != nil {
		return err
	}
	e.Books = []check.Book{whole}
	s.seen = map[string]verdict{} // what ended must be so still
	all, err := s.verdicts(ctx)
	if err != nil {
		return err
	}
	for _, v := range all {
		if v.known() {
			e.Decided = append(e.Decided, check.Decided{Region: "DTM", Gid: v.Gid, Phase: v.phase(), Finished: v.ended()})
		}
	}
	return history.Save(filepath.Join(dir, "dtm.jsonl"), all)
}

// verdicts asks DTM for all that clients have asked for. What has ended is asked once.
func (s *System) verdicts(ctx context.Context) (out []verdict, err error) {
	gids := map[string]bool{}
	for _, op := range s.log.Ops() {
		gids[op.Gid] = true
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	work := make(chan string)
	for range 8 {
		wg.Go(func() {
			for gid := range work {
				v, qerr := s.query(ctx, s.direct, gid)
				mu.Lock()
				if err = errors.Join(err, qerr); qerr == nil {
					if out = append(out, v); v.ended() {
						s.seen[gid] = v
					}
				}
				mu.Unlock()
			}
		})
	}
	for gid := range gids {
		mu.Lock()
		v, ok := s.seen[gid]
		if ok {
			out = append(out, v)
		}
		failed := err != nil
		mu.Unlock()
		if failed {
			break
		}
		if !ok {
			work <- gid
		}
	}
	close(work)
	wg.Wait()
	return out, err
}
