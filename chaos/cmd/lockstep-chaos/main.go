// Command lockstep-chaos makes faults: it runs the chaos suite on real processes, cuts links between regions, and plants
// drift in participants' databases.
//
// Nothing of the product imports it; tests and the demo run it as a process.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/lockstep-tx/lockstep/chaos/netproxy"
	"github.com/lockstep-tx/lockstep/chaos/report"
	"github.com/lockstep-tx/lockstep/chaos/seed"
	"github.com/lockstep-tx/lockstep/chaos/syncfs"
)

func main() {
	syncfs.Child()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

type cli struct {
	Run       runCmd     `cmd:"" help:"Run the suite: faults under load on real processes, then the checkers. Exits 1 on a violation, 4 on an error of its own, 3 where nothing is proven."`
	List      listCmd    `cmd:"" help:"List the scenarios and the checkers that each arms."`
	Check     checkCmd   `cmd:"" help:"Run the checkers again on what a run has stored."`
	Conform   conformCmd `cmd:"" help:"Replay the transitions that coordinators of a chaos build have made in a run against the core. Exits 1 at the first that differs."`
	DTM       dtmCmd     `cmd:"" name:"dtm" help:"Run the suite against DTM's own servers. Exits 1 where what it finds is not what docs/dtm-under-test.md says."`
	Doctor    doctorCmd  `cmd:"" help:"Say what this machine has of what the suite wants."`
	Proxy     proxyCmd   `cmd:"" help:"Carry connections over links that can be cut."`
	Cut       cutCmd     `cmd:"" help:"Cut links of a running proxy."`
	Heal      healCmd    `cmd:"" help:"Heal links of a running proxy."`
	Status    linksCmd   `cmd:"" help:"Show the links of a running proxy and what they carried and refused."`
	SeedDrift seedCmd    `cmd:"" help:"Plant drift in a participant's database behind the product's back."`
	Poke      pokeCmd    `cmd:"" help:"Run one SQL statement on a participant's database."`
	simCommands
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	code := -1
	parser, err := kong.New(&c, kong.Name("lockstep-chaos"), kong.Writers(stdout, stderr), kong.Exit(func(n int) { code = n }),
		kong.Description("Faults for tests and demos of Lockstep."), kong.BindTo(ctx, (*context.Context)(nil)), kong.BindTo(stdout, (*io.Writer)(nil)))
	if err != nil {
		fmt.Fprintln(stderr, "lockstep-chaos:", err)
		return report.ExitHarness
	}
	parsed, err := parser.Parse(args)
	switch {
	case code >= 0: // --help was printed
		return code
	case err != nil:
		fmt.Fprintln(stderr, "lockstep-chaos:", err)
		fmt.Fprintln(stderr, "next: lockstep-chaos --help")
		return exitUsage
	}
	if err := parsed.Run(); err != nil {
		var exit exitError
		if errors.As(err, &exit) {
			return int(exit)
		}
		fmt.Fprintln(stderr, "lockstep-chaos:", err)
		if usage := (usageError{}); errors.As(err, &usage) {
			fmt.Fprintln(stderr, "next: lockstep-chaos --help")
			return exitUsage
		}
		return report.ExitHarness // 1 says that a promise was broken, and this says nothing of the product
	}
	return 0
}

const exitUsage = 2

// usageError is what whoever called it can set right; nothing was run.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

type proxyCmd struct {
	Control string   `help:"Address of the control; loopback only." required:"" placeholder:"HOST:PORT"`
	Route   []string `help:"A link: who connects to LISTEN reaches TO. A name that ends in /kafka has the addresses in Kafka's metadata replaced." required:"" placeholder:"NAME=LISTEN>TO" sep:"none"`
}

// routes reads --route.
func (c *proxyCmd) routes() ([]netproxy.Route, error) {
	var out []netproxy.Route
	for _, text := range c.Route {
		name, rest, ok := strings.Cut(text, "=")
		listen, to, ok2 := strings.Cut(rest, ">")
		if !ok || !ok2 || name == "" {
			return nil, fmt.Errorf("--route %q: write NAME=LISTEN>TO", text)
		}
		out = append(out, netproxy.Route{Name: name, Listen: listen, To: to, Kafka: strings.HasSuffix(name, "/kafka")})
	}
	return out, nil
}

// Run carries until ctx ends.
func (c *proxyCmd) Run(ctx context.Context) error {
	routes, err := c.routes()
	if err != nil {
		return err
	}
	if host, _, err := net.SplitHostPort(c.Control); err != nil || !net.ParseIP(host).IsLoopback() {
		return fmt.Errorf("--control %s: only a loopback address will do: who reaches it can cut links (%w)", c.Control, err)
	}
	set, err := netproxy.OpenAll(routes)
	if err != nil {
		return err
	}
	srv := &http.Server{Addr: c.Control, Handler: set.Handler(), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- srv.ListenAndServe() }()
	select {
	case err := <-done:
		return errors.Join(err, set.Close())
	case <-ctx.Done():
		return errors.Join(srv.Close(), set.Close())
	}
}

// controlled is what the commands that speak to a proxy share.
type controlled struct {
	Control string `help:"Address of the proxy's control." required:"" placeholder:"HOST:PORT"`
	Route   string `help:"Name of the links, or what their names begin with. Defaults to all." placeholder:"NAME"`
}

func (c *controlled) call(ctx context.Context, out io.Writer, method, path string, q url.Values) error {
	q.Set("route", c.Route)
	req, err := http.NewRequestWithContext(ctx, method, "http://"+c.Control+path+"?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(raw)))
	}
	_, err = out.Write(raw)
	return err
}

type cutCmd struct {
	controlled
	Way string `help:"drop swallows what is sent, refuse closes connections." enum:"drop,refuse" default:"drop"`
}

// Run cuts.
func (c *cutCmd) Run(ctx context.Context, out io.Writer) error {
	return c.call(ctx, out, http.MethodPost, "/cut", url.Values{"way": {c.Way}})
}

type healCmd struct{ controlled }

// Run heals.
func (c *healCmd) Run(ctx context.Context, out io.Writer) error {
	return c.call(ctx, out, http.MethodPost, "/heal", url.Values{})
}

type linksCmd struct{ controlled }

// Run shows.
func (c *linksCmd) Run(ctx context.Context, out io.Writer) error {
	return c.call(ctx, out, http.MethodGet, "/status", url.Values{})
}

type dbFlag struct {
	DB string `help:"The participant's database: sqlite:FILE or postgres://…" name:"db" required:"" placeholder:"ADDRESS"`
}

type seedCmd struct {
	dbFlag
	Class   string `help:"D01 takes a confirm back (--gid, --branch), D06 alters an account's counter (--account, --delta)." required:"" enum:"D01,D06"`
	Gid     string `help:"Transaction whose confirm is lost."`
	Branch  string `help:"Its branch."`
	Account string `help:"Account whose counter is altered."`
	Delta   int64  `help:"Minor units by which it is altered."`
}

// Validate wants what the class needs.
func (c *seedCmd) Validate() error {
	switch {
	case c.Class == string(seed.D01) && (c.Gid == "" || c.Branch == ""):
		return errors.New("--class D01 needs --gid and --branch")
	case c.Class == string(seed.D06) && (c.Account == "" || c.Delta == 0):
		return errors.New("--class D06 needs --account and --delta")
	}
	return nil
}

// Run plants, and prints what it did as JSON.
func (c *seedCmd) Run(ctx context.Context, out io.Writer) (err error) {
	db, d, err := seed.Open(ctx, c.DB)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var p seed.Planted
	if c.Class == string(seed.D01) {
		p, err = seed.Confirm(ctx, db, d, c.Gid, c.Branch)
	} else {
		p, err = seed.Counter(ctx, db, d, c.Account, c.Delta)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(p)
}

type pokeCmd struct {
	dbFlag
	SQL string `help:"The statement." name:"sql" required:""`
}

// Run runs it.
func (c *pokeCmd) Run(ctx context.Context, out io.Writer) (err error) {
	db, _, err := seed.Open(ctx, c.DB)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	n, err := seed.Poke(ctx, db, c.SQL)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%d rows changed\n", n)
	return err
}
