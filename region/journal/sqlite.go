package journal

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
)

var sqliteDialect = &dialect{
	name:      "sqlite",
	insert:    insertSQLite,
	insertIn:  sqliteRows,
	single:    true,
	transient: func(err error) bool { return sqliteCode(err)&0xff == sqlite3.SQLITE_BUSY },
	// SQLite has no code of its own for it.
	noTable: func(err error) bool { return strings.Contains(err.Error(), "no such table") },
	noRight: func(err error) bool {
		c := sqliteCode(err) & 0xff
		return c == sqlite3.SQLITE_READONLY || c == sqlite3.SQLITE_PERM || c == sqlite3.SQLITE_CANTOPEN
	},
	locked: func(ctx context.Context, db *sql.DB, migrate func(querier) error) error {
		tx, err := db.BeginTx(ctx, nil) // immediate: it has the file's write lock
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		if err := migrate(tx); err != nil {
			return err
		}
		return tx.Commit()
	},
	deleteRows: `DELETE FROM lockstep_journal WHERE id IN (SELECT id FROM lockstep_journal
		WHERE body = ? AND finished_at < ?` + keepUnread + ` ORDER BY finished_at LIMIT ?)`,
	empty:    emptySQLite,
	byFinish: " INDEXED BY lockstep_journal_finished",
	byID:     "NOT INDEXED ", // but by rowid
	byKind:   " INDEXED BY lockstep_journal_kind",
}

// sqliteInsert writes one row; the finish of a transaction takes the place of its decision alone.
var sqliteInsert = "INSERT INTO lockstep_journal (" + columns + ") VALUES (?" + strings.Repeat(", ?", len(columnNames)) + ")" +
	" ON CONFLICT (gid) DO UPDATE SET " + setExcluded() +
	" WHERE lockstep_journal.finish_seq IS NULL AND excluded.finish_seq IS NOT NULL"

func setExcluded() string {
	set := make([]string, len(columnNames))
	for i, c := range columnNames {
		set[i] = c + " = excluded." + c
	}
	return strings.Join(set, ", ")
}

func sqliteCode(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}

func (j *Journal) openSQLite(ctx context.Context, a *address) error {
	j.d = sqliteDialect
	if dir := filepath.Dir(a.file); dir != "." {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("journal at %s: %w", a.where, err)
		}
	}
	// The driver would make it readable for everybody. It is never opened here once it exists: closing a descriptor
	// drops all of the process's POSIX locks on the file, those of SQLite included.
	if f, err := os.OpenFile(a.file, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); err == nil {
		f.Close()
	} else if !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("journal at %s: %w", a.where, err)
	}
	pool := func(connections int, options ...string) (*sql.DB, error) {
		q := url.Values{"_txlock": {"immediate"}, "_pragma": append(options, "busy_timeout(5000)")}
		dsn := url.URL{Scheme: "file", Opaque: (&url.URL{Path: a.file}).EscapedPath(), RawQuery: q.Encode()}
		db, err := sql.Open("sqlite", dsn.String())
		if err != nil {
			return nil, err
		}
		db.SetMaxOpenConns(connections)
		db.SetMaxIdleConns(connections)
		return db, nil
	}
	var err error
	// A checkpoint at 16,384 pages (64 MB) writes a page once that was changed in many batches; the log is cut to
	// 128 MB when a long read let it grow.
	if j.write, err = pool(1, "journal_mode(WAL)", "synchronous(FULL)", "wal_autocheckpoint(16384)", "journal_size_limit(134217728)",
		"cache_size(-65536)", "temp_store(MEMORY)"); err != nil {
		return err
	}
	if j.read, err = pool(max(2, runtime.NumCPU()), "query_only(1)", "cache_size(-8192)"); err != nil {
		return err
	}
	// The first switch to WAL takes a lock without waiting for it, so that another process may be in the way.
	err = j.retry(ctx, func(int) error { return j.write.PingContext(ctx) })
	if err != nil {
		return fmt.Errorf("journal at %s cannot be opened: %w", a.where, err)
	}
	return nil
}

func insertSQLite(ctx context.Context, j *Journal, rows []*engine.Row) error {
	tx, err := j.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if err := sqliteRows(ctx, j, tx, rows); err != nil {
		return err
	}
	return tx.Commit()
}

func sqliteRows(ctx context.Context, j *Journal, tx *sql.Tx, rows []*engine.Row) error {
	// A context that can end costs a goroutine per statement: it is looked at between statements instead.
	quiet := context.WithoutCancel(ctx)
	insert := tx.StmtContext(quiet, j.insert)
	args := make([]any, 0, len(columnNames)+1)
	for _, row := range rows {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := insert.ExecContext(quiet, values(args, row)...); err != nil {
			return err
		}
	}
	return nil
}

// emptySQLite deletes rows and inserts them again without bodies. A row that an UPDATE makes shorter (or a REPLACE, which
// does the same) leaves a hole in its page, which no later row can use as ids ascend; a DELETE lets SQLite free the page.
func emptySQLite(ctx context.Context, j *Journal, body int, before int64, limit int) (int64, error) {
	tx, err := j.write.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer func() { _ = tx.Rollback() }()
	const header = "id, gid, slot, mode, phase, begun_at, decided_at, finished_at, decision_seq, decision_epoch, decision_chain, " +
		"finish_seq, finish_epoch, finish_chain"
	var n int64
	for i, step := range []struct {
		stmt string
		args []any
	}{
		{"CREATE TEMP TABLE IF NOT EXISTS emptied AS SELECT " + header + " FROM lockstep_journal WHERE 0", nil},
		{"INSERT INTO temp.emptied SELECT " + header + " FROM main.lockstep_journal WHERE body = ? AND finished_at < ?" + keepUnread + " ORDER BY finished_at LIMIT ?", []any{body, before, limit}},
		{"DELETE FROM main.lockstep_journal WHERE id IN (SELECT id FROM temp.emptied)", nil},
		{"INSERT INTO main.lockstep_journal (body, " + header + ") SELECT 0, " + header + " FROM temp.emptied ORDER BY id", nil},
		{"DELETE FROM temp.emptied", nil},
	} {
		res, err := tx.ExecContext(ctx, step.stmt, step.args...)
		if err != nil {
			return 0, err
		}
		if i == 1 {
			if n, err = res.RowsAffected(); err != nil || n == 0 {
				return 0, err
			}
		}
	}
	return n, tx.Commit()
}
