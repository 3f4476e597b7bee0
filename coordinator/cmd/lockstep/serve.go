package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"

	"github.com/lockstep-tx/lockstep/coordinator/auth"
	"github.com/lockstep-tx/lockstep/coordinator/config"
	"github.com/lockstep-tx/lockstep/coordinator/server"
)

type serveCmd struct {
	config.Config
}

// The garbage collector may use memory to save work while there is little of it: at the limit it works as hard as it
// must.
const (
	gcPercent     = 800
	gcMemoryBytes = 1200 << 20
)

// Run serves until the process is told to stop.
func (c *serveCmd) Run(e *env) error {
	if err := errors.Join(e.faults, c.Check()); err != nil {
		return &failure{usageError{fmt.Errorf("the configuration has faults:\n%w", err)}, "lockstep config check  # with the same flags"}
	}
	log := newLog(e.err, &c.Config)
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(gcMemoryBytes)
	s, err := server.New(e.ctx, &c.Config, version, log)
	if err != nil {
		if e.ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return nil
		}
		return &failure{err, "lockstep config check  # with the same flags"}
	}
	return s.Run(e.ctx)
}

func newLog(w io.Writer, c *config.Config) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		level = slog.LevelInfo // Check has refused it
	}
	opts := &slog.HandlerOptions{Level: level}
	if c.LogJson {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

type configCmd struct {
	Print     configPrintCmd     `cmd:"" help:"Print the configuration that the same flags would run with, as a file."`
	Check     configCheckCmd     `cmd:"" help:"Report every fault of a configuration at once."`
	Reference configReferenceCmd `cmd:"" hidden:"" help:"Print docs/reference/config.md."`
}

type configPrintCmd struct{ config.Config }

// Run prints the configuration.
func (c *configPrintCmd) Run(e *env) error {
	fmt.Fprint(e.out, c.Print())
	return e.faults
}

type configCheckCmd struct{ config.Config }

// Run reports faults.
func (c *configCheckCmd) Run(e *env) error {
	if err := errors.Join(e.faults, c.Check()); err != nil {
		return &failure{fmt.Errorf("the configuration has faults:\n%w", err), "lockstep serve --help"}
	}
	fmt.Fprintln(e.out, "the configuration is sound")
	return nil
}

type configReferenceCmd struct{}

// Run prints the reference.
func (configReferenceCmd) Run(e *env) error {
	fmt.Fprint(e.out, config.Reference())
	return nil
}

type tokenCmd struct {
	New tokenNewCmd `cmd:"" help:"Make a token: it is shown once; the line for the tokens file holds only its hash."`
}

type tokenNewCmd struct {
	Role string `help:"viewer, operator or admin." required:"" enum:"viewer,operator,admin"`
	Name string `help:"Who it is for; it stands in the audit log." required:""`
}

// Run makes a token.
func (c *tokenNewCmd) Run(e *env) error {
	role, _ := auth.ParseRole(c.Role)
	if err := auth.CheckName(c.Name); err != nil {
		return &failure{usageError{fmt.Errorf("--name: %w", err)}, fmt.Sprintf("lockstep token new --role %s --name YOU", role)}
	}
	token, line := auth.NewToken(role, c.Name)
	fmt.Fprintf(e.out, "token: %s\nline for the tokens file: %s\n", token, line)
	return nil
}
