package barrier_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// dialects are those that the tests run on: SQLite alone, unless the build tag servers adds the others.
var dialects = []barrier.Dialect{barrier.SQLite}

// onEach runs a test on every database there is.
func onEach(t *testing.T, f func(t *testing.T, d barrier.Dialect)) {
	t.Helper()
	for _, d := range dialects {
		t.Run(d.String(), func(t *testing.T) { f(t, d) })
	}
}

// place is a database with a barrier's schema of its own, as another process could be told of it.
type place struct {
	dialect     barrier.Dialect
	url, schema string // url is a file, or what the driver takes
}

var schemas atomic.Int64

// freshPlace makes the tables in a schema that no other test of this machine uses at the moment.
func freshPlace(t *testing.T, d barrier.Dialect) place {
	t.Helper()
	p := place{dialect: d, schema: fmt.Sprintf("lsb_%d_%d", os.Getpid(), schemas.Add(1))}
	switch d {
	case barrier.SQLite:
		p.url, p.schema = filepath.Join(t.TempDir(), "x.db"), ""
	case barrier.PostgreSQL:
		p.url = env(t, "LOCKSTEP_TEST_POSTGRES_URL")
	case barrier.MySQL:
		p.url = dsnOf(env(t, "LOCKSTEP_TEST_MYSQL_URL"))
	}
	c := p.open(t, barrier.Options{})
	if err := barrier.MigrateSchema(t.Context(), c.db, d, p.schema); err != nil {
		t.Fatal(err)
	}
	c.exec(t, `CREATE TABLE {effect} (op varchar(200))`)
	t.Cleanup(func() {
		db, err := p.connect(context.Background())
		if err == nil && d != barrier.SQLite {
			_, err = db.Exec("DROP SCHEMA " + p.schema + map[barrier.Dialect]string{barrier.PostgreSQL: " CASCADE"}[d])
		}
		if err = errors.Join(err, db.Close()); err != nil {
			t.Error(err)
		}
	})
	return p
}

func env(t *testing.T, name string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		t.Fatalf("%s is not set: run the tests with make test, which starts the servers", name)
	}
	return v
}

func dsnOf(url string) string {
	user, rest, _ := strings.Cut(strings.TrimPrefix(url, "mysql://"), "@")
	host, db, _ := strings.Cut(rest, "/")
	return user + "@tcp(" + host + ")/" + db
}

func (p place) connect(ctx context.Context) (*sql.DB, error) {
	switch p.dialect {
	case barrier.PostgreSQL:
		return barrier.OpenPostgres(ctx, p.url)
	case barrier.MySQL:
		return barrier.OpenMySQL(ctx, p.url)
	}
	return barrier.OpenSQLite(ctx, p.url)
}

// handle opens the place as a process of its own would.
func (p place) handle(ctx context.Context, o barrier.Options) (counter, error) {
	db, err := p.connect(ctx)
	if err != nil {
		return counter{}, err
	}
	o.Schema = p.schema
	b, err := barrier.New(db, p.dialect, o)
	return counter{db: db, b: b, place: p}, err
}

func (p place) open(t *testing.T, o barrier.Options) counter {
	t.Helper()
	c, err := p.handle(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.db.Close() })
	return c
}

// counter is a database with a table to which every business run adds a row: what ran, and how often.
type counter struct {
	place
	db *sql.DB
	b  *barrier.Barrier
}

func openCounter(t *testing.T, d barrier.Dialect, o barrier.Options) counter {
	t.Helper()
	return freshPlace(t, d).open(t, o)
}

func newCounter(t *testing.T, d barrier.Dialect) counter {
	t.Helper()
	return openCounter(t, d, barrier.Options{})
}

// sql writes a statement for the database: {barrier}, {fence} and others are tables of the schema, ? are placeholders.
func (p place) sql(stmt string) string {
	if p.dialect == barrier.SQLite {
		stmt = strings.NewReplacer("{barrier}", "dtm_barrier_barrier", "{fence}", "lockstep_fence", "{", "", "}", "").Replace(stmt)
		return stmt
	}
	stmt = strings.NewReplacer("{fence}", p.schema+".lockstep_fence", "{", p.schema+".", "}", "").Replace(stmt)
	for n := 1; p.dialect == barrier.PostgreSQL && strings.Contains(stmt, "?"); n++ {
		stmt = strings.Replace(stmt, "?", fmt.Sprintf("$%d", n), 1)
	}
	return stmt
}

func (c counter) exec(t *testing.T, stmt string, args ...any) {
	t.Helper()
	if _, err := c.db.ExecContext(t.Context(), c.sql(stmt), args...); err != nil {
		t.Fatal(err)
	}
}

// count gives the one number that a query gives.
func (c counter) count(t *testing.T, query string, args ...any) (n int) {
	t.Helper()
	if err := c.db.QueryRowContext(t.Context(), c.sql(query), args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// effect is the business function: it leaves one row.
func (p place) effect(op string) func(*sql.Tx) error {
	return func(tx *sql.Tx) error {
		_, err := tx.Exec(p.sql(`INSERT INTO {effect} VALUES (?)`), op)
		return err
	}
}

func (c counter) effects(t *testing.T, op string) int {
	t.Helper()
	return c.count(t, `SELECT count(*) FROM {effect} WHERE op = ?`, op)
}

func (c counter) rows(t *testing.T) int {
	t.Helper()
	return c.count(t, `SELECT count(*) FROM {barrier}`)
}
