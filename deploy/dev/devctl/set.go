package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	markFile  = ".lockstep-dev" // in every directory that devctl may remove
	stateFile = "servers.json"
)

// serverSet is one directory's servers, as kept in servers.json. Which processes they are stands in records of their
// own, written by the processes themselves.
type serverSet struct {
	Dir      string    `json:"dir"`
	Home     string    `json:"home"` // the servers' data and sockets: Dir, or a directory in /tmp where Dir does not do
	Password string    `json:"password"`
	Project  string    `json:"project,omitempty"` // of docker compose, which then has all but etcd; "" is processes
	Servers  []*server `json:"servers"`

	// The user PostgreSQL runs as: it refuses root. 0 where devctl itself is not root.
	PostgresUID int `json:"postgres_uid"`
	PostgresGID int `json:"postgres_gid"`

	lock      *os.File
	withOwner bool // the servers end when devctl ends
	have      installed
	member    string // path of the etcd member's binary
}

func (s *serverSet) dataPath(name string) string   { return filepath.Join(s.Home, name) }
func (s *serverSet) logPath(name string) string    { return filepath.Join(s.Dir, name+".log") }
func (s *serverSet) recordPath(name string) string { return filepath.Join(s.Dir, name+".pid.json") }

func (s *serverSet) logTail(name string) string {
	b, _ := os.ReadFile(s.logPath(name))
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	lines = lines[max(len(lines)-10, 0):]
	for i, line := range lines {
		lines[i] = line[:min(len(line), 300)]
	}
	return strings.Join(lines, "\n")
}

// mark makes dir devctl's own. Others may keep files there too: down removes what devctl made, by name.
func mark(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, markFile)); err == nil {
		return nil
	}
	for _, name := range append(slices.Clone(serverNames), stateFile, composeFile, "env") {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("%s holds %s, which devctl did not make; give another --dir", dir, name)
		}
	}
	return os.WriteFile(filepath.Join(dir, markFile), []byte("made by deploy/dev/devctl, removed by `make down`\n"), 0o600)
}

// locked opens dir under its lock. Close the returned file to let go of it; a process that up is just starting holds it
// too, until its record is written.
func locked(dir string) (*os.File, error) {
	for {
		f, err := os.OpenFile(filepath.Join(dir, markFile), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			f.Close()
			return nil, err
		}
		// A down that held the lock before us has removed the file that we locked.
		mine, err := f.Stat()
		now, err2 := os.Stat(filepath.Join(dir, markFile))
		if err == nil && err2 == nil && os.SameFile(mine, now) {
			return f, nil
		}
		f.Close()
		if err := errors.Join(err, err2); err != nil {
			return nil, err
		}
	}
}

