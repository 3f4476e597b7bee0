package barrier

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"modernc.org/sqlite" // and the driver "sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// sqliteDialect needs no lock of its own: the transaction begins immediate (see OpenSQLite), or else fails as busy at its
// first write if another one wrote in between, which is an error like others and leads to a repeat.
type sqliteDialect struct{ generic }

func (d sqliteDialect) migrate() []string {
	return []string{
		`CREATE TABLE IF NOT EXISTS ` + d.tableName + ` (
			id INTEGER PRIMARY KEY,
			trans_type TEXT NOT NULL DEFAULT '',
			gid TEXT NOT NULL DEFAULT '',
			branch_id TEXT NOT NULL DEFAULT '',
			op TEXT NOT NULL DEFAULT '',
			barrier_id TEXT NOT NULL DEFAULT '',
			reason TEXT NOT NULL DEFAULT '',
			create_time TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
			update_time TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
			CONSTRAINT uniq_barrier UNIQUE (gid, branch_id, op, barrier_id))`,
		`CREATE TABLE IF NOT EXISTS ` + d.fenceName + ` (
			slot INTEGER PRIMARY KEY CHECK (slot BETWEEN 0 AND 1023),
			epoch INTEGER NOT NULL DEFAULT 1 CHECK (epoch >= 1),
			floor_ms INTEGER NOT NULL DEFAULT 0,
			copied INTEGER NOT NULL DEFAULT 0 CHECK (copied IN (0, 1)))`,
		`WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n < 1023)
			INSERT OR IGNORE INTO ` + d.fenceName + ` (slot) SELECT n FROM s`,
	}
}

func (d sqliteDialect) enter(ctx context.Context, tx *sql.Tx, locks []lock, members []member) (*facts, error) {
	return d.enterWith(ctx, tx, locks, members, "INSERT", " ON CONFLICT (gid, branch_id, op, barrier_id) DO NOTHING", func(*member) (bool, error) { return true, nil })
}

func (sqliteDialect) savepoint(ctx context.Context, tx *sql.Tx, stmts string) error {
	return execEach(ctx, tx, stmts)
}

func execEach(ctx context.Context, tx *sql.Tx, stmts string) error {
	for s := range strings.SplitSeq(stmts, ";") {
		if _, err := tx.ExecContext(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func (sqliteDialect) retryable(err error) bool {
	var se *sqlite.Error
	if errors.As(err, &se) {
		code := se.Code() & 0xff
		return code == sqlite3.SQLITE_BUSY || code == sqlite3.SQLITE_LOCKED
	}
	return lostConnection(err)
}

// OpenSQLite opens, or creates, the database in file as a participant needs it: write-ahead log, synced at every commit,
// transactions that take the write lock when they begin, and one connection, so that writers of one process queue in
// order instead of polling the lock; other processes are waited for up to 10 s. The caller closes it.
func OpenSQLite(ctx context.Context, file string) (*sql.DB, error) {
	q := url.Values{"_txlock": {"immediate"}, "_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(" + synced() + ")", "foreign_keys(ON)"}}
	dsn := url.URL{Scheme: "file", Opaque: (&url.URL{Path: file}).EscapedPath(), RawQuery: q.Encode()}
	db, err := sql.Open("sqlite", dsn.String())
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	db.SetMaxOpenConns(1)
	return ready(ctx, db, file)
}
