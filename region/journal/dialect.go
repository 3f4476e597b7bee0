package journal

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
)

// dialect is what differs between the kinds of databases.
type dialect struct {
	name string // also the directory of its migrations
	// numbered: parameters are $1, $2 …, not ?.
	numbered bool
	// insert writes the rows, distinct by gid, in one SQL transaction.
	insert func(ctx context.Context, j *Journal, rows []*engine.Row) error
	// insertIn writes such rows in an SQL transaction that is under way.
	insertIn func(ctx context.Context, j *Journal, tx *sql.Tx, rows []*engine.Row) error
	// single: statements of many rows are slower than many of one; and the database has one writer, so that nothing is locked.
	single bool
	// transient says that another writer's work stopped this one, and that it may be repeated.
	transient func(error) bool
	noTable   func(error) bool
	noRight   func(error) bool
	// locked runs migrations while no other coordinator does; all in one SQL transaction where DDL can be.
	locked func(ctx context.Context, db *sql.DB, migrate func(querier) error) error
	// deleteRows takes body, a time and a limit: whole rows of that body finished before the time, the oldest first.
	deleteRows string
	// empty drops the bodies of such rows.
	empty func(ctx context.Context, j *Journal, body int, before int64, limit int) (int64, error)
	// byFinish follows the table's name in a query that shall use the index on finished_at.
	byFinish string
	// byID follows the table's name in a query that shall go by id, with a space behind it: SQLite takes any index that
	// has a column of the filter.
	byID string
	// byKind is byFinish for the index on phase and mode.
	byKind string
	// already says that what a migration makes is there: where DDL ends its own SQL transaction, an interrupted one is
	// repeated. nil where it cannot happen.
	already func(error) bool
}

// emptyBy is dialect.empty where a statement does it.
func emptyBy(stmt string) func(context.Context, *Journal, int, int64, int) (int64, error) {
	return func(ctx context.Context, j *Journal, body int, before int64, limit int) (int64, error) {
		return affected(j.write.ExecContext(ctx, stmt, body, before, limit))
	}
}

func affected(res sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// querier is a transaction or a connection.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// bind gives a statement written with ? the database's own parameters. No statement of ours has a ? in a literal.
func (d *dialect) bind(stmt string) string {
	if !d.numbered {
		return stmt
	}
	var b strings.Builder
	n := 0
	for {
		before, after, ok := strings.Cut(stmt, "?")
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		n++
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(n))
		stmt = after
	}
}

//go:embed migrations
var migrations embed.FS

type migration struct {
	version    int
	statements []string
}

// migrationsOf reads the migrations of a dialect, in order: files NNNN_name.sql, statements end with ; at a line's end.
func migrationsOf(d *dialect) ([]migration, error) {
	files, err := fs.Glob(migrations, "migrations/"+d.name+"/*.sql")
	if err != nil {
		return nil, err
	}
	sort.Strings(files)
	var out []migration
	for _, file := range files {
		number, _, _ := strings.Cut(file[strings.LastIndexByte(file, '/')+1:], "_")
		m := migration{}
		if m.version, err = strconv.Atoi(number); err != nil || m.version != len(out)+1 {
			return nil, fmt.Errorf("migration %s: its number is not %d", file, len(out)+1)
		}
		text, err := migrations.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for stmt := range strings.SplitSeq(string(text), ";\n") {
			if strings.TrimSpace(stmt) != "" {
				m.statements = append(m.statements, stmt)
			}
		}
		out = append(out, m)
	}
	return out, nil
}

const selectVersion = "SELECT coalesce(max(version), 0) FROM lockstep_journal_version"

// migrate brings the tables to the version that this program knows. Where they are there already, it only reads.
func (j *Journal) migrate(ctx context.Context) error {
	list, err := migrationsOf(j.d)
	if err != nil {
		return err
	}
	have := 0
	err = j.write.QueryRowContext(ctx, selectVersion).Scan(&have)
	if err != nil && !j.d.noTable(err) {
		return fmt.Errorf("journal at %s: read its version: %w", j.where, err)
	}
	if err == nil && have == len(list) {
		return nil
	}
	if have > len(list) {
		return j.tooNew(have, len(list))
	}
	err = j.d.locked(ctx, j.write, func(q querier) error {
		if _, err := q.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS lockstep_journal_version (version INTEGER PRIMARY KEY, applied_at BIGINT NOT NULL)"); err != nil {
			return err
		}
		if err := q.QueryRowContext(ctx, selectVersion).Scan(&have); err != nil {
			return err
		}
		if have > len(list) {
			return j.tooNew(have, len(list))
		}
		for _, m := range list[have:] {
			for _, stmt := range m.statements {
				if _, err := q.ExecContext(ctx, stmt); err != nil && (j.d.already == nil || !j.d.already(err)) {
					return fmt.Errorf("to version %d: %w", m.version, err)
				}
			}
			if _, err := q.ExecContext(ctx, j.d.bind("INSERT INTO lockstep_journal_version (version, applied_at) VALUES (?, ?)"),
				m.version, time.Now().UnixMilli()); err != nil {
				return err
			}
		}
		return nil
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errTooNew):
		return err
	case j.d.noRight(err):
		return fmt.Errorf("journal at %s: the user may not make the tables; grant it that, or have an administrator apply region/journal/migrations/%s: %w", j.where, j.d.name, err)
	}
	return fmt.Errorf("journal at %s: make its tables: %w", j.where, err)
}

var errTooNew = errors.New("it was upgraded by a newer lockstep")

func (j *Journal) tooNew(have, known int) error {
	return fmt.Errorf("journal at %s has version %d, this program knows %d: %w; run that one", j.where, have, known, errTooNew)
}
