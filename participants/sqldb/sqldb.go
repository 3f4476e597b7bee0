// Package sqldb is the little that differs between PostgreSQL, MySQL or MariaDB, and SQLite for participants whose
// statements are otherwise the same: placeholders, inserts that may find their row, tables' options, addresses.
//
// Its law: a statement is written once, with ? for its arguments. It is tested by a table, and by the participants that use
// it, which run on all three.
package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// Dialect rewrites statements for one kind of database.
type Dialect struct{ barrier.Dialect }

// Q puts the database's placeholders for ?. Statements hold no other question marks.
func (d Dialect) Q(stmt string) string {
	if d.Dialect != barrier.PostgreSQL {
		return stmt
	}
	var b strings.Builder
	n := 0
	for {
		before, after, found := strings.Cut(stmt, "?")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		n++
		b.WriteString("$" + strconv.Itoa(n))
		stmt = after
	}
}

// InsertNew is the insert of a row that may be there already, and is left as it is then: no row is affected. stmt begins
// with INTO.
func (d Dialect) InsertNew(stmt string) string {
	if d.Dialect == barrier.MySQL {
		return "INSERT IGNORE " + stmt
	}
	return d.Q("INSERT " + stmt + " ON CONFLICT DO NOTHING")
}

// Create completes CREATE TABLE IF NOT EXISTS: texts that differ in case differ, whatever the server's default is.
func (d Dialect) Create(stmt string) string {
	if d.Dialect == barrier.MySQL {
		return stmt + " ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin"
	}
	return stmt
}

// Migrate makes tables and indexes that are not there, by CREATE TABLE IF NOT EXISTS … and CREATE INDEX IF NOT EXISTS name
// ON table …, in one transaction where the database can.
func (d Dialect) Migrate(ctx context.Context, db *sql.DB, statements ...string) error {
	return InTx(ctx, db, func(tx *sql.Tx) error {
		if d.Dialect == barrier.PostgreSQL {
			// Two processes that make the same table at once would collide in the catalogue.
			if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock(7233182, 1)"); err != nil {
				return err
			}
		}
		for _, stmt := range statements {
			if strings.HasPrefix(stmt, createIndex) {
				if err := d.index(ctx, tx, stmt); err != nil {
					return err
				}
			} else if _, err := tx.ExecContext(ctx, d.Create(stmt)); err != nil {
				return err
			}
		}
		return nil
	})
}

const createIndex = "CREATE INDEX IF NOT EXISTS "

// index makes an index unless it is there, which MySQL cannot say in one statement.
func (d Dialect) index(ctx context.Context, tx *sql.Tx, stmt string) error {
	if d.Dialect == barrier.MySQL {
		words := strings.Fields(strings.TrimPrefix(stmt, createIndex)) // name ON table
		var there int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM information_schema.statistics WHERE table_schema = DATABASE() AND index_name = ? AND table_name = ?",
			words[0], words[2]).Scan(&there); err != nil || there > 0 {
			return err
		}
		stmt = "CREATE INDEX " + strings.TrimPrefix(stmt, createIndex)
	}
	_, err := tx.ExecContext(ctx, stmt)
	return err
}

// Change runs a statement that must change exactly one row; false if it changed none.
func (d Dialect) Change(ctx context.Context, tx *sql.Tx, stmt string, args ...any) (bool, error) {
	r, err := tx.ExecContext(ctx, d.Q(stmt), args...)
	if err != nil {
		return false, err
	}
	n, err := r.RowsAffected()
	if err == nil && n > 1 {
		err = fmt.Errorf("%d rows changed instead of one: %.60s", n, stmt)
	}
	return n == 1, err
}

// InTx runs f in a transaction of its own; durable on nil.
func InTx(ctx context.Context, db *sql.DB, f func(tx *sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// BeginRead begins a transaction whose statements all see the same state, for sums that are compared with one another. At
// PostgreSQL's own isolation each statement would see what was committed until it began. The caller rolls it back.
func (d Dialect) BeginRead(ctx context.Context, db *sql.DB) (*sql.Tx, error) {
	if d.Dialect == barrier.SQLite { // whose transactions are always so, and whose driver knows no levels
		return db.BeginTx(ctx, nil)
	}
	return db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
}

// Open opens the database that an address names: sqlite:PATH, postgres://… or mysql://user:password@host:port/name. The
// caller closes it. Errors do not show the password.
func Open(ctx context.Context, address string) (*sql.DB, Dialect, error) {
	scheme, rest, _ := strings.Cut(address, ":")
	switch scheme {
	case "sqlite":
		if rest == "" {
			return nil, Dialect{}, errors.New("the address names no file: write sqlite:/path/file.db")
		}
		db, err := barrier.OpenSQLite(ctx, rest)
		return db, Dialect{barrier.SQLite}, err
	case "postgres", "postgresql":
		db, err := barrier.OpenPostgres(ctx, address)
		return db, Dialect{barrier.PostgreSQL}, err
	case "mysql", "mariadb":
		u, err := url.Parse(address)
		if err != nil || u.Host == "" {
			return nil, Dialect{}, errors.New("the address is not of the form mysql://user:password@host:port/database, with the password percent-encoded")
		}
		password, _ := u.User.Password()
		dsn := u.User.Username() + ":" + password + "@tcp(" + u.Host + ")" + u.Path
		if u.RawQuery != "" {
			dsn += "?" + u.RawQuery
		}
		db, err := barrier.OpenMySQL(ctx, dsn)
		return db, Dialect{barrier.MySQL}, err
	}
	return nil, Dialect{}, fmt.Errorf("the database's address begins with %q: write sqlite:PATH, postgres://… or mysql://…", scheme)
}
