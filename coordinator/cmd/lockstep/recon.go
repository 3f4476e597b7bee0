package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/lockstep-tx/lockstep/participants/sqldb"
	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
	"github.com/lockstep-tx/lockstep/region/reconcile/dayend"
	"github.com/lockstep-tx/lockstep/region/reconcile/dayend/books"
)

type reconCmd struct {
	Fetch  reconFetchCmd  `cmd:"" help:"Bring a day's files from the channel into the inbox."`
	Load   reconLoadCmd   `cmd:"" help:"Take files, whole or not at all: signature, control totals, every line. The same file again changes nothing."`
	Run    reconRunCmd    `cmd:"" help:"Compare a day, ask for lost answers, reverse what only we have. Exit code 1 while a difference stands."`
	Watch  reconWatchCmd  `cmd:"" help:"Fetch, load and run on schedule, every day as soon as it can be compared."`
	Report reconReportCmd `cmd:"" help:"Write a day's report as HTML or CSV, or show the audit."`
	Cases  reconCasesCmd  `cmd:"" help:"List the cases that wait for a person."`
	Show   reconShowCmd   `cmd:"" help:"Show one case, with the channel's line."`
	Book   reconBookCmd   `cmd:"" help:"End a short case: book the missing order."`
	Settle reconSettleCmd `cmd:"" help:"End a case without moving money: a person has seen to it elsewhere."`
}

// reconFlags say where reconciliation keeps what it knows.
type reconFlags struct {
	State string `help:"Database of the reconciliation: postgres://…, mysql://… or sqlite:FILE." required:"" placeholder:"URL" env:"LOCKSTEP_RECON_STATE"`
	Dir   string `help:"Directory of the channel's files and their sorted lines." required:"" type:"path" env:"LOCKSTEP_RECON_DIR"`
}

// book opens the state.
func (c *reconFlags) book(e *env) (*dayend.Book, error) {
	b, err := dayend.Open(e.ctx, c.State, c.Dir)
	if err != nil {
		return nil, usageError{fmt.Errorf("--state, --dir: %w", err)}
	}
	return b, nil
}

func (c *reconFlags) with(e *env, work func(*dayend.Book) error) error {
	b, err := c.book(e)
	if err != nil {
		return err
	}
	return errors.Join(work(b), b.DB.Close())
}

// flags are the same flags, for a command to paste.
func (c *reconFlags) flags() string {
	if strings.Contains(c.State, "@") { // a password is not printed
		return "--dir " + shellQuote(c.Dir)
	}
	return "--state " + shellQuote(c.State) + " --dir " + shellQuote(c.Dir)
}

// mappingFlag names the mapping file.
type mappingFlag struct {
	Mapping string `help:"File that describes the channel's files." required:"" placeholder:"FILE" env:"LOCKSTEP_RECON_MAPPING"`
}

func (c *mappingFlag) load() (*channelfile.Mapping, error) {
	m, err := channelfile.LoadMapping(c.Mapping)
	if err != nil {
		return nil, usageError{err}
	}
	return m, nil
}

// booksFlags say where our own side is.
type booksFlags struct {
	Books       string `help:"Database of the participants: postgres://…, mysql://…, or sqlite:DIR for the two files in a directory." required:"" placeholder:"URL" env:"LOCKSTEP_RECON_BOOKS"`
	BooksLedger string `help:"Database of the buyers' ledger, if it is one of its own." placeholder:"URL" env:"LOCKSTEP_RECON_BOOKS_LEDGER"`
	Payments    string `help:"Base URL of the payments' API, through which is asked, reversed and booked." placeholder:"URL" env:"LOCKSTEP_RECON_PAYMENTS"`
}

// ours opens our side.
func (c *booksFlags) ours(e *env, m *channelfile.Mapping) (dayend.Ours, func(), error) {
	at, buyers := c.Books, c.BooksLedger
	if dir, ok := strings.CutPrefix(at, "sqlite:"); ok {
		at = "sqlite:" + filepath.Join(dir, "merchant.db")
		if buyers == "" {
			buyers = "sqlite:" + filepath.Join(dir, "buyer.db")
		}
	}
	if buyers == "" {
		buyers = at
	}
	var opened []*sql.DB
	closeAll := func() {
		for _, db := range opened {
			db.Close()
		}
	}
	open := func(flag, address string) (*sql.DB, sqldb.Dialect, error) {
		db, d, err := sqldb.Open(e.ctx, address)
		if err != nil {
			return nil, d, usageError{fmt.Errorf("--%s: %w", flag, err)}
		}
		opened = append(opened, db)
		return db, d, nil
	}
	db, d, err := open("books", at)
	if err != nil {
		return nil, nil, err
	}
	ldb, ld, err := open("books-ledger", buyers)
	if err != nil {
		closeAll()
		return nil, nil, err
	}
	api := &books.Payments{DB: db, Dialect: d, API: c.Payments, Client: &http.Client{Timeout: 40 * time.Second}}
	o, err := books.Of(m, db, d, ldb, ld, api)
	if err != nil {
		closeAll()
		return nil, nil, err
	}
	return o, closeAll, nil
}

// dayOf takes 2026-11-21 and 20261121.
func dayOf(text string) (string, error) {
	day := strings.ReplaceAll(text, "-", "")
	if _, err := time.Parse("20060102", day); err != nil {
		return "", usageError{fmt.Errorf("--day: %q: a day such as 2026-11-21 belongs there", text)}
	}
	return day, nil
}

