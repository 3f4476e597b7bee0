// Command devctl starts and stops the private servers that Lockstep is developed and tested against: PostgreSQL,
// MariaDB, two Redis, Kafka and a three-member etcd, on free loopback ports, with everything they write under one directory.
// Where a Docker engine answers, and LOCKSTEP_DEV is not "packages", all but etcd are containers of a compose project that
// belongs to the directory (compose.go); that way was only ever tried against a stand-in for docker.
//
// Its law: it touches nothing that it did not make. A process is ended only if its pid and its start time are those
// that were recorded before it became a server; a directory is removed only if it carries devctl's mark. One lock per
// directory makes up and down exclude each other, and whatever an interrupted run left is finished by the next up or
// cleaned by the next down.
//
// It is tested by devctl_test.go (needs Go alone) and servers_test.go (tag servers), which starts the real set, kills
// members of it, and looks for what is left afterwards.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
)

func main() { os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)) }

type cli struct {
	Up     upCmd     `cmd:"" help:"Install what is missing where that is allowed, and start the servers."`
	Down   downCmd   `cmd:"" help:"Stop the servers and remove all they wrote."`
	Status statusCmd `cmd:"" help:"Show what runs."`
	Run    runCmd    `cmd:"" help:"Start a private set, run a command with its addresses in the environment, take the set down."`
	Plan   planCmd   `cmd:"" help:"Say what up would install and start; fail if something is missing and may not be installed."`
	Exec   execCmd   `cmd:"" hidden:"" help:"Record this process and become a server."`
}

type dirFlag struct {
	Dir string `help:"Directory for data, logs and the env file." default:".dev" type:"path"`
}

// out carries the writers: results go to stdout, what happens meanwhile to stderr.
type out struct{ stdout, stderr io.Writer }

// exitCode is the error of a command that ended by itself with a code that devctl hands on.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	code := -1
	parser, err := kong.New(&c, kong.Name("devctl"), kong.Writers(stdout, stderr), kong.Exit(func(n int) { code = n }),
		kong.Description("Private PostgreSQL, MariaDB, Redis, etcd and Kafka for development and tests."),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.Bind(out{stdout, stderr}))
	if err != nil {
		fmt.Fprintln(stderr, "devctl:", err)
		return 1
	}
	parsed, err := parser.Parse(args)
	if code >= 0 { // --help was printed
		return code
	}
	if err != nil {
		fmt.Fprintln(stderr, "devctl:", err)
		return 2
	}
	err = parsed.Run()
	var ended exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ended):
		return int(ended)
	}
	fmt.Fprintln(stderr, "devctl:", err)
	return 1
}

type upCmd struct {
	dirFlag
	Only []string `help:"Only these servers, as processes; nothing is installed for them. The directory keeps to it." placeholder:"SERVER"`
}

func (c *upCmd) Run(ctx context.Context, o out) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	up := ensure
	if len(c.Only) > 0 {
		up = func(ctx context.Context, dir string, _ bool, progress io.Writer) (*serverSet, error) {
			return some(ctx, dir, c.Only, progress)
		}
	}
	set, err := up(ctx, c.Dir, false, o.stderr)
	if err != nil {
		return err
	}
	return set.print(o.stdout)
}

type downCmd struct{ dirFlag }

func (c *downCmd) Run(o out) error { return down(c.Dir) }

type statusCmd struct{ dirFlag }

func (c *statusCmd) Run(o out) error {
	set, err := load(c.Dir)
	if errors.Is(err, os.ErrNotExist) {
		fmt.Fprintf(o.stdout, "no servers under %s\nnext: make up\n", c.Dir)
		return nil
	}
	if err != nil {
		return err
	}
	return set.print(o.stdout)
}

type planCmd struct{}

func (c *planCmd) Run(ctx context.Context, o out) error {
	have := find()
	var err error
	if have.docker = dockerAnswers(ctx); have.docker == "" {
		err = have.mayInstall(ctx)
	}
	have.describe(o.stdout, err)
	return err
}

type runCmd struct {
	Faketime bool `help:"Install libfaketime too where that is allowed; without it the command runs all the same."`

	Command []string `arg:"" passthrough:"" help:"The command, after --."`
}

// Run keeps the command in a process group of its own, so that a signal reaches the whole of it exactly once whether it
// came from the terminal or from kill, and takes the servers down after it in every case. The servers also end with
// devctl itself if that is killed outright.
func (c *runCmd) Run(ctx context.Context, o out) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	dir, err := os.MkdirTemp("", "lockstep-test-")
	if err != nil {
		return err
	}
	// The mark comes first: down removes only a directory that carries it.
	if err := errors.Join(os.Chmod(dir, 0o711), mark(dir)); err != nil {
		return err
	}
	if c.Faketime {
		faketime(ctx, o.stderr)
	}
	set, err := ensure(ctx, dir, true, o.stderr)
	if err == nil {
		err = c.command(ctx, set, o)
	}
	if derr := down(dir); derr != nil {
		err = errors.Join(err, derr)
	}
	return err
}

func (c *runCmd) command(ctx context.Context, set *serverSet, o out) error {
	argv := c.Command
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	if len(argv) == 0 {
		return errors.New("no command; give it after --")
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), set.env()...)
	cmd.Stdout, cmd.Stderr = o.stdout, o.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		// SIGINT, because the go command waits for its test binaries on it, and leaves them behind on SIGTERM.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
		select {
		case <-done:
		case <-time.After(10 * time.Second):
		}
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		return exitCode(130)
	}
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		return exitCode(max(ended.ExitCode(), 1))
	}
	return err
}

// root returns the checkout's directory: devctl builds the etcd member from its go.mod.
func root(ctx context.Context) (string, error) {
	b, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	mod := strings.TrimSpace(string(b))
	if mod == "" || mod == os.DevNull {
		return "", errors.New("not inside the lockstep checkout; run devctl from there")
	}
	return filepath.Dir(mod), nil
}
