package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	"golang.org/x/sync/errgroup"
)

type kind string

const (
	postgres kind = "postgres"
	mariadb  kind = "mariadb"
	redis    kind = "redis"
	etcd     kind = "etcd"
	kafka    kind = "kafka"
)

// readyLimit is how long one server may take from its start to its first answer.
const readyLimit = 60 * time.Second

const (
	sqlUser     = "lockstep"
	sqlDatabase = "lockstep"
)

type server struct {
	Name     string `json:"name"`
	Kind     kind   `json:"kind"`
	Port     int    `json:"port"`
	PeerPort int    `json:"peer_port,omitempty"` // etcd, kafka (its controller)
	AOF      bool   `json:"aof,omitempty"`       // redis: every write is on disk before it is answered

	ended <-chan struct{} // closed when the process that this run started ends
}

func (sv *server) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(sv.Port)) }

func (sv *server) stopSignal() syscall.Signal {
	switch sv.Kind {
	case postgres:
		return syscall.SIGINT // "fast": ends the sessions instead of waiting for them
	case etcd:
		return syscall.SIGKILL // a member that leaves in good order waits for others that are leaving too
	case kafka:
		return syscall.SIGKILL // its data goes with it, and a broker in good order takes seconds to leave
	case mariadb, redis:
	}
	return syscall.SIGTERM
}

// url is how tests reach the server.
func (sv *server) url(s *serverSet) string {
	u := url.URL{Host: sv.addr()}
	switch sv.Kind {
	case postgres:
		u.Scheme, u.User, u.Path = "postgres", url.UserPassword(sqlUser, s.Password), sqlDatabase
		u.RawQuery = "sslmode=disable"
	case mariadb:
		u.Scheme, u.User, u.Path = "mysql", url.UserPassword(sqlUser, s.Password), sqlDatabase
	case redis:
		u.Scheme, u.User, u.Path = "redis", url.UserPassword("", s.Password), "0"
	case etcd:
		u.Scheme = "http"
	case kafka:
		return sv.addr() // clients take a broker without a scheme
	}
	return u.String()
}

// probe returns nil if the server answers as it should when it is ready for work.
func (sv *server) probe(ctx context.Context, s *serverSet) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	switch sv.Kind {
	case postgres:
		return pingSQL(ctx, "pgx", sv.url(s))
	case mariadb:
		return pingSQL(ctx, "mysql", fmt.Sprintf("%s:%s@tcp(%s)/%s", sqlUser, s.Password, sv.addr(), sqlDatabase))
	case redis:
		return pingRedis(ctx, sv.addr(), s.Password)
	case etcd:
		return pingEtcd(ctx, sv.addr())
	case kafka:
		return pingKafka(ctx, sv.addr())
	}
	return fmt.Errorf("no probe for %q", sv.Kind)
}

func pingSQL(ctx context.Context, driver, dsn string) error {
	db, err := sql.Open(driver, dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	return db.PingContext(ctx)
}

func pingRedis(ctx context.Context, addr, password string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return err
		}
	}
	const want = "+OK\r\n+PONG\r\n"
	if _, err := fmt.Fprintf(c, "AUTH %s\r\nPING\r\n", password); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != want {
		return fmt.Errorf("redis answers %q", got)
	}
	return nil
}

// pingEtcd asks for health, which makes the member read through raft: it needs a leader and a quorum.
func pingEtcd(ctx context.Context, addr string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/health", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("etcd health: %s", resp.Status)
	}
	return nil
}

// bring makes one server ready: initialises its data once, starts it, waits for it.
func (s *serverSet) bring(ctx context.Context, sv *server) error {
	r, err := readRecord(s.recordPath(sv.Name))
	if err != nil {
		return err
	}
	if err := r.stop(sv.stopSignal(), 5*time.Second); err != nil { // runs, but does not answer
		return err
	}
	if err := s.clearLeftovers(ctx, sv, r); err != nil {
		return fmt.Errorf("%s: %w", sv.Name, err)
	}
	argv, err := s.prepare(ctx, sv)
	if err != nil {
		return fmt.Errorf("%s: %w", sv.Name, err)
	}
	if err := s.spawn(sv, argv); err != nil {
		return err
	}
	deadline := time.Now().Add(readyLimit)
	for {
		err := s.ready(ctx, sv)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", sv.Name, context.Cause(ctx))
		case <-sv.ended:
			return fmt.Errorf("%s ended while starting:\n%s", sv.Name, s.logTail(sv.Name))
		case <-time.After(30 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not answer after %s: %w\n%s", sv.Name, readyLimit, err, s.logTail(sv.Name))
		}
	}
}

