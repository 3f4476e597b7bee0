package rig

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/lockstep-tx/lockstep/coordinator/bench/peer"
	"github.com/lockstep-tx/lockstep/coordinator/bench/proc"
)

// The contenders' names.
const (
	Lockstep    = "lockstep"
	Ceiling     = "ceiling"
	DTMBoltdb   = "dtm-boltdb"
	DTMPostgres = "dtm-postgres"
	DTMMariaDB  = "dtm-mariadb"
	DTMRedis    = "dtm-redis"
	DTMRedisAOF = "dtm-redis-aof"
)

// server is the database server that a contender needs, as the environment names it (deploy/dev writes that).
type server struct{ urlVar, pidVar string }

var servers = map[string]server{
	DTMPostgres: {"LOCKSTEP_TEST_POSTGRES_URL", "LOCKSTEP_TEST_POSTGRES_PID"},
	DTMMariaDB:  {"LOCKSTEP_TEST_MYSQL_URL", "LOCKSTEP_TEST_MYSQL_PID"},
	DTMRedis:    {"LOCKSTEP_TEST_REDIS_URL", "LOCKSTEP_TEST_REDIS_PID"},
	DTMRedisAOF: {"LOCKSTEP_TEST_REDIS_AOF_URL", "LOCKSTEP_TEST_REDIS_AOF_PID"},
}

// Names lists the contenders in the order in which they take turns.
func Names() []string {
	return []string{Lockstep, DTMBoltdb, DTMPostgres, DTMMariaDB, DTMRedis, DTMRedisAOF, Ceiling}
}

// CheckNames reports contenders that do not exist and, all at once, environment variables that those wanted lack.
func CheckNames(names []string) error {
	var missing []string
	for _, n := range names {
		if !slices.Contains(Names(), n) {
			return fmt.Errorf("no contender %q; there are %v", n, Names())
		}
		if s, ok := servers[n]; ok && os.Getenv(s.urlVar) == "" {
			missing = append(missing, fmt.Sprintf("%s (for %s)", s.urlVar, n))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("environment variables missing: %v\nnext: make up, or choose others with --contenders", missing)
	}
	return nil
}

// Contender is a running coordinator.
type Contender struct {
	Name      string
	Process   *proc.Process
	HTTPBase  string // …/api/dtmsvr
	GRPCAddr  string
	AdminAddr string // Lockstep's; "" for others
	ServerPID int    // of its database server; 0 if it has none

	restart func(context.Context) (*proc.Process, error)
}

// Start starts a contender on an empty store of its own and waits until it is ready.
func (r *Rig) Start(ctx context.Context, name string) (*Contender, error) {
	return r.StartIn(ctx, name, filepath.Join(r.Dir, name))
}

// StartIn is Start with a directory for the contender's files, which may hold a store from before.
func (r *Rig) StartIn(ctx context.Context, name, dir string) (*Contender, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	switch name {
	case Lockstep:
		return r.startLockstep(ctx, dir)
	case Ceiling:
		return r.startCeiling(ctx, dir)
	default:
		return r.startDTM(ctx, name, dir)
	}
}

// Restart starts the contender's process again, which must have ended, on the same addresses and store, and returns when
// it is ready.
func (r *Rig) Restart(ctx context.Context, c *Contender) error {
	p, err := c.restart(ctx)
	if err == nil {
		c.Process = p
	}
	return err
}

func (r *Rig) startLockstep(ctx context.Context, dir string) (*Contender, error) {
	if _, err := os.Stat(r.bin("lockstep")); err != nil {
		return nil, fmt.Errorf("%w\nnext: make build", err)
	}
	addrs, err := proc.FreeAddrs(3)
	if err != nil {
		return nil, err
	}
	c := &Contender{
		Name: Lockstep, HTTPBase: "http://" + addrs[0] + "/api/dtmsvr", GRPCAddr: addrs[1], AdminAddr: addrs[2],
	}
	args := append([]string{
		"serve", "--embedded", "--data-dir", filepath.Join(dir, "data"),
		"--http-addr", addrs[0], "--grpc-addr", addrs[1], "--admin-addr", addrs[2],
	}, r.LockstepArgs...)
	c.restart = func(ctx context.Context) (*proc.Process, error) {
		p, err := r.start(proc.Spec{Name: Lockstep, Path: r.bin("lockstep"), Args: args, Dir: dir})
		if err != nil {
			return nil, err
		}
		return p, p.AwaitHTTP(ctx, "http://"+addrs[2]+"/readyz", readyLimit)
	}
	return c, r.Restart(ctx, c)
}

func (r *Rig) startCeiling(ctx context.Context, dir string) (*Contender, error) {
	addrs, err := proc.FreeAddrs(2)
	if err != nil {
		return nil, err
	}
	c := &Contender{Name: Ceiling, HTTPBase: "http://" + addrs[0] + "/api/dtmsvr", GRPCAddr: addrs[1]}
	c.restart = func(ctx context.Context) (*proc.Process, error) {
		p, err := r.start(proc.Spec{
			Name: Ceiling, Path: r.bin("bench-ceiling"), Args: []string{"-http-addr", addrs[0], "-grpc-addr", addrs[1]}, Dir: dir,
		})
		if err != nil {
			return nil, err
		}
		return p, p.AwaitHTTP(ctx, c.HTTPBase+"/newGid", readyLimit)
	}
	return c, r.Restart(ctx, c)
}

func (r *Rig) startDTM(ctx context.Context, name, dir string) (*Contender, error) {
	rawURL, pid := "boltdb", 0
	if s, ok := servers[name]; ok {
		rawURL = os.Getenv(s.urlVar)
		var err error
		if pid, err = serverPID(rawURL, os.Getenv(s.pidVar)); err != nil {
			return nil, fmt.Errorf("%s: the server's process (set %s): %w", name, s.pidVar, err)
		}
	}
	store, drop, err := peer.CreateStore(ctx, rawURL)
	if err != nil {
		return nil, err
	}
	r.defers(drop)
	d, err := peer.StartDTM(ctx, store, dir)
	if err != nil {
		return nil, err
	}
	r.defers(func(context.Context) error { return d.Stop() })
	c := &Contender{Name: name, Process: d.Process, HTTPBase: d.HTTPBase, GRPCAddr: d.GRPCAddr, ServerPID: pid}
	c.restart = func(ctx context.Context) (*proc.Process, error) {
		next, err := d.Restart(ctx)
		if err != nil {
			return nil, err
		}
		r.defers(func(context.Context) error { return next.Stop() })
		return next.Process, nil
	}
	return c, nil
}

// serverPID returns the server's pid as given, or looks for the process that listens on the url's port.
func serverPID(rawURL, given string) (int, error) {
	if given != "" {
		return strconv.Atoi(given)
	}
	u, err := url.Parse(rawURL)
	if err != nil {
		return 0, err
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		return 0, fmt.Errorf("no port in %s", u.Redacted())
	}
	return proc.ListenerPID(port)
}
