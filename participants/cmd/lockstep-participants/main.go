// Command lockstep-participants serves the reference participants of a payment over HTTP: buyers' accounts behind one
// database and barrier, merchants and points behind another.
//
// Its law: the program holds no state; what it answered is in the databases, and it may be killed at any instant. It is
// tested as a whole, by HTTP, with restarts in between.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/participants/payer"
)

func main() { os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)) }

type cli struct {
	Serve  serveCmd  `cmd:"" help:"Serve the buyer, merchant and points participants."`
	Wallet walletCmd `cmd:"" help:"Serve one region's wallets, which can be copied to and moved between regions."`
	Check  checkCmd  `cmd:"" help:"Check any participant, in any language: repeats, late and stale calls, confirm against cancel, conservation."`
	Pay    payCmd    `cmd:"" help:"Pay with DTM's Go SDK, unchanged: orders come as JSON lines on standard input, answers leave as lines."`
}

type payCmd struct {
	DTM          string `name:"dtm" help:"DTM's base URL at the coordinator, http://HOST:PORT/api/dtmsvr." required:""`
	Participants string `help:"Base URL of the participants." required:""`
}

// Run pays until standard input ends.
func (c *payCmd) Run() error {
	return payer.Payer{DTM: c.DTM, Participants: c.Participants}.Serve(os.Stdin, os.Stdout)
}

type serveCmd struct {
	Listen        string        `help:"Address to serve HTTP on; loopback only, it has no authentication." default:"127.0.0.1:0"`
	DB            string        `help:"Database of all participants: postgres://USER:PASSWORD@HOST:PORT/NAME, mysql://…, or sqlite:DIR for two files in a directory." name:"db"`
	DBBuyer       string        `help:"Database of the buyers, if it is one of its own; a SQLite file without a scheme." name:"db-buyer"`
	DBMerchant    string        `help:"Database of merchants, stock, points and payments, if it is one of its own." name:"db-merchant"`
	Coordinator   string        `help:"gRPC address of a coordinator; with it, payments are served at /v1, and --listen needs a port, or --base-url is given: the coordinator calls the address that a payment was begun with."`
	BaseURL       string        `help:"Where the coordinator reaches this program. Defaults to the address it listens on." name:"base-url"`
	Clean         []string      `help:"Admin URLs of all of the region's coordinators; with them, barrier rows that nobody can ask for any more are forgotten, once an hour." placeholder:"URL"`
	PortFile      string        `help:"File to write the port to once it is served." type:"path"`
	AllowUnfenced bool          `help:"Take confirms and cancels without an epoch, as DTM's own server sends them."`
	DrainLimit    time.Duration `help:"How long open calls may take to end after SIGTERM." default:"10s"`
}

// Validate wants databases, and refuses to be reachable from outside.
func (c *serveCmd) Validate() error {
	if c.DB == "" && (c.DBBuyer == "" || c.DBMerchant == "") {
		return errors.New("no database: give --db, or --db-buyer and --db-merchant")
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	if c.Coordinator != "" && c.BaseURL == "" && port == "0" {
		return fmt.Errorf("--coordinator with --listen %s: give a port, or --base-url: the coordinator calls the address that a payment was begun with, also after this program was started again", c.Listen)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("--listen %s: only a loopback address will do: anybody who reaches it can move money", c.Listen)
	}
	return nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	var c cli
	code := -1
	parser, err := kong.New(&c, kong.Name("lockstep-participants"), kong.Writers(stdout, stderr), kong.Exit(func(n int) { code = n }),
		kong.Description("Reference participants of a payment."), kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(slog.New(slog.NewTextHandler(stderr, nil))), kong.BindTo(stdout, (*io.Writer)(nil)))
	if err != nil {
		fmt.Fprintln(stderr, "lockstep-participants:", err)
		return 1
	}
	parsed, err := parser.Parse(args)
	switch {
	case code >= 0: // --help was printed
		return code
	case err != nil:
		fmt.Fprintln(stderr, "lockstep-participants:", err)
		return 2
	}
	err = parsed.Run()
	var exit exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		// Kong wraps what a command returns; what is left beside the code is to be said.
		if text := strings.TrimSpace(strings.TrimSuffix(err.Error(), exit.Error())); text != "" {
			fmt.Fprintln(stderr, "lockstep-participants:", text)
		}
		return int(exit)
	}
	fmt.Fprintln(stderr, "lockstep-participants:", err)
	return 1
}

// Run serves until ctx ends and returns when open calls have ended.
func (c *serveCmd) Run(ctx context.Context, log *slog.Logger) (err error) {
	set := settings{buyer: c.address(c.DBBuyer, "buyer"), merchant: c.address(c.DBMerchant, "merchant"), allowUnfenced: c.AllowUnfenced, log: log}
	s, err := open(ctx, set)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return err
	}
	if c.Coordinator != "" {
		cl, err := client.Dial(c.Coordinator)
		if err != nil {
			return errors.Join(err, l.Close())
		}
		defer cl.Close()
		base := c.BaseURL
		if base == "" {
			base = "http://" + l.Addr().String()
		}
		s.pay(cl, strings.TrimSuffix(base, "/"))
	}
	stop := s.background(ctx, c.Clean)
	defer stop()
	srv := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	port := l.Addr().(*net.TCPAddr).Port
	if c.PortFile != "" {
		if err := writeFile(c.PortFile, strconv.Itoa(port)+"\n"); err != nil {
			return errors.Join(err, srv.Close())
		}
		defer os.Remove(c.PortFile)
	}
	log.Info("serving", "addr", l.Addr().String())
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	dctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), c.DrainLimit, errors.New("open calls did not end within --drain-limit"))
	defer cancel()
	if err := srv.Shutdown(dctx); err != nil {
		return errors.Join(context.Cause(dctx), srv.Close())
	}
	log.Info("drained")
	return nil
}

// address completes a database's address: its own, or a part of --db; a path without a scheme is a SQLite file.
func (c *serveCmd) address(own, name string) string {
	switch {
	case own == "" && strings.HasPrefix(c.DB, "sqlite:"):
		return "sqlite:" + filepath.Join(strings.TrimPrefix(c.DB, "sqlite:"), name+".db")
	case own == "":
		return c.DB
	case !strings.Contains(own, ":"):
		return "sqlite:" + own
	}
	return own
}

// writeFile makes file appear complete or not at all.
func writeFile(file, content string) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".port-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(content)
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}
