package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// leftoverLimit is how long what a killed server left may take to go.
const leftoverLimit = 10 * time.Second

// gone says that nothing of the recorded process is left, no thread either: until then its ports and its locks may be
// held, though it does not run any more.
func (r record) gone() bool {
	if ticks, _ := statOf(r.Pid); r.Pid <= 0 || ticks != r.StartTicks {
		return true
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", r.Pid))
	return err != nil || len(threads) <= 1 && !r.alive() // a zombie has let go of everything
}

// clearLeftovers makes a server's data fit for another start after its process r has been killed.
//
// PostgreSQL leaves its pid file, and its children, who hold the shared memory until they notice. It refuses to start
// while the pid in the file means any process at all, a zombie or a stranger included; without the file it asks nobody.
// So the file goes once no process of this data directory is left, and not before.
func (s *serverSet) clearLeftovers(ctx context.Context, sv *server, r record) error {
	end := time.Now().Add(leftoverLimit)
	for !r.gone() {
		if time.Now().After(end) {
			return fmt.Errorf("pid %d was killed and is still there", r.Pid)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	if sv.Kind != postgres {
		return nil // their locks end with the process
	}
	data := s.dataPath(sv.Name)
	file := filepath.Join(data, "postmaster.pid")
	named := pidInFile(file)
	for begun := time.Now(); ; {
		users := usersOf(data, "postgres")
		if len(users) == 0 {
			break
		}
		for _, u := range users {
			if u == named {
				return fmt.Errorf("pid %d serves %s and was not started by devctl; stop it: kill -INT %d", u, data, u)
			}
			if time.Since(begun) > time.Second {
				// A backend in the middle of a long query does not look whether its server is there.
				endUser(u, data, "postgres")
			}
		}
		if time.Since(begun) > leftoverLimit {
			return fmt.Errorf("pids %v still use %s", users, data)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func pause(ctx context.Context) error {
	select {
	case <-time.After(10 * time.Millisecond):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// pidInFile is the number in the first line of a server's pid file; 0 where there is none.
func pidInFile(file string) int {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid <= 0 {
		return 0
	}
	return pid
}

// usersOf lists the processes of a program that work in dir, as a server and its children do in its data.
func usersOf(dir, program string) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if is, ending := runs(pid, program); (is || ending) && worksIn(pid, dir) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// runs says whether a process runs a program, or has none any more: one that is ending loses its program first, then its
// memory with what it shares, and its directory last.
func runs(pid int, program string) (is, ending bool) {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil && filepath.Base(strings.TrimSuffix(exe, " (deleted)")) == program, errors.Is(err, fs.ErrNotExist)
}

// worksIn is false for a zombie, which has no directory any more.
func worksIn(pid int, dir string) bool {
	cwd, err := os.Stat(fmt.Sprintf("/proc/%d/cwd/.", pid))
	if err != nil {
		return false
	}
	here, err := os.Stat(dir)
	return err == nil && os.SameFile(cwd, here)
}

// endUser kills a process of a program that still works in dir.
func endUser(pid int, dir, program string) {
	p, err := os.FindProcess(pid) // from here on the handle cannot come to mean another process
	if err != nil {
		return
	}
	defer p.Release()
	if is, _ := runs(pid, program); is && worksIn(pid, dir) {
		_ = p.Kill() // it has ended meanwhile: the better
	}
}