type reconFetchCmd struct {
	reconFlags
	mappingFlag
	Day string `help:"The day; every day there is, if the source can list its files." placeholder:"DAY"`
}

// Run fetches.
func (c *reconFetchCmd) Run(e *env) error {
	m, err := c.load()
	if err != nil {
		return err
	}
	day := ""
	if c.Day != "" {
		if day, err = dayOf(c.Day); err != nil {
			return err
		}
	}
	return c.with(e, func(b *dayend.Book) error {
		names, err := fetch(e.ctx, b, m, day)
		for _, n := range names {
			fmt.Fprintln(e.out, "fetched", shown(filepath.Join(b.Inbox(), n)))
		}
		if err != nil {
			return &failure{err, "lockstep recon fetch --mapping " + shellQuote(c.Mapping) + " " + c.flags() + "  # when the source answers; nothing was lost"}
		}
		if len(names) == 0 {
			fmt.Fprintln(e.out, "nothing new")
			return nil
		}
		next(e.out, "lockstep recon load --mapping "+shellQuote(c.Mapping)+" "+c.flags())
		return nil
	})
}

func fetch(ctx context.Context, b *dayend.Book, m *channelfile.Mapping, day string) ([]string, error) {
	var asked error
	names, err := m.Fetch(ctx, day, b.Inbox(), func(name string) bool {
		yes, err := b.IsLoaded(ctx, m, name)
		asked = errors.Join(asked, err)
		return yes || err != nil
	})
	return names, errors.Join(err, asked)
}

type reconLoadCmd struct {
	reconFlags
	mappingFlag
	Files  []string `arg:"" optional:"" help:"Files; those of the inbox that the mapping names, if none is given." type:"path"`
	Output string   `help:"table or json (one file a line)." enum:"table,json" default:"table" short:"o"`
}

// Run loads.
func (c *reconLoadCmd) Run(e *env) error {
	m, err := c.load()
	if err != nil {
		return err
	}
	return c.with(e, func(b *dayend.Book) error {
		files := c.Files
		if len(files) == 0 {
			if files, err = inbox(e.ctx, b, m); err != nil {
				return err
			}
		}
		loaded, err := c.each(e, b, m, files)
		if err != nil {
			return &failure{err, "lockstep recon load --help  # nothing of the file was taken; ask the channel for it again"}
		}
		if loaded == nil {
			fmt.Fprintln(e.out, "nothing to load")
			return nil
		}
		if c.Output == "table" {
			next(e.out, fmt.Sprintf("lockstep recon run --dry-run --day %s --mapping %s %s", loaded.Day, shellQuote(c.Mapping), c.flags()))
		}
		return nil
	})
}

// each loads files; one that is refused does not keep the others out. In the inbox it is set aside, so that the channel's next one
// of that name is fetched.
func (c *reconLoadCmd) each(e *env, b *dayend.Book, m *channelfile.Mapping, files []string) (last *dayend.File, failed error) {
	for _, path := range files {
		f, err := b.Load(e.ctx, m, path)
		if no := (*dayend.RefusedError)(nil); errors.As(err, &no) && filepath.Dir(path) == b.Inbox() {
			aside, serr := b.SetAside(path)
			err = errors.Join(fmt.Errorf("%w; it was set aside as %s", err, aside), serr)
		}
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		last = f
		if c.Output == "json" {
			if err := json.NewEncoder(e.out).Encode(f); err != nil {
				return last, errors.Join(failed, err)
			}
			continue
		}
		again := ""
		if f.Again {
			again = ", loaded before: nothing changed"
		}
		fmt.Fprintf(e.out, "%s: %s %s day %s part %d, %d lines, %d bad, sum %d%s\n", shown(f.Name), f.Channel, f.Kind, f.Day, f.Part, f.Lines, f.Bad, f.Sum, again)
	}
	return last, failed
}

// inbox are the files in the inbox that the mapping names and that are not loaded.
func inbox(ctx context.Context, b *dayend.Book, m *channelfile.Mapping) ([]string, error) {
	all, err := filepath.Glob(filepath.Join(b.Inbox(), "*"))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, path := range all {
		name := filepath.Base(path)
		if _, _, err := m.DayOf(name); err != nil || dayend.IsAside(name) {
			continue
		}
		done, err := b.IsLoaded(ctx, m, name)
		if err != nil {
			return nil, err
		}
		if !done {
			out = append(out, path)
		}
	}
	slices.Sort(out)
	return out, nil
}

// findings prints findings as a table, at most so many.
func findings(e *env, list []dayend.Finding, most int) error {
	if len(list) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CASE\tDAY\tCLASS\tSTATUS\tWHAT\tLINE\tTEXT")
	for _, f := range list[:min(len(list), most)] {
		line := ""
		if f.Line > 0 {
			line = fmt.Sprintf("%s:%d", f.File, f.Line)
		}
		about := f.Text
		if f.Outcome != "" {
			about += "; " + f.Outcome
		}
		row(w, f.ID, f.Day, f.Class, f.Status, dayend.ShownKey(f.Key), line, cut(about, 160))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(list) > most {
		fmt.Fprintf(e.out, "and %d more\n", len(list)-most)
	}
	return nil
}
