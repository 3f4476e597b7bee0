package barrier

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"

	_ "modernc.org/sqlite" // the driver "sqlite"
)

// Dialect names a kind of database.
type Dialect int

// SQLite keeps DTM's table in the guarded database itself under the name dtm_barrier_barrier: dtm_barrier.barrier would
// be another file attached to the connection, and SQLite in WAL mode does not commit two files in one step.
const SQLite Dialect = 1

// dialect is the SQL of one kind of database. Every statement's first act in a transaction is to lock: fence does, by a
// row lock where there is one; on SQLite the transaction begins immediate (see OpenSQLite), or else fails as busy at its
// first write if another one wrote in between, which is an error like others and leads to a repeat.
type dialect struct {
	schema []string // made in one transaction, each idempotent
	insert string   // trans_type, gid, branch_id, op, barrier_id, reason; affects 0 rows if the key exists
	rows   string   // gid, branch_id, barrier_id -> op, reason
	fence  string   // slot -> epoch, floor_ms, copied
	raise  string   // epoch, slot; never lowers
}

var sqlite = dialect{
	schema: []string{
		`CREATE TABLE IF NOT EXISTS dtm_barrier_barrier (
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
		`CREATE TABLE IF NOT EXISTS lockstep_fence (
			slot INTEGER PRIMARY KEY CHECK (slot BETWEEN 0 AND 1023),
			epoch INTEGER NOT NULL DEFAULT 1 CHECK (epoch >= 1),
			floor_ms INTEGER NOT NULL DEFAULT 0,
			copied INTEGER NOT NULL DEFAULT 0 CHECK (copied IN (0, 1)))`,
		`WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n < 1023)
			INSERT OR IGNORE INTO lockstep_fence (slot) SELECT n FROM s`,
	},
	insert: `INSERT INTO dtm_barrier_barrier (trans_type, gid, branch_id, op, barrier_id, reason) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (gid, branch_id, op, barrier_id) DO NOTHING`,
	rows:  `SELECT op, reason FROM dtm_barrier_barrier WHERE gid = ? AND branch_id = ? AND barrier_id = ?`,
	fence: `SELECT epoch, floor_ms, copied FROM lockstep_fence WHERE slot = ?`,
	raise: `UPDATE lockstep_fence SET epoch = max(epoch, ?) WHERE slot = ?`,
}

func (d Dialect) statements() (*dialect, error) {
	if d == SQLite {
		return &sqlite, nil
	}
	return nil, fmt.Errorf("no barrier for dialect %d", int(d))
}

// Migrate makes the barrier's tables in db and all fence rows at epoch 1. It may run any number of times and in several
// processes at once; rows that are there stay as they are.
func Migrate(ctx context.Context, db *sql.DB, d Dialect) error {
	dialect, err := d.statements()
	if err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("migrate barrier: %w", err)
	}
	defer func() { _ = tx.Rollback() }()
	for _, stmt := range dialect.schema {
		if _, err := tx.ExecContext(ctx, stmt); err != nil {
			return fmt.Errorf("migrate barrier: %w", err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("migrate barrier: %w", err)
	}
	return nil
}

// OpenSQLite opens, or creates, the database in file as a participant needs it: write-ahead log, synced at every commit,
// transactions that take the write lock when they begin, and one connection, so that writers of one process queue in
// order instead of polling the lock; other processes are waited for up to 10 s. The caller closes it.
func OpenSQLite(ctx context.Context, file string) (*sql.DB, error) {
	q := url.Values{"_txlock": {"immediate"}, "_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(ON)"}}
	dsn := url.URL{Scheme: "file", Opaque: (&url.URL{Path: file}).EscapedPath(), RawQuery: q.Encode()}
	db, err := sql.Open("sqlite", dsn.String())
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	db.SetMaxOpenConns(1)
	if err := db.PingContext(ctx); err != nil {
		db.Close()
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	return db, nil
}