// load reads dir's set without changing anything; fs.ErrNotExist if there is none.
func load(dir string) (*serverSet, error) {
	var s serverSet
	if err := readJSON(filepath.Join(dir, stateFile), &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// ensure returns dir's set with every server ready. What already runs stays; what an earlier run left half done is
// finished on its data. With withOwner the servers end with this process.
func ensure(ctx context.Context, dir string, withOwner bool, progress io.Writer) (*serverSet, error) {
	have := find()
	if s, err := load(dir); err == nil { // a set stays what it was made as
		if s.Project != "" {
			have.docker = "docker"
		}
	} else {
		have.docker = dockerAnswers(ctx)
	}
	packages := func() error {
		if have.docker != "" {
			return nil
		}
		if err := have.install(ctx, progress); err != nil {
			return err
		}
		return have.fetchJars(ctx, progress)
	}
	if err := packages(); err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		s, fresh, err := start(ctx, dir, withOwner, have, progress)
		if err == nil {
			return s, nil
		}
		if fresh && ctx.Err() == nil && errors.Is(err, errContainers) && !strings.Contains(err.Error(), portTaken) {
			fmt.Fprintf(progress, "%v\nthe containers do not come; Debian's packages instead (%s=packages does so at once)\n", err, wayVariable)
			if err := down(dir); err != nil {
				return nil, err
			}
			have.docker = ""
			if err := packages(); err != nil {
				return nil, err
			}
			continue
		}
		// Somebody else took a port between the look and the bind. Only a set without data may change its ports.
		taken := strings.Contains(strings.ToLower(err.Error()), "address already in use") || strings.Contains(err.Error(), portTaken)
		if !fresh || ctx.Err() != nil || attempt == 3 || !taken {
			return nil, err
		}
		fmt.Fprintln(progress, "a port was taken meanwhile; once more with others")
		if err := down(dir); err != nil {
			return nil, err
		}
	}
}

// some is ensure for a few of the servers, as processes. It installs nothing.
func some(ctx context.Context, dir string, only []string, progress io.Writer) (*serverSet, error) {
	for _, name := range only {
		if !slices.Contains(serverNames, name) {
			return nil, fmt.Errorf("--only %s: there are %s", name, strings.Join(serverNames, ", "))
		}
	}
	have := find()
	for name, programs := range map[string][]string{"postgres": {have.postgres, have.initdb}, "mariadb": {have.mariadbd, have.mariadbInstall, have.myPrintDefaults}, "kafka": {have.java}} {
		if slices.Contains(only, name) && slices.Contains(programs, "") {
			return nil, fmt.Errorf("--only %s: it is not installed, and a container cannot stand for it\nnext: apt-get install %s", name, strings.Join(have.missing(), " "))
		}
	}
	s, _, err := start(ctx, dir, false, have, progress, only...)
	return s, err
}

// start starts what does not run. A new set has all servers, or only those that are named.
func start(ctx context.Context, dir string, withOwner bool, have installed, progress io.Writer, only ...string) (s *serverSet, fresh bool, err error) {
	if err := mark(dir); err != nil {
		return nil, false, err
	}
	lock, err := locked(dir)
	if err != nil {
		return nil, false, err
	}
	defer lock.Close()
	s, err = load(dir)
	if fresh = errors.Is(err, fs.ErrNotExist); fresh {
		s, err = plan(dir, have.docker != "", only...)
	}
	if err != nil {
		return nil, fresh, err
	}
	s.lock, s.withOwner, s.have = lock, withOwner, have
	if s.Home != s.Dir {
		if err := os.Mkdir(s.Home, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fresh, err
		}
		if err := ownedByUs(s.Home); err != nil {
			return nil, fresh, err
		}
		if err := mark(s.Home); err != nil {
			return nil, fresh, err
		}
	}
	begun := time.Now()
	started := 0
	g, gctx := errgroup.WithContext(ctx)
	var silent []*server // of the containers
	for _, sv := range s.Servers {
		if s.contained(sv) {
			if s.answers(gctx, sv) != nil {
				silent = append(silent, sv)
				started++
			}
			continue
		}
		if r, err := readRecord(s.recordPath(sv.Name)); err == nil && r.alive() && sv.probe(gctx, s) == nil {
			continue
		}
		started++
		if sv.Kind != etcd {
			g.Go(func() error { return s.bring(gctx, sv) })
		}
	}
	if s.Project != "" {
		g.Go(func() error { return s.bringContainers(gctx, silent) })
	}
	g.Go(func() error { return s.bringEtcd(ctx, gctx) })
	if err := g.Wait(); err != nil {
		return nil, fresh, err
	}
	if err := writeFile(filepath.Join(s.Dir, "env"), []byte(strings.Join(s.env(), "\n")+"\n")); err != nil {
		return nil, fresh, err
	}
	fmt.Fprintf(progress, "%d servers ready under %s, %d started in %.1f s\n", len(s.Servers), s.Dir, started, time.Since(begun).Seconds())
	return s, fresh, nil
}

// plan lays out a new set, in containers or as processes, and writes it down before anything starts. only names its servers; none:
// all.
func plan(dir string, contained bool, only ...string) (*serverSet, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	secret := make([]byte, 12)
	if _, err := rand.Read(secret); err != nil {
		return nil, err
	}
	s := &serverSet{Dir: abs, Home: abs, Password: hex.EncodeToString(secret)}
	if contained {
		s.Project = hashOf(abs)
	}
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			u, err = user.Lookup("nobody")
		}
		if err != nil {
			return nil, err
		}
		s.PostgresUID, _ = strconv.Atoi(u.Uid)
		s.PostgresGID, _ = strconv.Atoi(u.Gid)
	}
	// A socket's path has at most 107 bytes, and PostgreSQL's user must be able to reach its data.
	if len(abs) > 80 || (s.PostgresUID != 0 && !othersMayEnter(abs)) {
		s.Home = filepath.Join(os.TempDir(), hashOf(abs))
	}
	ports, err := freePorts(12, abs)
	if err != nil {
		return nil, err
	}
	s.Servers = []*server{
		{Name: "postgres", Kind: postgres, Port: ports[0]},
		{Name: "mariadb", Kind: mariadb, Port: ports[1]},
		{Name: "redis", Kind: redis, Port: ports[2]},
		{Name: "redis-aof", Kind: redis, Port: ports[3], AOF: true},
		{Name: "etcd1", Kind: etcd, Port: ports[4], PeerPort: ports[5]},
		{Name: "etcd2", Kind: etcd, Port: ports[6], PeerPort: ports[7]},
		{Name: "etcd3", Kind: etcd, Port: ports[8], PeerPort: ports[9]},
		{Name: "kafka", Kind: kafka, Port: ports[10], PeerPort: ports[11]},
	}
	s.Servers = slices.DeleteFunc(s.Servers, func(sv *server) bool { return len(only) > 0 && !slices.Contains(only, sv.Name) })
	return s, writeJSON(filepath.Join(abs, stateFile), s)
}

func ownedByUs(dir string) error {
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || !st.IsDir() || int(sys.Uid) != os.Geteuid() {
		return fmt.Errorf("%s exists and is not ours", dir)
	}
	return nil
}