// ready is probe, with the last step of PostgreSQL's set-up before it: its database can be made only over a connection.
func (s *serverSet) ready(ctx context.Context, sv *server) error {
	err := sv.probe(ctx, s)
	if sv.Kind != postgres || err == nil || !strings.Contains(err.Error(), "3D000") { // invalid_catalog_name
		return err
	}
	db, err := sql.Open("pgx", strings.Replace(sv.url(s), "/"+sqlDatabase+"?", "/postgres?", 1))
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "CREATE DATABASE "+sqlDatabase); err != nil {
		return err
	}
	return sv.probe(ctx, s)
}

// bringEtcd builds the member and starts what is missing of the three. ctx bounds the build.
func (s *serverSet) bringEtcd(ctx, gctx context.Context) error {
	if !slices.ContainsFunc(s.Servers, func(sv *server) bool { return sv.Kind == etcd }) {
		return nil
	}
	dir, err := root(gctx)
	if err != nil {
		return err
	}
	s.member = filepath.Join(dir, "bin", "etcdmember")
	build := exec.CommandContext(ctx, "go", "build", "-o", s.member, "./deploy/dev/etcdmember")
	build.Dir = dir
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the etcd member: %w\n%s", err, b)
	}
	g, gctx := errgroup.WithContext(gctx)
	for _, sv := range s.Servers {
		if sv.Kind != etcd {
			continue
		}
		r, err := readRecord(s.recordPath(sv.Name))
		if err != nil {
			return err
		}
		if r.alive() && sv.probe(gctx, s) == nil {
			continue
		}
		g.Go(func() error { return s.bring(gctx, sv) })
	}
	return g.Wait()
}

// prepare makes a server's data directory where there is none and returns its command line. Initialising happens in a
// directory that is renamed when it is complete, so that an interrupted one is never taken for data.
func (s *serverSet) prepare(ctx context.Context, sv *server) ([]string, error) {
	data := s.dataPath(sv.Name)
	if _, err := os.Stat(data); err != nil {
		part := data + ".part"
		if err := os.RemoveAll(part); err != nil {
			return nil, err
		}
		if err := os.Mkdir(part, 0o700); err != nil {
			return nil, err
		}
		if err := s.initialise(ctx, sv, part); err != nil {
			return nil, err
		}
		if err := os.Rename(part, data); err != nil {
			return nil, err
		}
	}
	port := strconv.Itoa(sv.Port)
	switch sv.Kind {
	case postgres:
		return []string{s.have.postgres, "-D", data, "-p", port, "-c", "listen_addresses=127.0.0.1",
			"-c", "unix_socket_directories=", "-c", "max_prepared_transactions=200", "-c", "max_connections=300"}, nil
	case mariadb:
		// A server that starts deletes what looks like a temporary table of a dead one: in a directory that others use, theirs.
		temporary := s.dataPath(sv.Name + "-tmp")
		if err := os.MkdirAll(temporary, 0o700); err != nil {
			return nil, err
		}
		argv := []string{s.have.mariadbd, "--no-defaults", "--tmpdir=" + temporary, "--datadir=" + data, "--port=" + port, "--bind-address=127.0.0.1",
			"--socket=" + s.dataPath("mariadb.sock"), "--pid-file=" + s.dataPath("mariadb.pid"), "--skip-name-resolve",
			"--max-connections=500", "--character-set-server=utf8mb4", "--init-file=" + filepath.Join(data, "lockstep-init.sql")}
		if os.Geteuid() == 0 {
			argv = append(argv, "--user=root") // its data is private; MariaDB wants to be told that root is meant
		}
		return argv, nil
	case redis:
		return []string{s.have.redis, filepath.Join(data, "redis.conf")}, nil
	case kafka:
		return s.have.kafkaArgv("kafka.Kafka", filepath.Join(data, "server.properties"))
	case etcd:
		var cluster []string
		for _, other := range s.Servers {
			if other.Kind == etcd {
				cluster = append(cluster, fmt.Sprintf("%s=http://127.0.0.1:%d", other.Name, other.PeerPort))
			}
		}
		return []string{s.member, "--name", sv.Name, "--data-dir", data, "--client-url", "http://" + sv.addr(),
			"--peer-url", fmt.Sprintf("http://127.0.0.1:%d", sv.PeerPort), "--initial-cluster", strings.Join(cluster, ","),
			"--cluster-token", s.Password}, nil // another cluster on recycled ports is not ours
	}
	return nil, fmt.Errorf("no command for %q", sv.Kind)
}

