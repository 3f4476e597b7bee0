//go:build servers

package main

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func up(t *testing.T, dir string) *serverSet {
	t.Helper()
	s, err := ensure(t.Context(), dir, false, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := down(dir); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *serverSet) pids(t *testing.T) map[string]record {
	t.Helper()
	pids := map[string]record{}
	for _, sv := range s.Servers {
		r, err := readRecord(s.recordPath(sv.Name))
		if err != nil || !r.alive() {
			t.Fatalf("%s: %+v, %v", sv.Name, r, err)
		}
		pids[sv.Name] = r
	}
	return pids
}

// mentions returns the processes whose command line or log names dir.
func mentions(t *testing.T, dir string) (found []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte(dir)) {
			found = append(found, f+": "+string(bytes.ReplaceAll(b, []byte{0}, []byte(" "))))
		}
	}
	return found
}

// Servers that were killed outright come back at the first up, at once, whatever they left: a pid file, one whose pid
// means another process by now, children in the middle of a query who hold the shared memory.
func TestKilledServersComeBackAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dev")
	s := up(t, dir)
	var pg *server
	for _, sv := range s.Servers {
		if sv.Kind == postgres {
			pg = sv
		}
	}
	for round := range 6 {
		if round >= 3 {
			// A backend that does not look up from its work.
			conn, err := pgx.Connect(t.Context(), pg.url(s))
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				_, _ = conn.Exec(t.Context(), "SELECT count(*) FROM generate_series(1, 100000000000) a WHERE a % 7 = 8") // ends with its server
			}()
			probe := func() bool {
				var busy int
				c, err := pgx.Connect(t.Context(), pg.url(s))
				if err == nil {
					err = c.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%generate_series%' AND pid <> pg_backend_pid()").Scan(&busy)
					c.Close(t.Context())
				}
				return err == nil && busy == 1
			}
			for end := time.Now().Add(10 * time.Second); !probe(); {
				if time.Now().After(end) {
					t.Fatal("the query does not run")
				}
			}
		}
		for name, r := range s.pids(t) {
			p, err := os.FindProcess(r.Pid)
			if err != nil || p.Kill() != nil {
				t.Fatalf("kill %s: %v", name, err)
			}
		}
		if round == 5 {
			// The pid in the file means somebody else by now, here this test.
			file := filepath.Join(s.dataPath("postgres"), "postmaster.pid")
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, rest, _ := strings.Cut(string(b), "\n")
			if err := os.WriteFile(file, []byte(fmt.Sprint(os.Getpid(), "\n", rest)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		if s, err = ensure(t.Context(), dir, false, t.Output()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
}

// An engine that answers but brings no containers, as where no registry can be reached: a set without data is made of processes.
func TestPackagesWhereContainersDoNotCome(t *testing.T) {
	d := newFakeDocker(t)
	d.does(t, "no-up")
	dir := filepath.Join(t.TempDir(), "dev")
	s := up(t, dir)
	if s.Project != "" {
		t.Errorf("the set is still the project %s", s.Project)
	}
	s.pids(t)
	called := strings.Join(d.calls(t), "\n")
	if !strings.Contains(called, " up -d postgres mariadb redis redis-aof kafka\n") || !strings.Contains(called, " down -v --remove-orphans") {
		t.Errorf("docker was called so:\n%s", called)
	}
}

// The whole life: up, up again, members killed, up, down, nothing left.
func TestServersComeBackAndLeaveNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dev")
	first := up(t, dir).pids(t)
	if second := up(t, dir).pids(t); fmt.Sprint(second) != fmt.Sprint(first) {
		t.Errorf("a second up changed the servers: %v, %v", first, second)
	}
	for _, name := range []string{"etcd2", "postgres", "mariadb"} {
		if err := first[name].stop(syscall.SIGKILL, 0); err != nil {
			t.Fatal(err)
		}
	}
	third := up(t, dir)
	for name, r := range third.pids(t) {
		killed := name == "etcd2" || name == "postgres" || name == "mariadb"
		if (r != first[name]) != killed {
			t.Errorf("%s: %+v before, %+v after", name, first[name], r)
		}
	}
	for _, sv := range third.Servers {
		if err := sv.probe(t.Context(), third); err != nil {
			t.Errorf("%s: %v", sv.Name, err)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil || !strings.Contains(string(b), "\nLOCKSTEP_TEST_ETCD_PIDS=") {
		t.Errorf("env file: %v\n%s", err, b)
	}
	home := third.Home
	for range 2 {
		if err := down(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{dir, home} {
		if _, err := os.Stat(d); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", d, err)
		}
		if left := mentions(t, d); left != nil {
			t.Errorf("processes left: %v", left)
		}
	}
}

// An up that is cut off at any point is finished by the next one.
func TestInterruptedUpIsFinished(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dev")
	for _, point := range []string{"servers.json", "postgres.part", "redis.pid.json", "mariadb", "etcd3.pid.json"} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := ensure(ctx, dir, false, t.Output())
			done <- err
		}()
	wait:
		for {
			select {
			case err := <-done: // it was quicker: then there is nothing to interrupt
				if err != nil {
					t.Fatal(err)
				}
				break wait
			default:
				// In the home too, which is elsewhere where dir cannot be entered by others.
				if s, err := load(dir); err == nil {
					if _, err := os.Stat(filepath.Join(s.Home, point)); err == nil {
						break wait
					}
					if _, err := os.Stat(filepath.Join(dir, point)); err == nil {
						break wait
					}
				}
			}
		}
		cancel()
		s := up(t, dir) // waits for the first by the lock
		s.pids(t)
		if err := down(dir); err != nil {
			t.Fatal(err)
		}
		if left := mentions(t, dir); left != nil {
			t.Fatalf("interrupted at %s: processes left: %v", point, left)
		}
	}
}

// run hands on the command's exit code, gives it the addresses, and leaves nothing, also when it is interrupted.
func TestRunTakesItsServersDown(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		script    string
		interrupt bool
		code      int
	}{
		{`test -n "$LOCKSTEP_TEST_POSTGRES_URL"; echo "$LOCKSTEP_TEST_SERVERS"; exit 7`, false, 7},
		{`echo "$LOCKSTEP_TEST_SERVERS"; exec sleep 600`, true, 130},
	} {
		cmd := exec.Command(self, "run", "--", "/bin/sh", "-c", tc.script)
		cmd.Env = append(os.Environ(), "LOCKSTEP_DEVCTL_TEST=1")
		cmd.Stderr = t.Output()
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var dir string
		if _, err := fmt.Fscanln(stdout, &dir); err != nil {
			t.Fatal(err)
		}
		if tc.interrupt {
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != tc.code {
			t.Errorf("exit code %d, want %d", got, tc.code)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", dir, err)
		}
		if left := mentions(t, dir); left != nil {
			t.Errorf("processes left: %v", left)
		}
	}
}

// Only some of the servers: nobody else is started; one that was killed comes back on its data, under its address.
func TestOnlySomeServersComeBackOnTheirData(t *testing.T) {
	if find().mariadbd == "" {
		t.Skip("MariaDB is not installed here; it runs in a container")
	}
	dir := filepath.Join(t.TempDir(), "only")
	if err := os.MkdirAll(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := down(dir); err != nil {
			t.Error(err)
		}
	})
	if _, err := some(t.Context(), dir, []string{"oracle"}, t.Output()); err == nil {
		t.Error("a server that there is not")
	}
	s, err := some(t.Context(), dir, []string{"mariadb"}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	before := s.pids(t)
	if len(s.Servers) != 1 || len(before) != 1 {
		t.Fatalf("%d servers, %v run", len(s.Servers), before)
	}
	db, err := sql.Open("mysql", fmt.Sprintf("%s:%s@tcp(%s)/%s", sqlUser, s.Password, s.Servers[0].addr(), sqlDatabase))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("CREATE TABLE kept (x INT)"); err != nil {
		t.Fatal(err)
	}
	for _, r := range before {
		if err := r.stop(syscall.SIGKILL, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	again, err := some(t.Context(), dir, []string{"mariadb"}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if again.Servers[0].Port != s.Servers[0].Port || again.pids(t)["mariadb"].Pid == before["mariadb"].Pid {
		t.Errorf("%+v, pids %v; before %+v, %v", again.Servers[0], again.pids(t), s.Servers[0], before)
	}
	if _, err := db.Exec("INSERT INTO kept VALUES (1)"); err != nil {
		t.Errorf("its data are gone: %v", err)
	}
}
