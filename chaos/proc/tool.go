package proc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Tool runs lockstep to its end.
func (d *Deployment) Tool(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(d.cfg.Bin, "lockstep"), args...)
	cmd.Env = append(os.Environ(), d.cfg.Env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Paste runs a command as the product prints it for its operators, by the shell.
func (d *Deployment) Paste(ctx context.Context, command string) (string, error) {
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Env = append(append(os.Environ(), d.cfg.Env...), "PATH="+d.cfg.Bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Follow runs lockstep and gives each line that it says, until it ends or ctx does: then it is told to end, and that is no error.
func (d *Deployment) Follow(ctx context.Context, line func(string), args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(d.cfg.Bin, "lockstep"), args...)
	cmd.Env = append(os.Environ(), d.cfg.Env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = readyLimit
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return err
	}
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line(sc.Text())
	}
	if err := errors.Join(sc.Err(), cmd.Wait()); ctx.Err() == nil {
		return err
	}
	return nil
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