func (s *serverSet) initialise(ctx context.Context, sv *server, data string) error {
	switch sv.Kind {
	case postgres:
		pw := filepath.Join(data, "pw")
		if err := os.WriteFile(pw, []byte(s.Password+"\n"), 0o600); err != nil {
			return err
		}
		db := filepath.Join(data, "db")
		for _, path := range []string{data, pw} {
			if s.PostgresUID != 0 {
				if err := os.Chown(path, s.PostgresUID, s.PostgresGID); err != nil {
					return err
				}
			}
		}
		if err := s.tool(ctx, sv, s.have.initdb, "-D", db, "-U", sqlUser, "--pwfile", pw,
			"-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync"); err != nil {
			return err
		}
		// What is renamed to the data directory is all of data: lift the cluster out of db.
		return lift(db, data, pw)
	case mariadb:
		sql := "CREATE DATABASE IF NOT EXISTS " + sqlDatabase + ";\n"
		for _, host := range []string{"127.0.0.1", "localhost"} {
			who := fmt.Sprintf("'%s'@'%s'", sqlUser, host)
			sql += "CREATE USER IF NOT EXISTS " + who + " IDENTIFIED BY '" + s.Password + "';\n" +
				"GRANT ALL PRIVILEGES ON *.* TO " + who + " WITH GRANT OPTION;\n" +
				"DROP USER IF EXISTS ''@'" + host + "';\n"
		}
		args := []string{"--no-defaults", "--datadir=" + data, "--auth-root-authentication-method=socket", "--skip-test-db",
			"--skip-name-resolve"}
		if os.Geteuid() == 0 {
			args = append(args, "--user=root")
		}
		if err := s.tool(ctx, sv, s.have.mariadbInstall, args...); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(data, "lockstep-init.sql"), []byte(sql), 0o600)
	case redis:
		conf := fmt.Sprintf("bind 127.0.0.1\nport %d\ndir \"%s\"\nrequirepass %s\nsave \"\"\ndaemonize no\n", sv.Port, s.dataPath(sv.Name), s.Password)
		if sv.AOF {
			conf += "appendonly yes\nappendfsync always\n"
		}
		return os.WriteFile(filepath.Join(data, "redis.conf"), []byte(conf), 0o600)
	case etcd:
		return nil
	case kafka:
		return s.initKafka(ctx, sv, data)
	}
	return fmt.Errorf("no data for %q", sv.Kind)
}

// lift moves everything in from into its parent into, and removes from and the extra file.
func lift(from, into, extra string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(from, e.Name()), filepath.Join(into, e.Name())); err != nil {
			return err
		}
	}
	return errors.Join(os.Remove(from), os.Remove(extra))
}

// tool runs an initialising program to its end, as the user that the server will run as, in a session of its own.
func (s *serverSet) tool(ctx context.Context, sv *server, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = s.Home
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if sv.Kind == postgres && s.PostgresUID != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(s.PostgresUID), Gid: uint32(s.PostgresGID)}
	}
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(name), err, b)
	}
	return nil
}