func othersMayEnter(dir string) bool {
	for d := dir; ; d = filepath.Dir(d) {
		if st, err := os.Stat(d); err != nil || st.Mode().Perm()&0o001 == 0 {
			return false
		}
		if d == filepath.Dir(d) {
			return true
		}
	}
}

var serverNames = []string{"postgres", "mariadb", "redis", "redis-aof", "etcd1", "etcd2", "etcd3", "kafka"}

// remove deletes what devctl makes in a directory, the mark last, and the directory itself if nobody else uses it.
func remove(dir string) error {
	names := []string{stateFile, composeFile, "env", "mariadb.sock", "mariadb.pid"}
	for _, name := range serverNames {
		names = append(names, name, name+".part", name+"-tmp", name+".log", name+".pid.json")
	}
	if stale, _ := filepath.Glob(filepath.Join(dir, ".new-*")); len(stale) > 0 { // of a write that was cut off
		for _, path := range stale {
			names = append(names, filepath.Base(path))
		}
	}
	for _, name := range append(names, markFile) {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.EEXIST) {
		return err
	}
	return nil
}

// down ends dir's servers and removes what they wrote. Nothing there is nothing to do.
func down(dir string) error {
	lock, err := locked(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no mark: not ours, or gone
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	s, err := load(dir)
	if errors.Is(err, fs.ErrNotExist) { // interrupted before anything started
		return remove(dir)
	}
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.Go(func() error { return s.downContainers(context.Background()) })
	for _, sv := range s.Servers {
		if s.contained(sv) {
			continue
		}
		g.Go(func() error {
			r, err := readRecord(s.recordPath(sv.Name))
			if err != nil {
				return err
			}
			if err := r.stop(sv.stopSignal(), 10*time.Second); err != nil {
				return err
			}
			return s.clearLeftovers(context.Background(), sv, r)
		})
	}
	if err := g.Wait(); err != nil {
		return err // the directory stays: it is what names the process that would not end
	}
	if s.Home != s.Dir {
		if _, err := os.Stat(filepath.Join(s.Home, markFile)); err == nil {
			if err := remove(s.Home); err != nil {
				return err
			}
		}
	}
	return remove(dir)
}

// print lists the servers for people and ends with what to do if one is down.
func (s *serverSet) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "SERVER\tSTATE\tPID\tADDRESS\tDATA")
	dead := 0
	for _, sv := range s.Servers {
		r, _ := readRecord(s.recordPath(sv.Name))
		state, data, alive := "up", s.dataPath(sv.Name), r.alive()
		if s.contained(sv) {
			data, alive = "volume "+s.Project+"_"+sv.Name, sv.probe(context.Background(), s) == nil
		}
		if !alive {
			state = "down"
			dead++
		}
		fmt.Fprintf(tw, "%s\t%s\t%d\t127.0.0.1:%d\t%s\n", sv.Name, state, r.Pid, sv.Port, data)
	}
	fmt.Fprintf(tw, "addresses: %s\n", filepath.Join(s.Dir, "env"))
	if dead > 0 {
		fmt.Fprintln(tw, "next: make up")
	}
	return tw.Flush()
}

// env returns KEY=value lines for tests: where the servers are, and which processes to kill.
func (s *serverSet) env() []string {
	env := []string{"LOCKSTEP_TEST_SERVERS=" + s.Dir, "LOCKSTEP_TEST_ETCD_BIN=" + s.member}
	var endpoints, pids, dirs, names []string
	for _, sv := range s.Servers {
		r, _ := readRecord(s.recordPath(sv.Name))
		pid, data := strconv.Itoa(r.Pid), s.dataPath(sv.Name)
		switch {
		case sv.Kind == etcd:
			endpoints = append(endpoints, "http://"+sv.addr())
			pids, dirs, names = append(pids, pid), append(dirs, data), append(names, sv.Name)
		default:
			key := "LOCKSTEP_TEST_" + map[string]string{"postgres": "POSTGRES", "mariadb": "MYSQL", "redis": "REDIS", "redis-aof": "REDIS_AOF", "kafka": "KAFKA"}[sv.Name]
			if env = append(env, key+"_URL="+sv.url(s)); !s.contained(sv) { // a container's process and files are the engine's
				env = append(env, key+"_PID="+pid, key+"_DATA_DIR="+data)
			}
		}
	}
	if self, err := os.Executable(); err == nil {
		env = append(env, "LOCKSTEP_TEST_DEVCTL="+self)
	}
	return append(env, "LOCKSTEP_TEST_ETCD_ENDPOINTS="+strings.Join(endpoints, ","),
		"LOCKSTEP_TEST_ETCD_PIDS="+strings.Join(pids, ","),
		"LOCKSTEP_TEST_ETCD_NAMES="+strings.Join(names, ","),
		"LOCKSTEP_TEST_ETCD_DATA_DIRS="+strings.Join(dirs, ","))
}
