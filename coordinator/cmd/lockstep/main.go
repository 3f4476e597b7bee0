// Command lockstep is the coordinator and its operators' command line.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"reflect"
	"strconv"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/lockstep-tx/lockstep/coordinator/config"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr, os.Getenv))
}

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// cli is every command.
type cli struct {
	Serve       serveCmd       `cmd:"" help:"Run a coordinator."`
	Tx          txCmd          `cmd:"" help:"Look at transactions, retry and stop them."`
	Status      statusCmd      `cmd:"" help:"Show the region's coordinators and their slots."`
	Config      configCmd      `cmd:"" help:"Print or check a configuration."`
	Token       tokenCmd       `cmd:"" help:"Make bearer tokens."`
	ImportDtm   importCmd      `cmd:"" name:"import-dtm" help:"Adopt the open transactions of a DTM server that was stopped."`
	Demo        demoCmd        `cmd:"" help:"Run two regions on this machine: payments, a kill, a handover, a cut link, drift; and count the money."`
	Arbiter     arbiterCmd     `cmd:"" help:"Run one member of the arbiter, which says who owns which slots."`
	Broker      brokerCmd      `cmd:"" help:"Run the embedded Kafka broker: for demos and small deployments."`
	Region      regionCmd      `cmd:"" help:"Regions: their state, and slots that move between them."`
	Drift       driftCmd       `cmd:"" help:"Drift: records of one fact that disagree, found and repaired."`
	Recon       reconCmd       `cmd:"" help:"Day-end reconciliation with a channel's files: business, funds and bill."`
	Participant participantCmd `cmd:"" help:"Register participants by name, with an endpoint per region."`
	Version     struct{}       `cmd:"" help:"Print the version."`
}

// env is what commands work with.
type env struct {
	ctx      context.Context
	out, err io.Writer
	getenv   func(string) string
	// faults are what was wrong with the configuration file and the environment; a command that needs the
	// configuration reports them with its own.
	faults error
}

// usageError is a mistake of the caller's: exit code 2.
type usageError struct{ error }

// failure is an error with a command to paste.
type failure struct {
	err  error
	next string
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// run is the whole program but for the process: it gives the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, getenv func(string) string) int {
	var c cli
	e := &env{ctx: ctx, out: stdout, err: stderr, getenv: getenv}
	values, faults := configValues(args, getenv)
	e.faults = faults
	code, exited := exitOK, false
	parser, err := kong.New(&c,
		kong.Name("lockstep"), kong.Description("A distributed TCC transaction coordinator for money. DTM's clients work against it unchanged."),
		kong.Writers(stdout, stderr), kong.Exit(func(n int) { code, exited = n, true; panic(exitNow{}) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}), kong.UsageOnError(), kong.Resolvers(resolver(values)),
		kong.Vars{"version": version},
	)
	if err != nil {
		fmt.Fprintln(stderr, "lockstep:", err)
		return exitFailure
	}
	kctx, err := parse(parser, args)
	if exited {
		return code
	}
	if err != nil {
		fmt.Fprintln(stderr, "lockstep:", err)
		fmt.Fprintln(stderr, "next: lockstep --help")
		return exitUsage
	}
	if kctx.Command() == "version" {
		fmt.Fprintln(stdout, version)
		return exitOK
	}
	return report(stderr, kctx.Run(e), commandOf(kctx.Command()))
}

// commandOf is a command as kong names it, without its arguments.
func commandOf(command string) string {
	name, _, _ := strings.Cut(command, " <")
	return name
}

type exitNow struct{}

// parse keeps kong's wish to exit (--help) from ending the process.
func parse(p *kong.Kong, args []string) (ctx *kong.Context, err error) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(exitNow); !ok {
				panic(r)
			}
		}
	}()
	return p.Parse(args)
}

// report prints an error and its next line and gives the exit code. An error that brings no next line gets the help of
// its command.
func report(stderr io.Writer, err error, command string) int {
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(stderr, "lockstep:", told(err))
	advice := "lockstep " + command + " --help"
	if f := (*failure)(nil); errors.As(err, &f) && f.next != "" {
		advice = f.next
	}
	next(stderr, advice)
	var u usageError
	if errors.As(err, &u) {
		return exitUsage
	}
	return exitFailure
}

// told is an error's text for a terminal. An error may have lines, each about one thing; others' words in them pass for none of ours.
func told(err error) string {
	lines := strings.Split(err.Error(), "\n")
	for i, l := range lines {
		if lines[i] = shown(l); i > 0 && strings.HasPrefix(strings.ToLower(strings.TrimSpace(l)), "next:") {
			lines[i] = strconv.Quote(l)
		}
	}
	return strings.Join(lines, "\n")
}

// configValues reads the configuration file, if one is named, and the environment, which wins over it.
func configValues(args []string, getenv func(string) string) (map[string]string, error) {
	path := getenv(config.EnvName("config"))
	for i, a := range args {
		if v, ok := strings.CutPrefix(a, "--config="); ok {
			path = v
		} else if a == "--config" && i+1 < len(args) {
			path = args[i+1]
		}
	}
	values := map[string]string{}
	var errs []error
	if path != "" {
		file, err := config.ReadFile(path)
		errs = append(errs, err)
		good, err := config.CheckValues(file, path)
		errs = append(errs, err)
		values = good
	}
	fromEnv, err := config.CheckValues(config.Environment(getenv), "the environment")
	errs = append(errs, err)
	for k, v := range fromEnv {
		values[k] = v
	}
	return values, errors.Join(errs...)
}

// resolver gives kong what flags did not say. It serves the configuration's flags alone: other commands have flags of
// their own with the same names.
func resolver(values map[string]string) kong.Resolver {
	known := map[string]bool{}
	t := reflect.TypeFor[config.Config]()
	for i := range t.NumField() {
		known[config.Key(t.Field(i))] = true
	}
	return kong.ResolverFunc(func(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
		if v, ok := values[flag.Name]; ok && known[flag.Name] {
			return v, nil
		}
		return nil, nil
	})
}
