package ledger

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// Migrations are numbered files, one set per kind of database; what was released is not edited, the next number corrects
// it. Statements are separated by lines "-- next"; {p} stands before every table's name, {i} before every index's.
//
//go:embed migrations/*.sql
var migrations embed.FS

// lockClass is the first key of the ledger's advisory locks on PostgreSQL ("Ledg" in ASCII): (class, -1) is the
// migration's, (class, hash of an account) keeps an insert-only account open while money moves on it.
const lockClass = 0x4c656467

// Migrate brings the tables to this program's version, which the table ledger_migration records. It may run any number of
// times and in several processes at once. A database of a newer version is refused.
func Migrate(ctx context.Context, db *sql.DB, d barrier.Dialect, o Options) error {
	n, err := newNames(d, o.Schema)
	if err != nil {
		return err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("migrate ledger: %w", err)
	}
	defer conn.Close()
	if d == barrier.MySQL {
		err = migrateMySQL(ctx, conn, n)
	} else {
		err = migrateTx(ctx, conn, n)
	}
	if err != nil {
		return fmt.Errorf("migrate ledger: %w", err)
	}
	return nil
}

// migrateTx makes all steps in one transaction, under a lock.
func migrateTx(ctx context.Context, conn *sql.Conn, n names) error {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if n.dialect == barrier.PostgreSQL {
		if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock($1, -1)", lockClass); err != nil {
			return err
		}
		if n.schema != "" {
			if _, err := tx.ExecContext(ctx, "CREATE SCHEMA IF NOT EXISTS "+n.schema); err != nil {
				return err
			}
		}
	}
	if err := steps(ctx, tx, n); err != nil {
		return err
	}
	return tx.Commit()
}

// migrateMySQL holds a named lock instead: DDL commits by itself there, so each statement is idempotent.
func migrateMySQL(ctx context.Context, conn *sql.Conn, n names) error {
	var got sql.NullInt64
	if err := conn.QueryRowContext(ctx, "SELECT GET_LOCK('lockstep_ledger_migration', 60)").Scan(&got); err != nil {
		return err
	}
	if got.Int64 != 1 {
		return errors.New("another migration has held the lock for 60 s")
	}
	defer func() {
		_, _ = conn.ExecContext(context.WithoutCancel(ctx), "SELECT RELEASE_LOCK('lockstep_ledger_migration')")
	}()
	if n.schema != "" {
		if _, err := conn.ExecContext(ctx, "CREATE DATABASE IF NOT EXISTS "+n.schema+" DEFAULT CHARACTER SET utf8mb4"); err != nil {
			return err
		}
	}
	return steps(ctx, conn, n)
}

type execer interface {
	Querier
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

func steps(ctx context.Context, db execer, n names) error {
	if _, err := db.ExecContext(ctx, n.q("CREATE TABLE IF NOT EXISTS {p}migration (version int PRIMARY KEY, name varchar(100) NOT NULL)")); err != nil {
		return err
	}
	var has int
	if err := db.QueryRowContext(ctx, n.q("SELECT coalesce(max(version), 0) FROM {p}migration")).Scan(&has); err != nil {
		return err
	}
	files, err := fs.Glob(migrations, "migrations/"+strings.ToLower(n.dialect.String())[:5]+"*.sql")
	if err != nil {
		return err
	}
	if has > len(files) {
		return fmt.Errorf("the tables have version %d, this program knows %d: use the program that made them", has, len(files))
	}
	for i, f := range files[has:] {
		text, err := migrations.ReadFile(f)
		if err != nil {
			return err
		}
		for stmt := range strings.SplitSeq(string(text), "-- next\n") {
			if _, err := db.ExecContext(ctx, n.text(stmt)); err != nil {
				return fmt.Errorf("%s: %w", f, err)
			}
		}
		if _, err := db.ExecContext(ctx, n.q("INSERT INTO {p}migration (version, name) VALUES (?, ?)"), has+i+1, f); err != nil {
			return err
		}
	}
	return nil
}

// names are the ledger's tables in one database.
type names struct {
	dialect barrier.Dialect
	schema  string
	prefix  string // of tables
	index   string // of indexes
}

func newNames(d barrier.Dialect, schema string) (names, error) {
	n := names{dialect: d, schema: schema, prefix: "ledger_", index: "ledger_"}
	if schema != "" && !schemaName.MatchString(schema) {
		return n, fmt.Errorf("%w: schema %q is not of the form %s", barrier.ErrInvalid, schema, schemaName)
	}
	switch {
	case d != barrier.SQLite && d != barrier.PostgreSQL && d != barrier.MySQL:
		return n, fmt.Errorf("%w: no ledger for %s", barrier.ErrInvalid, d)
	case schema == "":
	case d == barrier.SQLite:
		n.prefix, n.index = schema+"_ledger_", schema+"_ledger_"
	default:
		n.prefix = schema + ".ledger_"
	}
	return n, nil
}

// text fills in the names.
func (n names) text(s string) string {
	return strings.NewReplacer("{p}", n.prefix, "{i}", n.index, "{lock}", strconv.Itoa(lockClass)).Replace(s)
}

// q is text for a statement with arguments: "?" becomes $1, $2, … where the database wants that; {share} and {exclusive}
// lock what is read where that is not by itself.
func (n names) q(s string) string {
	share, exclusive := "", ""
	switch n.dialect {
	case barrier.MySQL:
		share, exclusive = " LOCK IN SHARE MODE", " FOR UPDATE"
	case barrier.PostgreSQL:
		share, exclusive = " FOR SHARE", " FOR UPDATE"
	}
	s = n.text(strings.NewReplacer("{share}", share, "{exclusive}", exclusive).Replace(s))
	if n.dialect != barrier.PostgreSQL {
		return s
	}
	var b strings.Builder
	arg := 0
	for _, r := range s {
		if r == '?' {
			arg++
			b.WriteString("$" + strconv.Itoa(arg))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}
