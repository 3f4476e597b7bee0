package journal

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
)

// migrateLock is the key of the advisory lock under which migrations run: "lockstep" in ASCII.
const migrateLock = 0x6c6f636b73746570

var postgresDialect = &dialect{
	name:     "postgres",
	numbered: true,
	insert:   insertPostgres,
	insertIn: func(ctx context.Context, _ *Journal, tx *sql.Tx, rows []*engine.Row) error {
		return eachChunk(tx, rows, postgresRows(ctx))
	},
	transient: func(err error) bool {
		c := postgresCode(err)
		return c == "40001" || c == "40P01" || c == "55P03" // serialization, deadlock, lock not available
	},
	noTable: func(err error) bool { return postgresCode(err) == "42P01" },
	noRight: func(err error) bool {
		c := postgresCode(err)
		return c == "42501" || c == "25006" // insufficient privilege, read-only
	},
	locked: func(ctx context.Context, db *sql.DB, migrate func(querier) error) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock($1)", int64(migrateLock)); err != nil {
			return err
		}
		if err := migrate(tx); err != nil {
			return err
		}
		return tx.Commit()
	},
	// Rows that another coordinator is trimming are its business.
	deleteRows: `DELETE FROM lockstep_journal WHERE id = ANY(ARRAY(SELECT id FROM lockstep_journal
		WHERE body = $1 AND finished_at < $2` + keepUnread + ` ORDER BY finished_at LIMIT $3 FOR UPDATE SKIP LOCKED))`,
	empty: emptyBy(`UPDATE lockstep_journal SET body = 0, closed = NULL, progress = NULL WHERE id = ANY(ARRAY(SELECT id FROM lockstep_journal
		WHERE body = $1 AND finished_at < $2` + keepUnread + ` ORDER BY finished_at LIMIT $3 FOR UPDATE SKIP LOCKED))`),
}

func postgresCode(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func (j *Journal) openPostgres(ctx context.Context, a *address) error {
	j.d = postgresDialect
	db := stdlib.OpenDB(*a.postgres, stdlib.OptionAfterConnect(func(ctx context.Context, c *pgx.Conn) error {
		if a.asServer {
			return nil
		}
		_, err := c.Exec(ctx, "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'")
		return err
	}))
	usual(db)
	j.write, j.read = db, db
	var fsync string
	if err := db.QueryRowContext(ctx, "SELECT current_setting('fsync')").Scan(&fsync); err != nil {
		return fmt.Errorf("journal at %s cannot be opened: %w", a.where, err)
	}
	if fsync == "off" && !a.asServer {
		return fmt.Errorf("journal at %s: the server runs with fsync=off and would lose decided transactions in a crash; switch it on, or add durability=server to the URL to accept that", a.where)
	}
	return nil
}

// usual sizes a pool: the journal's work is a few statements at a time.
func usual(db *sql.DB) {
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(4)
	db.SetConnMaxIdleTime(5 * time.Minute)
}

// postgresInsert takes a batch as one array per column: one short statement whatever the number of rows.
var postgresInsert = `INSERT INTO lockstep_journal (` + columns + `)
	SELECT gid, slot, mode, phase, begun_at, decided_at, CASE WHEN finish_seq <> 0 THEN finished_at END,
		decision_seq, decision_epoch, decision_chain,
		nullif(finish_seq, 0), CASE WHEN finish_seq <> 0 THEN finish_epoch END, finish_chain, closed, progress
	FROM unnest($1::bytea[], $2::int[], $3::smallint[], $4::smallint[], $5::bigint[], $6::bigint[], $7::bigint[],
		$8::bigint[], $9::bigint[], $10::bytea[], $11::bigint[], $12::bigint[], $13::bytea[], $14::bytea[], $15::bytea[])
		WITH ORDINALITY AS r (` + columns + `, n)
	ORDER BY n
	ON CONFLICT (gid) DO UPDATE SET ` + setExcluded() + `
	WHERE lockstep_journal.finish_seq IS NULL AND excluded.finish_seq IS NOT NULL`

func insertPostgres(ctx context.Context, j *Journal, rows []*engine.Row) error {
	return inChunks(ctx, j.write, rows, postgresRows(ctx))
}

func postgresRows(ctx context.Context) func(querier, []*engine.Row) error {
	return func(q querier, rows []*engine.Row) error {
		n := len(rows)
		var (
			bytes [5][][]byte
			slots = make([]int32, n)
			small [2][]int16
			big   [7][]int64
		)
		for i := range bytes {
			bytes[i] = make([][]byte, n)
		}
		for i := range small {
			small[i] = make([]int16, n)
		}
		for i := range big {
			big[i] = make([]int64, n)
		}
		for i, r := range rows {
			bytes[0][i], bytes[1][i], bytes[2][i], bytes[3][i], bytes[4][i] = []byte(r.Gid), chainOf(&r.Decision), chainOf(&r.Finish), r.Closed, r.Progress
			slots[i] = int32(r.Slot)
			small[0][i], small[1][i] = int16(r.Mode), int16(r.Phase)
			big[0][i], big[1][i], big[2][i] = r.BegunAt, r.DecidedAt, r.FinishedAt
			big[3][i], big[4][i] = int64(r.Decision.Seq), int64(r.DecisionEpoch)
			big[5][i], big[6][i] = int64(r.Finish.Seq), int64(r.FinishEpoch)
		}
		_, err := q.ExecContext(ctx, postgresInsert, bytes[0], slots, small[0], small[1], big[0], big[1], big[2],
			big[3], big[4], bytes[1], big[5], big[6], bytes[2], bytes[3], bytes[4])
		return err
	}
}

// Bounds of one statement to a server. Below MySQL's usual max_allowed_packet of 16 MB also when every byte is escaped.
const (
	statementRows  = 1000
	statementBytes = 4 << 20
)

// inChunks hands the rows to insert in statements of bounded size: one alone, several in a transaction.
func inChunks(ctx context.Context, db *sql.DB, rows []*engine.Row, insert func(querier, []*engine.Row) error) error {
	if chunkOf(rows) == len(rows) {
		return insert(db, rows)
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if err := eachChunk(tx, rows, insert); err != nil {
		return err
	}
	return tx.Commit()
}

func eachChunk(q querier, rows []*engine.Row, insert func(querier, []*engine.Row) error) error {
	for len(rows) > 0 {
		n := chunkOf(rows)
		if err := insert(q, rows[:n]); err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

// chunkOf is how many of the rows one statement takes.
func chunkOf(rows []*engine.Row) int {
	size := 0
	for i, r := range rows {
		size += len(r.Closed) + len(r.Progress)
		if i == statementRows || (i > 0 && size > statementBytes) {
			return i
		}
	}
	return len(rows)
}
