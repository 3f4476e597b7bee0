package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/seed"
	barriers "github.com/lockstep-tx/lockstep/participants/barrier"
)

// Server is a kind of database server that a scenario's wallets are on.
type Server string

// The servers. OnSQLite has none: a file for each region.
const (
	OnSQLite     Server = ""
	OnPostgreSQL Server = "PostgreSQL"
	OnMariaDB    Server = "MariaDB"
)

// wallets is the address of the server that the scenario's wallets are on: the scenario's own kind, or else what the run
// says of those without one; "" for files.
func (r *running) wallets() string {
	if r.own != nil {
		return r.own.URL
	}
	switch r.s.Wallets {
	case OnPostgreSQL:
		return r.o.Journal
	case OnMariaDB:
		return r.o.MySQL
	case OnSQLite:
	}
	return r.o.DB
}

// lacks is why the scenario is skipped, or nothing.
func (r *running) lacks() string {
	switch {
	case r.o.Participant != nil && (r.s.Drift || r.s.Own != OnSQLite || r.s.Files || len(r.s.Volumes) > 0):
		return "it alters or cuts off tables of our wallets, and another participant runs"
	case r.s.Previous && !there(r.o.Previous, "lockstep"):
		return "it runs the version before beside this one, and there is none: --previous DIR (deploy/dev/previous.sh DIR builds it, where the clone has it)"
	case r.s.Files && r.wallets() != "":
		return "it erases the files that the wallets are in, and they are on a server"
	case r.s.Pair && r.o.Journal == "":
		return "two coordinators share a journal on PostgreSQL: set LOCKSTEP_TEST_POSTGRES_URL"
	case r.s.Own != OnSQLite && r.o.Devctl == "":
		return "it needs a database server of its own: set LOCKSTEP_TEST_DEVCTL, or run it by bin/devctl run --"
	case r.s.Wallets == OnPostgreSQL && r.o.Journal == "":
		return "its wallets are on PostgreSQL: set LOCKSTEP_TEST_POSTGRES_URL"
	case r.s.Wallets == OnMariaDB && r.o.MySQL == "":
		return "its wallets are on MariaDB: set LOCKSTEP_TEST_MYSQL_URL"
	}
	if f, ok := r.s.Fault.(interface{ Needs() error }); ok {
		if err := f.Needs(); err != nil {
			return err.Error()
		}
	}
	return ""
}

// there says that a program is in a directory.
func there(dir, program string) bool {
	if dir == "" {
		return false
	}
	i, err := os.Stat(filepath.Join(dir, program))
	return err == nil && i.Mode().IsRegular()
}

// volumes are the parts that get a volume: of the scenario's sets the one that the seed says, without wallets that are on a
// server.
func (r *running) volumes() []string {
	if len(r.s.Volumes) == 0 {
		return nil
	}
	if r.o.Schedule != nil {
		return r.o.Schedule.Volumes
	}
	all := slices.DeleteFunc(slices.Clone(r.s.Volumes), func(set []string) bool {
		return r.wallets() != "" && slices.Contains(set, proc.Wallet)
	})
	return all[int(r.o.Seed%uint64(len(all)))]
}

// server starts a server of the scenario's own, where it wants one, and gives what ends it.
func (r *running) server(ctx context.Context) (end func() error, err error) {
	if r.s.Own == OnSQLite {
		return func() error { return nil }, nil
	}
	r.own, err = proc.OpenServer(ctx, r.o.Devctl, map[Server]string{OnPostgreSQL: "postgres", OnMariaDB: "mariadb"}[r.s.Own], r.s.Skew)
	if r.own == nil {
		return func() error { return nil }, err
	}
	return r.own.Close, err
}

// databases makes what the scenario needs on database servers, and gives what removes it.
func (r *running) databases(ctx context.Context, cfg *proc.Config) (drop func() error, err error) {
	var undo []func() error
	drop = func() (err error) {
		for _, f := range undo {
			err = errors.Join(err, f())
		}
		return err
	}
	one := func(into, barrier *string, base, name string) {
		if err != nil || base == "" {
			return
		}
		var f func() error
		if *into, f, err = Database(ctx, base, name, barrier); f != nil {
			undo = append(undo, f)
		}
	}
	if r.s.Pair {
		one(&cfg.Journal, nil, r.o.Journal, "journal")
	}
	one(&cfg.Wallets[0], &cfg.Barriers[0], r.wallets(), "east")
	one(&cfg.Wallets[1], &cfg.Barriers[1], r.wallets(), "west")
	if err != nil {
		return drop, errors.Join(err, drop())
	}
	return drop, nil
}

// Database makes a database of its own on a server. On MySQL and MariaDB, where a barrier's schema is the whole server's,
// it names one for this database alone: epochs that one region has raised would make the other's calls stale, and those of
// whoever uses the server next.
func Database(ctx context.Context, base, name string, barrier *string) (address string, drop func() error, err error) {
	db, d, err := seed.Open(ctx, base)
	if err != nil {
		return "", nil, err
	}
	u, err := url.Parse(base)
	if err != nil { // its text may hold a password
		return "", nil, errors.Join(errors.New("the database server's address cannot be read"), db.Close())
	}
	name = fmt.Sprintf("chaos_%s_%d", name, time.Now().UnixNano())
	end := []string{"DROP DATABASE IF EXISTS " + name + " WITH (FORCE)"}
	if d.Dialect == barriers.MySQL {
		end = []string{"DROP DATABASE IF EXISTS " + name}
		if barrier != nil {
			*barrier = name + "_barrier"
			end = append(end, "DROP DATABASE IF EXISTS "+*barrier)
		}
	}
	if _, err := db.ExecContext(ctx, "CREATE DATABASE "+name); err != nil {
		return "", nil, errors.Join(fmt.Errorf("database on the server: %w", err), db.Close())
	}
	u.Path = "/" + name
	return u.String(), func() error {
		var err error
		for _, stmt := range end {
			_, derr := db.Exec(stmt)
			err = errors.Join(err, derr)
		}
		return errors.Join(err, db.Close())
	}, nil
}
