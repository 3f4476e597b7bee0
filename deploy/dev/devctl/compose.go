package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	composeFile  = "compose.yaml"      // a copy in the set's directory, so that down needs no checkout
	dockerLimit  = 10 * time.Second    // for the engine to say that it is there
	composeLimit = 10 * time.Minute    // for a call of compose: the first one fetches images
	wayVariable  = "LOCKSTEP_DEV"      // "packages" keeps to Debian's packages
	portTaken    = "already allocated" // as Docker says that a port is in use
)

// errContainers says that compose did not make the containers, or that one does not answer. A set that has no data yet is
// then made of processes.
var errContainers = errors.New("docker compose")

// dockerAnswers returns the docker program if an engine answers it and it knows compose, else "".
func dockerAnswers(ctx context.Context) string {
	if os.Getenv(wayVariable) == "packages" {
		return ""
	}
	path, err := exec.LookPath("docker")
	if err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, dockerLimit)
	defer cancel()
	for _, args := range [][]string{{"info"}, {"compose", "version"}} {
		if exec.CommandContext(ctx, path, args...).Run() != nil {
			return ""
		}
	}
	return path
}

// hashOf is what a directory's names outside itself are made with.
func hashOf(dir string) string {
	h := fnv.New64a()
	h.Write([]byte(dir))
	return fmt.Sprintf("lockstep-dev-%016x", h.Sum64())
}

// contained says that a server is a container of the set's.
func (s *serverSet) contained(sv *server) bool { return s.Project != "" && sv.Kind != etcd }

// composeArgs is a call of compose for this set's project and no other.
func (s *serverSet) composeArgs(args ...string) []string {
	return append([]string{"compose", "-p", s.Project, "-f", filepath.Join(s.Dir, composeFile)}, args...)
}

// composeEnv fills in compose.yaml. The password is in the environment because a command line is everybody's to read.
func (s *serverSet) composeEnv() []string {
	env := append(os.Environ(), "LOCKSTEP_DEV_PASSWORD="+s.Password, "LOCKSTEP_DEV_KAFKA_VERSION="+kafkaVersion)
	for _, sv := range s.Servers {
		if s.contained(sv) {
			env = append(env, fmt.Sprintf("LOCKSTEP_DEV_%s_PORT=%d", strings.ToUpper(strings.ReplaceAll(sv.Name, "-", "_")), sv.Port))
		}
	}
	return env
}

func (s *serverSet) compose(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, composeLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", s.composeArgs(args...)...)
	cmd.Dir, cmd.Env = s.Dir, s.composeEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = dockerLimit
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w %s: %w\n%s", errContainers, strings.Join(args, " "), err, b)
	}
	return nil
}

// bringContainers makes the servers named ready. One that was there before and does not answer is killed first: compose
// leaves alone what runs.
func (s *serverSet) bringContainers(ctx context.Context, silent []*server) error {
	file := filepath.Join(s.Dir, composeFile)
	_, err := os.Stat(file)
	before := err == nil
	if !before {
		dir, err := root(ctx)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(filepath.Join(dir, "deploy", "dev", composeFile))
		if err != nil {
			return err
		}
		if err := writeFile(file, b); err != nil {
			return err
		}
	}
	if s.withOwner {
		if err := s.guard(); err != nil {
			return err
		}
	}
	var names []string
	for _, sv := range silent {
		names = append(names, sv.Name)
	}
	if len(names) == 0 {
		return nil
	}
	if before {
		// Those that do not run have nothing to kill; up says what is wrong.
		_ = s.compose(ctx, append([]string{"kill"}, names...)...)
	}
	if err := s.compose(ctx, append([]string{"up", "-d"}, names...)...); err != nil {
		return err
	}
	deadline := time.Now().Add(readyLimit)
	for _, sv := range silent {
		for {
			err := s.answers(ctx, sv)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("%s: %w", sv.Name, context.Cause(ctx))
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%w: %s does not answer after %s: %w\n%s", errContainers, sv.Name, readyLimit, err, s.containerLog(sv))
			}
			if err := pause(ctx); err != nil {
				return fmt.Errorf("%s: %w", sv.Name, err)
			}
		}
	}
	return nil
}

// containerLog is the end of what a container said, for an error that is about to take it down.
func (s *serverSet) containerLog(sv *server) string {
	cmd := exec.Command("docker", s.composeArgs("logs", "--no-color", "--tail", "10", sv.Name)...)
	cmd.Env = s.composeEnv()
	b, _ := cmd.CombinedOutput()
	return string(b)
}

// answers is probe, with the last step of MariaDB's set-up before it: its image gives the user one database.
func (s *serverSet) answers(ctx context.Context, sv *server) error {
	if sv.Kind != mariadb {
		return sv.probe(ctx, s)
	}
	db, err := sql.Open("mysql", fmt.Sprintf("root:%s@tcp(%s)/", s.Password, sv.addr()))
	if err != nil {
		return err
	}
	defer db.Close()
	limited, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := db.ExecContext(limited, "GRANT ALL PRIVILEGES ON *.* TO '"+sqlUser+"'@'%' WITH GRANT OPTION"); err != nil {
		return err
	}
	return sv.probe(ctx, s)
}

// guard takes the containers down when this process ends, however it ends: they have no parent to die with. After an
// orderly down it finds nothing.
func (s *serverSet) guard() error {
	var ends [2]int
	if err := syscall.Pipe2(ends[:], syscall.O_CLOEXEC); err != nil {
		return err
	}
	r := os.NewFile(uintptr(ends[0]), "guard") // ends[1] is nobody's to close but the kernel's: a File would be collected
	defer r.Close()
	const script = `cat >/dev/null; [ ! -e "$0" ] || exec docker "$@" >/dev/null 2>&1`
	args := append([]string{"-c", script, filepath.Join(s.Dir, composeFile)}, s.composeArgs("down", "-v", "--remove-orphans")...)
	cmd := exec.Command("/bin/sh", args...)
	cmd.Dir, cmd.Env, cmd.Stdin = "/", s.composeEnv(), r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return errors.Join(err, syscall.Close(ends[1]))
	}
	return cmd.Process.Release()
}

// downContainers ends the set's containers and removes their volumes.
func (s *serverSet) downContainers(ctx context.Context) error {
	if s.Project == "" {
		return nil
	}
	if _, err := os.Stat(filepath.Join(s.Dir, composeFile)); errors.Is(err, os.ErrNotExist) {
		return nil // interrupted before the first container
	}
	return s.compose(ctx, "down", "-v", "--remove-orphans")
}
